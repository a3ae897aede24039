/*
 * few_sm90.cu - the dense layer of up to 64 rows of x, in one launch: a stream of the weights.
 *
 * The weight's rows are cut so that every SM has some, 8 to 64 of them (few_plan.c). A CTA requests as much
 * of its share as shared memory holds, all of it for Qwen3-30B-A3B's qkv and o up to 8 tokens, before it
 * waits for the kernels in front: they do not write weights. Then x, which is in L2. Three roles:
 *
 *   weights     one thread: tile_rows x 128 bytes a step along K, 2 or 4 steps a stage
 *   x           one thread: padded_tokens x 128 bytes a step. Where the CTA norms or quantises x there is
 *               no such role: eight warps make all of x at the start (few_prepare.cuh)
 *                 | full[stage]                                  empty[stage] ^
 *   consumers   a warpgroup: 64 weight rows (wgmma's M) times the tokens (its N); then bias, residual, store
 *
 * With fp8 and up to 4 rows of x both warpgroups that make x are consumers: few_groups.cuh.
 *
 * Of the 64 rows tile_rows are the CTA's. The others are what lies behind them in shared memory, and their
 * sums are not used: rows of a product do not touch each other. Likewise the tokens up to padded_tokens.
 *
 * The bits are those of the grouped GEMM (ops/moe/experts): an output is one sum along K in steps of 128
 * bytes, of four wgmma each. With fp8 a step's sum starts at 0; times both scales it is added in fp32. The
 * bias is added to the sum, then the residual, then all is rounded once.
 */
#include "ops/common/element.cuh"
#include "ops/gemm/few_groups.cuh"
#include "ops/gemm/few_load.cuh"
#include "ops/gemm/few_multiply.cuh"
#include "ops/gemm/few_prepare.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/tensor_map.cuh"

/* ---- Epilogue */

/* A thread's two rows of the tile, lane / 4 and + 8 of its warp's 16. */
typedef struct thread_outputs {
    int32_t index[2]; /* outputs */
    int32_t valid[2];
} thread_outputs;

static __device__ __forceinline__ thread_outputs outputs_of(const few_params *p, int32_t tile) {
    thread_outputs o;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int32_t row = (int32_t)threadIdx.x / 32 * 16 + (int32_t)threadIdx.x % 32 / 4 + 8 * half;
        o.index[half] = tile * p->plan.tile_rows + row;
        o.valid[half] = row < p->plan.tile_rows && o.index[half] < p->n_outputs;
    }
    return o;
}

/* Which token, and which of the thread's two rows, accumulator i is. */
static __device__ __forceinline__ int32_t token_of(int i) {
    return i / 4 * 8 + (int32_t)threadIdx.x % 4 * 2 + i % 2;
}
static __device__ __forceinline__ int half_of(int i) {
    return i / 2 % 2;
}

template <int n, int dtype>
static __device__ __forceinline__ void load_residual_of(const few_params *p, const thread_outputs *o,
                                                        float (&residual)[n / 2]) {
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        if (o->valid[half_of(i)] && token_of(i) < p->n_tokens)
            residual[i] = mb_element_load((mb_dtype)dtype, p->residual,
                                          token_of(i) * p->n_outputs + o->index[half_of(i)]);
}

/* Where there is none it is -0, which added to anything leaves its bits. */
template <int n>
static __device__ __forceinline__ void load_residual(const few_params *p, const thread_outputs *o,
                                                     float (&residual)[n / 2]) {
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        residual[i] = -0.0f;
    if (!p->residual)
        return;
    if (p->out_dtype == MB_BF16)
        load_residual_of<n, MB_BF16>(p, o, residual);
    else if (p->out_dtype == MB_F16)
        load_residual_of<n, MB_F16>(p, o, residual);
    else
        load_residual_of<n, MB_F32>(p, o, residual);
}

template <int n, int dtype>
static __device__ __forceinline__ void store_as(const few_params *p, const thread_outputs *o,
                                                const float (&value)[n / 2]) {
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        if (o->valid[half_of(i)] && token_of(i) < p->n_tokens)
            mb_element_store((mb_dtype)dtype, p->out, token_of(i) * p->n_outputs + o->index[half_of(i)],
                             value[i]);
}

template <int n>
static __device__ __forceinline__ void store(const few_params *p, const thread_outputs *o,
                                             const float (&value)[n / 2]) {
    if (p->out_dtype == MB_BF16)
        store_as<n, MB_BF16>(p, o, value);
    else if (p->out_dtype == MB_F16)
        store_as<n, MB_F16>(p, o, value);
    else
        store_as<n, MB_F32>(p, o, value);
}

