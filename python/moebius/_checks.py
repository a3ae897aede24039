"""What a user passes, checked: each function gives the value as the C library takes it, or raises one sentence."""

import json
import numbers
from collections.abc import Collection, Iterable, Mapping
from typing import Any

LARGEST = 3.4028234663852886e38  # a float of C


def shown(value: Any) -> str:
    """The value, briefly. Also where the value cannot say what it is."""
    try:
        text = repr(value)
    except Exception:
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def integer(name: str, value: Any, minimum: int, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {shown(value)}; it must be a whole number")
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} is {shown(value)}; it must be from {minimum} to {maximum}")
    return int(value)


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {shown(value)}; it must be a number")
    if not -LARGEST <= value <= LARGEST:  # NaN is not either
        raise ValueError(f"{name} is {shown(value)}; it must be a finite number, at most 3.4e38")
    return float(value)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, numbers.Integral) or value not in (0, 1):
        raise TypeError(f"{name} is {shown(value)}; it must be True or False")
    return bool(value)


def collection(name: str, value: Any, of: str) -> Collection[Any]:
    """A list, a tuple, a set, an array: what can be gone through more than once, and holds more than characters."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(value, Collection):
        raise TypeError(f"{name} is {shown(value)}; it must be a list of {of}")
    return value


def utf8(name: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"{name} is {shown(text)}; it must be a text")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: character {error.start} is {text[error.start]!r}, half of a surrogate pair, which UTF-8 does not "
            'have; text.encode(errors="replace").decode() replaces it'
        ) from None


def c_text(name: str, text: Any) -> bytes:
    """For a char * that ends at the first zero."""
    data = utf8(name, text)
    if b"\0" in data:
        raise ValueError(f"{name}: {shown(text)} has a zero character")
    return data


def _mapping(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{shown(value)} is of type {type(value).__name__}")


def json_array(name: str, values: Iterable[Any]) -> bytes:
    """The values as JSON; what JSON cannot hold is told with its place in the list."""
    texts = []
    for i, value in enumerate(values):
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=_mapping)
        except RecursionError:
            raise ValueError(f"{name}[{i}] cannot be written as JSON: it is nested too deeply") from None
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}[{i}] cannot be written as JSON: {error}") from None
        texts.append(utf8(f"{name}[{i}] as JSON", text))
    return b"[" + b",".join(texts) + b"]"
