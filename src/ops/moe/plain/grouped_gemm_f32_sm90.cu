/*
 * grouped_gemm_f32_sm90.cu - the grouped GEMM with fp32 multiply-adds (FFMA), for MB_F32_EXACT.
 *
 * A CTA multiplies one tile of up to 64 rows of one expert with a column tile of its matrix: 128 rows of it
 * (64 where groups are small), gated half gate rows and half the up rows of the same outputs. 128 threads:
 *
 *   stage     the rows of a and b, 32 of K (128 bytes a row), by cp.async stages ahead; 16-byte chunk c of
 *             row r lies at c ^ (r % 8), so that eight rows are read without a bank conflict
 *   multiply  thread (y, x): rows y + 8 i, columns x + 8 j, up to 8 of each; per 4 of K one 16-byte load for
 *             each row and column, then their products, K in order
 *   epilogue  sums to shared memory, then output by output: bias, activation, row weight
 *
 * Tiles of up to 8, 16, 24, 32 and 48 rows multiply (and load) only so many: there the time is the weights'.
 * Each sum is one chain along K, so its bits do not depend on the tile.
 */
#include "ops/hopper/cp_async.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/memory.cuh"
#include "ops/moe/moe_sm90.h"

enum {
    THREADS = 128,
    TILE_ROWS = MB_F32_TILE_ROWS,
    K_STEP = 32, /* of one stage */
    CHUNK = 4,   /* floats in 16 bytes */
    CHUNKS = K_STEP / CHUNK,
    STEP_ROWS = 8, /* rows of a that the CTA's threads cover side by side */
    ROW_BYTES = 4 * K_STEP,
    CTAS_PER_SM = 3,
    COPY_ROWS = THREADS / CHUNKS, /* rows that the CTA copies at a time */
};

/* piece: rows of b in a column tile; 128, or 64 where the groups are small. */
template <int piece> struct layout {
    static constexpr int COLUMNS = piece / 16; /* of b, for one thread */
    static constexpr int COPIES_OF_B = piece / COPY_ROWS;
    static constexpr int STAGE_BYTES = (TILE_ROWS + piece) * ROW_BYTES;
    static constexpr int STAGES = (72 << 10) / STAGE_BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;
    static constexpr int SUMS_PITCH = piece + 8; /* floats; rows of the epilogue's sums 8 banks apart */
    static_assert(TILE_ROWS * SUMS_PITCH * 4 <= SHARED_BYTES, "the sums lie where the stages were");
};

typedef struct f32_gemm_params {
    const float *a, *b, *bias, *row_weight;
    float *out;
    const int32_t *row_index, *n_tiles;
    const mb_moe_token_tile *tiles;
    int32_t n, k, pieces, gated;
    mb_activation activation;
} f32_gemm_params;

/* The 16 bytes of chunk c of row r. */
static __device__ __forceinline__ uint32_t chunk_offset(int r, int c) {
    return (uint32_t)(r * ROW_BYTES + (c ^ (r % 8)) * 16);
}

/* What one thread copies in every stage: chunk tid % 8 of every 16th row of a and b. */
template <int copies_of_a> struct source {
    const float *a[copies_of_a]; /* NULL: zeros */
    const float *b;              /* the first row */
    int64_t b_step, b_jump;      /* floats from one to the next, and added half way (from gate to up rows) */
    uint32_t b_inside;           /* bit i: that row is one of the matrix; else zeros */
};

template <int piece, int copies_of_a>
static __device__ __forceinline__ void copy_stage(const source<copies_of_a> &from, const f32_gemm_params *p,
                                                  uint32_t stage, int32_t k) {
    constexpr int COPIES_OF_B = layout<piece>::COPIES_OF_B;
    const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const int32_t at = k + chunk * CHUNK;
    const int inside = at < p->k;
#pragma unroll
    for (int i = 0; i < copies_of_a; i++) {
        const int valid = inside && from.a[i] != NULL;
        mb_cp_async_16(stage + chunk_offset(row + i * COPY_ROWS, chunk), valid ? from.a[i] + at : p->a,
                       valid ? 16 : 0);
    }
    const float *b = from.b + at;
#pragma unroll
    for (int i = 0; i < COPIES_OF_B; i++) {
        const int valid = inside && (from.b_inside >> i & 1);
        mb_cp_async_16_ahead(stage + TILE_ROWS * ROW_BYTES + chunk_offset(row + i * COPY_ROWS, chunk),
                             valid ? b : p->b, valid ? 16 : 0);
        b += from.b_step + (i == COPIES_OF_B / 2 - 1 ? from.b_jump : 0);
    }
}

