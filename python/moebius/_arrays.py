"""What the operators ask of an array library: checks, pointers, memory, streams. PyTorch's is in _torch.py."""

from typing import Any

import numpy

from ._library import BFLOAT16, FLOAT8, FLOAT16, FLOAT32

INT32 = 4  # beside the codes of mb_dtype, for ids and offsets
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32")

ACTIVATION_DTYPES = (FLOAT32, BFLOAT16, FLOAT16)

# The library wants workspaces aligned to this many bytes.
WORKSPACE_ALIGNMENT = 256
# And, on the GPU, all other pointers.
POINTER_ALIGNMENT = 16


def dtype_error(name: str, found: Any, allowed: tuple[int, ...]) -> TypeError:
    names = [DTYPE_NAMES[code] for code in allowed]
    wanted = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
    return TypeError(f"{name} has dtype {found}; it must be {wanted}")


def shape_error(name: str, found: Any, wanted: Any) -> ValueError:
    return ValueError(f"{name} has shape {tuple(found)}; it must be {wanted}")


class NumpyArrays:
    """NumPy arrays, computed on the CPU. bfloat16 and float8_e4m3fn are the ml_dtypes package's."""

    fake = False

    def __init__(self) -> None:
        self._codes = {numpy.dtype(name): code for name, code in (("float32", 0), ("float16", 2), ("int32", INT32))}

    def code(self, name: str, array: Any, allowed: tuple[int, ...]) -> int:
        """The array's dtype as a code; TypeError unless it is one of `allowed`."""
        if not isinstance(array, numpy.ndarray):
            raise TypeError(f"{name} is a {type(array).__name__}; it must be a numpy.ndarray, as the first argument is")
        code = self._codes.get(array.dtype, -1)
        if code < 0 and array.dtype.name in DTYPE_NAMES and array.dtype.isnative:
            code = self._codes[array.dtype] = DTYPE_NAMES.index(array.dtype.name)
        if code not in allowed:
            raise dtype_error(name, array.dtype, allowed)
        return code

    def pointer(self, name: str, array: Any, code: int, shape: tuple[int, ...], like: Any) -> int:
        """The array's address; an exception unless it is a contiguous array of dtype `code` and of `shape`."""
        self.code(name, array, (code,))
        if array.shape != shape:
            raise shape_error(name, array.shape, shape)
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} has strides {array.strides}; it must be contiguous (numpy.ascontiguousarray)")
        return array.__array_interface__["data"][0]

    def output_pointer(self, name: str, array: Any, code: int, shape: tuple[int, ...], like: Any) -> int:
        """As pointer, of an array that may be written."""
        pointer = self.pointer(name, array, code, shape, like)
        if not array.flags.writeable:
            raise ValueError(f"{name} is read-only; it must be writeable")
        return pointer

    def dtype_code(self, name: str, dtype: Any, allowed: tuple[int, ...]) -> int:
        """The code of what a caller gave as a dtype: a name, or anything that numpy.dtype takes."""
        found = dtype if isinstance(dtype, str) else numpy.dtype(dtype).name
        code = DTYPE_NAMES.index(found) if found in DTYPE_NAMES else -1
        if code not in allowed:
            raise dtype_error(name, found, allowed)
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


NUMPY = NumpyArrays()
