"""
PyTorch: tensors as arrays, and every operator as torch.ops.moebius.*.

The operators are defined with torch.library's Library and not with its custom_op decorator, which does the same work in
more Python: 7 us a call, as much as all of ours.
"""

from collections.abc import Callable
from typing import Any

import torch

from . import _layer, _operators
from ._arrays import DTYPE_BYTES, DTYPE_NAMES, MATRIX_ALIGNMENT, WORKSPACE_ALIGNMENT, Arrays
from ._signatures import PARAMETERS, Signature

_DTYPES = tuple(getattr(torch, name) for name in DTYPE_NAMES)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


class TorchTensors(Arrays):
    """Tensors on the CPU or a GPU. Work runs on the current stream; memory comes from the caching allocator."""

    def code(self, name: str, tensor: torch.Tensor, allowed: tuple[int, ...]) -> int:
        """The tensor's dtype as a code; TypeError unless it is one of `allowed`."""
        code = _CODES.get(tensor.dtype, -1)
        if code not in allowed:
            raise self.dtype_error(name, tensor.dtype, allowed)
        return code

    def pointer(self, name: str, tensor: torch.Tensor, code: int, shape: tuple[int, ...], like: torch.Tensor) -> int:
        """The tensor's address; an exception unless it is contiguous, of dtype `code`, of `shape`, on like's device."""
        if (
            tensor.dtype is not _DTYPES[code]
            or tensor.shape != shape
            or tensor.device != like.device
            or not tensor.is_contiguous()
        ):
            raise self._error(name, tensor, code, shape, like)
        if self.fake:
            return 0
        address = tensor.data_ptr()
        if address % DTYPE_BYTES[code]:
            raise self.alignment_error(name, address, DTYPE_BYTES[code])
        return address

    def matrix(self, name: str, tensor: torch.Tensor, code: int, shape: tuple[int, ...], like: torch.Tensor) -> int:
        """As pointer, for what a GPU reads 16 bytes at a time."""
        address = self.pointer(name, tensor, code, shape, like)
        if address % MATRIX_ALIGNMENT and tensor.is_cuda:
            raise self.alignment_error(name, address, MATRIX_ALIGNMENT)
        return address

    output_pointer = pointer
    output_matrix = matrix

    def _error(
        self, name: str, tensor: torch.Tensor, code: int, shape: tuple[int, ...], like: torch.Tensor
    ) -> Exception:
        if tensor.dtype is not _DTYPES[code]:
            return self.dtype_error(name, tensor.dtype, (code,))
        if tensor.shape != shape:
            return self.shape_error(name, tensor.shape, tuple(shape))
        if tensor.device != like.device:
            wanted = f"it must be on {like.device}, as the first argument is"
            return self.value_error(f"{name} is on {tensor.device}; {wanted}")
        return self.value_error(f"{name} has strides {tuple(tensor.stride())}; it must be contiguous (.contiguous())")

    def dtype_code(self, name: str, dtype: torch.dtype, allowed: tuple[int, ...]) -> int:
        code = _CODES.get(dtype, -1)
        if code not in allowed:
            raise self.dtype_error(name, dtype, allowed)
        return code

    def empty(self, shape: tuple[int, ...], code: int, like: torch.Tensor) -> torch.Tensor:
        return torch.empty(shape, dtype=_DTYPES[code], device=like.device)

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor)

    def is_on_host(self, tensor: torch.Tensor) -> bool:
        return tensor.is_cpu

    def workspace(self, n_bytes: int, like: torch.Tensor) -> tuple[Any, int]:
        """Memory of at least n_bytes, and an aligned address in it."""
        if like.is_cuda:  # the caching allocator aligns to 512 bytes
            memory = torch.empty(n_bytes, dtype=torch.uint8, device=like.device)
            return memory, memory.data_ptr()
        memory = torch.empty(n_bytes + WORKSPACE_ALIGNMENT, dtype=torch.uint8)
        return memory, -(-memory.data_ptr() // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT

    def run(self, function: Callable[..., int], like: torch.Tensor, *arguments: Any) -> int:
        """Calls function(*arguments, stream) on the device of `like` and returns the status."""
        if not like.is_cuda:
            return function(*arguments, None)
        # The library itself makes the GPU of the pointers the current one.
        return function(*arguments, torch.cuda.current_stream(like.device).cuda_stream)


class FakeTorchTensors(TorchTensors):
    """Tensors without data, which torch.compile and torch.export trace with. The checks are the same."""

    fake = True


_LIBRARY = torch.library.Library("moebius", "DEF")
_NO_BACKWARD = "there is no backward pass yet; call it under torch.no_grad()"


def _has_gradient(arguments: tuple[Any, ...]) -> bool:
    """Whether an argument requires a gradient."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and argument.requires_grad:
            return True
    return False


def _define(
    op: str,
    schema: str,
    operator: Callable[..., Any],
    name: str | None = None,
    result: Callable[[Any], Any] = lambda outputs: outputs,
    mutated: int | None = None,
) -> Callable[..., Any]:
    """Defines torch.ops.moebius.`name`, or `op`: `operator` on tensors.

    `result` picks the outputs from what `operator` returns; `mutated` is the index of an argument that it writes to.
    """
    name = name or op
    tensors, fake_tensors = TorchTensors(op), FakeTorchTensors(op)

    def refuse_gradient(arguments: tuple[Any, ...]) -> None:
        if _has_gradient(arguments):
            raise NotImplementedError(f"torch.ops.moebius.{name}: {_NO_BACKWARD}")

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            refuse_gradient(arguments)
        outputs = result(operator(tensors, *arguments))
        if mutated is not None and arguments[mutated] is not None:
            torch.autograd.graph.increment_version(arguments[mutated])
        return outputs

    def fake(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            refuse_gradient(arguments)
        return result(operator(fake_tensors, *arguments))

    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, call, key)
    torch.library.register_fake(f"moebius::{name}", fake, lib=_LIBRARY)
    defined: Callable[..., Any] = getattr(torch.ops.moebius, name).default
    return defined


def _define_with_out(op: str, operator: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Defines torch.ops.moebius.`op`, which allocates its output, and `op`_out, which writes to its last parameter."""
    parameters = PARAMETERS[op]
    allocating = _define(
        op,
        f"({parameters.removesuffix(', Tensor? out')}) -> Tensor",
        lambda arrays, *arguments: operator(arrays, *arguments, None),
    )
    writing = _define(
        op,
        f"({parameters.removesuffix('Tensor? out')}Tensor(a!) out) -> ()",
        operator,
        name=op + "_out",
        result=lambda outputs: None,
        mutated=-1,
    )
    return allocating, writing


_route = _define(
    "route",
    "(" + PARAMETERS["route"].replace("Tensor? nan_flag", "Tensor(a!)? nan_flag") + ") -> (Tensor, Tensor)",
    _operators.route,
    mutated=-1,
)
_router_gemm = _define("router_gemm", f"({PARAMETERS['router_gemm']}) -> Tensor", _operators.router_gemm)
_plan = _define("plan", f"({PARAMETERS['plan']}) -> (Tensor, Tensor, Tensor)", _operators.plan, result=tuple)
_grouped_gemm = _define(
    "grouped_gemm",
    f"({PARAMETERS['grouped_gemm']}) -> Tensor",
    _operators.grouped_gemm,
    result=lambda outputs: outputs[0],
)
_grouped_gemm_fp8 = _define(
    "grouped_gemm",
    f"({PARAMETERS['grouped_gemm']}) -> (Tensor, Tensor)",
    _operators.grouped_gemm,
    name="grouped_gemm_fp8",
)
_reduce, _reduce_out = _define_with_out("reduce", _operators.reduce)
_moe, _moe_out = _define_with_out("moe", _layer.moe)
_moe_experts, _moe_experts_out = _define_with_out("moe_experts", _layer.moe_experts)
_moe_from_logits, _moe_from_logits_out = _define_with_out("moe_from_logits", _layer.moe_from_logits)

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
        raise NotImplementedError(f"{ctx.op}: {_NO_BACKWARD}")


def _check_types(op: str, arguments: tuple[Any, ...]) -> None:
    if torch.compiler.is_dynamo_compiling():
        _SIGNATURES[op].check_each(arguments)
    else:
        _SIGNATURES[op].check(arguments)


def _call(op: str, operator: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        if torch.is_grad_enabled() and _has_gradient(arguments):
            return _ForwardOnly.apply(op, operator, *arguments)
        return operator(*arguments)
    except RuntimeError:  # from PyTorch, for what it cannot hand to the operator
        _refuse_what_pytorch_refuses(op, arguments)
        raise


def _refuse_what_pytorch_refuses(op: str, arguments: tuple[Any, ...]) -> None:
    """ValueError for an integer beyond 64 bits, and a tensor not dense or on a device unknown to the library."""
    for name, argument in zip(_SIGNATURES[op].names, arguments, strict=False):
        if isinstance(argument, int) and not -(2**63) <= argument < 2**63:
            raise ValueError(f"{op}: {name} is {argument}; it must be an int of 64 bits")
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
    if torch.is_grad_enabled() and _has_gradient(arguments):
        raise NotImplementedError(f"{op}: out is given and an argument requires a gradient; {_NO_BACKWARD}")
    _call(op, writing, arguments)
    return out


def route(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    _check_types("route", arguments)
    outputs: tuple[torch.Tensor, torch.Tensor] = _call("route", _route, arguments)
    return outputs


def router_gemm(*arguments: Any) -> torch.Tensor:
    _check_types("router_gemm", arguments)
    logits: torch.Tensor = _call("router_gemm", _router_gemm, arguments)
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


def moe(*arguments: Any) -> torch.Tensor:
    return _call_with_out("moe", _moe, _moe_out, arguments)


def moe_experts(*arguments: Any) -> torch.Tensor:
    return _call_with_out("moe_experts", _moe_experts, _moe_experts_out, arguments)


def moe_from_logits(*arguments: Any) -> torch.Tensor:
    return _call_with_out("moe_from_logits", _moe_from_logits, _moe_from_logits_out, arguments)


def reduce(*arguments: Any) -> torch.Tensor:
    return _call_with_out("reduce", _reduce, _reduce_out, arguments)
