"""What the operators ask of an array library: checks, pointers, memory, streams. PyTorch's is in _torch.py."""

import operator
from typing import Any

import numpy

from ._library import BFLOAT16, FLOAT8, FLOAT16, FLOAT32
from ._signatures import Signature

INT32 = 4  # of ids and offsets; a code of this package, which never reaches the library
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32")
DTYPE_BYTES = (4, 2, 2, 1, 4)

ACTIVATION_DTYPES = (FLOAT32, BFLOAT16, FLOAT16)

# The library wants workspaces aligned to this many bytes,
WORKSPACE_ALIGNMENT = 256
# matrices on a GPU to this many, and all else to its element.
MATRIX_ALIGNMENT = 16


class Arrays:
    """The checks that all array libraries share, for one operator. `op` is its name, in front of every error."""

    fake = False  # whether arrays have no data

    def __init__(self, op: str) -> None:
        self.op = op

    def value_error(self, text: str) -> ValueError:
        return ValueError(f"{self.op}: {text}")

    def dtype_error(self, name: str, found: Any, allowed: tuple[int, ...]) -> TypeError:
        names = [DTYPE_NAMES[code] for code in allowed]
        wanted = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
        return TypeError(f"{self.op}: {name} has dtype {found}; it must be {wanted}")

    def shape_error(self, name: str, found: Any, wanted: Any) -> ValueError:
        return self.value_error(f"{name} has shape {tuple(found)}; it must be {wanted}")

    def alignment_error(self, name: str, address: int, alignment: int) -> ValueError:
        return self.value_error(f"{name} is at {address:#x}; it must be aligned to {alignment} bytes (copy it)")

    def choice(self, name: str, value: str, choices: dict[str, int]) -> int:
        """The code of one of `choices`."""
        code = choices.get(value)
        if code is None:
            raise self.value_error(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
        return code

    def integer(self, name: str, value: int, low: int, high: int) -> int:
        """The value as Python's int, in [low, high]."""
        if value < low or value > high:
            raise self.value_error(f"{name} is {value}; it must be in [{low}, {high}]")
        return operator.index(value)

    def shape(self, name: str, array: Any, n_dimensions: int, wanted: str) -> tuple[int, ...]:
        """The array's shape, of n_dimensions; `wanted` names them."""
        shape: tuple[int, ...] = array.shape
        if len(shape) != n_dimensions:
            raise self.shape_error(name, shape, wanted)
        return shape


class NumpyArrays(Arrays):
    """NumPy arrays, computed on the CPU. bfloat16 and float8_e4m3fn are the ml_dtypes package's."""

    def __init__(self, op: str) -> None:
        super().__init__(op)
        self._codes = {numpy.dtype(name): code for name, code in (("float32", 0), ("float16", 2), ("int32", INT32))}
        dtypes = (str, numpy.dtype, type)
        self.signature = Signature(op, numpy.ndarray, dtypes, "a numpy.ndarray, as the first argument is", "a dtype")

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

    matrix = pointer  # only a GPU asks for more

    def output_pointer(self, name: str, array: numpy.ndarray, code: int, shape: tuple[int, ...], like: Any) -> int:
        """As pointer, of an array that may be written."""
        pointer = self.pointer(name, array, code, shape, like)
        if not array.flags.writeable:
            raise self.value_error(f"{name} is read-only; it must be writeable")
        return pointer

    output_matrix = output_pointer

    def dtype_code(self, name: str, dtype: Any, allowed: tuple[int, ...]) -> int:
        """The code of what a caller gave as a dtype: a name, or anything that numpy.dtype takes."""
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

    def workspace(self, n_bytes: int, like: Any) -> tuple[Any, int]:
        """Memory, and an aligned address in it."""
        memory = numpy.empty(n_bytes + WORKSPACE_ALIGNMENT, numpy.uint8)
        return memory, -(-memory.__array_interface__["data"][0] // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT

    def run(self, function: Any, like: Any, *arguments: Any) -> int:
        """function(*arguments, stream), where `like` lives. Gives its status."""
        return function(*arguments, None)
