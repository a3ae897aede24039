/*
 * rows_sm90.cu - host side of the backward's gradients of rows: checks, the tiles of the experts' rows,
 * tensor maps of matrices that are read across, and the launches of the experts' kernel.
 */
#include "base/status.h"
#include "ops/common/dtype.h"
#include "ops/common/tensor.h"
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/tensor_map.cuh"
#include "ops/moe/backward/rows.h"
#include "ops/moe/backward/rows_layout.h"
#include "ops/moe/backward/rows_tiles.h"
#include "ops/moe/experts/launch_sm90.h"

enum { PANEL = 64, STEP = 64 }; /* outputs and rows of K of a box */

/* ---- Arguments ---- */

typedef struct product_sizes {
    int64_t n_rows;
    int32_t n_experts, k_size, width; /* of a matrix: its rows, its columns */
    mb_dtype dtype;
} product_sizes;

static mb_status check_sizes(const char *op, const product_sizes *s) {
    if (s->dtype != MB_BF16 && s->dtype != MB_F16)
        return mb_fail(MB_ERR_UNSUPPORTED, "%s: dtype is %s; on sm90 it must be bf16 or fp16", op,
                       mb_dtype_name(s->dtype));
    if (s->n_rows < 0 || s->n_rows > INT32_MAX || s->n_experts < 1 || s->k_size < 1 || s->width < 1)
        return mb_fail(MB_ERR_ARGUMENT,
                       "%s: %lld rows, %d experts' matrices of [%d, %d]; rows must be in 0 .. 2^31 - 1, "
                       "the others at least 1",
                       op, (long long)s->n_rows, s->n_experts, s->k_size, s->width);
    if (s->k_size % 8 != 0 || s->width % 8 != 0)
        return mb_fail(MB_ERR_ARGUMENT,
                       "%s: an expert's matrix is [%d, %d]; on sm90 both must be multiples of 8", op,
                       s->k_size, s->width);
    return MB_OK;
}

/* ---- The product ---- */

/* Boxes of 64 rows of K by 64 outputs. Dimensions: output, row of K, expert. */
static mb_status encode_across(const char *op, CUtensorMap *map, const product_sizes *s,
                               const void *matrices) {
    const cuuint64_t row_bytes = (cuuint64_t)s->width * 2, matrix_bytes = (cuuint64_t)s->k_size * row_bytes,
                     all_bytes = (cuuint64_t)s->n_experts * matrix_bytes;
    const cuuint64_t sizes[5] = {(cuuint64_t)s->width, (cuuint64_t)s->k_size, (cuuint64_t)s->n_experts, 1, 1};
    const cuuint64_t strides[4] = {row_bytes, matrix_bytes, all_bytes, all_bytes};
    const cuuint32_t box[5] = {PANEL, STEP, 1, 1, 1};
    return mb_encode_tensor_map(op, map, s->dtype, matrices, sizes, strides, box);
}

typedef cudaError_t (*launch_function)(const experts_params *params, int n_processors, mb_stream stream);

/* Cuts the tiles and launches. params: what only the caller knows is set. */
static mb_status multiply(const char *op, const product_sizes *s, const int32_t *offsets,
                          const void *matrices, int32_t tile_rows, int32_t tile_outputs,
                          experts_params *params, launch_function launch, void *workspace,
                          size_t workspace_bytes, mb_stream stream) {
    mb_arena arena = {(char *)workspace, SIZE_MAX, 0, 0, 0};
    const mb_experts_tiles tiles = mb_backward_rows_tiles(s->n_rows, s->n_experts, tile_rows, &arena);
    MB_TRY(mb_workspace_check_arena(op, workspace, workspace_bytes, &arena));
    experts_gemm *g = &params->gemm[0];
    MB_TRY(encode_across(op, &g->weights, s, matrices));
    g->k_size = s->k_size;
    g->width = s->width;
    g->n_column_tiles = (s->width + tile_outputs - 1) / tile_outputs;
    g->tile_rows = tile_outputs;
    g->store = STORE_16BIT;
    g->out_is_f16 = s->dtype == MB_F16;
    params->gemm[1].weights = g->weights; /* prefetched, not used */
    params->tiles = tiles.tiles;
    params->n_tiles = tiles.n_tiles;
    params->next_item = tiles.counters;
    MB_TRY(mb_experts_cut_tiles(&tiles, offsets, s->n_experts, s->n_rows, stream));
    const cudaError_t error = launch(params, mb_n_processors(), stream);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "%s: launch failed: %s", op, cudaGetErrorString(error));
    return MB_OK;
}

/* ---- dh, and what follows from it ---- */

static const char ROWS[] = "moe_backward_rows", DX[] = "moe_backward_dx";

static product_sizes sizes_of_rows(const mb_moe_backward_rows_args *args) {
    return {args->n_rows, args->n_experts, args->hidden, args->intermediate, args->dtype};
}

