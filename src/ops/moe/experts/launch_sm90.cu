/*
 * launch_sm90.cu - host side of the experts' kernel: tensor maps, parameters, the choice of the compiled
 * kind; for both GEMMs of the experts and for one grouped GEMM alone.
 */
#include "ops/moe/experts/launch_sm90.h"

#include "ops/hopper/launch.cuh"
#include "ops/hopper/tensor_map.cuh"
#include "ops/moe/experts/params.cuh"
#include "ops/moe/experts/pick.h"

#include <float.h>
#include <math.h>

/* Where all weights are fewer bytes than this they are loaded to leave L2 first: 6 us less at T = 1, none
 * from T = 4 on. */
static const int64_t READ_ONCE_BYTES = 200 << 20;

activation_shape mb_experts_activation(mb_activation activation) {
    /* none: a cubic part so small that it changes no bit of any result */
    const float log2_e = 1.4426950408889634f, none = 1e-30f, steepest = FLT_MAX, no_floor = -INFINITY;
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return {log2_e, none, no_floor, 0};
    case MB_ACT_GEGLU: /* 2 sqrt(2 / pi) (v + 0.044715 v^3) */
    case MB_ACT_GELU:
        return {1.5957691216057308f * log2_e, 0.07135481282636983f * log2_e, no_floor, 0};
    case MB_ACT_REGLU: /* from 0 on, times a sigmoid that is 1 from 1e-37 on */
    case MB_ACT_RELU:
        return {steepest, none, 0, 0};
    case MB_ACT_RELU2:
        return {steepest, none, 0, 1};
    default: /* MB_ACT_NONE: not asked */
        return {0, none, no_floor, 0};
    }
}

/* Boxes of box_rows rows by 128 bytes of [count, rows, cols]. Dimensions: column, row in a group of eight,
 * gate or up, group, expert; so rows of gate and up come in turns of eight. */
static mb_status encode_weight(CUtensorMap *map, const mb_weight *weight, int gated, int box_rows) {
    const cuuint64_t bytes = mb_dtype_bytes(weight->dtype);
    const cuuint64_t row_bytes = mb_dtype_row_bytes(weight->dtype, weight->cols);
    const cuuint64_t rows = (cuuint64_t)weight->rows, halves = gated ? 2 : 1;
    const cuuint64_t sizes[5] = {(cuuint64_t)weight->cols, 8, halves, rows / 8 / halves,
                                 (cuuint64_t)weight->count};
    const cuuint64_t strides[4] = {row_bytes, rows / halves * row_bytes, 8 * row_bytes, rows * row_bytes};
    const cuuint32_t box[5] = {(cuuint32_t)(128 / bytes), 8, (cuuint32_t)halves,
                               (cuuint32_t)(box_rows / 8 / halves), 1};
    return mb_encode_tensor_map("moe_experts", map, weight->dtype, weight->data, sizes, strides, box);
}

static int kind_of(const mb_weight *weight) {
    switch (weight->dtype) {
    case MB_BF16:
        return KIND_BF16;
    case MB_F16:
        return KIND_F16;
    case MB_F32:
        return KIND_TF32;
    default:
        return weight->scale_rows == 0 ? KIND_FP8_TENSOR : KIND_FP8_BLOCK;
    }
}

/* The parts of a GEMM that follow from its weights and activation. tile_rows: weight rows of an item. */
static mb_status describe(experts_gemm *g, const mb_weight *weight, mb_activation activation,
                          const mb_moe_tile *tile, int32_t tile_rows) {
    g->gated = mb_activation_is_gated(activation);
    g->activated = activation != MB_ACT_NONE;
    g->activation = mb_experts_activation(activation);
    g->b_scale = (const float *)weight->scale;
    g->k_size = (int32_t)weight->cols;
    g->k_blocks = (int32_t)((weight->cols + MB_F8_BLOCK - 1) / MB_F8_BLOCK);
    g->width = (int32_t)(weight->rows / (g->gated ? 2 : 1));
    while (weight->scale_rows >> (g->scale_shift + 1) > 0) /* a divisor of 128 */
        g->scale_shift++;
    if (weight->scale_rows > 0)
        g->expert_scale_rows = (int32_t)((weight->rows + weight->scale_rows - 1) / weight->scale_rows);
    const int32_t outputs = tile_rows / (g->gated ? 2 : 1);
    g->tile_rows = tile_rows;
    g->n_column_tiles = (g->width + outputs - 1) / outputs;
    return encode_weight(&g->weights, weight, g->gated, min(tile_rows, tile->box_rows));
}

