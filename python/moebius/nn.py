"""A mixture-of-experts layer for PyTorch that trains, on the CPU and on a Hopper GPU (docs/training.md)."""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn

from . import _torch, training
from ._functions import Activation, Order, moe, route, router_gemm
from ._library import GATED, Error
from ._torch_tensors import autocast, has_gradient

__all__ = ["MoE", "Routing"]


class Routing(NamedTuple):
    """How tokens were routed, and the router's losses. The losses have gradients."""

    weights: torch.Tensor  # float32 [T, K]
    ids: torch.Tensor  # int32 [T, K]; can be given to a later forward as ids
    counts: torch.Tensor  # int32 [E]: choices of each expert, after token rounding
    load_balance: torch.Tensor  # of the choices before token rounding: top_k when balanced
    z: torch.Tensor
    report: torch.Tensor | None  # of token rounding, int64 [5]: routed, processed, hardware, dropped, added


class MoE(nn.Module):
    """Router, experts and weighted sum: out[t] = sum over k of weights[t, k] * w2[e] act(w13[e] x[t]), e = ids[t, k].

    activation: "swiglu", "geglu", "reglu", and without gate "silu", "gelu", "relu", "relu2". bias: biases of the experts.
    order, renormalize: as in moebius.route. routing: "topk", or "rounding": while the module trains, each expert's
    count of tokens is rounded to a multiple of tile_rows (rounding, max_choices: as in moebius.training.token_rounding).
    recompute: w13 x is not kept for the backward but computed again.
    grad_dtype: torch.float32 gives 16-bit weights and biases of experts gradients in float32 (PyTorch 2.10 or newer).

    Parameters: router [E, H], w13 [E, 2I, H] (gate rows, then up rows; [E, I, H] without gate), w2 [E, H, I], and with
    bias bias13 and bias2. They are Hugging Face's gate.weight, experts.gate_up_proj and experts.down_proj.

    With x of torch.autocast's device the experts compute in autocast's dtype. The router's logits are float32 always.

    On a GPU the layer trains in bfloat16 and float16 (of its parameters, or autocast's), with hidden and intermediate
    multiples of 8 and at least 16, hidden at most 16384. What does not train there is a moebius.Error. Without gradients
    float32 works as well.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        n_experts: int,
        top_k: int,
        *,
        activation: Activation = "swiglu",
        bias: bool = False,
        routing: Literal["topk", "rounding"] = "topk",
        order: Order = "softmax_topk",
        renormalize: bool = True,
        tile_rows: int = 128,
        rounding: training.Rounding = "nearest",
        max_choices: int | None = None,
        recompute: bool = False,
        grad_dtype: torch.dtype | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("hidden", hidden), ("intermediate", intermediate), ("tile_rows", tile_rows)):
            if size < 1:
                raise ValueError(f"MoE: {name} is {size}; it must be at least 1")
        if not 1 <= n_experts <= 1024:
            raise ValueError(f"MoE: n_experts is {n_experts}; it must be in [1, 1024]")
        if not 1 <= top_k <= min(32, n_experts):
            raise ValueError(f"MoE: top_k is {top_k}; it must be in [1, {min(32, n_experts)}]")
        words = {
            "activation": (activation, get_args(Activation)),
            "routing": (routing, ("topk", "rounding")),
            "order": (order, get_args(Order)),
            "rounding": (rounding, get_args(training.Rounding)),
        }
        for name, (word, known) in words.items():
            if word not in known:
                raise ValueError(f"MoE: {name} is {word!r}; it must be one of {', '.join(map(repr, known))}")
        self.hidden, self.intermediate, self.n_experts, self.top_k = hidden, intermediate, n_experts, top_k
        self.activation, self.routing, self.order, self.renormalize = activation, routing, order, renormalize
        self.tile_rows, self.rounding, self.max_choices = tile_rows, rounding, max_choices
        self.recompute = recompute
        rows = 2 * intermediate if activation in GATED else intermediate

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.router = parameter(n_experts, hidden)
        self.w13 = parameter(n_experts, rows, hidden)
        self.w2 = parameter(n_experts, hidden, intermediate)
        self.bias13 = parameter(n_experts, rows) if bias else None
        self.bias2 = parameter(n_experts, hidden) if bias else None
        self.grad_dtype = grad_dtype
        self.reset_parameters()
        if grad_dtype is not None:
            self._set_grad_dtype(grad_dtype)

    def _set_grad_dtype(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, self.w13.dtype):
            raise ValueError(f"MoE: grad_dtype is {dtype}; it must be torch.float32 or dtype's {self.w13.dtype}")
        if not hasattr(self.w13, "grad_dtype"):
            raise ValueError("MoE: grad_dtype is given; it needs PyTorch 2.10 or newer (or use keep_main_grads)")
        for parameter in self._of_experts():
            if parameter is not None:
                parameter.grad_dtype = dtype

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of copy.deepcopy and unpickling: PyTorch's copies of parameters have lost their grad_dtype."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.grad_dtype in (torch.float32, self.w13.dtype):
            self._set_grad_dtype(self.grad_dtype)

    def reset_parameters(self) -> None:
        """Uniform values as in nn.Linear."""
        pairs = ((self.router, self.hidden), (self.w13, self.hidden), (self.w2, self.intermediate))
        biases = ((self.bias13, self.hidden), (self.bias2, self.intermediate))
        for parameter, n_inputs in (*pairs, *biases):
            if parameter is not None:
                nn.init.uniform_(parameter, -(n_inputs**-0.5), n_inputs**-0.5)

    def extra_repr(self) -> str:
        return (
            f"hidden={self.hidden}, intermediate={self.intermediate}, n_experts={self.n_experts}, top_k={self.top_k}, "
            f"activation={self.activation!r}, bias={self.bias13 is not None}, routing={self.routing!r}"
        )

    def keep_main_grads(self, dtype: torch.dtype = torch.float32) -> None:
        """From now on backwards add the experts' gradients to tensors of `dtype`, in place and rounded once.

        dtype: torch.float32, or the one that the experts compute in (the parameters', or torch.autocast's).
        These are the parameters' main_grad (Megatron's name), zeros at first; grad stays None. Call it when the module
        has its final device and dtype. The router's gradient goes to grad as ever. A copy.deepcopy of the module has no
        main_grad, as it has no grad: call this for the copy too.
        """
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"MoE: keep_main_grads: dtype is {dtype}; it must be torch.float32 or the experts' dtype")
        parameter: Any
        for parameter in self._of_experts():
            if parameter is not None:
                parameter.main_grad = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)

    def zero_main_grads(self) -> None:
        """After an optimizer's step, as zero_grad()."""
        for total in self._main_grads():
            if total is not None:
                total.zero_()

    def _of_experts(self) -> tuple[nn.Parameter | None, ...]:
        return self.w13, self.w2, self.bias13, self.bias2

    def _main_grads(self) -> tuple[torch.Tensor | None, ...]:
        parameters = self._of_experts()
        sums = tuple(getattr(parameter, "main_grad", None) for parameter in parameters)
        n_sums, n_parameters = (sum(item is not None for item in sequence) for sequence in (sums, parameters))
        if n_sums not in (0, n_parameters):
            raise ValueError(
                "MoE: some of w13, w2 and their biases have a main_grad and some have none; give it to all"
            )
        return sums

    def _replayed(self, ids: torch.Tensor, n_tokens: int) -> torch.Tensor:
        """ids as int32 [T, K]. Those of another number of tokens are refused: reshaped they would be other tokens'."""
        most = min(32, self.n_experts)
        if ids.dim() == 0 or math.prod(ids.shape[:-1]) != n_tokens or not 1 <= ids.shape[-1] <= most:
            raise ValueError(
                f"MoE: ids has shape {tuple(ids.shape)}; it must be [T, K] with T {n_tokens} and K in [1, {most}]"
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
            raise TypeError(f"MoE: ids has dtype {ids.dtype}; it must be int32 or int64")
        return ids.reshape(n_tokens, ids.shape[-1]).to(torch.int32).contiguous()

    def _choose(
        self, logits: torch.Tensor, ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, training.Rounded | None]:
        """Weights and ids, the ids that the losses are taken of, and the report of a rounding."""
        options: dict[str, Any] = {"renormalize": self.renormalize, "order": self.order}
        if ids is not None:
            ids = self._replayed(ids, logits.shape[0])
            given = training.token_rounding(logits, ids, tile_rows=self.tile_rows, rounding="none", **options)
            return given.weights, given.ids, given.ids, None
        weights, routed = route(logits, self.top_k, **options)
        if self.routing == "topk" or not self.training:
            return weights, routed, routed, None
        options |= {"tile_rows": self.tile_rows, "rounding": self.rounding, "max_choices": self.max_choices}
        rounded = training.token_rounding(logits, routed, **options)
        return rounded.weights, rounded.ids, routed, rounded

    def _check_trains(self, w13: torch.Tensor) -> None:
        """w13: in the dtype that the experts compute in."""
        if w13.is_cuda and w13.dtype is torch.float32:
            raise Error(
                "MB_ERR_UNSUPPORTED",
                f"MoE: the layer is float32 on {w13.device}, where it trains in bfloat16 and float16 only; "
                "convert it (.to(torch.bfloat16)), or call it under torch.autocast",
            )

    def forward(self, x: torch.Tensor, *, ids: torch.Tensor | None = None, return_routing: bool = False) -> Any:
        """From x [..., H] the layer's output of that shape; with return_routing a pair of it and a Routing.

        ids: choices [..., K] or [T, K] in place of the router's (routing replay), any K up to 32 and to n_experts, each
        expert once a token, -1 for no choice. Their weights come from the router's logits.
        """
        x, w13, w2, bias13, bias2 = autocast(x, *self._of_experts())
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        logits = router_gemm(rows, self.router)
        weights, chosen, before, rounded = self._choose(logits, ids)
        if torch.is_grad_enabled() and has_gradient((rows, weights, w13, w2, bias13, bias2)):
            self._check_trains(w13)
            terms = (self.activation, bias13, bias2, None, None, "tf32", self.recompute)
            routed = (rows, w13, w2, weights, chosen, 0, self.n_experts)
            out, _ = _torch.train_moe(*routed, *terms, grad_dtype=self.grad_dtype, sums=self._main_grads())
        else:
            out = moe(rows, w13, w2, weights, chosen, activation=self.activation, bias13=bias13, bias2=bias2)
        out = out.reshape(x.shape)
        if not return_routing:
            return out
        losses = training.router_losses(logits, before)
        counts, report = (losses.counts, None) if rounded is None else (rounded.counts, rounded.report)
        return out, Routing(weights, chosen, counts, losses.load_balance, losses.z, report)
