"""From logits to the next tokens, once for every array library, as the operators in _operators.py."""

from ctypes import sizeof
from typing import Any

from ._arrays import INT32, INT64
from ._library import FLOAT32, LIBRARY, SampleArgs, SampleRow
from ._operators import call, optional

# An mb_sample_row as int32: where its fields begin, and how many there are.
ROW = {name: getattr(SampleRow, name).offset // 4 for name, _ in SampleRow._fields_}
ROW_INTS = sizeof(SampleRow) // 4
FLOAT_ONE = 0x3F800000  # the bits of 1.0
OFF = {"top_p": FLOAT_ONE, "repetition_penalty": FLOAT_ONE}  # of all others 0 is off


def sample(
    arrays: Any,
    logits: Any,
    seeds: Any,
    positions: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    repetition_penalty: Any,
    presence_penalty: Any,
    frequency_penalty: Any,
    seen: Any,
    allowed: Any,
) -> tuple[Any, Any]:
    n_rows, vocab = arrays.shape("logits", logits, 2, "[N, V]")
    code = arrays.code("logits", logits, (FLOAT32,))
    logits_pointer = arrays.pointer("logits", logits, code, (n_rows, vocab), logits)
    given = {
        "temperature": (temperature, FLOAT32),
        "top_p": (top_p, FLOAT32),
        "min_p": (min_p, FLOAT32),
        "repetition_penalty": (repetition_penalty, FLOAT32),
        "presence_penalty": (presence_penalty, FLOAT32),
        "frequency_penalty": (frequency_penalty, FLOAT32),
        "top_k": (top_k, INT32),
    }
    for name, (array, field_code) in given.items():
        optional(arrays, name, array, field_code, (n_rows,), logits)
    arrays.pointer("seeds", seeds, INT64, (n_rows,), logits)
    arrays.pointer("positions", positions, INT64, (n_rows,), logits)
    n_words = -(-vocab // 32)
    allowed_pointer = optional(arrays, "allowed", allowed, INT32, (n_rows, n_words), logits)
    seen_pointer = None if seen is None else arrays.output_pointer("seen", seen, INT32, (n_rows, vocab), logits)
    if seen is None and any(given[name][0] is not None for name in given if name.endswith("_penalty")):
        raise arrays.value_error("seen is None; it must be given, because there are penalties")
    ids, logprobs = arrays.empty((n_rows,), INT32, logits), arrays.empty((n_rows,), FLOAT32, logits)
    if arrays.fake or n_rows == 0:
        return ids, logprobs
    rows = arrays.empty((n_rows, ROW_INTS), INT32, logits)
    rows[:] = 0
    for name, (array, _) in given.items():
        if array is not None:
            rows[:, ROW[name]] = arrays.ints(array)
        elif name in OFF:
            rows[:, ROW[name]] = OFF[name]
    for name, long in (("seed", seeds), ("position", positions)):
        rows[:, ROW[name] : ROW[name] + 2] = arrays.ints(long).reshape(n_rows, 2)
    for name, address, row_bytes in (("seen", seen_pointer, 4 * vocab), ("allowed", allowed_pointer, 4 * n_words)):
        if address is not None:
            addresses = arrays.numbers(n_rows, logits) * row_bytes + address
            rows[:, ROW[name] : ROW[name] + 2] = arrays.ints(addresses).reshape(n_rows, 2)
    args = SampleArgs(
        logits_pointer,
        arrays.pointer("rows", rows, INT32, (n_rows, ROW_INTS), logits),
        arrays.pointer("ids", ids, INT32, (n_rows,), logits),
        arrays.pointer("logprobs", logprobs, FLOAT32, (n_rows,), logits),
        n_rows,
        vocab,
    )
    call(arrays, LIBRARY.mb_sample, LIBRARY.mb_sample_workspace, args, logits)
    return ids, logprobs