static __device__ __forceinline__ float4 load_chunk(uint32_t from_shared) {
    const uint4 bits = mb_load_shared_16(from_shared);
    return make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                       __uint_as_float(bits.w));
}

/* One stage's multiply-adds: rows y + 8 i, columns x + 8 j. */
template <int rows, int COLUMNS>
static __device__ __forceinline__ void multiply_stage(float (&sum)[rows][COLUMNS], uint32_t stage, int y,
                                                      int x) {
    const uint32_t a_row = stage + y * ROW_BYTES, b_row = stage + (TILE_ROWS + x) * ROW_BYTES;
#pragma unroll 2
    for (int c = 0; c < CHUNKS; c++) {
        float4 a[rows], b[COLUMNS];
#pragma unroll
        for (int i = 0; i < rows; i++)
            a[i] = load_chunk(a_row + i * STEP_ROWS * ROW_BYTES + (c ^ y) * 16);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            b[j] = load_chunk(b_row + j * 8 * ROW_BYTES + (c ^ (x % 8)) * 16);
#pragma unroll
        for (int i = 0; i < rows; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                sum[i][j] = fmaf(a[i].x, b[j].x, sum[i][j]);
#pragma unroll
        for (int i = 0; i < rows; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                sum[i][j] = fmaf(a[i].y, b[j].y, sum[i][j]);
#pragma unroll
        for (int i = 0; i < rows; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                sum[i][j] = fmaf(a[i].z, b[j].z, sum[i][j]);
#pragma unroll
        for (int i = 0; i < rows; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                sum[i][j] = fmaf(a[i].w, b[j].w, sum[i][j]);
    }
}

/* The tile's sums of 8 `rows` rows, left in shared memory. */
template <int piece, int rows>
static __device__ __forceinline__ void multiply_tile(const f32_gemm_params *p, const mb_moe_token_tile &tile,
                                                     int32_t number, unsigned char *shared) {
    using map = layout<piece>;
    constexpr int COPIES_OF_A = (rows * STEP_ROWS + COPY_ROWS - 1) / COPY_ROWS, STAGES = map::STAGES;
    const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
    const uint32_t stages = mb_shared_address(shared);
    source<COPIES_OF_A> from;
#pragma unroll
    for (int i = 0; i < COPIES_OF_A; i++) {
        const int32_t row = tid / CHUNKS + i * COPY_ROWS;
        from.a[i] = NULL;
        if (row < tile.n_rows) {
            const int32_t sorted = tile.first_row + row;
            from.a[i] = p->a + (int64_t)(p->row_index ? p->row_index[sorted] : sorted) * p->k;
        }
    }
    const int32_t columns = p->gated ? piece / 2 : piece, end = p->gated ? p->n / 2 : p->n;
    const int32_t row0 = number * columns + tid / CHUNKS;
    from.b = p->b + ((int64_t)tile.expert * p->n + row0) * p->k;
    from.b_step = (int64_t)COPY_ROWS * p->k;
    from.b_jump = p->gated ? (int64_t)(end - columns) * p->k : 0;
    from.b_inside = 0;
#pragma unroll
    for (int i = 0; i < map::COPIES_OF_B; i++)
        from.b_inside |= (uint32_t)(row0 + i * COPY_ROWS % columns < end) << i;

    const int y = warp % 2 * 4 + lane / 8, x = warp / 2 * (piece / 2) + lane % 8;
    float sum[rows][map::COLUMNS] = {};
    const int32_t n_steps = (p->k + K_STEP - 1) / K_STEP;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n_steps)
            copy_stage<piece>(from, p, stages + i * map::STAGE_BYTES, i * K_STEP);
        mb_cp_async_commit();
    }
    uint32_t read = 0, write = STAGES - 1;
    for (int32_t step = 0; step < n_steps; step++) {
        mb_cp_async_wait<STAGES - 2>();
        __syncthreads(); /* this step has landed for all, and all are done with the step before */
        if (step + STAGES - 1 < n_steps)
            copy_stage<piece>(from, p, stages + write * map::STAGE_BYTES, (step + STAGES - 1) * K_STEP);
        mb_cp_async_commit();
        multiply_stage(sum, stages + read * map::STAGE_BYTES, y, x);
        read = read + 1 == STAGES ? 0 : read + 1;
        write = write + 1 == STAGES ? 0 : write + 1;
    }
    __syncthreads();
    float *sums = (float *)shared;
#pragma unroll
    for (int i = 0; i < rows; i++)
#pragma unroll
        for (int j = 0; j < map::COLUMNS; j++)
            sums[(y + i * STEP_ROWS) * map::SUMS_PITCH + x + 8 * j] = sum[i][j];
    __syncthreads();
}

/* x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3): gelu's tanh form. */
static __device__ float gelu_tanh(float x) {
    return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
}

static __device__ float relu(float x) {
    return x < 0 ? 0 : x; /* keeps NaN */
}

static __device__ float activate(mb_activation activation, float x) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return x / (1.0f + expf(-x));
    case MB_ACT_GEGLU:
    case MB_ACT_GELU:
        return gelu_tanh(x);
    case MB_ACT_REGLU:
    case MB_ACT_RELU:
        return relu(x);
    case MB_ACT_RELU2:
        return relu(x) * relu(x);
    case MB_ACT_NONE:
        break;
    }
    return x;
}

