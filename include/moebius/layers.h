/*
 * layers.h - the operators of a transformer layer beside the MoE ones of ops.h: RMSNorm, dense layer,
 * rotary embedding with the store into a paged KV cache, attention over that cache, sampling. The engine
 * itself calls them.
 *
 * They keep the rules of ops.h: the first pointer says where the operator runs, no call allocates or waits,
 * all can be captured in a CUDA graph, T = 0 does nothing, same inputs give the same bits. A row's bits (of
 * attention: a query's) depend on that row (that sequence) alone: batches, chunks and padding change
 * nothing.
 *
 * Words: T tokens (rows), H hidden, S sequences, Hq query heads, Hkv heads of K and V, D dimensions of a
 * head, V vocabulary.
 *
 * All arrays are in one place: on a GPU no pointer is the host's. What the host must know stands in the
 * struct as a number (max_q_len, max_kv_len). A GPU cannot refuse what arrays hold: positions, slots, block
 * tables and lengths that are wrong read or write memory that is not theirs. The CPU refuses lengths that
 * do not fit each other.
 *
 * Arrays are aligned as their type, on the GPU matrices (x, x8, qkv, q, out, out8, residual, sum, a gemm's
 * weight, the caches) to 16 bytes. So that an operator can begin early, it may read what is called old
 * below before the operators of this library in front of it have ended, and these may have begun early too:
 * none of them since the stream's last copy, memset or other kernel may write it. Those may.
 *
 * The gather of embedding rows is not here: every framework has it.
 */
#ifndef MOEBIUS_LAYERS_H
#define MOEBIUS_LAYERS_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * RMSNorm (Zhang and Sennrich 2019), as Hugging Face's Qwen3MoeRMSNorm: out = weight * (x / sqrt(mean(x^2)
 * + eps)); of x, or of x + residual, whose sum is written too. Arithmetic is fp32; x / rms is rounded to
 * dtype before it is multiplied by the weight.
 */
typedef struct mb_rms_norm_args {
    const void *x;       /* [*, H] dtype */
    const int32_t *rows; /* [n_rows] row of x for each row of out, or NULL: the same row */
    mb_weight weight;    /* [1, 1, H] any dtype without scales; old */
    void *out;           /* [n_rows, H] dtype; may be x when rows is NULL; may be NULL with out8 */
    int64_t n_rows;
    int32_t hidden;
    float eps;
    mb_dtype dtype; /* MB_F32, MB_BF16 or MB_F16 */
    /* The rows of out, rounded to dtype, in fp8 too: e4m3 times one scale for each row and 128 columns,
     * amax / 448, 1 when all are 0; the x8 of mb_gemm and mb_moe_forward. Or NULL. dtype is MB_BF16 or
     * MB_F16 then. */
    void *out8;        /* [n_rows, H] MB_F8_E4M3 */
    float *out8_scale; /* [n_rows, ceil(H / 128)]; NULL with out8 NULL */
    /* x is added to residual first: in fp32, the sum rounded to dtype once. What is normed is the sum as
     * rounded, so out has the bits of the norm alone of sum's rows. Not beside rows. Both are NULL, or
     * neither is. sum may be x or residual, and so may out, but out is not sum: vLLM's fused_add_rms_norm
     * has sum = residual and out = x. */
    const void *residual; /* [n_rows, H] dtype */
    void *sum;            /* [n_rows, H] dtype */
} mb_rms_norm_args;
MB_API mb_status mb_rms_norm(const mb_rms_norm_args *args, mb_stream stream);

/*
 * Dense layer: out = x W^T [+ bias] [+ residual], summed in fp32 and rounded once, with an RMSNorm of x in
 * front if wanted. The norm has the bits of mb_rms_norm.
 *
 * fp8 weights: on a GPU, beside x in bf16 or fp16, x is quantised too, as mb_rms_norm's out8, where the
 * weight has one scale or block scales of 8 rows or more, its rows are a multiple of 8 and its columns one
 * of 16. The CPU leaves x as it is. The GPU's tensor cores multiply such weights, and weights of x's dtype
 * with rows in multiples of 8 and columns in multiples of 16 bytes; fp32, and what is left, is fp32
 * multiply-adds.
 */