template <int type, int n>
static __device__ __forceinline__ void consume(const few_params *p, const few_shared *s) {
    const mb_few_plan *plan = &p->plan;
    const int32_t n_rounds =
        (plan->n_tiles - (int32_t)blockIdx.x + (int32_t)gridDim.x - 1) / (int32_t)gridDim.x;
    const int32_t stages_of_tile = (plan->n_steps + stage_steps<n> - 1) / stage_steps<n>;
    consumer c = {{0, 0}, 0, n_rounds * stages_of_tile - plan->n_stages};
#pragma unroll 1
    for (int32_t tile = (int32_t)blockIdx.x; tile < plan->n_tiles; tile += (int32_t)gridDim.x) {
        const thread_outputs o = outputs_of(p, tile);
        float sum[n / 2], residual[n / 2], bias[2] = {0, 0};
        load_residual<n>(p, &o, residual); /* they arrive while the wgmma run */
        if (p->bias)
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (o.valid[half])
                    bias[half] = mb_element_load(p->bias_dtype, p->bias, o.index[half]);
#pragma unroll
        for (int i = 0; i < n / 2; i++)
            sum[i] = 0;
        if constexpr (type == MB_WGMMA_E4M3)
            multiply_scaled<n>(p, s, &c, scales_of(p, o.index[0]), scales_of(p, o.index[1]), sum);
        else
            multiply<type, n>(p, s, &c, sum);
#pragma unroll
        for (int i = 0; i < n / 2; i++)
            sum[i] = sum[i] + bias[half_of(i)] + residual[i];
        store<n>(p, &o, sum);
    }
}

/* ---- The kernel */

template <int type, int n, int mode>
static __global__ void __launch_bounds__(n_threads<mode>, 1) few(const __grid_constant__ few_params p) {
    mb_grid_launch_dependents();
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    const few_shared s = shared_of(&p.plan, mb_kept_pointer(shared_bytes));
    const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    if (warp == weights_warp<mode>)
        init_barriers(&p.plan, &s);
    __syncthreads();

    if (warp == weights_warp<mode>) {
        if (threadIdx.x % 32 == 0)
            stream_weights<type, n>(&p, &s);
        return;
    }
    if constexpr (type == MB_WGMMA_E4M3 && mode != X_GROUPED)
        if (warp < CONSUMER_WARPS) { /* scales are weights too */
            const thread_outputs o = outputs_of(&p, (int32_t)blockIdx.x);
            mb_prefetch_l2(scales_of(&p, o.index[0]));
            mb_prefetch_l2(scales_of(&p, o.index[1]));
        }
    if constexpr (mode != X_STREAMED) {
        group_consumer c;
        if (p.plan.norms)
            request_norm_weight(&p, &s, warp);
        if constexpr (mode == X_GROUPED) {
            request_row_scales(&p, &s);
            c = group_consumer_of(&p, &s, warp / CONSUMER_WARPS);
        }
        make_x<type, n, mode>(&p, &s, warp); /* it waits for the kernels in front */
        if constexpr (mode == X_GROUPED) {
            request_residual(&p, &c);
            consume_groups(&p, &c, warp / CONSUMER_WARPS);
            return;
        }
        mb_named_barrier_sync(SCALES_BARRIER, X_THREADS);
        if (warp < CONSUMER_WARPS)
            consume<type, n>(&p, &s);
        return;
    }
    mb_grid_wait();
    if (warp == X_WARP) {
        if (threadIdx.x % 32 == 0)
            stream_x<type, n>(&p, &s);
    } else {
        if constexpr (type == MB_WGMMA_E4M3)
            copy_scales<n>(&p, &s);
        /* (16 bits need no barrier. It tells ptxas that a warp's lanes are together.) */
        mb_named_barrier_sync(SCALES_BARRIER, CONSUMER_THREADS);
        consume<type, n>(&p, &s);
    }
}

/* ---- Launch */

template <int type, int n, int mode> static mb_status launch(const few_params *params, mb_stream stream) {
    const mb_few_plan *plan = &params->plan;
    const auto kernel = few<type, n, mode>;
    /* The most that any call needs: calls of other threads set it too. */
    MB_TRY(mb_launch_shared_bytes("gemm", kernel, MB_FEW_SHARED_BYTES));
    return mb_launch("gemm", kernel, dim3((unsigned)plan->n_ctas), n_threads<mode>,
                     (size_t)plan->shared_bytes, stream, params);
}