template <int piece>
static __device__ __forceinline__ void store_tile(const f32_gemm_params *p, const mb_moe_token_tile &tile,
                                                  int32_t number, const unsigned char *shared) {
    constexpr int SUMS_PITCH = layout<piece>::SUMS_PITCH;
    const int32_t piece_columns = p->gated ? piece / 2 : piece, out_columns = p->gated ? p->n / 2 : p->n;
    const int32_t column = threadIdx.x % piece_columns, out_column = number * piece_columns + column;
    if (out_column >= out_columns)
        return;
    const float *bias = p->bias ? p->bias + (int64_t)tile.expert * p->n + out_column : NULL;
    const float bias_low = bias ? bias[0] : 0, bias_up = bias && p->gated ? bias[out_columns] : 0;
    const float *sums = (const float *)shared + column;
    for (int32_t row = threadIdx.x / piece_columns; row < tile.n_rows; row += THREADS / piece_columns) {
        float value = activate(p->activation, sums[row * SUMS_PITCH] + bias_low);
        if (p->gated)
            value *= sums[row * SUMS_PITCH + piece / 2] + bias_up;
        const int64_t sorted = tile.first_row + row;
        if (p->row_weight)
            value *= p->row_weight[sorted];
        p->out[sorted * out_columns + out_column] = value;
    }
}

template <int piece>
static __global__ void __launch_bounds__(THREADS, CTAS_PER_SM)
    grouped_gemm_f32(const __grid_constant__ f32_gemm_params p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    mb_grid_launch_dependents();
    mb_grid_wait();
    const int32_t tile_number = blockIdx.x / p.pieces, number = blockIdx.x % p.pieces;
    if (tile_number >= *p.n_tiles)
        return;
    const mb_moe_token_tile tile = p.tiles[tile_number];
    if (tile.n_rows <= 8)
        multiply_tile<piece, 1>(&p, tile, number, shared);
    else if (tile.n_rows <= 16)
        multiply_tile<piece, 2>(&p, tile, number, shared);
    else if (tile.n_rows <= 24)
        multiply_tile<piece, 3>(&p, tile, number, shared);
    else if (tile.n_rows <= 32)
        multiply_tile<piece, 4>(&p, tile, number, shared);
    else if (tile.n_rows <= 48)
        multiply_tile<piece, 6>(&p, tile, number, shared);
    else
        multiply_tile<piece, 8>(&p, tile, number, shared);
    store_tile<piece>(&p, tile, number, shared);
}

static int misaligned(const void *pointer) {
    return (uintptr_t)pointer % 16 != 0;
}

