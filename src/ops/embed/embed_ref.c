#include "ops/embed/embed.h"

#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"

#include <inttypes.h>

/* A row passes through fp32 in pieces of this length when table and output differ in dtype. */
enum { PIECE = 256 };

static int32_t id_of(const mb_embed_args *args, int64_t t) {
    if (!args->draw_of || args->draw_of[t] < 0)
        return args->ids[t];
    int32_t id = args->draws[args->draw_of[t]];
    return id >= 0 && id < args->table.rows ? id : 0;
}

static void copy_row(const void *context, int64_t t) {
    const mb_embed_args *args = context;
    const mb_weight *table = &args->table;
    const int32_t id = id_of(args, t);
    float piece[PIECE];
    for (int64_t i = 0; i < table->cols; i += PIECE) {
        int64_t n = table->cols - i < PIECE ? table->cols - i : PIECE;
        mb_weight_load(table, 0, id, i, n, piece);
        mb_store_f32(args->dtype, args->out, t * table->cols + i, n, piece);
    }
}

mb_status mb_embed_check(const mb_embed_args *args) {
    const mb_weight *table = &args->table;
    MB_REQUIRE(args->n_tokens >= 0 && args->n_tokens <= INT32_MAX, "embed: n_tokens is %" PRId64,
               args->n_tokens);
    MB_REQUIRE(mb_dtype_is_activation(args->dtype), "embed: dtype %s (%d) is not one of activations",
               mb_dtype_name(args->dtype), (int)args->dtype);
    MB_REQUIRE(table->rows > 0 && table->cols > 0, "embed: table is [%" PRId64 ", %" PRId64 "]", table->rows,
               table->cols);
    MB_TRY(mb_weight_check(table, "embed: table", 1, table->rows, table->cols, 0));
    MB_REQUIRE(args->n_tokens == 0 || (args->ids && args->out), "embed: ids or out is NULL");
    MB_REQUIRE(!args->draw_of || args->draws, "embed: draw_of is given, but draws is NULL");
    return MB_OK;
}

mb_status mb_embed_ref(const mb_embed_args *args, mb_stream stream) {
    const mb_weight *table = &args->table;
    MB_TRY(mb_embed_check(args));
    for (int64_t t = 0; t < args->n_tokens; t++)
        MB_REQUIRE(id_of(args, t) >= 0 && id_of(args, t) < table->rows,
                   "embed: ids[%" PRId64 "] is %d, outside of the table's %" PRId64 " rows", t, args->ids[t],
                   table->rows);

    mb_parallel_for(stream, (double)args->n_tokens * (double)table->cols, args->n_tokens, copy_row, args);
    return MB_OK;
}
