/* route_sm90.cu - the router alone: a warp takes a token after the other. route.cuh has the work. */
#include "base/status.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/arguments.h"
#include "ops/moe/front/route.cuh"
#include "ops/moe/moe_sm90.h"

enum { ROUTE_WARPS = 4, ROUTE_CTAS_PER_SM = 12 };

template <int experts_per_lane>
static __global__ void __launch_bounds__(ROUTE_WARPS * 32)
    route(const __grid_constant__ mb_moe_route_args args) {
    mb_grid_launch_dependents();
    mb_grid_wait();
    route_tokens<experts_per_lane>(&args, blockIdx.x * ROUTE_WARPS + threadIdx.x / 32,
                                   gridDim.x * ROUTE_WARPS, NULL);
}

extern "C" mb_status mb_moe_route_sm90(const mb_moe_route_args *args, mb_stream stream) {
    MB_TRY(mb_moe_route_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    const int64_t wanted = (args->n_tokens + ROUTE_WARPS - 1) / ROUTE_WARPS;
    const int64_t most = ROUTE_CTAS_PER_SM * mb_n_processors();
    void (*kernel)(mb_moe_route_args) = args->n_experts <= 128   ? route<4>
                                        : args->n_experts <= 256 ? route<8>
                                        : args->n_experts <= 512 ? route<16>
                                                                 : route<32>;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3((unsigned)(wanted < most ? wanted : most)), ROUTE_WARPS * 32,
                     0, stream);
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, *args);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_route: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