typedef struct mb_gemm_args {
    const void *x; /* [T, K] dtype; may be NULL with x8 */
    /* Or x in fp8, as mb_rms_norm's out8; not with a norm. dtype is that of the rows that became x8. A
     * GPU takes it where it would quantise x itself, else MB_ERR_UNSUPPORTED, and the result has the same
     * bits. The CPU widens it. */
    const void *x8;        /* [T, K] MB_F8_E4M3, or NULL */
    const float *x8_scale; /* [T, ceil(K / 128)] */
    mb_weight weight;      /* [1, N, K], any dtype; old, and its scales too */
    const void *bias;      /* [N] bias_dtype, or NULL; old */
    const void *residual;  /* [T, N] out_dtype, or NULL; may be out */
    void *out;             /* [T, N] out_dtype; may not be x */
    int64_t n_tokens;
    mb_dtype dtype, out_dtype, bias_dtype; /* MB_F32, MB_BF16 or MB_F16 each */
    /* [1, 1, K] any dtype without scales: x is normed first; data NULL: it is not. Old. */
    mb_weight norm_weight;
    const int32_t *norm_rows; /* [T] row of x that is normed for each row, or NULL: the same row */
    float eps;                /* of the norm */
    /* The rows of x are still to be added up: the call does what mb_moe_reduce does with these, and x is
     * their out. NULL: x is there. Choices and weights are old, or the kernel in front is the experts' of
     * mb_moe_forward, which lets this one begin only when all in front of it has ended. They and the rows
     * may lie in the call's workspace: they are read before anything is written there. */
    const mb_moe_reduce_args *x_sum;
} mb_gemm_args;
MB_API mb_status mb_gemm_workspace(const mb_gemm_args *most, size_t *bytes);
MB_API mb_status mb_gemm(const mb_gemm_args *args, void *workspace, size_t workspace_bytes, mb_stream stream);

/*
 * The paged KV cache (Kwon et al. 2023, PagedAttention), of one layer: K and V are [n_blocks, Hkv, 64, D]
 * each. A block has the 64 positions of one sequence, and one head's part of a block is one contiguous
 * tile. Position p of sequence s lies in block block_table[s][p / 64] at offset p % 64. So its slot,
 * counted over all blocks, is block * 64 + p % 64.
 *
 * A cache of MB_F8_E4M3 may have scales, one for each kv head and above 0: a cached value is its fp8 number
 * times the scale. Values that are beyond 448 scales become 448 scales.
 */
enum { MB_KV_BLOCK = 64 };

/*
 * What happens to q, k and v between the projection and the attention, in one pass: RMSNorm of each q and k
 * head (Qwen3), rotary embedding (Su et al. 2021, RoFormer, in the "rotate half" form of Hugging Face: of R
 * rotated dimensions i pairs with i + R/2), the store of k and v into the cache. Arithmetic is fp32 and
 * rounded once.
 */
typedef struct mb_qk_norm_rope_store_args {
    const void *qkv;          /* [T, (Hq + 2 Hkv) * D] dtype: q heads, k heads, v heads */
    mb_weight q_norm, k_norm; /* [1, 1, D] any dtype without scales; data NULL: no norm. Old */
    const int32_t *positions; /* [T] */
    const int32_t *slots;     /* [T] of the cache; -1: do not store (padding, or what is there already) */
    const float *inv_freq;    /* [R/2] rotary frequencies, YaRN and linear scaling already applied; old */
    void *q;                  /* [T, Hq * D] dtype, out; may not lie in qkv */
    void *k_cache, *v_cache;  /* [n_blocks, Hkv, 64, D] cache_dtype */
    int64_t n_tokens;
    int32_t n_heads, n_kv_heads, head_dim; /* head_dim even, <= 512 */
    /* R: the first dimensions of a head that are rotated, an even number up to head_dim; the others are
     * normed and stay. 0: all. */
    int32_t rotary_dim;
    float eps;
    float rope_scale;               /* multiplies cos and sin (YaRN's attention factor); 1 otherwise */
    mb_dtype dtype, cache_dtype;    /* dtype: MB_F32, MB_BF16 or MB_F16; cache_dtype: also MB_F8_E4M3 */
    const float *k_scale, *v_scale; /* [Hkv] each, with MB_F8_E4M3 only; NULL: 1 */
} mb_qk_norm_rope_store_args;
MB_API mb_status mb_qk_norm_rope_store(const mb_qk_norm_rope_store_args *args, mb_stream stream);