static mb_status check_rows_sizes(const mb_moe_backward_rows_args *args) {
    const product_sizes sizes = sizes_of_rows(args);
    MB_TRY(check_sizes(ROWS, &sizes));
    if ((int)args->activation < 0 || args->activation >= MB_ACT_NONE)
        return mb_fail(MB_ERR_ARGUMENT, "%s: activation is %d, not one of the seven", ROWS,
                       (int)args->activation);
    /* The experts' kernel has byte offsets into d_out of 32 bits. */
    if (args->n_tokens < 0 || args->n_tokens * args->hidden > ((int64_t)UINT32_MAX + 1) / 2)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: d_out is [%lld, %d]; at most 2^32 bytes can be done in one call", ROWS,
                       (long long)args->n_tokens, args->hidden);
    return MB_OK;
}

extern "C" mb_status mb_moe_backward_rows_sm90_workspace(const mb_moe_backward_rows_args *most,
                                                         size_t *bytes) {
    MB_TRY(check_rows_sizes(most));
    return mb_backward_rows_bytes(ROWS, most->n_rows, most->n_experts, ROWS_TOKENS, bytes);
}

extern "C" mb_status mb_moe_backward_rows_sm90(const mb_moe_backward_rows_args *args, void *workspace,
                                               size_t workspace_bytes, mb_stream stream) {
    const product_sizes sizes = sizes_of_rows(args);
    MB_TRY(check_rows_sizes(args));
    if (args->n_rows == 0)
        return MB_OK;
    MB_TRY(mb_matrix_check_sm90(ROWS, "d_out", args->d_out, 0));
    MB_TRY(mb_matrix_check_sm90(ROWS, "w2", args->w2, 0));
    MB_TRY(mb_matrix_check_sm90(ROWS, "p", args->p, 0));
    MB_TRY(mb_matrix_check_sm90(ROWS, "dp", args->dp, 0));
    MB_TRY(mb_matrix_check_sm90(ROWS, "hs", args->hs, 0));
    MB_TRY(mb_array_check(ROWS, "dot", args->dot, sizeof(float), 0));
    MB_TRY(mb_array_check(ROWS, "row_token", args->row_token, sizeof(int32_t), 0));
    MB_TRY(mb_array_check(ROWS, "row_weight", args->row_weight, sizeof(float), 0));
    MB_TRY(mb_array_check(ROWS, "offsets", args->offsets, sizeof(int32_t), 0));
    experts_params params = {};
    experts_gemm *g = &params.gemm[0];
    g->a = args->d_out;
    g->row_index = args->row_token;
    g->row_weight = args->row_weight;
    g->out = args->dp;
    g->late_steps = ROWS_OUTPUTS / 64; /* p comes in stages of 64 outputs */
    g->activation = mb_experts_activation(args->activation);
    params.gradient.p = args->p;
    params.gradient.hs = args->hs;
    params.gradient.dot = args->dot;
    params.gradient.dot_stride = args->n_rows;
    params.gradient.gated = mb_activation_is_gated(args->activation);
    return multiply(ROWS, &sizes, args->offsets, args->w2, ROWS_TOKENS, ROWS_OUTPUTS, &params,
                    args->dtype == MB_F16 ? mb_rows_launch_f16 : mb_rows_launch_bf16, workspace,
                    workspace_bytes, stream);
}

/* ---- dx ---- */

static product_sizes sizes_of_dx(const mb_moe_backward_dx_args *args) {
    return {args->n_rows, args->n_experts, args->width13, args->hidden, args->dtype};
}

extern "C" mb_status mb_moe_backward_dx_sm90_workspace(const mb_moe_backward_dx_args *most, size_t *bytes) {
    const product_sizes sizes = sizes_of_dx(most);
    MB_TRY(check_sizes(DX, &sizes));
    return mb_backward_rows_bytes(DX, most->n_rows, most->n_experts, DX_TOKENS, bytes);
}

extern "C" mb_status mb_moe_backward_dx_sm90(const mb_moe_backward_dx_args *args, void *workspace,
                                             size_t workspace_bytes, mb_stream stream) {
    const product_sizes sizes = sizes_of_dx(args);
    MB_TRY(check_sizes(DX, &sizes));
    if (args->n_rows == 0)
        return MB_OK;
    MB_TRY(mb_matrix_check_sm90(DX, "dp", args->dp, 0));
    MB_TRY(mb_matrix_check_sm90(DX, "w13", args->w13, 0));
    MB_TRY(mb_matrix_check_sm90(DX, "dx_rows", args->dx_rows, 0));
    MB_TRY(mb_array_check(DX, "offsets", args->offsets, sizeof(int32_t), 0));
    experts_params params = {};
    params.gemm[0].a = args->dp;
    params.gemm[0].out = args->dx_rows;
    return multiply(DX, &sizes, args->offsets, args->w13, DX_TOKENS, DX_OUTPUTS, &params,
                    args->dtype == MB_F16 ? mb_dx_launch_f16 : mb_dx_launch_bf16, workspace, workspace_bytes,
                    stream);
}
