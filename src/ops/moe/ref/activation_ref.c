#include "ops/moe/ref/activation.h"

#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"
#include "ops/common/vector.h"
#include "ops/moe/activation_value.h"
#include "ops/moe/moe.h"

#include <inttypes.h>

int mb_activation_is_known(mb_activation activation) {
    return (int)activation >= MB_ACT_SWIGLU && activation <= MB_ACT_RELU2;
}

int mb_activation_is_gated(mb_activation activation) {
    return activation == MB_ACT_SWIGLU || activation == MB_ACT_GEGLU || activation == MB_ACT_REGLU;
}

void mb_activation_row(mb_activation activation, int64_t n, const float *gate, const float *up, float *out) {
    switch (activation) {
    case MB_ACT_SWIGLU:
        for (int64_t i = 0; i < n; i++)
            out[i] = mb_silu(gate[i]) * up[i];
        break;
    case MB_ACT_GEGLU:
        for (int64_t i = 0; i < n; i++)
            out[i] = mb_gelu_tanh(gate[i]) * up[i];
        break;
    case MB_ACT_REGLU:
        for (int64_t i = 0; i < n; i++)
            out[i] = mb_relu(gate[i]) * up[i];
        break;
    case MB_ACT_SILU:
        for (int64_t i = 0; i < n; i++)
            out[i] = mb_silu(gate[i]);
        break;
    case MB_ACT_GELU:
        for (int64_t i = 0; i < n; i++)
            out[i] = mb_gelu_tanh(gate[i]);
        break;
    case MB_ACT_RELU:
        for (int64_t i = 0; i < n; i++)
            out[i] = mb_relu(gate[i]);
        break;
    case MB_ACT_RELU2:
        for (int64_t i = 0; i < n; i++)
            out[i] = mb_relu(gate[i]) * mb_relu(gate[i]);
        break;
    case MB_ACT_NONE:
        memcpy(out, gate, (size_t)n * sizeof *out);
        break;
    }
}

enum { PIECE = 256 };

static void activate_row(const void *context, int64_t row) {
    const mb_gated_activation_args *args = context;
    int64_t width = args->intermediate, gated = mb_activation_is_gated(args->activation);
    int64_t start = row * width * (1 + gated);
    float gate[PIECE], up[PIECE], out[PIECE];
    for (int64_t i = 0; i < width; i += PIECE) {
        int64_t n = width - i < PIECE ? width - i : PIECE;
        mb_load_f32(args->dtype, args->x, start + i, n, gate);
        if (gated)
            mb_load_f32(args->dtype, args->x, start + width + i, n, up);
        mb_activation_row(args->activation, n, gate, up, out);
        mb_store_f32(args->dtype, args->out, row * width + i, n, out);
    }
}

mb_status mb_gated_activation_check(const mb_gated_activation_args *args) {
    MB_REQUIRE(args->n_rows >= 0 && args->n_rows <= INT32_MAX, "gated_activation: n_rows is %" PRId64,
               args->n_rows);
    MB_REQUIRE(args->intermediate > 0, "gated_activation: intermediate is %d", args->intermediate);
    MB_REQUIRE(mb_activation_is_known(args->activation), "gated_activation: activation %d is unknown",
               (int)args->activation);
    MB_REQUIRE(mb_dtype_is_activation(args->dtype),
               "gated_activation: dtype %s (%d) is not one of activations", mb_dtype_name(args->dtype),
               (int)args->dtype);
    if (args->n_rows == 0)
        return MB_OK;
    MB_REQUIRE(args->x && args->out, "gated_activation: x or out is NULL");
    return MB_OK;
}

mb_status mb_gated_activation_ref(const mb_gated_activation_args *args, mb_stream stream) {
    MB_TRY(mb_gated_activation_check(args));
    mb_parallel_for(stream, 16.0 * (double)args->n_rows * args->intermediate, args->n_rows, activate_row,
                    args);
    return MB_OK;
}
