"""
The operators of a transformer layer beside its experts, once for every array library, as those in _operators.py:
RMSNorm, dense layer, rotary embedding with the store into a paged KV cache, attention over that cache.
"""

from ctypes import byref
from typing import Any, NamedTuple

import numpy

from ._arrays import ACTIVATION_DTYPES, INT32
from ._checks import LARGEST, shown
from ._library import (
    FLOAT8,
    FLOAT32,
    LIBRARY,
    AttentionArgs,
    DecodeAttentionArgs,
    GemmArgs,
    QkNormRopeStoreArgs,
    RmsNormArgs,
    Weight,
    failure,
)
from ._operators import BLOCK, INT32_MAX, WEIGHT_DTYPES, call, check_apart, optional, optional_matrix

KV_BLOCK = 64
MAX_HEAD_DIM = 512
DECODE_TOKENS, DECODE_SPAN = 8, 256
SMALLEST = 2.0**-149  # a float of C above 0


def number(arrays: Any, name: str, value: float, is_positive: bool = False) -> float:
    """The value; ValueError unless it is at least 0, or above 0, also once it is a float of C."""
    if isinstance(value, (numpy.floating, numpy.integer)):
        value = float(value)
    if not (SMALLEST if is_positive else 0) <= value <= LARGEST:  # NaN is not either
        low = "1.5e-45" if is_positive else "0"
        raise arrays.value_error(f"{name} is {shown(value)}; it must be from {low} to 3.4e38, what a float32 holds")
    return value


def _norm_weight(arrays: Any, name: str, array: Any, size: int, like: Any) -> Weight:
    if array is None:
        return Weight()
    code = arrays.code(name, array, ACTIVATION_DTYPES)
    return Weight(data=arrays.pointer(name, array, code, (size,), like), count=1, rows=1, cols=size, dtype=code)