template <int type> static mb_status launch_padded(const few_params *params, mb_stream stream) {
    switch (params->plan.padded_tokens) {
    case 8:
        if constexpr (type == MB_WGMMA_E4M3)
            if (params->plan.group_steps)
                return launch<type, 8, X_GROUPED>(params, stream);
        return params->plan.keeps_x ? launch<type, 8, X_KEPT>(params, stream)
                                    : launch<type, 8, X_STREAMED>(params, stream);
    case 16:
        return launch<type, 16, X_STREAMED>(params, stream);
    case 32:
        return launch<type, 32, X_STREAMED>(params, stream);
    default:
        return launch<type, 64, X_STREAMED>(params, stream);
    }
}

/* Boxes of copy_steps x box_rows x STEP_BYTES of a matrix [rows, cols]. For several steps a row is seen as
 * [steps, STEP_BYTES], steps being the third dimension. */
static mb_status encode_matrix(CUtensorMap *map, mb_dtype dtype, const void *data, int64_t rows, int64_t cols,
                               int32_t box_rows, int32_t copy_steps) {
    const cuuint64_t row_bytes = mb_dtype_row_bytes(dtype, cols), all = (cuuint64_t)rows * row_bytes;
    const cuuint64_t step = STEP_BYTES / mb_dtype_row_bytes(dtype, 1), in_steps = copy_steps > 1;
    const cuuint64_t sizes[5] = {in_steps ? step : (cuuint64_t)cols, (cuuint64_t)rows,
                                 in_steps ? (cuuint64_t)cols / step : 1, 1, 1};
    const cuuint64_t strides[4] = {row_bytes, in_steps ? STEP_BYTES : all, all, all};
    const cuuint32_t box[5] = {(cuuint32_t)step, (cuuint32_t)box_rows, (cuuint32_t)copy_steps, 1, 1};
    return mb_encode_tensor_map("gemm", map, dtype, data, sizes, strides, box);
}

mb_status mb_few_sm90(const mb_gemm_args *args, const mb_few_plan *plan, const void *x8, const float *x_scale,
                      mb_stream stream) {
    const mb_weight *weight = &args->weight;
    if (((uintptr_t)args->x | (uintptr_t)weight->data | (uintptr_t)args->out) % 16 != 0)
        return mb_fail(MB_ERR_ARGUMENT, "gemm: x, weight and out must be 16-byte aligned");
    few_params p = {};
    p.plan = *plan;
    p.n_tokens = (int32_t)args->n_tokens;
    p.n_outputs = (int32_t)weight->rows;
    p.k_size = (int32_t)weight->cols;
    p.bias = args->bias;
    p.residual = args->residual;
    p.out = args->out;
    p.out_dtype = args->out_dtype;
    p.bias_dtype = args->bias_dtype;
    p.is_f16 = args->dtype == MB_F16;
    p.x_16bit = args->x;
    p.rows = args->norm_rows;
    p.norm_weight = args->norm_weight.data;
    p.norm_is_f16 = args->norm_weight.dtype == MB_F16;
    p.eps = args->eps;
    if (plan->sum_offset) {
        const mb_moe_reduce_args *sum = args->x_sum;
        p.sum = {sum->y, sum->residual, sum->out, sum->weights, sum->token_row, sum->top_k};
    }
    p.x_scale = x_scale;
    p.w_scale = (const float *)weight->scale;
    while (weight->scale_rows >> (p.scale_shift + 1) > 0) /* a divisor of 128 */
        p.scale_shift++;
    MB_TRY(encode_matrix(&p.weights, weight->dtype, weight->data, weight->rows, weight->cols, plan->tile_rows,
                         plan->copy_steps));
    if (!plan->keeps_x)
        MB_TRY(encode_matrix(&p.x, weight->dtype, weight->dtype == MB_F8_E4M3 ? x8 : args->x, args->n_tokens,
                             weight->cols, plan->padded_tokens, plan->copy_steps));
    return weight->dtype == MB_BF16  ? launch_padded<MB_WGMMA_BF16>(&p, stream)
           : weight->dtype == MB_F16 ? launch_padded<MB_WGMMA_F16>(&p, stream)
                                     : launch_padded<MB_WGMMA_E4M3>(&p, stream);
}