/* As is_few of the kernel's shared memory. */
static int is_few(const mb_moe_tile *tile) {
    return tile->weight_rows == 64 && tile->max_tokens == 16;
}

/* Weight rows of an item. With few experts, tiles of few tokens have items of fewer rows where the SMs then
 * end more evenly: a forward of one token of Qwen3-30B-A3B has 192 items of 64 rows in w13, and 256 of 48
 * for 132 SMs. */
static int32_t even_rows(const mb_moe_tile *tile, const mb_weight *weight, int64_t n_hit,
                         int32_t n_processors) {
    const int32_t most = tile->weight_rows, fewer = 48;
    if (!is_few(tile) || weight->dtype == MB_F32)
        return most;
    const auto rounds = [&](int32_t rows) {
        const int64_t n_items = n_hit * ((weight->rows + rows - 1) / rows);
        return (n_items + n_processors - 1) / n_processors * rows;
    };
    return rounds(fewer) < rounds(most) ? fewer : most;
}

static cudaError_t launch_kind(const experts_params *params, int kind, int tile, mb_stream stream) {
    const int n_processors = mb_n_processors();
    if (params->p)
        return kind == KIND_BF16 ? mb_saving_launch_bf16(params, tile, n_processors, stream)
                                 : mb_saving_launch_f16(params, tile, n_processors, stream);
    switch (kind) {
    case KIND_BF16:
        return mb_experts_launch_bf16(params, tile, n_processors, stream);
    case KIND_F16:
        return mb_experts_launch_f16(params, tile, n_processors, stream);
    case KIND_TF32:
        return mb_experts_launch_tf32(params, tile, n_processors, stream);
    case KIND_FP8_TENSOR:
        return mb_experts_launch_fp8_tensor(params, tile, n_processors, stream);
    default:
        return mb_experts_launch_fp8_block(params, tile, n_processors, stream);
    }
}

static mb_status launch(const experts_params *params, int kind, int tile, mb_stream stream) {
    const cudaError_t error = launch_kind(params, kind, tile, stream);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_experts: launch of tile %s failed: %s", mb_moe_tiles[tile].name,
                       cudaGetErrorString(error));
    return MB_OK;
}

/* next_item, ready and block_done, one after another. */
static void set_tiles(experts_params *params, const mb_experts_tiles *tiles) {
    params->tiles = tiles->tiles;
    params->n_tiles = tiles->n_tiles;
    params->next_item = tiles->counters;
    params->ready = tiles->counters + 1;
    params->block_done = tiles->counters + 1 + tiles->max_tiles;
}

static mb_status check_tile(int tile, mb_dtype weights) {
    if (tile < 0 || tile >= MB_MOE_N_TILES || mb_moe_tiles[tile].family != mb_moe_family_of(weights))
        return mb_fail(MB_ERR_ARGUMENT, "moe_experts: tile %d is not one of those for %s weights", tile,
                       mb_dtype_name(weights));
    return MB_OK;
}

mb_status mb_experts_cut_tiles(const mb_experts_tiles *tiles, const int32_t *offsets, int32_t n_groups,
                               int64_t n_rows, mb_stream stream) {
    mb_moe_tiles_args args = {};
    args.offsets = offsets;
    args.n_rows = n_rows;
    args.tiles = tiles->tiles;
    args.n_tiles = tiles->n_tiles;
    args.counters = tiles->counters;
    args.n_counters = tiles->n_counters;
    args.n_groups = n_groups;
    args.tile_rows = tiles->tile_rows;
    args.tile_step = tiles->tile_step;
    return mb_moe_tiles_sm90(&args, stream);
}

