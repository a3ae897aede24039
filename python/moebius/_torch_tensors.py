"""
PyTorch: tensors as arrays, and how an operator becomes one of torch.ops.moebius.*.

The operators are defined with torch.library's Library and not with its custom_op decorator, which does the same work in
more Python: 7 us a call, as much as all of ours.
"""

from collections.abc import Callable
from typing import Any

import torch

from ._arrays import DTYPE_BYTES, DTYPE_NAMES, MATRIX_ALIGNMENT, WORKSPACE_ALIGNMENT, Arrays

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

    def numbers(self, n: int, like: torch.Tensor) -> torch.Tensor:
        return torch.arange(n, dtype=torch.int64, device=like.device)

    def ints(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(torch.int32)

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


LIBRARY = torch.library.Library("moebius", "DEF")
NO_BACKWARD = "there is no backward pass for this; call it under torch.no_grad()"


def has_gradient(arguments: tuple[Any, ...]) -> bool:
    """Whether an argument requires a gradient."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and argument.requires_grad:
            return True
    return False


def define(
    op: str,
    schema: str,
    operator: Callable[..., Any],
    name: str | None = None,
    result: Callable[[Any], Any] = lambda outputs: outputs,
    mutated: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Defines torch.ops.moebius.`name`, or `op`: `operator` on tensors.

    `result` picks the outputs from what `operator` returns; `mutated` are the indices of arguments that it writes to.
    """
    name = name or op
    tensors, fake_tensors = TorchTensors(op), FakeTorchTensors(op)

    def refuse_gradient(arguments: tuple[Any, ...]) -> None:
        if has_gradient(arguments):
            raise NotImplementedError(f"torch.ops.moebius.{name}: {NO_BACKWARD}")

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            refuse_gradient(arguments)
        outputs = result(operator(tensors, *arguments))
        for index in mutated:
            if arguments[index] is not None:
                torch.autograd.graph.increment_version(arguments[index])
        return outputs

    def fake(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            refuse_gradient(arguments)
        return result(operator(fake_tensors, *arguments))

    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, call, key)
    torch.library.register_fake(f"moebius::{name}", fake, lib=LIBRARY)
    defined: Callable[..., Any] = getattr(torch.ops.moebius, name).default
    return defined


def autocast(x: torch.Tensor, *others: torch.Tensor | None) -> tuple[Any, ...]:
    """All of them in the dtype of torch.autocast where that is on for x's device, else as they are."""
    device = x.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return (x, *others)
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (x, *others))