/*
 * Causal attention over the cache, softmax(q k^T * scale) v in fp32 (Dao et al. 2022, FlashAttention), for
 * a batch of sequences of different lengths. Prefill, chunks of it and single tokens may be mixed: sequence
 * s has the query rows [q_start[s], q_start[s + 1]), which are the last ones of its kv_len[s] cached
 * positions. A sequence may have none.
 *
 * The GPU's tensor cores are used in bf16 and fp16, with a cache of the same type or of fp8, and D of 64 or
 * 128; else fp32 multiply-adds.
 */
typedef struct mb_attention_args {
    const void *q;                 /* [T, Hq * D] dtype */
    const void *k_cache, *v_cache; /* [n_blocks, Hkv, 64, D] cache_dtype */
    const int32_t *q_start;        /* [S + 1] */
    const int32_t *kv_len;         /* [S], the rows of this call included */
    const int32_t *block_table;    /* [S, max_blocks]; entries beyond a sequence's kv_len are not read */
    void *out;                     /* [T, Hq * D] dtype; may not be q */
    int64_t n_tokens;
    int32_t n_sequences, max_blocks;
    /* Largest q_start[s + 1] - q_start[s] and kv_len[s], or more: what is beyond them is left out. The
     * workspace grows with them. */
    int32_t max_q_len, max_kv_len;
    int32_t n_heads, n_kv_heads, head_dim; /* Hq a multiple of Hkv; D <= 512 */
    float scale;                           /* of the scores: 1 / sqrt(D) as a rule */
    mb_dtype dtype, cache_dtype;    /* dtype: MB_F32, MB_BF16 or MB_F16; cache_dtype: also MB_F8_E4M3 */
    const float *k_scale, *v_scale; /* [Hkv] each, with MB_F8_E4M3 only; NULL: 1 */
} mb_attention_args;
MB_API mb_status mb_attention_workspace(const mb_attention_args *most, size_t *bytes);
MB_API mb_status mb_attention(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                              mb_stream stream);

/* Most tokens of a sequence in one mb_decode_attention; positions that it adds up at a time. */
enum { MB_DECODE_TOKENS = 8, MB_DECODE_SPAN = 256 };

/*
 * A decode step's mb_qk_norm_rope_store and mb_attention in one operator, with their bits: 1 to 8 tokens of
 * each sequence, the last ones of its kv_len positions (several when tokens are drafted). A token's slot is
 * its own position's, or -1: then what the cache has there is used. On the GPU the positions are cut into
 * spans that fill it however few sequences there are (as in Flash-Decoding), always at the same places.
 *
 * span_start and counters are the caller's because all layers of a step share them.
 */
typedef struct mb_decode_attention_args {
    const void *qkv;          /* [T, (Hq + 2 Hkv) * D] dtype: q heads, k heads, v heads */
    mb_weight q_norm, k_norm; /* [1, 1, D] any dtype without scales; data NULL: no norm. Old */
    const int32_t *positions; /* [T] for the rotation; old */
    const int32_t *slots;     /* [T] of the cache; -1: do not store */
    const float *inv_freq;    /* [R/2]; old */
    void *k_cache,
        *v_cache; /* [n_blocks, Hkv, 64, D] cache_dtype; rows of the sequences' former tokens: old */
    const int32_t *q_start; /* [S + 1]; old */
    const int32_t *kv_len;  /* [S], this step's tokens included; old */
    /* [S + 1]; old. How many spans of MB_DECODE_SPAN positions the sequences in front have: ceil(kv_len /
     * 256) each, those without tokens none. */
    const int32_t *span_start;
    const int32_t *block_table; /* [S, max_blocks]; old */
    /* [mb_decode_attention_counters] zeros before the first call, which leaves zeros: calls of one stream may
     * share them. */
    int32_t *counters;
    void *out; /* [T, Hq * D] dtype; may not lie in qkv */
    int64_t n_tokens;
    int32_t n_sequences, max_blocks;
    /* Largest of the batch, or more; max_q_len <= MB_DECODE_TOKENS. The workspace grows with them. */
    int32_t max_q_len, max_kv_len;
    int32_t n_heads, n_kv_heads, head_dim; /* Hq a multiple of Hkv; D even, <= 512 */
    int32_t rotary_dim;                    /* R, as in mb_qk_norm_rope_store_args; 0: D */
    float eps;
    float rope_scale;               /* multiplies cos and sin */
    float scale;                    /* of the scores; above 0 */
    mb_dtype dtype, cache_dtype;    /* dtype: MB_F32, MB_BF16 or MB_F16; cache_dtype: also MB_F8_E4M3 */
    const float *k_scale, *v_scale; /* [Hkv] each, with MB_F8_E4M3 only; NULL: 1 */
} mb_decode_attention_args;
/* Counters that are enough for `most` and for calls with smaller counts; 0 where heads are wrong. */
MB_API int64_t mb_decode_attention_counters(const mb_decode_attention_args *most);
MB_API mb_status mb_decode_attention_workspace(const mb_decode_attention_args *most, size_t *bytes);
MB_API mb_status mb_decode_attention(const mb_decode_attention_args *args, void *workspace,
                                     size_t workspace_bytes, mb_stream stream);

