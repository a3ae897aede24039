"""The public functions of a transformer beside its experts: of a layer, and sampling."""

from typing import Any

from ._functions import Array, operators_of


def rms_norm(
    x: Array, weight: Array, eps: float = 1e-6, *, residual: Array | None = None, out_dtype: Any = None
) -> Any:
    """RMSNorm (Zhang and Sennrich 2019) of rows: weight * (x / sqrt(mean(x^2) + eps)), [T, H].

    x: [T, H] float32, bfloat16 or float16. weight: [H], of any of these. Arithmetic is float32; x / rms is rounded to
    x's dtype before it is multiplied by the weight, as in Hugging Face's Qwen3MoeRMSNorm.
    residual: [T, H] of x's dtype; then the sum x + residual, rounded to x's dtype, is normed and returned too, as
    vLLM's fused_add_rms_norm does.
    out_dtype: x's by default, or float8_e4m3fn of a 16-bit x, with one scale for each row and 128 columns.

    Returns out; (out, sum) with residual; with float8 (out, out_scale) and (out, out_scale, sum), out_scale float32
    [T, ceil(H / 128)].
    """
    outputs = operators_of("rms_norm", "x", x).rms_norm(x, weight, eps, residual, out_dtype)
    found = tuple(output for output in outputs if output is not None)
    return found[0] if len(found) == 1 else found


def linear(
    x: Array,
    weight: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    weight_scale: Array | None = None,
    out_dtype: Any = None,
    out: Array | None = None,
) -> Array:
    """A dense layer: x weight^T + bias + residual, [T, N], summed in float32 and rounded once.

    x: [T, K] float32, bfloat16 or float16. weight: [N, K] of x's dtype, or float8_e4m3fn with a 16-bit x.
    weight_scale (float8 only), float32: blocks [ceil(N/128), ceil(K/128)] as in the checkpoints' weight_scale_inv, or
    [1]. A GPU quantises x too, by one scale for each row and 128 columns.
    bias: [N] float32, bfloat16 or float16. residual: [T, N] of out's dtype.
    out_dtype: x's by default, or float32. out: [T, N] where to write; residual, or memory of its own. Returned.

    A row's bits depend on that row of x alone, not on T.
    """
    return operators_of("linear", "x", x).linear(x, weight, bias, residual, weight_scale, out_dtype, out)


def qk_norm_rope_store(
    qkv: Array,
    k_cache: Array,
    v_cache: Array,
    positions: Array,
    slots: Array,
    inv_freq: Array,
    *,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    eps: float = 1e-6,
    rope_scale: float = 1.0,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
) -> Array:
    """What happens between the projection to q, k and v and attention: head norms, rotary embedding, store. Returns q.

    qkv: [T, (Hq + 2 Hkv) * D] float32, bfloat16 or float16: q heads, k heads, v heads.
    k_cache, v_cache: [n_blocks, Hkv, 64, D] of one of these or float8_e4m3fn; written. A block has 64 positions of one
    sequence.
    positions: int32 [T]. slots: int32 [T], where k and v go: block * 64 + position % 64; -1 stores nothing.
    inv_freq: float32 [R / 2], the rotary frequencies with any scaling applied. The first R dimensions of a head are
    rotated, dimension i together with i + R / 2 ("rotate half"); the others are normed and stay.
    q_norm, k_norm: [D], weights of an RMSNorm of each head with eps (Qwen3); None: no norm.
    rope_scale: multiplies cos and sin (YaRN's attention factor).
    k_scale, v_scale: float32 [Hkv], of a float8 cache: values are divided by them. None: 1.

    Returns q, normed and rotated: [T, Hq, D].
    """
    return operators_of("qk_norm_rope_store", "qkv", qkv).qk_norm_rope_store(
        qkv, k_cache, v_cache, positions, slots, inv_freq, q_norm, k_norm, eps, rope_scale, k_scale, v_scale
    )