static mb_status check(const mb_grouped_gemm_args *args, const mb_moe_token_tile *tiles,
                       const int32_t *n_tiles, int64_t max_tiles) {
    const mb_weight *b = &args->b;
    if (args->dtype != MB_F32 || args->out_dtype != MB_F32 || b->dtype != MB_F32)
        return mb_fail(MB_ERR_ARGUMENT,
                       "grouped_gemm: dtype %s, out_dtype %s and b.dtype %s must be fp32 here",
                       mb_dtype_name(args->dtype), mb_dtype_name(args->out_dtype), mb_dtype_name(b->dtype));
    if (args->f32_math != MB_F32_EXACT)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: f32_math %d is not MB_F32_EXACT", (int)args->f32_math);
    if (args->bias && args->bias_dtype != MB_F32)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: bias_dtype %s must be fp32",
                       mb_dtype_name(args->bias_dtype));
    if (args->a_scale || b->scale || args->out_scale)
        return mb_fail(MB_ERR_ARGUMENT,
                       "grouped_gemm: a_scale, b.scale and out_scale are for fp8; give NULL");
    if ((int)args->activation < 0 || args->activation > MB_ACT_NONE)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: activation %d is unknown", (int)args->activation);
    if (args->n_rows < 0 || args->n_rows > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: n_rows %lld is not in 0 .. 2^31 - 1",
                       (long long)args->n_rows);
    if (b->count < 1 || b->count > INT32_MAX || b->rows < 1 || b->rows > INT32_MAX / 2)
        return mb_fail(MB_ERR_ARGUMENT,
                       "grouped_gemm: b is %lld matrices of %lld rows; both must be 1 or more",
                       (long long)b->count, (long long)b->rows);
    if (b->cols < 4 || b->cols % 4 != 0 || b->cols > INT32_MAX / 2)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: b.cols %lld must be a multiple of 4",
                       (long long)b->cols);
    if (mb_activation_is_gated(args->activation) && b->rows % 2 != 0)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: b.rows %lld must be even for a gated activation",
                       (long long)b->rows);
    if (max_tiles < 0 || max_tiles > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: max_tiles %lld is not in 0 .. 2^31 - 1",
                       (long long)max_tiles);
    if (args->n_rows == 0 || max_tiles == 0)
        return MB_OK;
    if (!args->a || !b->data || !args->out || !tiles || !n_tiles)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: %s is NULL",
                       !args->a     ? "a"
                       : !b->data   ? "b.data"
                       : !args->out ? "out"
                       : !tiles     ? "tiles"
                                    : "n_tiles");
    if (misaligned(args->a) || misaligned(b->data) || misaligned(args->out))
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: %s is not 16-byte aligned",
                       misaligned(args->a)   ? "a"
                       : misaligned(b->data) ? "b.data"
                                             : "out");
    return MB_OK;
}

template <int piece> static mb_status launch(f32_gemm_params *p, int64_t max_tiles, mb_stream stream) {
    constexpr int shared_bytes = layout<piece>::SHARED_BYTES;
    p->pieces = p->gated ? (p->n / 2 + piece / 2 - 1) / (piece / 2) : (p->n + piece - 1) / piece;
    if (max_tiles * p->pieces > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT,
                       "grouped_gemm: %lld tiles of %d rows of b are too many for one launch",
                       (long long)max_tiles, p->n);
    const auto kernel = grouped_gemm_f32<piece>;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error == cudaSuccess) {
        cudaLaunchConfig_t config;
        cudaLaunchAttribute attributes[2];
        mb_launch_config(&config, attributes, dim3((unsigned)(max_tiles * p->pieces)), THREADS, shared_bytes,
                         stream);
        error = cudaLaunchKernelEx(&config, kernel, *p);
    }
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "grouped_gemm: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}

extern "C" mb_status mb_grouped_gemm_f32_sm90(const mb_grouped_gemm_args *args,
                                              const mb_moe_token_tile *tiles, const int32_t *n_tiles,
                                              int64_t max_tiles, mb_stream stream) {
    MB_TRY(check(args, tiles, n_tiles, max_tiles));
    if (args->n_rows == 0 || max_tiles == 0)
        return MB_OK;
    f32_gemm_params p;
    p.a = (const float *)args->a;
    p.b = (const float *)args->b.data;
    p.bias = (const float *)args->bias;
    p.row_weight = args->row_weight;
    p.out = (float *)args->out;
    p.row_index = args->row_index;
    p.n_tiles = n_tiles;
    p.tiles = tiles;
    p.n = (int32_t)args->b.rows;
    p.k = (int32_t)args->b.cols;
    p.gated = mb_activation_is_gated(args->activation);
    p.activation = args->activation;
    /* With few rows a group the weights are streamed: more and smaller column tiles keep more SMs at it. */
    return args->n_rows <= 8 * args->b.count ? launch<64>(&p, max_tiles, stream)
                                             : launch<128>(&p, max_tiles, stream);
}
