"""PyTorch: the functions on tensors, and the operators torch.ops.moebius.* that they call."""

from collections.abc import Callable
from typing import Any

import torch

from . import _layer, _operators, _sample, _torch_training, _transformer
from ._checks import shown
from ._signatures import PARAMETERS, Signature
from ._torch_tensors import NO_BACKWARD, TorchTensors, define, has_gradient


def _define_with_out(op: str, operator: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Defines torch.ops.moebius.`op`, which allocates its output, and `op`_out, which writes to its last parameter."""
    parameters = PARAMETERS[op]
    allocating = define(
        op,
        f"({parameters.removesuffix(', Tensor? out')}) -> Tensor",
        lambda arrays, *arguments: operator(arrays, *arguments, None),
    )
    writing = define(
        op,
        f"({parameters.removesuffix('Tensor? out')}Tensor(a!) out) -> ()",
        operator,
        name=op + "_out",
        result=lambda outputs: None,
        mutated=(-1,),
    )
    return allocating, writing


_route = define(
    "route",
    "(" + PARAMETERS["route"].replace("Tensor? nan_flag", "Tensor(a!)? nan_flag") + ") -> (Tensor, Tensor)",
    _operators.route,
    mutated=(-1,),
)
_plan = define("plan", f"({PARAMETERS['plan']}) -> (Tensor, Tensor, Tensor)", _operators.plan, result=tuple)
_grouped_gemm = define(
    "grouped_gemm",
    f"({PARAMETERS['grouped_gemm']}) -> Tensor",
    _operators.grouped_gemm,
    result=lambda outputs: outputs[0],
)
_grouped_gemm_fp8 = define(
    "grouped_gemm",
    f"({PARAMETERS['grouped_gemm']}) -> (Tensor, Tensor)",
    _operators.grouped_gemm,
    name="grouped_gemm_fp8",
)
_reduce, _reduce_out = _define_with_out("reduce", _operators.reduce)
_moe, _moe_out = _define_with_out("moe", _layer.moe)
_moe_experts, _moe_experts_out = _define_with_out("moe_experts", _layer.moe_experts)
_moe_from_logits, _moe_from_logits_out = _define_with_out("moe_from_logits", _layer.moe_from_logits)


def _define_rms_norm(name: str, picked: tuple[int, ...]) -> Callable[..., Any]:
    """An operator whose results are those of rms_norm with these indices, for an operator's results are fixed."""
    results = "Tensor" if len(picked) == 1 else "(" + ", ".join(["Tensor"] * len(picked)) + ")"
    return define(
        "rms_norm",
        f"({PARAMETERS['rms_norm']}) -> {results}",
        _transformer.rms_norm,
        name=name,
        result=lambda outputs: outputs[0] if len(picked) == 1 else tuple(outputs[i] for i in picked),
    )


# By (out is float8, there is a residual).
_rms_norms = {
    (False, False): _define_rms_norm("rms_norm", (0,)),
    (False, True): _define_rms_norm("add_rms_norm", (0, 2)),
    (True, False): _define_rms_norm("rms_norm_fp8", (0, 1)),
    (True, True): _define_rms_norm("add_rms_norm_fp8", (0, 1, 2)),
}
_linear, _linear_out = _define_with_out("linear", _transformer.linear)


def _define_with_cache(op: str, operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that stores into the caches, its second and third parameter."""
    parameters = PARAMETERS[op].replace("Tensor k_cache, Tensor v_cache", "Tensor(a!) k_cache, Tensor(b!) v_cache")
    return define(op, f"({parameters}) -> Tensor", operator, mutated=(1, 2))


_qk_norm_rope_store = _define_with_cache("qk_norm_rope_store", _transformer.qk_norm_rope_store)
_attention, _attention_out = _define_with_out("attention", _transformer.attention)
_decode_schedule = define(
    "decode_schedule", f"({PARAMETERS['decode_schedule']}) -> Tensor", _transformer.decode_schedule
)
_sample_tokens = define(
    "sample",
    "(" + PARAMETERS["sample"].replace("Tensor? seen", "Tensor(a!)? seen") + ") -> (Tensor, Tensor)",
    _sample.sample,
    mutated=(-2,),
)
# The schedule's counters are zero when a call begins and when it ends: no argument that it changes.
_decode_attention = _define_with_cache("decode_attention", _transformer.decode_attention)

_SIGNATURES = {
    op: Signature(op, torch.Tensor, (torch.dtype,), "a torch.Tensor, as the first argument is", "a torch.dtype")
    for op in PARAMETERS
}


class _ForwardOnly(torch.autograd.Function):
    """operator(*arguments) with a backward pass that fails. Without it PyTorch would warn and give no gradient."""

    @staticmethod
    def forward(ctx: Any, op: str, operator: Callable[..., Any], *arguments: Any) -> Any:
        ctx.op = op
        return operator(*arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(f"{ctx.op}: {NO_BACKWARD}")


def _check_types(op: str, arguments: tuple[Any, ...]) -> None:
    if torch.compiler.is_dynamo_compiling():
        _SIGNATURES[op].check_each(arguments)
    else:
        _SIGNATURES[op].check(arguments)


def _call(op: str, operator: Callable[..., Any], arguments: tuple[Any, ...], differentiable: bool = False) -> Any:
    try:
        if not differentiable and torch.is_grad_enabled() and has_gradient(arguments):
            return _ForwardOnly.apply(op, operator, *arguments)
        return operator(*arguments)
    except (RuntimeError, ValueError):  # from PyTorch, for what it cannot hand to the operator or write as a text
        _refuse_what_pytorch_refuses(op, arguments)
        raise


def _refuse_what_pytorch_refuses(op: str, arguments: tuple[Any, ...]) -> None:
    """ValueError for an integer beyond 64 bits, and a tensor not dense or on a device unknown to the library."""
    for name, argument in zip(_SIGNATURES[op].names, arguments, strict=False):
        if isinstance(argument, int) and not -(2**63) <= argument < 2**63:
            if name in ("eps", "rope_scale", "scale"):
                _transformer.number(TorchTensors(op), name, argument, is_positive=name != "eps")
            raise ValueError(f"{op}: {name} is {shown(argument)}; it must be an int of 64 bits")
        if not isinstance(argument, torch.Tensor):
            continue
        if argument.layout is not torch.strided:
            raise ValueError(f"{op}: {name} has layout {argument.layout}; it must be torch.strided (.to_dense())")
        if argument.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"{op}: {name} is on {argument.device}; it must be on the CPU or a CUDA device")


def _call_with_out(
    op: str, allocating: Callable[..., Any], writing: Callable[..., Any], arguments: tuple[Any, ...]
) -> torch.Tensor:
    """The last argument is out, or None. As in PyTorch's own functions, out excludes gradients."""
    _check_types(op, arguments)
    out: torch.Tensor = arguments[-1]
    if out is None:
        allocated: torch.Tensor = _call(op, allocating, arguments[:-1])
        return allocated
    if torch.is_grad_enabled() and has_gradient(arguments):
        raise NotImplementedError(f"{op}: out is given and an argument requires a gradient; {NO_BACKWARD}")
    _call(op, writing, arguments)
    return out


def route(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    _check_types("route", arguments)
    outputs: tuple[torch.Tensor, torch.Tensor]
    logits, *options, nan_flag = arguments
    if not _trains(arguments):
        outputs = _call("route", _route, arguments)
        return outputs
    if nan_flag is not None:
        _call("route", _route, (logits.detach(), *options, nan_flag))
    outputs = _call("route", _torch_training.train_route, (logits, *options), differentiable=True)
    return outputs


def router_gemm(*arguments: Any) -> torch.Tensor:
    _check_types("router_gemm", arguments)
    logits: torch.Tensor = _call("router_gemm", _torch_training.router_gemm, arguments, differentiable=True)
    return logits


def plan(*arguments: Any) -> _operators.Plan:
    _check_types("plan", arguments)
    return _operators.Plan(*_call("plan", _plan, arguments))


def grouped_gemm(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    _check_types("grouped_gemm", arguments)
    if arguments[-2] is torch.float8_e4m3fn:
        outputs: tuple[torch.Tensor, torch.Tensor] = _call("grouped_gemm", _grouped_gemm_fp8, arguments)
        return outputs
    return _call("grouped_gemm", _grouped_gemm, arguments), None


def _trains(arguments: tuple[Any, ...]) -> bool:
    """Whether a gradient is needed."""
    return torch.is_grad_enabled() and has_gradient(arguments)


def _is_wide_on_gpu(x: torch.Tensor) -> bool:
    return x.is_cuda and x.dtype is torch.float32


def moe(*arguments: Any) -> torch.Tensor:
    *routed, out = arguments
    f32, scales = routed[-1], routed[-5:-1]
    is_forward_only = any(scale is not None for scale in scales) or _is_wide_on_gpu(routed[0])
    if out is not None or not _trains(arguments) or is_forward_only:
        return _call_with_out("moe", _moe, _moe_out, arguments)
    result: torch.Tensor = train_moe(*routed[:-5], f32, False)[0]
    return result


def train_moe(*arguments: Any, grad_dtype: Any = None, sums: tuple[Any, ...] = (None,) * 4) -> tuple[Any, Any]:
    """moe's result and p. The parameters' gradients have grad_dtype, or are added to sums (dw13, dw2, and of biases)."""
    _check_types("train_moe", arguments)
    arguments = (*arguments, grad_dtype, *sums)
    outputs: tuple[Any, Any] = _call("train_moe", _torch_training.train_moe, arguments, differentiable=True)
    return outputs


def moe_experts(*arguments: Any) -> torch.Tensor:
    return _call_with_out("moe_experts", _moe_experts, _moe_experts_out, arguments)


def moe_from_logits(*arguments: Any) -> torch.Tensor:
    if _trains(arguments) and arguments[-1] is None:
        _check_types("moe_from_logits", arguments)
        x, logits, w13, w2, top_k, renormalize, order, first_expert, *terms = arguments
        weights, ids = route(logits, top_k, renormalize, order, None)
        return moe(x, w13, w2, weights, ids, first_expert, logits.shape[1], *terms)
    return _call_with_out("moe_from_logits", _moe_from_logits, _moe_from_logits_out, arguments)


def reduce(*arguments: Any) -> torch.Tensor:
    return _call_with_out("reduce", _reduce, _reduce_out, arguments)


def rms_norm(*arguments: Any) -> tuple[torch.Tensor, ...]:
    """The results that there are."""
    _check_types("rms_norm", arguments)
    is_float8, has_residual = arguments[-1] is torch.float8_e4m3fn, arguments[-2] is not None
    outputs = _call("rms_norm", _rms_norms[is_float8, has_residual], arguments)
    return outputs if isinstance(outputs, (tuple, list)) else (outputs,)


def linear(*arguments: Any) -> torch.Tensor:
    return _call_with_out("linear", _linear, _linear_out, arguments)


def qk_norm_rope_store(*arguments: Any) -> torch.Tensor:
    _check_types("qk_norm_rope_store", arguments)
    q: torch.Tensor = _call("qk_norm_rope_store", _qk_norm_rope_store, arguments)
    return q


def attention(*arguments: Any) -> torch.Tensor:
    return _call_with_out("attention", _attention, _attention_out, arguments)


def decode_schedule(*arguments: Any) -> torch.Tensor:
    _check_types("decode_schedule", arguments)
    schedule: torch.Tensor = _call("decode_schedule", _decode_schedule, arguments)
    return schedule


def decode_attention(*arguments: Any) -> torch.Tensor:
    _check_types("decode_attention", arguments)
    out: torch.Tensor = _call("decode_attention", _decode_attention, arguments)
    return out


def sample(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    _check_types("sample", arguments)
    outputs: tuple[torch.Tensor, torch.Tensor] = _call("sample", _sample_tokens, arguments)
    return outputs


def moe_backward(*arguments: Any) -> tuple[torch.Tensor | None, ...]:
    _check_types("moe_backward", arguments)
    dx, dweights, parameters = arguments[-3:]
    outputs = _call("moe_backward", _torch_training.moe_backward, arguments)
    biases = arguments[10:12]
    wanted = (dx, dweights, parameters, parameters, *(parameters and bias is not None for bias in biases))
    return tuple(output if is_wanted else None for output, is_wanted in zip(outputs, wanted, strict=True))


def router_losses(*arguments: Any) -> Any:
    _check_types("router_losses", arguments)
    return _call("router_losses", _torch_training.router_losses, arguments, differentiable=True)


def route_backward(*arguments: Any) -> Any:
    _check_types("route_backward", arguments)
    return _call("route_backward", _torch_training.route_backward, arguments)


def token_rounding(*arguments: Any) -> Any:
    _check_types("token_rounding", arguments)
    return _call("token_rounding", _torch_training.token_rounding, arguments, differentiable=True)
