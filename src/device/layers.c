/*
 * layers.c - the public operators of moebius/layers.h: they look where the memory is, check what a kernel
 * takes for granted from the engine, and call that place's op table.
 */
#include "base/status.h"
#include "device/place.h"
#include "ops/common/dtype.h"
#include "ops/common/tensor.h"

#include <inttypes.h>

typedef struct named_array {
    const char *name;
    const void *array;
} named_array;

/* Kernels move rows of these 16 bytes at a time. NULL is for the operator to judge. */
static mb_status check_matrices(const mb_place *where, const char *op, const named_array *matrices,
                                size_t n_matrices) {
    for (size_t i = 0; where->ops != &mb_cpu_ops && i < n_matrices; i++)
        MB_TRY(mb_matrix_check_sm90(op, matrices[i].name, matrices[i].array, 1));
    return MB_OK;
}
#define CHECK_MATRICES(where, op, ...)                            \
    check_matrices(where, op, (const named_array[]){__VA_ARGS__}, \
                   sizeof((const named_array[]){__VA_ARGS__}) / sizeof(named_array))

typedef struct typed_array {
    const char *name;
    const void *array;
    size_t bytes; /* of an element; 0 of a type that the operator refuses */
} typed_array;

/* Everything is aligned as its type, wherever it is. NULL is for the operator to judge. */
static mb_status check_arrays(const char *op, const typed_array *arrays, size_t n_arrays) {
    for (size_t i = 0; i < n_arrays; i++)
        if (arrays[i].bytes > 0)
            MB_TRY(mb_array_check(op, arrays[i].name, arrays[i].array, arrays[i].bytes, 1));
    return MB_OK;
}
#define CHECK_ARRAYS(op, ...)                            \
    check_arrays(op, (const typed_array[]){__VA_ARGS__}, \
                 sizeof((const typed_array[]){__VA_ARGS__}) / sizeof(typed_array))
/* Members of args: an array of C type, one of a dtype. */
#define TYPED(member) \
    { #member, args->member, sizeof *args->member }
#define OF_DTYPE(member, dtype) \
    { #member, args->member, mb_dtype_bytes(dtype) }

/* What the host knows of a batch of sequences: grids and workspaces are made of it. */
static mb_status check_batch(const char *op, int64_t n_tokens, int32_t n_sequences, int32_t max_blocks,
                             int32_t max_q_len, int32_t max_kv_len) {
    const int32_t least = n_tokens > 0;
    MB_REQUIRE(n_sequences >= least, "%s: n_sequences is %d for %" PRId64 " tokens", op, n_sequences,
               n_tokens);
    MB_REQUIRE(max_blocks >= least, "%s: max_blocks is %d; it must be at least %d", op, max_blocks, least);
    MB_REQUIRE(max_q_len >= least, "%s: max_q_len is %d; it must be at least %d", op, max_q_len, least);
    MB_REQUIRE(max_kv_len >= least, "%s: max_kv_len is %d; it must be at least %d", op, max_kv_len, least);
    return MB_OK;
}

/* ---- RMSNorm and dense layer --------------------------------------------------------------------------- */

mb_status mb_rms_norm(const mb_rms_norm_args *args, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_need(args, "rms_norm: args"));
    MB_TRY(MB_PLACE_ENTER(&where, args->x, args->out, args->out8, args->weight.data));
    mb_status status = CHECK_MATRICES(&where, "rms_norm", {"x", args->x}, {"out", args->out},
                                      {"out8", args->out8}, {"residual", args->residual}, {"sum", args->sum});
    if (status == MB_OK)
        status = CHECK_ARRAYS("rms_norm", OF_DTYPE(x, args->dtype), OF_DTYPE(out, args->dtype),
                              OF_DTYPE(residual, args->dtype), OF_DTYPE(sum, args->dtype),
                              OF_DTYPE(weight.data, args->weight.dtype), TYPED(rows), TYPED(out8_scale));
    if (status == MB_OK)
        status = where.ops->rms_norm(args, stream);
    return mb_place_leave(&where, status);
}

static mb_status enter_gemm(const mb_gemm_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "gemm: args"));
    return MB_PLACE_ENTER(where, args->x, args->x8, args->weight.data, args->out);
}

