"""
PyTorch: tensors as arrays, and every operator as torch.ops.moebius.*.

The operators are defined with torch.library's Library and not with its custom_op decorator, which does the same work in
more Python: 7 us a call, as much as all of ours.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from . import _operators
from ._arrays import DTYPE_NAMES, POINTER_ALIGNMENT, WORKSPACE_ALIGNMENT, dtype_error, shape_error

_DTYPES = tuple(getattr(torch, name) for name in DTYPE_NAMES)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


class TorchTensors:
    """Tensors on the CPU or a GPU. Work runs on the current stream; memory is the caching allocator's."""

    fake = False

    def code(self, name: str, tensor: torch.Tensor, allowed: tuple[int, ...]) -> int:
        """The tensor's dtype as a code; TypeError unless it is one of `allowed`."""
        code = _CODES.get(tensor.dtype, -1)
        if code not in allowed:
            raise dtype_error(name, tensor.dtype, allowed)
        return code

    def pointer(self, name: str, tensor: torch.Tensor, code: int, shape: tuple[int, ...], like: torch.Tensor) -> int:
        """The tensor's address; an exception unless it is contiguous, of dtype `code`, of `shape`, on like's device."""
        if tensor.dtype is not _DTYPES[code]:
            raise dtype_error(name, tensor.dtype, (code,))
        if tensor.shape != shape:
            raise shape_error(name, tensor.shape, tuple(shape))
        if tensor.device != like.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {like.device}, as the first argument is")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tuple(tensor.stride())}; it must be contiguous (.contiguous())")
        return self._address(name, tensor)

    output_pointer = pointer

    def _address(self, name: str, tensor: torch.Tensor) -> int:
        address = tensor.data_ptr()
        if address % POINTER_ALIGNMENT and tensor.is_cuda:
            raise ValueError(f"{name} is at {address:#x}; it must be aligned to {POINTER_ALIGNMENT} bytes (.clone())")
        return address

    def dtype_code(self, name: str, dtype: torch.dtype, allowed: tuple[int, ...]) -> int:
        code = _CODES.get(dtype, -1)
        if code not in allowed:
            raise dtype_error(name, dtype, allowed)
        return code

    def empty(self, shape: tuple[int, ...], code: int, like: torch.Tensor) -> torch.Tensor:
        return torch.empty(shape, dtype=_DTYPES[code], device=like.device)

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor)

    def workspace(self, n_bytes: int, like: torch.Tensor) -> tuple[Any, int]:
        """Memory, and an aligned address in it. The allocator aligns a GPU's memory to 512 bytes, a CPU's to 64."""
        if like.is_cuda:
            memory = torch.empty(n_bytes, dtype=torch.uint8, device=like.device)
            return memory, memory.data_ptr()
        memory = torch.empty(n_bytes + WORKSPACE_ALIGNMENT, dtype=torch.uint8)
        return memory, -(-memory.data_ptr() // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT

    def run(self, function: Callable[..., int], like: torch.Tensor, *arguments: Any) -> int:
        """function(*arguments, stream) where `like` lives. Gives its status."""
        if not like.is_cuda:
            return function(*arguments, None)
        # The library makes the pointers' GPU the current one by itself.
        return function(*arguments, torch.cuda.current_stream(like.device).cuda_stream)


class FakeTorchTensors(TorchTensors):
    """Tensors without data, of the same checks: what torch.compile and torch.export trace."""

    fake = True

    def _address(self, name: str, tensor: torch.Tensor) -> int:
        return 0


TORCH, FAKE_TORCH = TorchTensors(), FakeTorchTensors()

_LIBRARY = torch.library.Library("moebius", "DEF")


def _define(
    name: str, schema: str, operator: Callable[..., Any], result: Callable[[Any], Any], mutated: int | None = None
) -> Callable[..., Any]:
    """Defines torch.ops.moebius.`name`. `result` picks the outputs; `mutated` is the place of a tensor it writes to."""

    def call(*arguments: Any) -> Any:
        outputs = result(operator(TORCH, *arguments))
        if mutated is not None and arguments[mutated] is not None:
            torch.autograd.graph.increment_version(arguments[mutated])
        return outputs

    def fake(*arguments: Any) -> Any:
        return result(operator(FAKE_TORCH, *arguments))

    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, call, key)
    torch.library.register_fake(f"moebius::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.moebius, name).default


def _same(outputs: Any) -> Any:
    return outputs


def _nothing(outputs: Any) -> None:
    return None


def _without_out(operator: Callable[..., Any]) -> Callable[..., Any]:
    """operator(..., out=None): the variant that allocates its output."""

    def call(*arguments: Any) -> Any:
        return operator(*arguments, None)

    return call


_TERMS = (
    "str activation, Tensor? bias13, Tensor? bias2, Tensor? residual, Tensor? shared, Tensor? w13_scale, "
    "Tensor? w2_scale, Tensor? x_scale, Tensor? h_scale, str f32"
)
_MOE = (
    "(Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids, int first_expert, int? n_experts, "
    + _TERMS
)
_FROM_LOGITS = (
    "(Tensor x, Tensor router_logits, Tensor w13, Tensor w2, int top_k, bool renormalize, str order, "
    "int first_expert, " + _TERMS
)
_REDUCE = "(Tensor y, Tensor weights, Tensor token_row, Tensor? residual, Tensor? shared, "
_GROUPED_GEMM = (
    "(Tensor a, Tensor b, Tensor? offsets, Tensor? row_index, Tensor? bias, Tensor? row_weight, str activation, "
    "Tensor? a_scale, Tensor? b_scale, ScalarType? out_dtype, str f32)"
)
_OUT = ", Tensor(a!) out) -> ()"

_route = _define(
    "route",
    "(Tensor logits, int top_k, bool renormalize, str order, Tensor(a!)? nan_flag) -> (Tensor, Tensor)",
    _operators.route,
    _same,
    mutated=4,
)
_router_gemm = _define(
    "router_gemm", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _operators.router_gemm, _same
)
_plan = _define(
    "plan",
    "(Tensor ids, int n_experts, int first_expert, int? n_local_experts) -> (Tensor, Tensor, Tensor)",
    _operators.plan,
    tuple,
)
_grouped_gemm = _define(
    "grouped_gemm", _GROUPED_GEMM + " -> Tensor", _operators.grouped_gemm, lambda outputs: outputs[0]
)
_grouped_gemm_fp8 = _define("grouped_gemm_fp8", _GROUPED_GEMM + " -> (Tensor, Tensor)", _operators.grouped_gemm, _same)
_reduce = _define("reduce", _REDUCE + "ScalarType? out_dtype) -> Tensor", _without_out(_operators.reduce), _same)
_reduce_out = _define("reduce_out", _REDUCE + "ScalarType? out_dtype" + _OUT, _operators.reduce, _nothing, mutated=6)
_moe = _define("moe", _MOE + ") -> Tensor", _without_out(_operators.moe), _same)
_moe_out = _define("moe_out", _MOE + _OUT, _operators.moe, _nothing, mutated=-1)
_moe_from_logits = _define(
    "moe_from_logits", _FROM_LOGITS + ") -> Tensor", _without_out(_operators.moe_from_logits), _same
)
_moe_from_logits_out = _define(
    "moe_from_logits_out", _FROM_LOGITS + _OUT, _operators.moe_from_logits, _nothing, mutated=-1
)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor) -> torch.Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("moebius has no backward pass yet; call its operators under torch.no_grad()")


def _forward_only(output: torch.Tensor) -> torch.Tensor:
    """Lets a backward pass fail instead of passing by: PyTorch would only warn and give no gradient."""
    return _NoBackward.apply(output) if output.requires_grad else output


def route(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = _route(*arguments)
    return _forward_only(weights), ids


def router_gemm(*arguments: Any) -> torch.Tensor:
    return _forward_only(_router_gemm(*arguments))


def plan(*arguments: Any) -> _operators.Plan:
    return _operators.Plan(*_plan(*arguments))


def grouped_gemm(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    if arguments[-2] is torch.float8_e4m3fn:
        return _grouped_gemm_fp8(*arguments)
    return _forward_only(_grouped_gemm(*arguments)), None


def _with_out(operator: Callable[..., Any], operator_out: Callable[..., Any], *arguments: Any) -> torch.Tensor:
    """The last argument is out, or None."""
    if arguments[-1] is None:
        return _forward_only(operator(*arguments[:-1]))
    operator_out(*arguments)
    return arguments[-1]


moe = partial(_with_out, _moe, _moe_out)
moe_from_logits = partial(_with_out, _moe_from_logits, _moe_from_logits_out)
reduce = partial(_with_out, _reduce, _reduce_out)
