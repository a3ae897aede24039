/*
 * grouped_gemm_sm90.cu - one grouped (or dense) GEMM by the experts' kernel: the tiles of the groups, then
 * the kernel's first GEMM alone.
 */
#include "ops/hopper/launch.cuh"
#include "ops/moe/experts_sm90.h"
#include "ops/moe/moe_pick.h"

typedef struct layout {
    mb_moe_token_tile *tiles;
    int32_t *n_tiles, *counters;
    void *scratch;
    int64_t max_tiles, n_counters;
    int32_t tile_rows, tile_step, tile; /* tile -1: exact fp32 */
    size_t bytes;
} layout;

static int64_t width_of(const mb_grouped_gemm_args *args) {
    return args->b.rows / (mb_activation_is_gated(args->activation) ? 2 : 1);
}

static layout cut_workspace(const mb_grouped_gemm_args *args, void *workspace) {
    layout l = {};
    const int is_exact = args->dtype == MB_F32 && args->f32_math == MB_F32_EXACT;
    const int to_fp8 = args->out_dtype == MB_F8_E4M3;
    const int32_t n_groups = (int32_t)args->b.count;
    l.tile = is_exact ? -1 : mb_moe_pick(mb_moe_family_of(args->b.dtype), args->n_rows, n_groups);
    l.tile_rows = is_exact ? MB_F32_TILE_ROWS : mb_moe_tiles[l.tile].max_tokens;
    l.tile_step = is_exact ? 1 : mb_moe_tiles[l.tile].token_step;
    l.max_tiles = mb_moe_max_tiles(args->n_rows, n_groups, l.tile_rows);
    l.n_counters = mb_experts_n_counters(l.max_tiles, to_fp8 ? (int32_t)width_of(args) : 0);
    const size_t sizes[] = {sizeof(mb_moe_token_tile) * (size_t)l.max_tiles, sizeof(int32_t),
                            sizeof(int32_t) * (size_t)l.n_counters,
                            to_fp8 ? 2 * (size_t)args->n_rows * (size_t)width_of(args) : 0};
    void *parts[4];
    for (int i = 0; i < 4; i++) {
        parts[i] = workspace ? (char *)workspace + l.bytes : NULL;
        l.bytes += (sizes[i] + 255) / 256 * 256;
    }
    l.tiles = (mb_moe_token_tile *)parts[0];
    l.n_tiles = (int32_t *)parts[1];
    l.counters = (int32_t *)parts[2];
    l.scratch = parts[3];
    return l;
}

static mb_status check_dtypes(const mb_grouped_gemm_args *args) {
    const mb_dtype a = args->dtype, out = args->out_dtype;
    const int is_16bit = a == MB_BF16 || a == MB_F16;
    if (args->b.dtype != a)
        return mb_fail(MB_ERR_UNSUPPORTED, "grouped_gemm: a is %s and b %s; they must be the same",
                       mb_dtype_name(a), mb_dtype_name(args->b.dtype));
    const int fits = a == MB_F32 ? out == MB_F32
                     : is_16bit  ? out == a || out == MB_F32 || out == MB_F8_E4M3
                                 : out == MB_BF16 || out == MB_F16 || out == MB_F32 || out == MB_F8_E4M3;
    if (!fits)
        return mb_fail(MB_ERR_UNSUPPORTED, "grouped_gemm: a in %s gives no out in %s", mb_dtype_name(a),
                       mb_dtype_name(out));
    if (args->bias && args->bias_dtype != MB_F32 && args->bias_dtype != MB_BF16 && args->bias_dtype != MB_F16)
        return mb_fail(MB_ERR_UNSUPPORTED, "grouped_gemm: bias in %s; it must be fp32, bf16 or fp16",
                       mb_dtype_name(args->bias_dtype));
    if (a == MB_F8_E4M3 && (!args->b.scale || args->b.scale_rows < 0 || args->b.scale_rows > 128 ||
                            (args->b.scale_rows > 0 && (128 % args->b.scale_rows || args->b.scale_rows % 8))))
        return mb_fail(
            MB_ERR_ARGUMENT,
            "grouped_gemm: b is fp8 with scale %p and scale_rows %d; it needs scales, for 8, 16, 32, 64 or "
            "128 rows, or 0 for one a matrix",
            (const void *)args->b.scale, args->b.scale_rows);
    return MB_OK;
}

