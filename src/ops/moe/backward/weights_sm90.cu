/* weights_sm90.cu - host side of the weights' gradients: checks, tensor maps, the launch of the dtype's
 * kernel. */
#include "ops/moe/backward/weights.h"

#include "ops/common/tensor.h"
#include "ops/hopper/launch.cuh"
#include "ops/hopper/tensor_map.cuh"
#include "ops/moe/backward/weights_layout.cuh"
#include "ops/moe/backward/weights_params.cuh"

#define NAME "moe_backward_weights"

static mb_status check(const mb_moe_backward_weights_args *args) {
    if (args->n_experts < 1 || args->m < 8 || args->n < 8 || args->m % 8 != 0 || args->n % 8 != 0)
        return mb_fail(MB_ERR_ARGUMENT,
                       NAME
                       ": n_experts %d, m %d, n %d; m and n must be multiples of 8, all of them positive",
                       args->n_experts, args->m, args->n);
    if (args->dtype != MB_BF16 && args->dtype != MB_F16)
        return mb_fail(MB_ERR_UNSUPPORTED, NAME ": dtype %s; bf16 and f16 are multiplied",
                       mb_dtype_name(args->dtype));
    if (args->out_dtype != MB_F32 && args->out_dtype != args->dtype)
        return mb_fail(MB_ERR_ARGUMENT, NAME ": out_dtype %s is neither f32 nor dtype, %s",
                       mb_dtype_name(args->out_dtype), mb_dtype_name(args->dtype));
    if (args->a_index && args->b_index)
        return mb_fail(MB_ERR_UNSUPPORTED, NAME ": a and b have an index; at most one of them can");
    MB_TRY(mb_array_check(NAME, "offsets", args->offsets, sizeof(int32_t), 0));
    MB_TRY(mb_array_check(NAME, "a_index", args->a_index, sizeof(int32_t), 1));
    MB_TRY(mb_array_check(NAME, "b_index", args->b_index, sizeof(int32_t), 1));
    MB_TRY(mb_matrix_check_sm90(NAME, "a", args->a, 0));
    MB_TRY(mb_matrix_check_sm90(NAME, "b", args->b, 0));
    return mb_matrix_check_sm90(NAME, "out", args->out, 0);
}

/* Rows of Q that end where their expert's end (weights_params.cuh). */
static mb_status encode_q(CUtensorMap *map, mb_dtype dtype, const void *data, int32_t columns) {
    const cuuint64_t row_bytes = (cuuint64_t)columns * 2, rows = 0x7fff0000;
    const cuuint64_t sizes[5] = {(cuuint64_t)columns, ROWS_END, rows, rows, 1};
    const cuuint64_t strides[4] = {row_bytes, row_bytes, (1ull << 34) - row_bytes, row_bytes};
    const cuuint32_t box[5] = {PANEL, STEP, 1, 1, 1};
    return mb_encode_tensor_map(NAME, map, dtype, data, sizes, strides, box);
}

static mb_status encode_out(CUtensorMap *map, const mb_moe_backward_weights_args *args, int turned) {
    const cuuint64_t row_bytes = mb_dtype_row_bytes(args->out_dtype, args->n);
    const cuuint32_t line = LINE_BYTES / (cuuint32_t)mb_dtype_bytes(args->out_dtype);
    const cuuint64_t sizes[3] = {(cuuint64_t)args->n, (cuuint64_t)args->m, (cuuint64_t)args->n_experts};
    const cuuint64_t strides[2] = {row_bytes, (cuuint64_t)args->m * row_bytes};
    const cuuint32_t box[3] = {line, turned && args->out_dtype == MB_F32 ? 32u : 64u, 1};
    const CUtensorMapDataType type =
        args->out_dtype == MB_F32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : mb_tensor_map_type(args->out_dtype);
    return mb_encode_tensor_map_of(NAME, map, type, 3, args->out, sizes, strides, box);
}

extern "C" mb_status mb_moe_backward_weights_sm90(const mb_moe_backward_weights_args *args,
                                                  mb_stream stream) {
    MB_TRY(check(args));
    const int turned = args->b_index != NULL;
    weights_params params = {};
    params.p = (const unsigned char *)(turned ? args->b : args->a);
    params.p_index = turned ? args->b_index : args->a_index;
    params.offsets = args->offsets;
    params.p_columns = turned ? args->n : args->m;
    params.q_columns = turned ? args->m : args->n;
    params.p_row_bytes = params.p_columns * 2;
    params.n_tiles_q = (params.q_columns + PAIR_Q - 1) / PAIR_Q;
    params.n_tiles = (params.p_columns + PAIR_P - 1) / PAIR_P * params.n_tiles_q;
    params.turned = turned;
    params.accumulate = args->accumulate != 0;
    params.old = args->accumulate && args->out_dtype != MB_F32 ? args->out : NULL;
    const int64_t n_items = (int64_t)args->n_experts * params.n_tiles;
    if (n_items > INT32_MAX / 2)
        return mb_fail(MB_ERR_ARGUMENT, NAME ": %d experts of %d x %d are too many tiles", args->n_experts,
                       args->m, args->n);
    params.n_items = (int32_t)n_items;
    MB_TRY(encode_q(&params.q, args->dtype, turned ? args->a : args->b, params.q_columns));
    MB_TRY(encode_out(&params.out, args, turned));
    const int out_is_f32 = args->out_dtype == MB_F32;
    const cudaError_t error =
        args->dtype == MB_BF16
            ? mb_backward_weights_launch_bf16(&params, out_is_f32, mb_n_processors(), stream)
            : mb_backward_weights_launch_f16(&params, out_is_f32, mb_n_processors(), stream);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, NAME ": launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
