"""
The operators that train, with their gradients: torch.ops.moebius.train_moe, train_route, router_losses and
token_rounding, and the two backwards that they call.

A backward is an operator of its own, so that torch.compile sees one node and not its inside. What a gradient is not
needed for is not computed.
"""

from collections.abc import Callable
from typing import Any

import torch

from . import _operators, _training
from ._library import FLOAT32
from ._signatures import PARAMETERS
from ._torch_tensors import LIBRARY, define

_SUMS = "Tensor? dw13_sum, Tensor? dw2_sum, Tensor? dbias13_sum, Tensor? dbias2_sum"
_N_SUMS = 4


def _set_gradient(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    torch.library.register_autograd(f"moebius::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def _contiguous(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.contiguous()


# ---- Experts ----


def _without_none(operator: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """An operator of PyTorch cannot return None: in its place stands a tensor without elements."""

    def call(arrays: Any, x: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
        outputs = operator(arrays, x, *arguments)
        return tuple(arrays.empty((0,), FLOAT32, x) if output is None else output for output in outputs)

    return call


moe_backward = define(
    "moe_backward",
    f"({PARAMETERS['moe_backward']}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _without_none(_training.moe_backward),
)
_ADD = PARAMETERS["moe_backward"].replace("ScalarType? grad_dtype, ", "").replace(", bool parameters", "")
moe_backward_add = define(
    "moe_backward_add",
    f"({_ADD}, Tensor(a!)? dw13, Tensor(b!)? dw2, Tensor(c!)? dbias13, Tensor(d!)? dbias2) -> (Tensor, Tensor)",
    _without_none(_training.moe_backward_add),
    mutated=(-4, -3, -2, -1),
)
# The sums are for the backward only, which adds the parameters' gradients to them.
train_moe = define(
    "moe",
    f"({PARAMETERS['train_moe']}, ScalarType? grad_dtype, {_SUMS}) -> (Tensor, Tensor)",
    lambda arrays, *arguments: _training.train_moe(arrays, *arguments[: -1 - _N_SUMS]),
    name="train_moe",
)


def _keep_of_moe(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, w13, w2, weights, ids, first_expert, n_experts, activation, bias13, bias2 = inputs[:10]
    recompute, grad_dtype, *sums = inputs[13:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, w13, w2, weights, ids, bias13, bias2, None if recompute else output[1])
    # Not saved as tensors: other backwards change the sums, and PyTorch would take that for a mistake.
    ctx.sums = sums
    ctx.options = (first_expert, n_experts, activation)
    ctx.grad_dtype = grad_dtype
    ctx.n_inputs = len(inputs)


def _backward_of_moe(ctx: Any, d_out: torch.Tensor | None, _d_p: None) -> tuple[torch.Tensor | None, ...]:
    gradients: list[torch.Tensor | None] = [None] * ctx.n_inputs
    if d_out is None:
        return tuple(gradients)
    needed = ctx.needs_input_grad
    x, w13, w2, weights, ids, bias13, bias2, p = ctx.saved_tensors
    routed = (x, w13, w2, weights, ids, d_out.contiguous(), p, *ctx.options, bias13, bias2)
    if any(total is not None for total in ctx.sums):
        sums = [total if needed[i] else None for total, i in zip(ctx.sums, (1, 2, 8, 9), strict=True)]
        gradients[0], gradients[3] = moe_backward_add(*routed, needed[0], needed[3], *sums)
    else:
        parameters = needed[1] or needed[2] or needed[8] or needed[9]
        given = (None,) * 6
        if needed[0] or needed[3] or parameters:
            given = moe_backward(*routed, ctx.grad_dtype, needed[0], needed[3], parameters)
        for index, gradient in zip((0, 3, 1, 2, 8, 9), given, strict=True):
            gradients[index] = gradient
    gradients[10] = gradients[11] = d_out  # residual and shared
    return tuple(gradient if is_needed else None for gradient, is_needed in zip(gradients, needed, strict=True))


_set_gradient("train_moe", _keep_of_moe, _backward_of_moe)


# ---- Router ----

route_backward = define("route_backward", f"({PARAMETERS['route_backward']}) -> Tensor", _training.route_backward)
train_route = define(
    "route",
    f"({PARAMETERS['route'].removesuffix(', Tensor? nan_flag')}) -> (Tensor, Tensor)",
    lambda arrays, *arguments: _operators.route(arrays, *arguments, None),
    name="train_route",
)
router_losses = define(
    "router_losses", f"({PARAMETERS['router_losses']}) -> (Tensor, Tensor, Tensor)", _training.router_losses
)
token_rounding = define(
    "token_rounding",
    f"({PARAMETERS['token_rounding']}) -> (Tensor, Tensor, Tensor, Tensor)",
    _training.token_rounding,
)


def _keep_of_route(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """Of train_route and of token_rounding: both begin with logits, end with renormalize and order, and give ids."""
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs[0], output[1])
    ctx.options = inputs[-2:]
    ctx.n_inputs = len(inputs)


def _backward_of_route(ctx: Any, dweights: torch.Tensor | None, *_: None) -> tuple[torch.Tensor | None, ...]:
    dlogits = None
    if dweights is not None and ctx.needs_input_grad[0]:
        logits, ids = ctx.saved_tensors
        dlogits = route_backward(logits, ids, dweights.contiguous(), None, None, None, *ctx.options).to(logits.dtype)
    return (dlogits, *(None,) * (ctx.n_inputs - 1))


def _keep_of_losses(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*inputs, output[2])


def _backward_of_losses(
    ctx: Any, d_load_balance: torch.Tensor | None, d_z: torch.Tensor | None, _d_counts: None
) -> tuple[torch.Tensor | None, None]:
    logits, ids, counts = ctx.saved_tensors
    if (d_load_balance is None and d_z is None) or not ctx.needs_input_grad[0]:
        return None, None
    losses = (counts, _contiguous(d_load_balance), _contiguous(d_z))
    return route_backward(logits, ids, None, *losses, False, "softmax_topk").to(logits.dtype), None


_set_gradient("train_route", _keep_of_route, _backward_of_route)
_set_gradient("token_rounding", _keep_of_route, _backward_of_route)
_set_gradient("router_losses", _keep_of_losses, _backward_of_losses)


def _keep_of_router_gemm(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward_of_router_gemm(ctx: Any, dlogits: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """A dense layer's: in float32, and with bf16 factors on the tensor cores with dlogits in bf16, as PyTorch has it."""
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    factor = torch.bfloat16 if x.dtype is weight.dtype is torch.bfloat16 else torch.float32
    rounded = dlogits.to(factor)
    return (
        (rounded @ weight.to(factor)).to(x.dtype) if of_x else None,
        (rounded.t() @ x.to(factor)).to(weight.dtype) if of_weight else None,
        dlogits.sum(0) if of_bias else None,
    )


router_gemm = define("router_gemm", f"({PARAMETERS['router_gemm']}) -> Tensor", _operators.router_gemm)
_set_gradient("router_gemm", _keep_of_router_gemm, _backward_of_router_gemm)