static mb_status check(const mb_grouped_gemm_args *args) {
    const int gated = mb_activation_is_gated(args->activation);
    const mb_weight *b = &args->b;
    if ((int)args->activation < MB_ACT_SWIGLU || args->activation > MB_ACT_NONE)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: activation %d is unknown", (int)args->activation);
    MB_TRY(check_dtypes(args));
    const int64_t column_step = 16 / (int64_t)mb_dtype_bytes(args->dtype);
    /* Rows of out are stored 16 bytes at a time (8 of fp8), rows of b come in groups of eight. */
    const int64_t row_step = gated ? 16 : 8;
    if (b->count < 1 || b->count > 65536 || b->cols < column_step || b->cols % column_step != 0 ||
        b->rows < row_step || b->rows % row_step != 0 || b->rows > INT32_MAX || b->cols > INT32_MAX)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "grouped_gemm: b is [%lld, %lld, %lld]; it needs 1 .. 65536 groups, rows that are a multiple of "
            "%lld and columns that are one of %lld",
            (long long)b->count, (long long)b->rows, (long long)b->cols, (long long)row_step,
            (long long)column_step);
    if (args->n_rows < 0 || args->n_rows > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: n_rows %lld is not in 0 .. 2^31 - 1",
                       (long long)args->n_rows);
    if (!args->offsets && b->count != 1)
        return mb_fail(MB_ERR_ARGUMENT,
                       "grouped_gemm: offsets is NULL with %lld groups; only one group can do without",
                       (long long)b->count);
    if (((uintptr_t)args->a | (uintptr_t)b->data | (uintptr_t)args->out) % 16)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: a, b and out must be 16-byte aligned");
    if (args->n_rows == 0)
        return MB_OK;
    if (!args->a || !b->data || !args->out || args->a == args->out)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: a, b or out is NULL, or out is a");
    if (args->dtype == MB_F8_E4M3 && !args->a_scale)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: a is fp8 and a_scale is NULL");
    if (args->out_dtype == MB_F8_E4M3 && !args->out_scale)
        return mb_fail(MB_ERR_ARGUMENT, "grouped_gemm: out is fp8 and out_scale is NULL");
    return MB_OK;
}

extern "C" size_t mb_grouped_gemm_sm90_workspace(const mb_grouped_gemm_args *args) {
    return check(args) == MB_OK ? cut_workspace(args, NULL).bytes : SIZE_MAX;
}

extern "C" mb_status mb_grouped_gemm_sm90(const mb_grouped_gemm_args *args, void *workspace,
                                          size_t workspace_bytes, mb_stream stream) {
    MB_TRY(check(args));
    if (args->n_rows == 0)
        return MB_OK;
    const layout l = cut_workspace(args, workspace);
    if (!workspace || workspace_bytes < l.bytes)
        return mb_fail(MB_ERR_CAPACITY, "grouped_gemm: workspace of %zu bytes, %zu are needed",
                       workspace ? workspace_bytes : 0, l.bytes);
    mb_moe_tiles_args tiles = {};
    tiles.offsets = args->offsets;
    tiles.n_rows = args->n_rows;
    tiles.tiles = l.tiles;
    tiles.n_tiles = l.n_tiles;
    tiles.counters = l.counters;
    tiles.n_counters = (int32_t)l.n_counters;
    tiles.n_groups = (int32_t)args->b.count;
    tiles.tile_rows = l.tile_rows;
    tiles.tile_step = l.tile_step;
    MB_TRY(mb_moe_tiles_sm90(&tiles, stream));
    if (l.tile < 0)
        return mb_grouped_gemm_f32_sm90(args, l.tiles, l.n_tiles, l.max_tiles, stream);
    const mb_experts_rows rows = {l.tiles, l.n_tiles, l.counters, l.max_tiles};
    return mb_experts_one_gemm(args, &rows, l.scratch, l.tile, stream);
}
