"""What the operators need from an array library: checks, addresses, memory, streams. _torch.py has PyTorch's."""

import operator
from typing import Any

import numpy

from ._library import BFLOAT16, FLOAT8, FLOAT16, FLOAT32
from ._signatures import Signature

INT32, INT64 = 4, 5  # the dtypes of ids and offsets, and of counts in reports. They are no mb_dtype.
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "int64")
DTYPE_BYTES = (4, 2, 2, 1, 4, 8)

ACTIVATION_DTYPES = (FLOAT32, BFLOAT16, FLOAT16)

# In bytes. All other arrays are aligned to their element.
WORKSPACE_ALIGNMENT = 256
MATRIX_ALIGNMENT = 16  # on a GPU


class Arrays:
    """The checks that all array libraries share, for one operator, whose name `op` begins every error."""

    fake = False  # True when the arrays have shapes and dtypes, but no data

    def __init__(self, op: str) -> None:
        self.op = op

    def value_error(self, text: str) -> ValueError:
        return ValueError(f"{self.op}: {text}")

    def dtype_error(self, name: str, found: Any, allowed: tuple[int, ...]) -> TypeError:
        names = [DTYPE_NAMES[code] for code in dict.fromkeys(allowed)]
        wanted = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
        return TypeError(f"{self.op}: {name} has dtype {found}; it must be {wanted}")

    def shape_error(self, name: str, found: Any, wanted: Any) -> ValueError:
        return self.value_error(f"{name} has shape {tuple(found)}; it must be {wanted}")

    def alignment_error(self, name: str, address: int, alignment: int) -> ValueError:
        return self.value_error(f"{name} is at {address:#x}; it must be aligned to {alignment} bytes (copy it)")

    def choice(self, name: str, value: str, choices: dict[str, int]) -> int:
        """The value's code; ValueError unless it is one of `choices`."""
        code = choices.get(value)
        if code is None:
            raise self.value_error(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
        return code

    def integer(self, name: str, value: int, low: int, high: int) -> int:
        """The value as an int of Python; ValueError unless it is in [low, high]."""
        if value < low or value > high:
            raise self.value_error(f"{name} is {value}; it must be in [{low}, {high}]")
        return operator.index(value)

    def shape(self, name: str, array: Any, n_dimensions: int, wanted: str) -> tuple[int, ...]:
        """The array's shape; ValueError unless it has n_dimensions. `wanted` is the shape for the error's text."""
        shape: tuple[int, ...] = array.shape
        if len(shape) != n_dimensions:
            raise self.shape_error(name, shape, wanted)
        return shape


class NumpyArrays(Arrays):
    """NumPy arrays. The CPU computes. bfloat16 and float8_e4m3fn come from the package ml_dtypes."""

    def __init__(self, op: str) -> None:
        super().__init__(op)
        self._codes = {numpy.dtype(name): code for name, code in (("float32", 0), ("float16", 2), ("int32", INT32))}
        dtypes = (str, numpy.dtype, type)
        self.signature = Signature(op, numpy.ndarray, dtypes, "a numpy.ndarray, as the first argument is", "a dtype")
        self.op = self.signature.op

    def code(self, name: str, array: numpy.ndarray, allowed: tuple[int, ...]) -> int:
        """The array's dtype as a code; TypeError unless it is one of `allowed`."""
        code = self._codes.get(array.dtype, -1)
        if code < 0 and array.dtype.name in DTYPE_NAMES and array.dtype.isnative:
            code = self._codes[array.dtype] = DTYPE_NAMES.index(array.dtype.name)
        if code not in allowed:
            raise self.dtype_error(name, array.dtype, allowed)
        return code

    def pointer(self, name: str, array: numpy.ndarray, code: int, shape: tuple[int, ...], like: Any) -> int:
        """The array's address; an exception unless it is a contiguous array of dtype `code` and of `shape`."""
        self.code(name, array, (code,))
        if array.shape != shape:
            raise self.shape_error(name, array.shape, shape)
        if not array.flags.c_contiguous:
            raise self.value_error(f"{name} has strides {array.strides}; it must be contiguous (ascontiguousarray)")
        address: int = array.__array_interface__["data"][0]
        if address % DTYPE_BYTES[code]:
            raise self.alignment_error(name, address, DTYPE_BYTES[code])
        return address

    matrix = pointer  # only a GPU needs matrices to be aligned further

    def output_pointer(self, name: str, array: numpy.ndarray, code: int, shape: tuple[int, ...], like: Any) -> int:
        """As pointer; ValueError when the array is read-only."""
        pointer = self.pointer(name, array, code, shape, like)
        if not array.flags.writeable:
            raise self.value_error(f"{name} is read-only; it must be writeable")
        return pointer

    output_matrix = output_pointer

    def dtype_code(self, name: str, dtype: Any, allowed: tuple[int, ...]) -> int:
        """The code of a dtype, which is a name or anything that numpy.dtype takes."""
        found = dtype if isinstance(dtype, str) else numpy.dtype(dtype).name
        code = DTYPE_NAMES.index(found) if found in DTYPE_NAMES else -1
        if code not in allowed:
            raise self.dtype_error(name, found, allowed)
        return code

    def empty(self, shape: tuple[int, ...], code: int, like: Any) -> numpy.ndarray:
        if code in (BFLOAT16, FLOAT8):
            import ml_dtypes

            return numpy.empty(shape, getattr(ml_dtypes, DTYPE_NAMES[code]))
        return numpy.empty(shape, DTYPE_NAMES[code])

    def empty_like(self, array: numpy.ndarray) -> numpy.ndarray:
        return numpy.empty(array.shape, array.dtype)

    def is_on_host(self, array: numpy.ndarray) -> bool:
        return True

    def numbers(self, n: int, like: Any) -> numpy.ndarray:
        """0 to n - 1, int64."""
        return numpy.arange(n, dtype=numpy.int64)

    def ints(self, array: numpy.ndarray) -> numpy.ndarray:
        """The array's memory as int32."""
        return array.view(numpy.int32)

    def workspace(self, n_bytes: int, like: Any) -> tuple[Any, int]:
        """Memory of at least n_bytes, and the first aligned address in it."""
        memory = numpy.empty(n_bytes + WORKSPACE_ALIGNMENT, numpy.uint8)
        return memory, -(-memory.__array_interface__["data"][0] // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT

    def run(self, function: Any, like: Any, *arguments: Any) -> int:
        """Calls function(*arguments, stream) on the device of `like` and returns the status."""
        return function(*arguments, None)
