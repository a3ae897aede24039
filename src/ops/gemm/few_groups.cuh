/*
 * few_groups.cuh - the consumers' product of fp8 with block scales for up to 4 tokens: the products of several
 * steps along K at once.
 *
 * A step's product begins at 0, and only the sum of the products times their scales has an order. A wgmma has
 * 64 rows and 8 columns. The CTA's tile_rows are fewer than 64, and the rows of the next steps lie behind them
 * in shared memory; the columns are steps x tokens. So one chain of four wgmma multiplies the rows of several
 * steps with all of these steps of x. Of what it makes each row wants the columns of its own step.
 *
 *   group        8, 4 or 2 steps of 1, 2 or up to 4 tokens: 8 lines of x, as many times tile_rows of weights
 *   block        64 lines of a group's weights; the two warpgroups have the blocks in turns
 *   products     all that the blocks have made, in shared memory: for each column the group's lines
 *   promotion    a thread an output: sum += product * (scale of x * scale of the weight), in the order of K
 *
 * Only where all of the CTA's weights are in shared memory at once. For o of Qwen3-30B-A3B at one token that
 * is 32 wgmma in place of 128, of 16 clocks of shared memory's time each, and no wait between steps.
 */
#ifndef MB_OPS_GEMM_FEW_GROUPS_CUH
#define MB_OPS_GEMM_FEW_GROUPS_CUH

#include "ops/common/element.cuh"
#include "ops/gemm/few_multiply.cuh"
#include "ops/hopper/cp_async.cuh"

enum { PRODUCTS_BARRIER = 2 };

static_assert(MB_FEW_TILE_ROWS * MB_FEW_GROUP_TOKENS <= X_THREADS, "a thread has one output");

/* The scales of the tile's rows, by all threads that make x. They are weights: older than the kernels in
 * front. They have landed behind mb_cp_async_wait<0>. */
static __device__ __forceinline__ void request_row_scales(const few_params *p, const few_shared *s) {
    const mb_few_plan *plan = &p->plan;
#pragma unroll 1
    for (int32_t row = (int32_t)threadIdx.x / 32; row < plan->tile_rows; row += WARPS_OF_X) {
        const float *from = scales_of(p, (int32_t)blockIdx.x * plan->tile_rows + row);
        const uint32_t to = mb_shared_address(s->row_scale + row * plan->step_stride);
        for (int32_t step = (int32_t)threadIdx.x % 32; step < plan->n_steps; step += 32)
            mb_cp_async_4(to + (uint32_t)(step * (int)sizeof(float)), from + step);
    }
    mb_cp_async_commit();
}

/* ---- What a thread knows before x is there */

/* Where the groups begin. */
typedef struct group_origin {
    operands from;
    uint32_t products; /* in shared memory: this thread's first of the first block */
} group_origin;

enum { BLOCKS_AT_ONCE = 2 };

/* A warpgroup's next blocks, every second one. */
typedef struct group_blocks {
    operands from[BLOCKS_AT_ONCE];
    uint32_t products[BLOCKS_AT_ONCE]; /* where this thread's first one goes */
    uint32_t stage;                    /* the last one that has weights of them */
} group_blocks;

static __device__ __forceinline__ group_blocks blocks_from(const mb_few_plan *plan, group_origin origin,
                                                           int32_t first) {
    group_blocks b;
    int32_t last_step = 0;
#pragma unroll
    for (int i = 0; i < BLOCKS_AT_ONCE; i++) {
        const int32_t block = min(first + 2 * i, plan->n_blocks - 1);
        const int32_t group = MB_FEW_QUOTIENT(block, plan->by_group_blocks),
                      row = (block - group * plan->group_blocks) * MB_FEW_TILE_ROWS;
        b.from[i].weights = origin.from.weights +
                            (uint32_t)(group * plan->group_steps * plan->tile_rows + row) * (STEP_BYTES / 16);
        b.from[i].x = origin.from.x + (uint32_t)group * (MB_FEW_COLUMNS * STEP_BYTES / 16);
        b.products[i] =
            origin.products + (uint32_t)(group * (MB_FEW_COLUMNS * MB_FEW_COLUMN_STRIDE(plan)) + row) * 4;
        last_step =
            group * plan->group_steps +
            min(MB_FEW_QUOTIENT(row + MB_FEW_TILE_ROWS - 1, plan->by_tile_rows), plan->group_steps - 1);
    }
    b.stage = (uint32_t)min(last_step, plan->n_steps - 1) / stage_steps<MB_FEW_COLUMNS>;
    return b;
}