/*
 * From logits to the next token, one row per sequence. Order: repetition penalty (Keskar et al. 2019),
 * presence and frequency penalties, bias and the mask on the logits; NaN check; greedy when temperature is
 * 0; else divide by temperature, keep the top_k largest, of these the smallest set with probability >=
 * top_p (Holtzman et al. 2020), of these the ones with probability >= min_p * max (Nguyen et al. 2024);
 * draw with Philox4x32-10 (Salmon et al. 2011) keyed by (seed, position). Ties go to the lower id.
 */
typedef struct mb_sample_row {
    float temperature, top_p, min_p;                               /* off: 0 (greedy), 1, 0 */
    float repetition_penalty, presence_penalty, frequency_penalty; /* off: 1, 0, 0; read with `seen` only */
    int32_t top_k;                                                 /* 0: off */
    int32_t n_bias;
    uint64_t seed;
    uint64_t position;       /* of the token being drawn: the generator's counter */
    const int32_t *bias_ids; /* [n_bias]; ids outside of [0, V) are passed over */
    const float *biases;     /* [n_bias] */
    /* [V] for the penalties, made by mb_count_tokens: of each token twice its occurrences in the answer,
     * plus 1 when it is in the prompt; so 0 is a token that was not seen. The token that is drawn is
     * counted. No two rows share an array. NULL: no penalties. */
    int32_t *seen;
    /* [(V + 31) / 32]: token i is bit i % 32 of word i / 32; tokens whose bit is 0 are not drawn. NULL: all
     * may be. */
    const uint32_t *allowed;
} mb_sample_row;

typedef struct mb_sample_args {
    const float *logits;       /* [n_rows, V]; not changed */
    const mb_sample_row *rows; /* [n_rows], where the logits are, as are the arrays that they name */
    int32_t *ids;              /* [n_rows] out; -1 when the row has a NaN, a +inf, or nothing but -inf
                                  among the allowed */
    float *logprobs; /* [n_rows] out: log softmax of the untouched logits at the chosen id (-1: -inf) */
    int64_t n_rows;
    int32_t vocab;
} mb_sample_args;
MB_API mb_status mb_sample_workspace(const mb_sample_args *most, size_t *bytes);
MB_API mb_status mb_sample(const mb_sample_args *args, void *workspace, size_t workspace_bytes,
                           mb_stream stream);

/* Makes a row's `seen` from the tokens that a sequence has. */
typedef struct mb_count_tokens_args {
    const int32_t *ids; /* [n_ids] prompt, answer; ids outside of [0, V) are passed over */
    int32_t *seen;      /* [V] out */
    int64_t n_ids, n_prompt;
    int32_t vocab;
} mb_count_tokens_args;
MB_API mb_status mb_count_tokens(const mb_count_tokens_args *args, mb_stream stream);

/* Log-probabilities of all tokens: out = log softmax(logits), row by row. */
typedef struct mb_log_softmax_args {
    const float *logits; /* [n_rows, V] */
    float *out;          /* [n_rows, V]; may be logits */
    int64_t n_rows;
    int32_t vocab;
} mb_log_softmax_args;
MB_API mb_status mb_log_softmax(const mb_log_softmax_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif
#endif
