"""
The operators of training, on NumPy arrays and PyTorch tensors (docs/training.md).

moebius.nn.MoE is the layer made of them. On tensors moe, route, router_gemm, router_losses and token_rounding have
gradients of their own; the backwards are for those who do without autograd. On a GPU moe and moe_backward take bfloat16
and float16.
"""

from typing import Any, Literal, NamedTuple

from ._functions import Activation, Array, F32Math, Order, operators_of

__all__ = [
    "Gradients",
    "Losses",
    "Rounded",
    "moe",
    "moe_backward",
    "route_backward",
    "router_losses",
    "token_rounding",
]

Rounding = Literal["none", "nearest", "up", "down", "balanced"]


class Gradients(NamedTuple):
    """What moe_backward gives; None for what was not asked for, and of biases that are not there."""

    dx: Any  # [T, H]
    dweights: Any  # float32 [T, K]: of topk_weights
    dw13: Any
    dw2: Any
    dbias13: Any
    dbias2: Any


class Losses(NamedTuple):
    """Without coefficients, float32 arrays without dimensions."""

    load_balance: Any  # E * sum over e of (counts[e] / T) * (mean probability of e): top_k when balanced
    z: Any  # mean over tokens of logsumexp(logits)^2
    counts: Any  # int32 [E]: choices of each expert


class Rounded(NamedTuple):
    """Choices after token rounding, in the form of route's."""

    weights: Any  # float32 [T, max_choices], 0 where there is no choice
    ids: Any  # int32 [T, max_choices], -1 where there is no choice
    counts: Any  # int32 [E]
    report: Any  # int64 [5]: choices routed, processed, in whole tiles ("hardware"), dropped, added

    @property
    def wasted_ratio(self) -> float:
        """The share of the tiles' rows that no choice fills."""
        hardware = int(self.report[2])
        return 1 - int(self.report[1]) / hardware if hardware else 0.0


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
    first_expert: int = 0,
    n_experts: int | None = None,
    f32: F32Math = "tf32",
) -> tuple[Array, Array]:
    """moebius.moe's result, with the same bits, and p [T*K, 2I or I], which moe_backward takes.

    p is w13 x + bias13 of each choice, of x's dtype, rows in the order of moebius.plan. The arguments are moe's; weights
    are of x's dtype.
    """
    routed = (x, w13, w2, topk_weights, topk_ids, first_expert, n_experts)
    options = (activation, bias13, bias2, residual, shared, f32, False)
    outputs: tuple[Array, Array] = operators_of("moe", "x", x).train_moe(*routed, *options)
    return outputs


def moe_backward(
    x: Array,
    w13: Array,
    w2: Array,
    topk_weights: Array,
    topk_ids: Array,
    d_out: Array,
    *,
    p: Array | None = None,
    activation: Activation = "swiglu",
    bias13: Array | None = None,
    bias2: Array | None = None,
    first_expert: int = 0,
    n_experts: int | None = None,
    grad_dtype: Any = None,
    dx: bool = True,
    dweights: bool = True,
    parameters: bool = True,
) -> Gradients:
    """The gradients of moe, given d_out [T, H], the loss's gradient with respect to moe's result.

    p: what this module's moe gave; None: it is computed again. grad_dtype: of the gradients of weights and biases, the
    weights' by default, or float32. dx, dweights, parameters: what to compute. The gradient of residual and of shared is
    d_out.
    """
    routed = (x, w13, w2, topk_weights, topk_ids, d_out, p, first_expert, n_experts)
    options = (activation, bias13, bias2, grad_dtype, dx, dweights, parameters)
    return Gradients(*operators_of("moe_backward", "x", x).moe_backward(*routed, *options))


def router_losses(logits: Array, ids: Array) -> Losses:
    """The load-balancing loss and the z-loss of router logits (float32 or bfloat16 [T, E]), and the experts' counts.

    ids: int32 [T, K], the choices; those outside of [0, E) are not counted.
    """
    return Losses(*operators_of("router_losses", "logits", logits).router_losses(logits, ids))


def route_backward(
    logits: Array,
    ids: Array,
    *,
    dweights: Array | None = None,
    counts: Array | None = None,
    d_load_balance: Array | None = None,
    d_z: Array | None = None,
    renormalize: bool = True,
    order: Order = "softmax_topk",
) -> Array:
    """The gradient of the router's logits, float32 [T, E]: the sum of those of the weights and of both losses.

    dweights: float32 [T, K], the gradient of route's weights. counts: router_losses', needed with d_load_balance.
    d_load_balance, d_z: float32 without dimensions, the gradients of the losses, so their coefficients.
    """
    losses = (counts, d_load_balance, d_z)
    operators = operators_of("route_backward", "logits", logits)
    dlogits: Array = operators.route_backward(logits, ids, dweights, *losses, renormalize, order)
    return dlogits


def token_rounding(
    logits: Array,
    ids: Array,
    *,
    tile_rows: int = 128,
    rounding: Rounding = "nearest",
    max_choices: int | None = None,
    renormalize: bool = True,
    order: Order = "softmax_topk",
) -> Rounded:
    """Rounds each expert's count of choices to a multiple of tile_rows: drops the least probable, adds the most probable.

    ids: int32 [T, K], route's. max_choices: places of a token, at least K; by default a quarter more than K, so that
    choices can be added. rounding "none" leaves the choices as they are: so ids from elsewhere get their weights. They
    have route's bits.
    """
    operators = operators_of("token_rounding", "logits", logits)
    options = (tile_rows, rounding, max_choices, renormalize, order)
    weights, out_ids, counts, report = operators.token_rounding(logits, ids, *options)
    return Rounded(weights, out_ids, counts, report[:5])