def attention(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    block_table: Array,
    kv_lengths: Array,
    query_starts: Array,
    *,
    scale: float | None = None,
    max_query_length: int | None = None,
    max_kv_length: int | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Causal attention over a paged KV cache, for sequences of different lengths: softmax(q k^T * scale) v, [T, Hq, D].

    q: [T, Hq, D] float32, bfloat16 or float16. k_cache, v_cache: [n_blocks, Hkv, 64, D] of one of these or
    float8_e4m3fn; Hq is a multiple of Hkv.
    block_table: int32 [S, max_blocks]: position p of sequence s is in block block_table[s, p // 64] at p % 64.
    kv_lengths: int32 [S], positions in the cache, those of this call included. query_starts: int32 [S + 1]: sequence
    s has rows [query_starts[s], query_starts[s + 1]) of q, which are its last positions. Prompts, chunks of them and
    single tokens may be mixed.
    scale: 1 / sqrt(D) by default.
    max_query_length, max_kv_length: the longest of the batch, or more; what is beyond them is left out. By default the
    most that the shapes allow: T and 64 * max_blocks. A GPU's workspace grows with them.
    k_scale, v_scale: float32 [Hkv], of a float8 cache: a cached value is its number times the scale. None: 1.
    out: [T, Hq, D] where to write; not q. Returned.

    A query's bits do not depend on the other sequences, and not on how a prompt was cut into calls. The GPU's tensor
    cores compute in 16 bits with D of 64 and 128; other dtypes and D are computed in float32.
    """
    return operators_of("attention", "q", q).attention(
        q,
        k_cache,
        v_cache,
        block_table,
        kv_lengths,
        query_starts,
        scale,
        max_query_length,
        max_kv_length,
        k_scale,
        v_scale,
        out,
    )


def decode_schedule(
    kv_lengths: Array, query_starts: Array, n_heads: int, n_kv_heads: int, *, max_query_length: int = 8
) -> Array:
    """What decode_attention needs to share out a step's work: made once a step, for the calls of all layers.

    kv_lengths: int32 [S]. query_starts: int32 [S + 1]. max_query_length: 8 at most; the longest of the batch, or more.
    Returns an int32 array. Calls that use it at the same time must be on one stream.
    """
    return operators_of("decode_schedule", "kv_lengths", kv_lengths).decode_schedule(
        kv_lengths, query_starts, n_heads, n_kv_heads, max_query_length
    )


def decode_attention(
    qkv: Array,
    k_cache: Array,
    v_cache: Array,
    positions: Array,
    slots: Array,
    inv_freq: Array,
    block_table: Array,
    kv_lengths: Array,
    query_starts: Array,
    schedule: Array,
    *,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    eps: float = 1e-6,
    rope_scale: float = 1.0,
    scale: float | None = None,
    max_query_length: int | None = None,
    max_kv_length: int | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
) -> Array:
    """qk_norm_rope_store and attention of a decode step in one call, with the same bits: [T, Hq, D].

    A sequence has 1 to 8 tokens (several when tokens are drafted), or none. schedule: decode_schedule's result for
    these lengths, on the same device. The other arguments are those of the two functions.

    A GPU begins the call while the moebius operators in front of it still run. So none of these, since the stream's
    last copy or other kernel, may write its arguments other than qkv and slots, or store what these sequences read.
    """
    return operators_of("decode_attention", "qkv", qkv).decode_attention(
        qkv,
        k_cache,
        v_cache,
        positions,
        slots,
        inv_freq,
        block_table,
        kv_lengths,
        query_starts,
        schedule,
        q_norm,
        k_norm,
        eps,
        rope_scale,
        scale,
        max_query_length,
        max_kv_length,
        k_scale,
        v_scale,
    )


def sample(
    logits: Array,
    seeds: Array,
    positions: Array,
    *,
    temperature: Array | None = None,
    top_k: Array | None = None,
    top_p: Array | None = None,
    min_p: Array | None = None,
    repetition_penalty: Array | None = None,
    presence_penalty: Array | None = None,
    frequency_penalty: Array | None = None,
    seen: Array | None = None,
    allowed: Array | None = None,
) -> tuple[Array, Array]:
    """The next token of each row of logits, and its log-probability: ids int32 [N], logprobs float32 [N].

    logits: float32 [N, V], not changed. seeds, positions: int64 [N]; the draw of a row is Philox4x32-10's for its seed
    and position (of the token that is drawn), whatever the other rows are.
    temperature, top_p, min_p: float32 [N]; temperature 0, or None, takes the largest logit. top_k: int32 [N], 0 is off.
    Order: penalties, mask; temperature; the top_k largest; of these the smallest set with probability top_p; of these
    those with at least min_p times the largest probability.
    repetition_penalty, presence_penalty, frequency_penalty: float32 [N], and with any of them
    seen: int32 [N, V], of each token twice its occurrences in the answer, plus 1 when it is in the prompt. The token
    that is drawn is counted in it.
    allowed: int32 [N, ceil(V / 32)], a bit for each token, the lowest first: those whose bit is 0 are not drawn.

    logprobs are those of the untouched logits. An id is -1, and its logprob -infinity, where a row has a NaN or
    +infinity, or nothing that may be drawn.
    """
    ids, logprobs = operators_of("sample", "logits", logits).sample(
        logits,
        seeds,
        positions,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        seen,
        allowed,
    )
    return ids, logprobs
