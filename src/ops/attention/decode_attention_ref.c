#include "base/status.h"
#include "ops/attention/decode_parts.h"
#include "ops/common/dtype.h"
#include "ops/common/tensor.h"
#include "ops/common/workspace.h"

#include <inttypes.h>
#include <math.h>

mb_status mb_decode_attention_check_sizes(const mb_decode_attention_args *args) {
    mb_attention_args attend = mb_decode_attention_part(args, NULL);
    MB_TRY(mb_attention_check_sizes(&attend));
    /* Factors are below 2^31. Twice as many bytes of q fit into a size_t. */
    const int64_t n_q_heads = args->n_tokens * args->n_heads;
    MB_REQUIRE(n_q_heads <= INT64_MAX / args->head_dim / (int64_t)mb_dtype_bytes(args->dtype),
               "decode_attention: a workspace for %" PRId64 " tokens of %d heads would be too large",
               args->n_tokens, args->n_heads);
    MB_REQUIRE(args->max_q_len <= MB_DECODE_TOKENS,
               "decode_attention: max_q_len is %d; at most %d tokens of a sequence are taken",
               args->max_q_len, MB_DECODE_TOKENS);
    return MB_OK;
}

mb_status mb_decode_attention_check(const mb_decode_attention_args *args) {
    MB_TRY(mb_decode_attention_check_sizes(args));
    MB_REQUIRE(args->scale > 0 && isfinite(args->scale),
               "decode_attention: scale is %g; it must be above 0 and finite", (double)args->scale);
    MB_REQUIRE((uintptr_t)args->qkv % 4 == 0, "decode_attention: qkv is not 4-byte aligned");
    /* Pointers that only the parts know are checked by them; q is the workspace's. */
    mb_qk_norm_rope_store_args rope = mb_decode_rope_part(args, args->out);
    mb_attention_args attend = mb_decode_attention_part(args, args->qkv);
    MB_REQUIRE(args->n_tokens == 0 || !args->out || !mb_lies_in_qkv(args->out, &rope),
               "decode_attention: out lies in qkv");
    MB_TRY(mb_qk_norm_rope_store_check(&rope));
    MB_TRY(mb_attention_check(&attend));
    MB_REQUIRE(args->n_tokens == 0 || (args->span_start && args->counters),
               "decode_attention: span_start or counters is NULL");
    return MB_OK;
}

int64_t mb_decode_attention_counters(const mb_decode_attention_args *most) {
    if (!most || most->n_kv_heads <= 0)
        return 0;
    int64_t n_rows = (int64_t)most->max_q_len * (most->n_heads / most->n_kv_heads);
    const int64_t n_tiles = (n_rows + MB_DECODE_ROWS - 1) / MB_DECODE_ROWS;
    return 1 + (int64_t)most->n_sequences * most->n_kv_heads * n_tiles;
}

static mb_status check_arrays(const mb_decode_attention_args *args) {
    const mb_attention_args attend = mb_decode_attention_part(args, args->qkv);
    MB_TRY(mb_attention_check_arrays(&attend));
    int64_t n_spans = 0;
    for (int32_t s = 0; s <= args->n_sequences && args->n_tokens > 0; s++) {
        MB_REQUIRE(args->span_start[s] == n_spans,
                   "decode_attention: span_start[%d] is %d, but the sequences in front have %" PRId64
                   " spans",
                   s, args->span_start[s], n_spans);
        if (s < args->n_sequences && args->q_start[s] < args->q_start[s + 1])
            n_spans += ((int64_t)args->kv_len[s] + MB_DECODE_SPAN - 1) / MB_DECODE_SPAN;
    }
    return MB_OK;
}

mb_status mb_decode_attention_ref_workspace(const mb_decode_attention_args *most, size_t *bytes) {
    *bytes = 0;
    MB_TRY(mb_decode_attention_check_sizes(most));
    *bytes = mb_decode_q_bytes(most);
    return MB_OK;
}

mb_status mb_decode_attention_ref(const mb_decode_attention_args *args, void *workspace,
                                  size_t workspace_bytes, mb_stream stream) {
    MB_TRY(mb_decode_attention_check(args));
    MB_TRY(check_arrays(args));
    MB_TRY(mb_workspace_check("decode_attention", workspace, workspace_bytes, mb_decode_q_bytes(args)));
    mb_qk_norm_rope_store_args rope = mb_decode_rope_part(args, workspace);
    mb_attention_args attend = mb_decode_attention_part(args, workspace);
    MB_TRY(mb_qk_norm_rope_store_ref(&rope, stream));
    return mb_attention_ref(&attend, NULL, 0, stream);
}
