/*
 * embed.h - token embedding lookup: out[t] = table[ids[t]].
 *
 * With draw_of, a token may be one that the sampler has drawn and the host does not know yet: where
 * draw_of[t] >= 0 the id is draws[draw_of[t]], and ids[t] is not looked at. A draw that is no id of the table
 * (it failed) gives row 0: whose draw failed has no use for the result.
 */
#ifndef MB_OPS_EMBED_H
#define MB_OPS_EMBED_H

#include "moebius/ops.h"
#include "ops/common/cost.h"

typedef struct mb_embed_args {
    const int32_t *ids;     /* [T] in [0, table.rows) */
    const int32_t *draw_of; /* [T] place in draws, -1: none; NULL: none at all */
    const int32_t *draws;
    mb_weight table; /* [1, vocab, H] any dtype without scales */
    void *out;       /* [T, H] dtype */
    int64_t n_tokens;
    mb_dtype dtype;
} mb_embed_args;

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device, but for what ids hold. */
mb_status mb_embed_check(const mb_embed_args *args);

mb_op_cost mb_embed_cost(const mb_embed_args *args);

mb_status mb_embed_ref(const mb_embed_args *args, mb_stream stream);

/* On the GPU an id outside of the table gives a row of NaN: the CPU refuses it. */
mb_status mb_embed_sm90(const mb_embed_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