def rms_norm(arrays: Any, x: Any, weight: Any, eps: float, residual: Any, out_dtype: Any) -> tuple[Any, Any, Any]:
    """Returns out, its scales (None unless it is float8) and x + residual (None without residual)."""
    n_tokens, hidden = arrays.shape("x", x, 2, "[T, H]")
    code = arrays.code("x", x, ACTIVATION_DTYPES)
    allowed = (code,) if code == FLOAT32 else (code, FLOAT8)
    out_code = code if out_dtype is None else arrays.dtype_code("out_dtype", out_dtype, allowed)
    eps = number(arrays, "eps", eps)
    shape, scale_shape = (n_tokens, hidden), (n_tokens, -(-hidden // BLOCK))
    x_pointer = arrays.matrix("x", x, code, shape, x)
    norm = _norm_weight(arrays, "weight", weight, hidden, x)
    residual_pointer = optional_matrix(arrays, "residual", residual, code, shape, x)
    out = arrays.empty(shape, out_code, x)
    out_scale = arrays.empty(scale_shape, FLOAT32, x) if out_code == FLOAT8 else None
    total = None if residual is None else arrays.empty(shape, code, x)
    if arrays.fake or n_tokens == 0:
        return out, out_scale, total
    out_pointer = arrays.pointer("out", out, out_code, shape, x)
    args = RmsNormArgs(
        x=x_pointer,
        weight=norm,
        out=None if out_code == FLOAT8 else out_pointer,
        n_rows=n_tokens,
        hidden=hidden,
        eps=eps,
        dtype=code,
        out8=out_pointer if out_code == FLOAT8 else None,
        out8_scale=optional(arrays, "out_scale", out_scale, FLOAT32, scale_shape, x),
        residual=residual_pointer,
        sum=optional(arrays, "sum", total, code, shape, x),
    )
    status = arrays.run(LIBRARY.mb_rms_norm, x, byref(args))
    if status:
        raise failure(status)
    return out, out_scale, total


def _linear_weight(arrays: Any, weight: Any, scale: Any, code: int, shape: tuple[int, int], like: Any) -> Weight:
    """An mb_weight [1, rows, cols]: float8 with scales [1] or [rows / n, cols / 128]."""
    pointer = arrays.matrix("weight", weight, code, shape, like)
    rows, cols = shape
    if code != FLOAT8:
        if scale is not None:
            raise arrays.value_error("weight_scale is given; it must be None, because weight is not float8_e4m3fn")
        return Weight(data=pointer, count=1, rows=rows, cols=cols, dtype=code)
    if scale is None:
        raise arrays.value_error("weight_scale is None; it must be given, because weight is float8_e4m3fn")
    arrays.code("weight_scale", scale, (FLOAT32,))
    scale_rows, scale_shape = 0, (1,)
    if len(scale.shape) != 1:
        # Merged matrices whose heights are not multiples of 128 have blocks of fewer rows: the shape tells how many.
        found = scale.shape[0] if len(scale.shape) == 2 else 0
        scale_rows = next((n for n in (128, 64, 32, 16, 8, 4, 2, 1) if -(-rows // n) == found), BLOCK)
        scale_shape = (-(-rows // scale_rows), -(-cols // BLOCK))
    scale_pointer = arrays.pointer("weight_scale", scale, FLOAT32, scale_shape, like)
    scale_cols = BLOCK if scale_rows > 0 else 0
    return Weight(pointer, scale_pointer, None, 1, rows, cols, scale_rows, scale_cols, code, FLOAT32)


def linear(
    arrays: Any, x: Any, weight: Any, bias: Any, residual: Any, weight_scale: Any, out_dtype: Any, out: Any
) -> Any:
    n_tokens, depth = arrays.shape("x", x, 2, "[T, K]")
    n_columns = arrays.shape("weight", weight, 2, "[N, K]")[0]
    code = arrays.code("x", x, ACTIVATION_DTYPES)
    weight_code = arrays.code("weight", weight, WEIGHT_DTYPES[code])
    if out_dtype is not None:
        out_code = arrays.dtype_code("out_dtype", out_dtype, (code, FLOAT32))
    else:
        out_code = code if out is None else arrays.code("out", out, (code, FLOAT32))
    shape = (n_tokens, n_columns)
    x_pointer = arrays.matrix("x", x, code, (n_tokens, depth), x)
    matrix = _linear_weight(arrays, weight, weight_scale, weight_code, (n_columns, depth), x)
    bias_code = FLOAT32 if bias is None else arrays.code("bias", bias, ACTIVATION_DTYPES)
    bias_pointer = optional(arrays, "bias", bias, bias_code, (n_columns,), x)
    residual_pointer = optional_matrix(arrays, "residual", residual, out_code, shape, x)
    if out is None:
        out = arrays.empty(shape, out_code, x)
    out_pointer = arrays.output_matrix("out", out, out_code, shape, x)
    if arrays.fake or n_tokens == 0:
        return out
    others = (("x", x, x_pointer), ("weight", weight, matrix.data), ("bias", bias, bias_pointer))
    # residual may be out itself: then each number is read before it is written.
    residuals = () if residual_pointer == out_pointer else (("residual", residual, residual_pointer),)
    for name, array, pointer in (*others, *residuals):
        if pointer:
            check_apart(arrays, name, pointer, _bytes(array), out_pointer, _bytes(out))
    args = GemmArgs(
        x=x_pointer,
        weight=matrix,
        bias=bias_pointer,
        residual=residual_pointer,
        out=out_pointer,
        n_tokens=n_tokens,
        dtype=code,
        out_dtype=out_code,
        bias_dtype=bias_code,
    )
    call(arrays, LIBRARY.mb_gemm, LIBRARY.mb_gemm_workspace, args, x)
    return out


def _bytes(array: Any) -> int:
    n_bytes: int = array.nbytes
    return n_bytes


class _Cache(NamedTuple):
    """A paged KV cache, checked: [n_blocks, Hkv, 64, D] of `code`."""

    k: int
    v: int
    k_scale: int | None
    v_scale: int | None
    code: int
    n_blocks: int
    n_kv_heads: int
    head_dim: int


def _cache(arrays: Any, k_cache: Any, v_cache: Any, k_scale: Any, v_scale: Any, like: Any, is_written: bool) -> _Cache:
    shape = arrays.shape("k_cache", k_cache, 4, "[n_blocks, Hkv, 64, D]")
    n_blocks, n_kv_heads, block, head_dim = shape
    if block != KV_BLOCK or n_kv_heads < 1 or not 1 <= head_dim <= MAX_HEAD_DIM:
        raise arrays.shape_error("k_cache", shape, f"[n_blocks, Hkv, 64, D], D at most {MAX_HEAD_DIM}")
    code = arrays.code("k_cache", k_cache, (*ACTIVATION_DTYPES, FLOAT8))
    matrix = arrays.output_matrix if is_written else arrays.matrix
    scales = []
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is not None and code != FLOAT8:
            raise arrays.value_error(f"{name} is given; it must be None, because k_cache is not float8_e4m3fn")
        scales.append(optional(arrays, name, scale, FLOAT32, (n_kv_heads,), like))
    return _Cache(
        matrix("k_cache", k_cache, code, shape, like),
        matrix("v_cache", v_cache, code, shape, like),
        scales[0],
        scales[1],
        code,
        n_blocks,
        n_kv_heads,
        head_dim,
    )


def _rope_fields(
    arrays: Any,
    qkv: Any,
    caches: tuple[Any, Any],
    positions: Any,
    slots: Any,
    inv_freq: Any,
    norms: tuple[Any, Any],
    eps: float,
    rope_scale: float,
    scales: tuple[Any, Any],
) -> tuple[dict[str, Any], _Cache]:
    """What the structs of qk_norm_rope_store and decode_attention share, and the cache."""
    n_tokens, n_columns = arrays.shape("qkv", qkv, 2, "[T, (Hq + 2 Hkv) * D]")
    code = arrays.code("qkv", qkv, ACTIVATION_DTYPES)
    qkv_pointer = arrays.matrix("qkv", qkv, code, (n_tokens, n_columns), qkv)
    cache = _cache(arrays, *caches, *scales, qkv, is_written=True)
    head_dim, n_kv_heads = cache.head_dim, cache.n_kv_heads
    n_heads = n_columns // head_dim - 2 * n_kv_heads
    if n_columns % head_dim or n_heads < 1:
        wanted = f"[T, (Hq + {2 * n_kv_heads}) * {head_dim}], as k_cache has {n_kv_heads} heads of {head_dim}"
        raise arrays.shape_error("qkv", qkv.shape, wanted)
    n_frequencies = arrays.shape("inv_freq", inv_freq, 1, "[R / 2]")[0]
    if head_dim % 2 or not 1 <= n_frequencies <= head_dim // 2:
        raise arrays.shape_error("inv_freq", inv_freq.shape, f"[R / 2], R at most the {head_dim} dimensions of a head")
    fields = {
        "qkv": qkv_pointer,
        "q_norm": _norm_weight(arrays, "q_norm", norms[0], head_dim, qkv),
        "k_norm": _norm_weight(arrays, "k_norm", norms[1], head_dim, qkv),
        "positions": arrays.pointer("positions", positions, INT32, (n_tokens,), qkv),
        "slots": arrays.pointer("slots", slots, INT32, (n_tokens,), qkv),
        "inv_freq": arrays.pointer("inv_freq", inv_freq, FLOAT32, (n_frequencies,), qkv),
        "k_cache": cache.k,
        "v_cache": cache.v,
        "n_tokens": n_tokens,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "rotary_dim": 2 * n_frequencies,
        "eps": number(arrays, "eps", eps),
        "rope_scale": number(arrays, "rope_scale", rope_scale, is_positive=True),
        "dtype": code,
        "cache_dtype": cache.code,
        "k_scale": cache.k_scale,
        "v_scale": cache.v_scale,
    }
    return fields, cache


def _check_slots(arrays: Any, slots: Any, n_blocks: int) -> None:
    """ValueError for a slot that the cache does not have: the C library is not told how many there are."""
    n_slots = n_blocks * KV_BLOCK
    if arrays.is_on_host(slots) and int(slots.max()) >= n_slots:
        raise arrays.value_error(f"slots has {int(slots.max())}; it must be below {n_slots}, the slots of k_cache")


def qk_norm_rope_store(
    arrays: Any,
    qkv: Any,
    k_cache: Any,
    v_cache: Any,
    positions: Any,
    slots: Any,
    inv_freq: Any,
    q_norm: Any,
    k_norm: Any,
    eps: float,
    rope_scale: float,
    k_scale: Any,
    v_scale: Any,
) -> Any:
    caches, norms, scales = (k_cache, v_cache), (q_norm, k_norm), (k_scale, v_scale)
    fields, cache = _rope_fields(arrays, qkv, caches, positions, slots, inv_freq, norms, eps, rope_scale, scales)
    shape = (fields["n_tokens"], fields["n_heads"], cache.head_dim)
    q = arrays.empty(shape, fields["dtype"], qkv)
    if arrays.fake or shape[0] == 0:
        return q
    _check_slots(arrays, slots, cache.n_blocks)
    args = QkNormRopeStoreArgs(**fields, q=arrays.pointer("q", q, fields["dtype"], shape, qkv))
    status = arrays.run(LIBRARY.mb_qk_norm_rope_store, qkv, byref(args))
    if status:
        raise failure(status)
    return q


def _batch_fields(
    arrays: Any,
    block_table: Any,
    kv_lengths: Any,
    query_starts: Any,
    max_query_length: int | None,
    max_kv_length: int | None,
    most_queries: int,
    like: Any,
) -> dict[str, Any]:
    """What the structs of attention and decode_attention share of a batch of sequences."""
    n_sequences, max_blocks = arrays.shape("block_table", block_table, 2, "[S, max_blocks]")
    if max_query_length is not None:
        max_query_length = arrays.integer("max_query_length", max_query_length, 1, most_queries)
    if max_kv_length is not None:
        max_kv_length = arrays.integer("max_kv_length", max_kv_length, 1, INT32_MAX)
    return {
        "block_table": arrays.pointer("block_table", block_table, INT32, (n_sequences, max_blocks), like),
        "kv_len": arrays.pointer("kv_lengths", kv_lengths, INT32, (n_sequences,), like),
        "q_start": arrays.pointer("query_starts", query_starts, INT32, (n_sequences + 1,), like),
        "n_sequences": n_sequences,
        "max_blocks": max_blocks,
        # Without the lengths the most that the shapes allow.
        "max_q_len": max_query_length or min(like.shape[0], most_queries),
        "max_kv_len": max_kv_length or min(max_blocks * KV_BLOCK, INT32_MAX),
    }


def _check_blocks(arrays: Any, block_table: Any, kv_lengths: Any, n_blocks: int) -> None:
    """ValueError for a block that the cache does not have: the C library is not told how many there are."""
    if not arrays.is_on_host(block_table):
        return
    for s, length in enumerate(kv_lengths.tolist()):
        used = block_table[s, : max(-(-length // KV_BLOCK), 0)]
        if len(used) and (int(used.min()) < 0 or int(used.max()) >= n_blocks):
            wrong = int(used.min()) if int(used.min()) < 0 else int(used.max())
            raise arrays.value_error(f"block_table has {wrong} for sequence {s}; it must be in [0, {n_blocks})")


def attention(
    arrays: Any,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    block_table: Any,
    kv_lengths: Any,
    query_starts: Any,
    scale: float | None,
    max_query_length: int | None,
    max_kv_length: int | None,
    k_scale: Any,
    v_scale: Any,
    out: Any,
) -> Any:
    shape = arrays.shape("q", q, 3, "[T, Hq, D]")
    n_tokens, n_heads, head_dim = shape
    code = arrays.code("q", q, ACTIVATION_DTYPES)
    q_pointer = arrays.matrix("q", q, code, shape, q)
    cache = _cache(arrays, k_cache, v_cache, k_scale, v_scale, q, is_written=False)
    if head_dim != cache.head_dim or n_heads < 1 or n_heads % cache.n_kv_heads:
        wanted = f"[T, a multiple of {cache.n_kv_heads}, {cache.head_dim}], as k_cache has {cache.n_kv_heads} heads"
        raise arrays.shape_error("q", shape, wanted)
    scale = head_dim**-0.5 if scale is None else number(arrays, "scale", scale, is_positive=True)
    lengths = (max_query_length, max_kv_length, INT32_MAX)
    batch = _batch_fields(arrays, block_table, kv_lengths, query_starts, *lengths, q)
    if out is None:
        out = arrays.empty(shape, code, q)
    out_pointer = arrays.output_matrix("out", out, code, shape, q)
    if arrays.fake or n_tokens == 0:
        return out
    check_apart(arrays, "q", q_pointer, _bytes(q), out_pointer, _bytes(out))
    _check_blocks(arrays, block_table, kv_lengths, cache.n_blocks)
    args = AttentionArgs(
        **batch,
        q=q_pointer,
        k_cache=cache.k,
        v_cache=cache.v,
        out=out_pointer,
        n_tokens=n_tokens,
        n_heads=n_heads,
        n_kv_heads=cache.n_kv_heads,
        head_dim=head_dim,
        scale=scale,
        dtype=code,
        cache_dtype=cache.code,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
    )
    call(arrays, LIBRARY.mb_attention, LIBRARY.mb_attention_workspace, args, q)
    return out


def decode_schedule(
    arrays: Any, kv_lengths: Any, query_starts: Any, n_heads: int, n_kv_heads: int, max_query_length: int
) -> Any:
    """span_start [S + 1] and the zeros that are counters, in one array."""
    n_sequences = arrays.shape("kv_lengths", kv_lengths, 1, "[S]")[0]
    n_heads = arrays.integer("n_heads", n_heads, 1, INT32_MAX)
    n_kv_heads = arrays.integer("n_kv_heads", n_kv_heads, 1, n_heads)
    if n_heads % n_kv_heads:
        raise arrays.value_error(f"n_heads is {n_heads}; it must be a multiple of n_kv_heads, {n_kv_heads}")
    max_query_length = arrays.integer("max_query_length", max_query_length, 1, DECODE_TOKENS)
    arrays.pointer("kv_lengths", kv_lengths, INT32, (n_sequences,), kv_lengths)
    arrays.pointer("query_starts", query_starts, INT32, (n_sequences + 1,), kv_lengths)
    most = DecodeAttentionArgs(
        n_sequences=n_sequences, max_q_len=max_query_length, n_heads=n_heads, n_kv_heads=n_kv_heads
    )
    n_counters = LIBRARY.mb_decode_attention_counters(byref(most))
    schedule = arrays.empty((n_sequences + 1 + n_counters,), INT32, kv_lengths)
    if arrays.fake:
        return schedule
    spans = (kv_lengths + (DECODE_SPAN - 1)) // DECODE_SPAN * (query_starts[1:] > query_starts[:-1])
    schedule[:] = 0
    schedule[1 : n_sequences + 1] = spans.cumsum(0)
    return schedule


def decode_attention(
    arrays: Any,
    qkv: Any,
    k_cache: Any,
    v_cache: Any,
    positions: Any,
    slots: Any,
    inv_freq: Any,
    block_table: Any,
    kv_lengths: Any,
    query_starts: Any,
    schedule: Any,
    q_norm: Any,
    k_norm: Any,
    eps: float,
    rope_scale: float,
    scale: float | None,
    max_query_length: int | None,
    max_kv_length: int | None,
    k_scale: Any,
    v_scale: Any,
) -> Any:
    caches, norms, scales = (k_cache, v_cache), (q_norm, k_norm), (k_scale, v_scale)
    fields, cache = _rope_fields(arrays, qkv, caches, positions, slots, inv_freq, norms, eps, rope_scale, scales)
    if fields["n_heads"] % cache.n_kv_heads:
        wanted = f"[T, (Hq + {2 * cache.n_kv_heads}) * {cache.head_dim}], Hq a multiple of {cache.n_kv_heads}"
        raise arrays.shape_error("qkv", qkv.shape, wanted)
    scale = cache.head_dim**-0.5 if scale is None else number(arrays, "scale", scale, is_positive=True)
    lengths = (max_query_length, max_kv_length, DECODE_TOKENS)
    batch = _batch_fields(arrays, block_table, kv_lengths, query_starts, *lengths, qkv)
    shape = (fields["n_tokens"], fields["n_heads"], cache.head_dim)
    out = arrays.empty(shape, fields["dtype"], qkv)
    n_schedule = arrays.shape("schedule", schedule, 1, "decode_schedule's result")[0]
    schedule_pointer = arrays.output_pointer("schedule", schedule, INT32, (n_schedule,), qkv)
    if arrays.fake or shape[0] == 0:
        return out
    args = DecodeAttentionArgs(**fields, **batch, scale=scale)
    n_starts = args.n_sequences + 1
    if n_schedule < n_starts + LIBRARY.mb_decode_attention_counters(byref(args)):
        raise arrays.shape_error("schedule", schedule.shape, "decode_schedule's result for these sequences and heads")
    _check_slots(arrays, slots, cache.n_blocks)
    _check_blocks(arrays, block_table, kv_lengths, cache.n_blocks)
    args.span_start = schedule_pointer
    args.counters = schedule_pointer + 4 * n_starts
    args.out = arrays.pointer("out", out, fields["dtype"], shape, qkv)
    call(arrays, LIBRARY.mb_decode_attention, LIBRARY.mb_decode_attention_workspace, args, qkv)
    return out