typedef struct group_consumer {
    group_origin origin;
    group_blocks first;
    unsigned char *full; /* the barrier of the stage whose number is the lane's */
    uint32_t lane;
    /* One of the tile's outputs: where in shared memory its scales and its first product are; where in out. */
    uint32_t row_scale, x_scale, first_product, output;
    uint32_t is_mine;
    float bias;
    uint16_t residual_16; /* not looked at before the sum is there */
    float residual_32;
} group_consumer;

static __device__ __forceinline__ group_consumer group_consumer_of(const few_params *p, const few_shared *s,
                                                                   int warpgroup) {
    const mb_few_plan *plan = &p->plan;
    const uint32_t thread = threadIdx.x, lane = thread % 32;
    const int32_t token = MB_FEW_QUOTIENT(thread, plan->by_tile_rows),
                  row = (int32_t)thread - token * plan->tile_rows,
                  output = (int32_t)blockIdx.x * plan->tile_rows + row, column = MB_FEW_COLUMN_STRIDE(plan);
    group_consumer c = {};
    c.origin.from.weights = mb_kept((uint32_t)mb_wgmma_descriptor(mb_shared_address(s->weights)));
    c.origin.from.x = mb_kept((uint32_t)mb_wgmma_descriptor(mb_shared_address(s->x)));
    c.origin.products = mb_kept(mb_shared_address(s->products + lane % 4 * 2 * (uint32_t)column +
                                                  thread / 32 % CONSUMER_WARPS * 16 + lane / 4));
    c.first = blocks_from(plan, c.origin, warpgroup);
    c.full = mb_kept_pointer((unsigned char *)(s->full + lane));
    c.lane = mb_kept(lane);
    c.row_scale = mb_kept(mb_shared_address(s->row_scale + row * plan->step_stride));
    c.x_scale = mb_kept(mb_shared_address(s->x_scale + token * plan->step_stride));
    c.first_product = mb_kept(mb_shared_address(s->products + token * column + row));
    c.output = mb_kept((uint32_t)(token * p->n_outputs + output));
    c.is_mine = mb_kept(token < p->n_tokens && output < p->n_outputs);
    if (p->bias && c.is_mine)
        c.bias = mb_element_load(p->bias_dtype, p->bias, output);
    mb_known_here(c.first.from[0].weights | c.first.from[1].weights | c.first.from[0].x | c.first.from[1].x |
                  c.first.products[0] | c.first.products[1] | c.first.stage | c.row_scale | c.x_scale |
                  c.first_product | c.output);
    return c;
}

/* Behind the wait for the kernels in front. */
static __device__ __forceinline__ void request_residual(const few_params *p, group_consumer *c) {
    if (!p->residual || !c->is_mine)
        return;
    if (p->out_dtype == MB_F32)
        c->residual_32 = ((const float *)p->residual)[c->output];
    else
        c->residual_16 = ((const uint16_t *)p->residual)[c->output];
}

/* Where there is none it is -0, which added to anything leaves its bits. */
static __device__ __forceinline__ float residual_of(const few_params *p, const group_consumer *c) {
    return !p->residual              ? -0.0f
           : p->out_dtype == MB_F32  ? c->residual_32
           : p->out_dtype == MB_BF16 ? __uint_as_float((uint32_t)c->residual_16 << 16)
                                     : __half2float(__ushort_as_half(c->residual_16));
}

/* Each stage up to that one is waited for by a lane. */
static __device__ __forceinline__ void wait_weights(const group_consumer *c, uint32_t stage) {
    if (c->lane <= stage)
        mb_mbarrier_wait((uint64_t *)c->full, 0);
    __syncwarp();
}

/* All are started, then their products stored. */
template <int n_blocks>
static __device__ __forceinline__ void multiply_blocks(const few_params *p, const group_blocks *b) {
    const uint32_t column = (uint32_t)MB_FEW_COLUMN_STRIDE(&p->plan) * (uint32_t)sizeof(float),
                   eight_rows = 8 * (uint32_t)sizeof(float);
    float product[n_blocks][4];
#pragma unroll
    for (int i = 0; i < n_blocks; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            product[i][j] = 0;
        mb_wgmma_pin(product[i]);
    }
    mb_wgmma_fence();
#pragma unroll
    for (int i = 0; i < n_blocks; i++) {
        multiply_step<MB_WGMMA_E4M3, MB_FEW_COLUMNS, 1>(b->from[i], product[i]);
        mb_wgmma_commit();
    }
#pragma unroll
    for (int i = 0; i < n_blocks; i++) {
        wait_for_step<n_blocks>(i);
        mb_wgmma_pin(product[i]);
        mb_store_shared_4(b->products[i], product[i][0]);
        mb_store_shared_4(b->products[i] + column, product[i][1]);
        mb_store_shared_4(b->products[i] + eight_rows, product[i][2]);
        mb_store_shared_4(b->products[i] + column + eight_rows, product[i][3]);
    }
}

