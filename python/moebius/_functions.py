"""The public functions. The type of the first argument decides which array library computes."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, TypeVar

import numpy

from . import _layer, _operators, _sample, _training, _transformer
from ._arrays import NumpyArrays
from ._operators import Plan
from ._signatures import with_article

_torch: ModuleType | None
try:
    from . import _torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    _torch = None

Array = TypeVar("Array")  # numpy.ndarray or torch.Tensor; all arguments of a call are of one of them
Activation = Literal["swiglu", "geglu", "reglu", "silu", "gelu", "relu", "relu2"]
Order = Literal["softmax_topk", "topk_softmax"]
F32Math = Literal["tf32", "exact"]


def _on_numpy(operator: Callable[..., Any]) -> Callable[..., Any]:
    arrays = NumpyArrays(operator.__name__)

    def call(*arguments: Any) -> Any:
        arrays.signature.check(arguments)
        return operator(arrays, *arguments)

    return call


_numpy = SimpleNamespace(
    router_gemm=_on_numpy(_operators.router_gemm),
    route=_on_numpy(_operators.route),
    plan=_on_numpy(_operators.plan),
    grouped_gemm=_on_numpy(_operators.grouped_gemm),
    reduce=_on_numpy(_operators.reduce),
    moe=_on_numpy(_layer.moe),
    moe_experts=_on_numpy(_layer.moe_experts),
    moe_from_logits=_on_numpy(_layer.moe_from_logits),
    rms_norm=_on_numpy(_transformer.rms_norm),
    linear=_on_numpy(_transformer.linear),
    qk_norm_rope_store=_on_numpy(_transformer.qk_norm_rope_store),
    attention=_on_numpy(_transformer.attention),
    sample=_on_numpy(_sample.sample),
    decode_schedule=_on_numpy(_transformer.decode_schedule),
    decode_attention=_on_numpy(_transformer.decode_attention),
    train_moe=_on_numpy(_training.train_moe),
    moe_backward=_on_numpy(_training.moe_backward),
    router_losses=_on_numpy(_training.router_losses),
    route_backward=_on_numpy(_training.route_backward),
    token_rounding=_on_numpy(_training.token_rounding),
)


def operators_of(op: str, name: str, array: Any) -> Any:
    """The operators for the library that the array belongs to."""
    if _torch is not None and isinstance(array, _torch.torch.Tensor):
        return _torch
    if isinstance(array, numpy.ndarray):
        return _numpy
    found = "None" if array is None else with_article(type(array).__name__)
    raise TypeError(f"{op}: {name} is {found}; it must be a numpy.ndarray or a torch.Tensor")


def router_gemm(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Router logits x weight^T + bias, float32 [T, E].

    x: [T, H], weight: [E, H] with E <= 1024, each float32, bfloat16 or float16. bias: float32 [E].
    Of a float32 weight at least 22 bits of mantissa count.
    """
    return operators_of("router_gemm", "x", x).router_gemm(x, weight, bias)


def route(
    logits: Array,
    top_k: int,
    renormalize: bool = True,
    order: Order = "softmax_topk",
    *,
    nan_flag: Array | None = None,
) -> tuple[Array, Array]:
    """The top_k experts of each token, largest weight first, ties to the lower id.

    logits: [T, E] float32 or bfloat16, top_k <= 32, E <= 1024. Returns weights [T, K] float32 and ids [T, K] int32.
    order: "softmax_topk" takes the softmax of all logits, as Qwen3 does, and renormalize divides the K weights by their
    sum. "topk_softmax" takes the softmax of the K logits.
    nan_flag: int32 [1], set to 1 when a logit is NaN, else left alone. Ids are always in [0, E).
    """
    return operators_of("route", "logits", logits).route(logits, top_k, renormalize, order, nan_flag)