mb_status mb_gemm_workspace(const mb_gemm_args *most, size_t *bytes) {
    mb_place where;
    size_t needed = 0;
    MB_TRY(mb_need(bytes, "gemm: bytes"));
    MB_TRY(enter_gemm(most, &where));
    MB_TRY(mb_place_leave(&where, where.ops->gemm_workspace(most, &needed)));
    *bytes = needed;
    return MB_OK;
}

mb_status mb_gemm(const mb_gemm_args *args, void *workspace, size_t workspace_bytes, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("gemm", workspace));
    MB_TRY(enter_gemm(args, &where));
    mb_status status =
        CHECK_MATRICES(&where, "gemm", {"x", args->x}, {"x8", args->x8}, {"weight.data", args->weight.data},
                       {"residual", args->residual}, {"out", args->out});
    if (status == MB_OK)
        status = CHECK_ARRAYS(
            "gemm", OF_DTYPE(x, args->dtype), OF_DTYPE(bias, args->bias_dtype),
            OF_DTYPE(residual, args->out_dtype), OF_DTYPE(out, args->out_dtype),
            OF_DTYPE(weight.data, args->weight.dtype), OF_DTYPE(norm_weight.data, args->norm_weight.dtype),
            OF_DTYPE(weight.scale, args->weight.scale_dtype), TYPED(x8_scale), TYPED(norm_rows));
    if (status == MB_OK)
        status = where.ops->gemm(args, workspace, workspace_bytes, stream);
    return mb_place_leave(&where, status);
}

/* ---- Rotary embedding and attention -------------------------------------------------------------------- */

mb_status mb_qk_norm_rope_store(const mb_qk_norm_rope_store_args *args, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_need(args, "qk_norm_rope_store: args"));
    MB_TRY(MB_PLACE_ENTER(&where, args->qkv, args->q, args->k_cache));
    mb_status status = CHECK_MATRICES(&where, "qk_norm_rope_store", {"qkv", args->qkv}, {"q", args->q},
                                      {"k_cache", args->k_cache}, {"v_cache", args->v_cache});
    if (status == MB_OK)
        status =
            CHECK_ARRAYS("qk_norm_rope_store", OF_DTYPE(qkv, args->dtype), OF_DTYPE(q, args->dtype),
                         OF_DTYPE(k_cache, args->cache_dtype), OF_DTYPE(v_cache, args->cache_dtype),
                         OF_DTYPE(q_norm.data, args->q_norm.dtype), OF_DTYPE(k_norm.data, args->k_norm.dtype),
                         TYPED(positions), TYPED(slots), TYPED(inv_freq), TYPED(k_scale), TYPED(v_scale));
    if (status == MB_OK)
        status = where.ops->qk_norm_rope_store(args, stream);
    return mb_place_leave(&where, status);
}

static mb_status enter_attention(const mb_attention_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "attention: args"));
    MB_TRY(mb_attention_check_sizes(args));
    MB_TRY(check_batch("attention", args->n_tokens, args->n_sequences, args->max_blocks, args->max_q_len,
                       args->max_kv_len));
    return MB_PLACE_ENTER(where, args->q, args->k_cache, args->out);
}

mb_status mb_attention_workspace(const mb_attention_args *most, size_t *bytes) {
    mb_place where;
    size_t needed = 0;
    MB_TRY(mb_need(bytes, "attention: bytes"));
    MB_TRY(enter_attention(most, &where));
    MB_TRY(mb_place_leave(&where, where.ops->attention_workspace(most, &needed)));
    *bytes = needed;
    return MB_OK;
}

mb_status mb_attention(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                       mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("attention", workspace));
    MB_TRY(enter_attention(args, &where));
    mb_status status = CHECK_MATRICES(&where, "attention", {"q", args->q}, {"k_cache", args->k_cache},
                                      {"v_cache", args->v_cache}, {"out", args->out});
    if (status == MB_OK)
        status =
            CHECK_ARRAYS("attention", OF_DTYPE(q, args->dtype), OF_DTYPE(out, args->dtype),
                         OF_DTYPE(k_cache, args->cache_dtype), OF_DTYPE(v_cache, args->cache_dtype),
                         TYPED(q_start), TYPED(kv_len), TYPED(block_table), TYPED(k_scale), TYPED(v_scale));
    if (status == MB_OK)
        status = where.ops->attention(args, workspace, workspace_bytes, stream);
    return mb_place_leave(&where, status);
}

