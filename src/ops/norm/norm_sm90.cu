/*
 * norm_sm90.cu - RMSNorm, one CTA a row. A row is read twice; the second time it comes from L1. The sum of
 * squares is one fixed tree over the CTA's threads, so a row's bits depend on the row alone.
 */
#include "ops/common/element.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/norm/norm.h"

enum { N_THREADS = 256 };

template <int dtype_number>
static __global__ void __launch_bounds__(N_THREADS) rms_norm(mb_rms_norm_args args) {
    constexpr mb_dtype dtype = (mb_dtype)dtype_number;
    __shared__ float scratch[N_THREADS / 32];
    mb_grid_launch_dependents(); /* the next kernel may ask for its weights */
    mb_grid_wait();
    const int64_t row = blockIdx.x, source = args.rows ? args.rows[row] : row, hidden = args.hidden;
    float sum = 0;
    for (int32_t i = threadIdx.x; i < args.hidden; i += N_THREADS) {
        const float value = mb_element_load(dtype, args.x, source * hidden + i);
        sum = fmaf(value, value, sum);
    }
    sum = mb_cta_sum<N_THREADS>(sum, scratch);
    const float scale = 1.0f / sqrtf(sum / (float)args.hidden + args.eps);
    for (int32_t i = threadIdx.x; i < args.hidden; i += N_THREADS) {
        const float value = mb_element_load(dtype, args.x, source * hidden + i) * scale;
        const float weight = mb_element_load(args.weight.dtype, args.weight.data, i);
        mb_element_store(dtype, args.out, row * hidden + i, mb_element_round(dtype, value) * weight);
    }
}

mb_status mb_rms_norm_sm90(const mb_rms_norm_args *args, mb_stream stream) {
    MB_TRY(mb_rms_norm_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    const dim3 grid((unsigned)args->n_rows);
    const auto kernel = args->dtype == MB_BF16  ? rms_norm<MB_BF16>
                        : args->dtype == MB_F16 ? rms_norm<MB_F16>
                                                : rms_norm<MB_F32>;
    return mb_launch("rms_norm", kernel, grid, N_THREADS, 0, stream, args);
}