def plan(ids: Array, n_experts: int, *, first_expert: int = 0, n_local_experts: int | None = None) -> Plan:
    """Sorts the choices of ids (int32 [T, K]) by expert, in the order of tokens.

    Only experts [first_expert, first_expert + n_local_experts) are kept, by default all from first_expert on. Choices
    of other ids, also of such as -1, are dropped.
    Returns a Plan, all int32: offsets [n_local_experts + 1] and row_token [T*K] are the offsets and row_index of
    grouped_gemm and moe_experts, token_row [T, K] is reduce's.
    """
    return operators_of("plan", "ids", ids).plan(ids, n_experts, first_expert, n_local_experts)


def grouped_gemm(
    a: Array,
    b: Array,
    offsets: Array | None = None,
    *,
    row_index: Array | None = None,
    bias: Array | None = None,
    row_weight: Array | None = None,
    activation: Activation | Literal["none"] = "none",
    a_scale: Array | None = None,
    b_scale: Array | None = None,
    out_dtype: Any = None,
    f32: F32Math = "tf32",
) -> Any:
    """Rows of a, grouped by expert, times their expert's matrix.

    out[r] = row_weight[r] * activation(a[row_index[r]] b[e]^T + bias[e]) for r in [offsets[e], offsets[e + 1]).

    a: [rows, K] float32, bfloat16, float16 or float8_e4m3fn. b: [E, N, K] of a's dtype.
    offsets: int32 [E + 1]; None for one group of all rows (a linear layer).
    row_index: int32 [R], rows of a; None: a's rows in order, R = rows. Rows of out from offsets[E] on are undefined.
    bias: float32 [E, N]. row_weight: float32 [R].
    activation: the gated ones ("swiglu", "geglu", "reglu") find gate in columns [0, N/2) and up in [N/2, N).
    float8: b_scale is float32 [E] and a_scale [1], or b_scale [E, ceil(N/128), ceil(K/128)] and a_scale
    [rows, ceil(K/128)].
    out_dtype: a's by default, or float32, or float8_e4m3fn of a 16-bit or float8 a; must be given for a float8 a.
    f32: how a GPU multiplies float32: "tf32" on tensor cores, or "exact".

    Returns out [R, N], [R, N/2] with a gated activation. When its dtype is float8_e4m3fn, returns (out, out_scale) with
    out_scale float32 [R, ceil(columns/128)].
    """
    out, out_scale = operators_of("grouped_gemm", "a", a).grouped_gemm(
        a, b, offsets, row_index, bias, row_weight, activation, a_scale, b_scale, out_dtype, f32
    )
    return out if out_scale is None else (out, out_scale)


def reduce(
    y: Array,
    weights: Array,
    token_row: Array,
    *,
    residual: Array | None = None,
    shared: Array | None = None,
    out_dtype: Any = None,
    out: Array | None = None,
) -> Array:
    """out[t] = residual[t] + shared[t] + sum over k of weights[t, k] * y[token_row[t, k]], [T, H].

    y: [R, H] float32, bfloat16 or float16. weights: float32 [T, K]. token_row: int32 [T, K], -1 where there is no row.
    residual, shared: [T, H] of out's dtype. out_dtype: y's by default, or float32.
    out: where to write; may be residual. The sum is taken in float32 in the order of k and rounded once.
    """
    return operators_of("reduce", "y", y).reduce(y, weights, token_row, residual, shared, out_dtype, out)