static mb_status enter_decode_attention(const mb_decode_attention_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "decode_attention: args"));
    MB_TRY(mb_decode_attention_check_sizes(args));
    MB_TRY(check_batch("decode_attention", args->n_tokens, args->n_sequences, args->max_blocks,
                       args->max_q_len, args->max_kv_len));
    return MB_PLACE_ENTER(where, args->qkv, args->k_cache, args->out);
}

mb_status mb_decode_attention_workspace(const mb_decode_attention_args *most, size_t *bytes) {
    mb_place where;
    size_t needed = 0;
    MB_TRY(mb_need(bytes, "decode_attention: bytes"));
    MB_TRY(enter_decode_attention(most, &where));
    MB_TRY(mb_place_leave(&where, where.ops->decode_attention_workspace(most, &needed)));
    *bytes = needed;
    return MB_OK;
}

mb_status mb_decode_attention(const mb_decode_attention_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("decode_attention", workspace));
    MB_TRY(enter_decode_attention(args, &where));
    mb_status status =
        CHECK_MATRICES(&where, "decode_attention", {"qkv", args->qkv}, {"k_cache", args->k_cache},
                       {"v_cache", args->v_cache}, {"out", args->out});
    if (status == MB_OK)
        status = CHECK_ARRAYS("decode_attention", OF_DTYPE(qkv, args->dtype), OF_DTYPE(out, args->dtype),
                              OF_DTYPE(k_cache, args->cache_dtype), OF_DTYPE(v_cache, args->cache_dtype),
                              OF_DTYPE(q_norm.data, args->q_norm.dtype),
                              OF_DTYPE(k_norm.data, args->k_norm.dtype), TYPED(positions), TYPED(slots),
                              TYPED(inv_freq), TYPED(q_start), TYPED(kv_len), TYPED(span_start),
                              TYPED(block_table), TYPED(counters), TYPED(k_scale), TYPED(v_scale));
    if (status == MB_OK)
        status = where.ops->decode_attention(args, workspace, workspace_bytes, stream);
    return mb_place_leave(&where, status);
}

/* ---- Sampling ------------------------------------------------------------------------------------------ */

static mb_status enter_sample(const mb_sample_args *args, mb_place *where) {
    MB_TRY(mb_need(args, "sample: args"));
    MB_TRY(mb_array_check("sample", "rows", args->rows, _Alignof(mb_sample_row), 1));
    return MB_PLACE_ENTER(where, args->logits, args->rows, args->ids);
}

mb_status mb_sample_workspace(const mb_sample_args *most, size_t *bytes) {
    mb_place where;
    size_t needed = 0;
    MB_TRY(mb_need(bytes, "sample: bytes"));
    MB_TRY(enter_sample(most, &where));
    MB_TRY(mb_place_leave(&where, where.ops->sample_workspace(most, &needed)));
    *bytes = needed;
    return MB_OK;
}

mb_status mb_sample(const mb_sample_args *args, void *workspace, size_t workspace_bytes, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_place_check_workspace("sample", workspace));
    MB_TRY(enter_sample(args, &where));
    mb_status status = CHECK_ARRAYS("sample", TYPED(logits), TYPED(ids), TYPED(logprobs));
    if (status == MB_OK)
        status = where.ops->sample(args, workspace, workspace_bytes, stream);
    return mb_place_leave(&where, status);
}

mb_status mb_count_tokens(const mb_count_tokens_args *args, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_need(args, "count_tokens: args"));
    MB_TRY(MB_PLACE_ENTER(&where, args->seen, args->ids));
    mb_status status = CHECK_ARRAYS("count_tokens", TYPED(ids), TYPED(seen));
    if (status == MB_OK)
        status = where.ops->count_tokens(args, stream);
    return mb_place_leave(&where, status);
}

mb_status mb_log_softmax(const mb_log_softmax_args *args, mb_stream stream) {
    mb_place where;
    MB_TRY(mb_need(args, "log_softmax: args"));
    MB_TRY(MB_PLACE_ENTER(&where, args->logits, args->out));
    mb_status status = CHECK_ARRAYS("log_softmax", TYPED(logits), TYPED(out));
    if (status == MB_OK)
        status = where.ops->log_softmax(args, stream);
    return mb_place_leave(&where, status);
}