/* Both GEMMs with fp32 multiply-adds. */
static mb_status launch_exact(const mb_moe_experts_args *args, const mb_moe_experts_layout *layout,
                              mb_stream stream) {
    const mb_experts_tiles *tiles = &layout->tiles;
    mb_grouped_gemm_args gemm = {};
    gemm.a = args->x;
    gemm.row_index = args->row_index;
    gemm.offsets = args->offsets;
    gemm.b = args->w13;
    gemm.bias = args->bias13;
    gemm.out = layout->h;
    gemm.n_rows = args->n_rows;
    gemm.dtype = gemm.out_dtype = gemm.bias_dtype = MB_F32;
    gemm.activation = args->activation;
    gemm.f32_math = MB_F32_EXACT;
    MB_TRY(mb_grouped_gemm_f32_sm90(&gemm, tiles->tiles, tiles->n_tiles, tiles->max_tiles, stream));
    gemm.a = layout->h;
    gemm.row_index = NULL;
    gemm.b = args->w2;
    gemm.bias = args->bias2;
    gemm.out = args->y;
    gemm.activation = MB_ACT_NONE;
    return mb_grouped_gemm_f32_sm90(&gemm, tiles->tiles, tiles->n_tiles, tiles->max_tiles, stream);
}

/* p by a grouped GEMM of its own, which has the same bits: a sum does not depend on the tile. It takes the
 * counters, so the tiles are cut once more. */
static mb_status launch_p(const mb_moe_experts_args *args, const mb_experts_tiles *tiles, mb_stream stream) {
    mb_grouped_gemm_args gemm = {};
    gemm.a = args->x;
    gemm.row_index = args->row_index;
    gemm.offsets = args->offsets;
    gemm.b = args->w13;
    gemm.bias = args->bias13;
    gemm.out = args->p;
    gemm.n_rows = args->n_rows;
    gemm.dtype = gemm.out_dtype = gemm.bias_dtype = args->dtype;
    gemm.activation = MB_ACT_NONE;
    MB_TRY(mb_experts_one_gemm(&gemm, tiles, NULL, stream));
    return mb_experts_cut_tiles(tiles, args->offsets, args->n_local_experts, args->n_rows, stream);
}

mb_status mb_experts_launch(const mb_moe_experts_args *args, const mb_moe_experts_layout *layout,
                            mb_stream stream) {
    const int row = layout->tiles.tile;
    if (row == MB_EXACT_TILE)
        return launch_exact(args, layout, stream);
    MB_TRY(check_tile(row, args->w13.dtype));
    const mb_moe_tile *tile = &mb_moe_tiles[row];
    const int saves_p = args->p && row == MB_SAVING_TILE;
    if (args->p && !saves_p)
        MB_TRY(launch_p(args, &layout->tiles, stream));
    const int kind = kind_of(&args->w13);
    const int is_fp8 = tile->family == MB_MOE_FP8;
    experts_params params = {};
    experts_gemm *first = &params.gemm[0], *second = &params.gemm[1];
    const int64_t n_hit = args->n_rows < args->n_local_experts ? args->n_rows : args->n_local_experts;
    const int n_processors = mb_n_processors();
    MB_TRY(describe(first, &args->w13, args->activation, tile,
                    even_rows(tile, &args->w13, n_hit, n_processors)));
    MB_TRY(describe(second, &args->w2, MB_ACT_NONE, tile, tile->weight_rows));
    first->a = is_fp8 ? layout->x8 : args->x;
    first->a_scale = layout->x_scale;
    first->row_index = args->row_index;
    first->bias = args->bias13;
    first->out = layout->h;
    first->out8 = layout->h8;
    first->out_scale = layout->h_scale;
    first->store = kind == KIND_FP8_BLOCK    ? STORE_FP8_BLOCK
                   : kind == KIND_FP8_TENSOR ? STORE_FP8_TENSOR
                   : kind == KIND_TF32       ? STORE_F32
                                             : STORE_16BIT;
    second->a = is_fp8 ? layout->h8 : layout->h;
    second->a_scale = layout->h_scale;
    second->bias = args->bias2;
    second->out = args->y;
    second->store = kind == KIND_TF32 ? STORE_F32 : STORE_16BIT;
    if (kind == KIND_FP8_BLOCK && is_few(tile)) { /* those who read h quantise it: gather.cuh */
        first->store = STORE_16BIT;
        second->a = layout->h;
    }
    first->bias_dtype = second->bias_dtype = args->dtype;
    first->out_is_f16 = second->out_is_f16 = args->dtype == MB_F16;
    set_tiles(&params, &layout->tiles);
    params.read_once = n_hit * (args->w13.rows + args->intermediate) *
                           (int64_t)mb_dtype_row_bytes(args->w13.dtype, args->hidden) <=
                       READ_ONCE_BYTES;
    params.p = saves_p ? args->p : NULL;
    return launch(&params, kind, row, stream);
}