def moe(
    x: Array,
    w13: Array,
    w2: Array,
    topk_weights: Array,
    topk_ids: Array,
    *,
    activation: Activation = "swiglu",
    bias13: Array | None = None,
    bias2: Array | None = None,
    residual: Array | None = None,
    shared: Array | None = None,
    w13_scale: Array | None = None,
    w2_scale: Array | None = None,
    x_scale: Array | None = None,
    h_scale: Array | None = None,
    first_expert: int = 0,
    n_experts: int | None = None,
    f32: F32Math = "tf32",
    out: Array | None = None,
) -> Array:
    """The experts of one MoE layer.

    out[t] = residual[t] + shared[t] + sum over k of topk_weights[t, k] * w2[e] act(w13[e] x[t]), e = topk_ids[t, k].

    x: [T, H] float32, bfloat16 or float16; T may be 0.
    w13: [E, 2I, H], gate rows then up rows; [E, I, H] for the activations without gate ("silu", "gelu", "relu",
    "relu2"). w2: [E, H, I]. Both of x's dtype, or float8_e4m3fn with a 16-bit x.
    topk_weights: float32 [T, K]. topk_ids: int32 [T, K].
    bias13, bias2, residual, shared: [E, 2I or I], [E, H], [T, H], [T, H], of x's dtype.
    w13_scale, w2_scale (float8 only), float32: blocks [E, ceil(rows/128), ceil(columns/128)] as in the checkpoints'
    weight_scale_inv; or per tensor [E], and then x_scale and h_scale, float32 [1], are the scales with which a GPU
    quantises x and the activated product.
    first_expert, n_experts: w13 and w2 hold experts [first_expert, first_expert + E) of n_experts; choices of
    others, and of ids that are no expert's, add nothing.
    f32: how a GPU multiplies float32: "tf32" on tensor cores, or "exact".
    out: [T, H] where to write, of x's dtype; may be residual, not x. Returned.

    Raises TypeError or ValueError for an argument that is wrong, moebius.Error for what the library refuses.
    """
    return operators_of("moe", "x", x).moe(
        x,
        w13,
        w2,
        topk_weights,
        topk_ids,
        first_expert,
        n_experts,
        activation,
        bias13,
        bias2,
        residual,
        shared,
        w13_scale,
        w2_scale,
        x_scale,
        h_scale,
        f32,
        out,
    )


def moe_experts(
    x: Array,
    w13: Array,
    w2: Array,
    offsets: Array,
    *,
    row_index: Array | None = None,
    activation: Activation = "swiglu",
    bias13: Array | None = None,
    bias2: Array | None = None,
    w13_scale: Array | None = None,
    w2_scale: Array | None = None,
    x_scale: Array | None = None,
    h_scale: Array | None = None,
    f32: F32Math = "tf32",
    out: Array | None = None,
) -> Array:
    """The experts alone, on rows that are grouped by expert: what moe does between plan and reduce.

    y[r] = w2[e] act(w13[e] x[row_index[r]] + bias13[e]) + bias2[e] for r in [offsets[e], offsets[e + 1]).

    x: [T, H]. offsets: int32 [E + 1]. row_index: int32 [R], rows of x, such as a plan's row_token; None: x's rows in
    order, R = T. The other arguments are moe's.
    out: [R, H] where to write, of x's dtype; not x. Returned. Its rows before offsets[0] and from offsets[E] on are not
    written.

    A rank of an expert-parallel group calls it on the rows that it received. The bits are those that moe sums.
    """
    return operators_of("moe_experts", "x", x).moe_experts(
        x,
        w13,
        w2,
        offsets,
        row_index,
        activation,
        bias13,
        bias2,
        w13_scale,
        w2_scale,
        x_scale,
        h_scale,
        f32,
        out,
    )


def moe_from_logits(
    x: Array,
    router_logits: Array,
    w13: Array,
    w2: Array,
    top_k: int,
    *,
    renormalize: bool = True,
    order: Order = "softmax_topk",
    activation: Activation = "swiglu",
    bias13: Array | None = None,
    bias2: Array | None = None,
    residual: Array | None = None,
    shared: Array | None = None,
    w13_scale: Array | None = None,
    w2_scale: Array | None = None,
    x_scale: Array | None = None,
    h_scale: Array | None = None,
    first_expert: int = 0,
    f32: F32Math = "tf32",
    out: Array | None = None,
) -> Array:
    """route and moe in one call, with fewer launches. router_logits: [T, n_experts] float32 or bfloat16.

    top_k, renormalize and order are route's, all others moe's.
    """
    return operators_of("moe_from_logits", "x", x).moe_from_logits(
        x,
        router_logits,
        w13,
        w2,
        top_k,
        renormalize,
        order,
        first_expert,
        activation,
        bias13,
        bias2,
        residual,
        shared,
        w13_scale,
        w2_scale,
        x_scale,
        h_scale,
        f32,
        out,
    )