/* ---- Promotion */

static __device__ __forceinline__ void load_four(uint32_t from_shared, float *v) {
    const uint4 bits = mb_load_shared_16(from_shared);
    v[0] = __uint_as_float(bits.x);
    v[1] = __uint_as_float(bits.y);
    v[2] = __uint_as_float(bits.z);
    v[3] = __uint_as_float(bits.w);
}

/* Bytes from a step's products to those of the next step in the group, and from a group's to the next's. */
typedef struct product_strides {
    uint32_t step, group;
} product_strides;

template <int group_steps>
static __device__ __forceinline__ uint32_t product_at(product_strides by, uint32_t step) {
    return step / group_steps * by.group + step % group_steps * by.step;
}

/* n steps from `first` on. Either is 1, or both are multiples of 4. */
template <int group_steps, int n>
static __device__ __forceinline__ void promote_steps(const group_consumer *c, product_strides by,
                                                     uint32_t first, float *sum) {
    float product[n], x[n], w[n];
    const uint32_t from = c->first_product + product_at<group_steps>(by, first), at = first * 4;
#pragma unroll
    for (int i = 0; i < n; i++)
        product[i] = mb_load_shared_4(from + product_at<group_steps>(by, (uint32_t)i));
    if constexpr (n == 1) {
        x[0] = mb_load_shared_4(c->x_scale + at);
        w[0] = mb_load_shared_4(c->row_scale + at);
    } else {
#pragma unroll
        for (int i = 0; i < n; i += 4) {
            load_four(c->x_scale + at + 4 * (uint32_t)i, &x[i]);
            load_four(c->row_scale + at + 4 * (uint32_t)i, &w[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < n; i++)
        *sum = __fmaf_rn(product[i], __fmul_rn(x[i], w[i]), *sum);
}

/* The output's sum over all steps. */
template <int group_steps>
static __device__ __forceinline__ float promoted(const mb_few_plan *plan, const group_consumer *c) {
    const uint32_t column = (uint32_t)MB_FEW_COLUMN_STRIDE(plan), n_steps = (uint32_t)plan->n_steps;
    const product_strides by = {4 * (MB_FEW_COLUMNS / group_steps * column + (uint32_t)plan->tile_rows),
                                4 * MB_FEW_COLUMNS * column};
    float sum = 0;
    uint32_t step = 0;
#pragma unroll 1
    for (; step + 16 <= n_steps; step += 16)
        promote_steps<group_steps, 16>(c, by, step, &sum);
#pragma unroll 1
    for (; step + 4 <= n_steps; step += 4)
        promote_steps<group_steps, 4>(c, by, step, &sum);
#pragma unroll 1
    for (; step < n_steps; step++)
        promote_steps<group_steps, 1>(c, by, step, &sum);
    return sum;
}

/* By the threads that make x, when each has made its part. */
static __device__ __forceinline__ void consume_groups(const few_params *p, const group_consumer *c,
                                                      int warpgroup) {
    const int32_t n_blocks = p->plan.n_blocks;
    group_blocks b = c->first;
    mb_named_barrier_sync(SCALES_BARRIER, X_THREADS);
#pragma unroll 1
    for (int32_t first = warpgroup; first < n_blocks; first += 2 * BLOCKS_AT_ONCE) {
        if (first > warpgroup)
            b = blocks_from(&p->plan, c->origin, first);
        wait_weights(c, b.stage);
        if (first + 2 < n_blocks)
            multiply_blocks<2>(p, &b);
        else
            multiply_blocks<1>(p, &b);
    }
    mb_cp_async_wait<0>();
    mb_named_barrier_sync(PRODUCTS_BARRIER, X_THREADS);
    if (!c->is_mine)
        return;
    const float sum = p->plan.group_steps == 8   ? promoted<8>(&p->plan, c)
                      : p->plan.group_steps == 4 ? promoted<4>(&p->plan, c)
                                                 : promoted<2>(&p->plan, c);
    mb_element_store(p->out_dtype, p->out, c->output, sum + c->bias + residual_of(p, c));
}

#endif
