#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"
#include "ops/moe/arguments.h"
#include "ops/moe/moe.h"

#include <inttypes.h>

/* Each token by parts of its row: the K rows in order, then shared, then residual; rounded once. */
static void reduce_token(const void *context, int64_t t) {
    enum { PIECE = 256 };
    const mb_moe_reduce_args *args = context;
    float sums[PIECE], values[PIECE];
    int64_t h = args->hidden;
    for (int64_t i = 0; i < h; i += PIECE) {
        int64_t n = h - i < PIECE ? h - i : PIECE;
        memset(sums, 0, sizeof sums);
        for (int32_t k = 0; k < args->top_k; k++) {
            int64_t row = args->token_row[t * args->top_k + k];
            if (row < 0)
                continue;
            float weight = args->weights[t * args->top_k + k];
            mb_load_f32(args->dtype, args->y, row * h + i, n, values);
            for (int64_t j = 0; j < n; j++)
                sums[j] += weight * values[j];
        }
        const void *addends[] = {args->shared, args->residual};
        for (int a = 0; a < 2; a++) {
            if (!addends[a])
                continue;
            mb_load_f32(args->out_dtype, addends[a], t * h + i, n, values);
            for (int64_t j = 0; j < n; j++)
                sums[j] += values[j];
        }
        mb_store_f32(args->out_dtype, args->out, t * h + i, n, sums);
    }
}

mb_status mb_moe_reduce_ref(const mb_moe_reduce_args *args, mb_stream stream) {
    MB_TRY(mb_moe_reduce_check(args));
    for (int64_t i = 0; !args->y && i < args->n_tokens * args->top_k; i++)
        MB_REQUIRE(args->token_row[i] < 0, "moe_reduce: y is NULL, but token_row[%" PRId64 "] is %d", i,
                   args->token_row[i]);
    double work = (double)args->n_tokens * args->hidden * args->top_k;
    mb_parallel_for(stream, work, args->n_tokens, reduce_token, args);
    return MB_OK;
}