mb_status mb_experts_one_gemm(const mb_grouped_gemm_args *args, const mb_experts_tiles *tiles, void *scratch,
                              mb_stream stream) {
    MB_TRY(check_tile(tiles->tile, args->b.dtype));
    const int kind = kind_of(&args->b);
    experts_params params = {};
    experts_gemm *g = &params.gemm[0];
    const mb_moe_tile *tile = &mb_moe_tiles[tiles->tile];
    MB_TRY(describe(g, &args->b, args->activation, tile, tile->weight_rows));
    g->a = args->a;
    g->a_scale = args->a_scale;
    g->row_index = args->row_index;
    g->bias = args->bias;
    g->bias_dtype = args->bias_dtype;
    g->row_weight = args->row_weight;
    const int to_fp8 = args->out_dtype == MB_F8_E4M3;
    g->out = to_fp8 ? scratch : args->out;
    g->out8 = to_fp8 ? args->out : NULL;
    g->out_scale = args->out_scale;
    g->out_is_f16 = args->out_dtype == MB_F16 || (to_fp8 && args->dtype == MB_F16);
    g->store = to_fp8 ? STORE_FP8_BLOCK : args->out_dtype == MB_F32 ? STORE_F32 : STORE_16BIT;
    params.gemm[1].weights = g->weights; /* prefetched, not used */
    set_tiles(&params, tiles);
    return launch(&params, kind, tiles->tile, stream);
}

mb_status mb_experts_dense(const mb_grouped_gemm_args *args, const void *residual, const mb_dense_plan *plan,
                           mb_stream stream) {
    MB_TRY(check_tile(plan->tile, args->b.dtype));
    const mb_moe_tile *tile = &mb_moe_tiles[plan->tile];
    const int n_processors = mb_n_processors();
    experts_params params = {};
    experts_gemm *g = &params.gemm[0];
    MB_TRY(describe(g, &args->b, MB_ACT_NONE, tile, tile->weight_rows));
    g->a = args->a;
    g->a_scale = args->a_scale;
    g->bias = args->bias;
    g->bias_dtype = args->bias_dtype;
    g->residual = residual;
    g->out = args->out;
    g->out_is_f16 = args->out_dtype == MB_F16;
    g->store = args->out_dtype == MB_F32 ? STORE_F32 : STORE_16BIT;
    if (residual && g->store == STORE_16BIT)
        g->late_steps = (tile->weight_rows + 127) / 128;
    params.gemm[1].weights = g->weights; /* prefetched, not used */
    params.dense.n_rows = (int32_t)args->n_rows;
    params.dense.tile_rows = plan->tile_rows;
    params.dense.n_token_tiles = (int32_t)((args->n_rows + plan->tile_rows - 1) / plan->tile_rows);
    params.dense.band = plan->band;
    cudaError_t error;
    switch (kind_of(&args->b)) {
    case KIND_BF16:
        error = mb_dense_launch_bf16(&params, plan->tile, n_processors, stream);
        break;
    case KIND_F16:
        error = mb_dense_launch_f16(&params, plan->tile, n_processors, stream);
        break;
    case KIND_FP8_BLOCK:
        error = mb_dense_launch_fp8_block(&params, plan->tile, n_processors, stream);
        break;
    default:
        error = cudaErrorInvalidValue;
    }
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "gemm: launch of tile %s failed: %s", tile->name,
                       cudaGetErrorString(error));
    return MB_OK;
}
