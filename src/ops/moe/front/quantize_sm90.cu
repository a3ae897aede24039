/* quantize_sm90.cu - rows of 16 bits to fp8, alone. quantize.cuh has the work. */
#include "base/status.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/front/quantize.cuh"

enum { QUANTIZE_THREADS = 256 };

static __global__ void __launch_bounds__(QUANTIZE_THREADS)
    quantize(const __grid_constant__ quantize_params params) {
    mb_grid_launch_dependents();
    mb_grid_wait();
    const uint32_t n_warps = gridDim.x * (QUANTIZE_THREADS / 32);
    quantize_units(&params, blockIdx.x * (QUANTIZE_THREADS / 32) + threadIdx.x / 32, n_warps);
}

mb_status mb_moe_quantize_prepare(const mb_moe_quantize_args *args, quantize_params *params) {
    *params = quantize_params();
    if (args->dtype != MB_BF16 && args->dtype != MB_F16)
        return mb_fail(MB_ERR_ARGUMENT, "moe_quantize: dtype is %s (%d), not bf16 or fp16",
                       mb_dtype_name(args->dtype), (int)args->dtype);
    if (args->n_tokens < 0 || args->hidden < 8 || args->hidden % 8 != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "moe_quantize: n_tokens is %lld, hidden %d; hidden must be a multiple of 8, 8 at least",
            (long long)args->n_tokens, args->hidden);
    const int64_t units_per_row = (args->hidden + UNIT_COLUMNS - 1) / UNIT_COLUMNS;
    if (args->n_tokens > INT32_MAX / units_per_row)
        return mb_fail(MB_ERR_ARGUMENT,
                       "moe_quantize: %lld tokens of %d columns are 2^31 blocks of 128 columns or more",
                       (long long)args->n_tokens, args->hidden);
    if (args->n_tokens > 0 && (!args->x || !args->out || !args->scale))
        return mb_fail(MB_ERR_ARGUMENT, "moe_quantize: x, out or scale is NULL");
    if (((uintptr_t)args->x | (uintptr_t)args->out) % 16)
        return mb_fail(MB_ERR_ARGUMENT, "moe_quantize: x and out must be 16-byte aligned");
    params->x = args->x;
    params->out = args->out;
    params->scale = args->scale;
    params->n_units = (uint32_t)(args->n_tokens * units_per_row);
    params->units_per_row = args->hidden % UNIT_COLUMNS == 0 ? 0 : (uint32_t)units_per_row;
    params->hidden = args->hidden;
    params->per_tensor = args->per_tensor;
    params->is_f16 = args->dtype == MB_F16;
    return MB_OK;
}

extern "C" mb_status mb_moe_quantize_sm90(const mb_moe_quantize_args *args, mb_stream stream) {
    quantize_params params;
    MB_TRY(mb_moe_quantize_prepare(args, &params));
    if (params.n_units == 0)
        return MB_OK;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3(quantize_ctas(&params, QUANTIZE_THREADS)), QUANTIZE_THREADS, 0,
                     stream);
    const cudaError_t error = cudaLaunchKernelEx(&config, quantize, params);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_quantize: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
