"""
The operators that a layer is made of, once for every array library: check the arguments, allocate the outputs, fill the
struct of ops.h, call. The layer itself is in _layer.py.

`arrays` is a NumpyArrays, a TorchTensors or a FakeTorchTensors. With the last, shapes and dtypes are checked and
outputs made, no more: torch.compile traces this. The parameters, whose types were checked, stand in _signatures.py.
"""

from ctypes import byref, c_size_t
from typing import Any, NamedTuple

from ._arrays import ACTIVATION_DTYPES, DTYPE_BYTES, DTYPE_NAMES, INT32
from ._library import (
    ACTIVATIONS,
    BFLOAT16,
    F32_MATH,
    FLOAT8,
    FLOAT32,
    GATED,
    LIBRARY,
    ORDERS,
    GroupedGemmArgs,
    PlanArgs,
    ReduceArgs,
    RouteArgs,
    RouterGemmArgs,
    Weight,
    failure,
)

INT32_MAX = 2**31 - 1
WEIGHT_DTYPES = {code: (code,) if code == FLOAT32 else (code, FLOAT8) for code in ACTIVATION_DTYPES}
BLOCK = 128


class Plan(NamedTuple):
    """The T*K choices sorted by expert; R = T*K. All int32."""

    offsets: Any  # [n_local_experts + 1]: rows of local expert e are [offsets[e], offsets[e+1])
    row_token: Any  # [R]: source token of each row; undefined from offsets[-1] on
    token_row: Any  # [T, K]: row of each choice, -1 when its id is no local expert's


def call(arrays: Any, function: Any, size: Any, args: Any, like: Any) -> None:
    """Calls a function of the library that needs a workspace; `size` is the function that tells its bytes."""
    bytes_needed = c_size_t()
    status = size(byref(args), byref(bytes_needed))
    if status:
        raise failure(status)
    n_bytes = bytes_needed.value
    # The memory is freed on return. A GPU's goes to the caching allocator, which gives it to later work of this stream.
    memory, pointer = arrays.workspace(n_bytes, like)
    status = arrays.run(function, like, byref(args), pointer, n_bytes)
    if status:
        raise failure(status)


def check_apart(arrays: Any, name: str, pointer: int, n_bytes: int, out_pointer: int, out_bytes: int) -> None:
    """ValueError when the output lies in memory of an input that is read while it is written."""
    if out_pointer < pointer + n_bytes and pointer < out_pointer + out_bytes:
        verb = "is" if out_pointer == pointer else "overlaps"
        raise arrays.value_error(f"out {verb} {name}; it must be other memory")


def weight_struct(
    arrays: Any, name: str, array: Any, scale: Any, code: int, shape: tuple[int, ...], like: Any
) -> Weight:
    """An mb_weight [count, rows, cols]: float8 with scales [count] or [count, rows / n, cols / 128]."""
    pointer = arrays.matrix(name, array, code, shape, like)
    count, rows, cols = shape
    if code != FLOAT8:
        if scale is not None:
            raise arrays.value_error(f"{name}_scale is given; it must be None, because {name} is not float8_e4m3fn")
        return Weight(data=pointer, count=count, rows=rows, cols=cols, dtype=code)
    if scale is None:
        raise arrays.value_error(f"{name}_scale is None; it must be given, because {name} is float8_e4m3fn")
    arrays.code(name + "_scale", scale, (FLOAT32,))
    scale_rows = 0
    scale_shape: tuple[int, ...] = (count,)
    if len(scale.shape) != 1:
        # Merged matrices whose heights are not multiples of 128 have blocks of fewer rows: the shape tells how many.
        found = scale.shape[1] if len(scale.shape) == 3 else 0
        scale_rows = next((n for n in (128, 64, 32, 16, 8, 4, 2, 1) if -(-rows // n) == found), BLOCK)
        scale_shape = (count, -(-rows // scale_rows), -(-cols // BLOCK))
    scale_pointer = arrays.pointer(name + "_scale", scale, FLOAT32, scale_shape, like)
    scale_cols = BLOCK if scale_rows > 0 else 0
    return Weight(pointer, scale_pointer, None, count, rows, cols, scale_rows, scale_cols, code, FLOAT32)


def optional(arrays: Any, name: str, array: Any, code: int, shape: tuple[int, ...], like: Any) -> int | None:
    return None if array is None else arrays.pointer(name, array, code, shape, like)


def optional_matrix(arrays: Any, name: str, array: Any, code: int, shape: tuple[int, ...], like: Any) -> int | None:
    return None if array is None else arrays.matrix(name, array, code, shape, like)


def router_gemm(arrays: Any, x: Any, weight: Any, bias: Any) -> Any:
    n_tokens, hidden = arrays.shape("x", x, 2, "[T, H]")
    n_experts = arrays.shape("weight", weight, 2, "[E, H]")[0]
    code = arrays.code("x", x, ACTIVATION_DTYPES)
    weight_code = arrays.code("weight", weight, ACTIVATION_DTYPES)
    x_pointer = arrays.matrix("x", x, code, (n_tokens, hidden), x)
    weight_pointer = arrays.matrix("weight", weight, weight_code, (n_experts, hidden), x)
    bias_pointer = optional(arrays, "bias", bias, FLOAT32, (n_experts,), x)
    shape = (n_tokens, n_experts)
    logits = arrays.empty(shape, FLOAT32, x)
    if arrays.fake or n_tokens == 0:
        return logits
    args = RouterGemmArgs(
        x_pointer,
        weight_pointer,
        bias_pointer,
        arrays.pointer("logits", logits, FLOAT32, shape, x),
        n_tokens,
        hidden,
        n_experts,
        code,
        weight_code,
    )
    call(arrays, LIBRARY.mb_moe_router_gemm, LIBRARY.mb_moe_router_gemm_workspace, args, x)
    return logits


def routing_struct(
    arrays: Any, name: str, logits: Any, top_k: int, renormalize: bool, order: str, nan_flag: Any
) -> tuple[Any, Any, RouteArgs | None]:
    """The outputs weights and ids, and the struct (None when the arrays are fake)."""
    n_tokens, n_experts = arrays.shape(name, logits, 2, "[T, E]")
    code = arrays.code(name, logits, (FLOAT32, BFLOAT16))
    order_code = arrays.choice("order", order, ORDERS)
    top_k = arrays.integer("top_k", top_k, 1, min(32, n_experts))
    pointer = arrays.pointer(name, logits, code, (n_tokens, n_experts), logits)
    flag = None if nan_flag is None else arrays.output_pointer("nan_flag", nan_flag, INT32, (1,), logits)
    shape = (n_tokens, top_k)
    weights, ids = arrays.empty(shape, FLOAT32, logits), arrays.empty(shape, INT32, logits)
    if arrays.fake:
        return weights, ids, None
    args = RouteArgs(
        pointer,
        arrays.pointer("weights", weights, FLOAT32, shape, logits),
        arrays.pointer("ids", ids, INT32, shape, logits),
        flag,
        n_tokens,
        n_experts,
        top_k,
        code,
        order_code,
        bool(renormalize),
    )
    return weights, ids, args


def route(arrays: Any, logits: Any, top_k: int, renormalize: bool, order: str, nan_flag: Any) -> tuple[Any, Any]:
    weights, ids, args = routing_struct(arrays, "logits", logits, top_k, renormalize, order, nan_flag)
    if args is not None and args.n_tokens != 0:
        status = arrays.run(LIBRARY.mb_moe_route, logits, byref(args))
        if status:
            raise failure(status)
    return weights, ids


def plan(arrays: Any, ids: Any, n_experts: int, first_expert: int, n_local_experts: int | None) -> Plan:
    n_tokens, top_k = arrays.shape("ids", ids, 2, "[T, K]")
    n_experts = arrays.integer("n_experts", n_experts, 1, INT32_MAX)
    first_expert = arrays.integer("first_expert", first_expert, 0, n_experts - 1)
    if n_local_experts is None:
        n_local_experts = n_experts - first_expert
    n_local_experts = arrays.integer("n_local_experts", n_local_experts, 1, n_experts - first_expert)
    pointer = arrays.pointer("ids", ids, INT32, (n_tokens, top_k), ids)
    n_offsets, n_rows = n_local_experts + 1, n_tokens * top_k
    offsets = arrays.empty((n_offsets,), INT32, ids)
    row_token = arrays.empty((n_rows,), INT32, ids)
    token_row = arrays.empty((n_tokens, top_k), INT32, ids)
    if not arrays.fake:
        args = PlanArgs(
            pointer,
            arrays.pointer("offsets", offsets, INT32, (n_offsets,), ids),
            arrays.pointer("row_token", row_token, INT32, (n_rows,), ids),
            arrays.pointer("token_row", token_row, INT32, (n_tokens, top_k), ids),
            n_tokens,
            top_k,
            n_experts,
            first_expert,
            n_local_experts,
        )
        call(arrays, LIBRARY.mb_moe_plan, LIBRARY.mb_moe_plan_workspace, args, ids)
    return Plan(offsets, row_token, token_row)


def grouped_gemm(
    arrays: Any,
    a: Any,
    b: Any,
    offsets: Any,
    row_index: Any,
    bias: Any,
    row_weight: Any,
    activation: str,
    a_scale: Any,
    b_scale: Any,
    out_dtype: Any,
    f32: str,
) -> tuple[Any, Any]:
    """Returns out [R, N or N / 2] and its scales (None unless out is float8)."""
    a_rows, depth = arrays.shape("a", a, 2, "[rows, K]")
    n_groups, n_columns = arrays.shape("b", b, 3, "[E, N, K]")[:2]
    n_rows = a_rows if row_index is None else arrays.shape("row_index", row_index, 1, "[R]")[0]
    code = arrays.code("a", a, (*ACTIVATION_DTYPES, FLOAT8))
    out_code = _gemm_out_code(arrays, code, out_dtype)
    activation_code, f32_code = (
        arrays.choice("activation", activation, ACTIVATIONS),
        arrays.choice("f32", f32, F32_MATH),
    )
    if activation in GATED and n_columns % 2:
        raise arrays.value_error(f"b has {n_columns} columns N; {activation} needs an even number, gate and up")
    if offsets is None and n_groups != 1:
        raise arrays.value_error(f"offsets is None; it must be given, because b has {n_groups} groups")
    a_pointer = arrays.matrix("a", a, code, (a_rows, depth), a)
    weight = weight_struct(arrays, "b", b, b_scale, code, (n_groups, n_columns, depth), a)
    if (a_scale is None) != (code != FLOAT8):
        state, wanted = ("None", "given") if a_scale is None else ("given", "None")
        raise arrays.value_error(f"a_scale is {state}; it must be {wanted}, because a is {DTYPE_NAMES[code]}")
    a_scale_shape = (1,) if weight.scale_rows == 0 else (a_rows, -(-depth // BLOCK))
    a_scale_pointer = optional(arrays, "a_scale", a_scale, FLOAT32, a_scale_shape, a)
    row_index_pointer = optional(arrays, "row_index", row_index, INT32, (n_rows,), a)
    offsets_pointer = optional(arrays, "offsets", offsets, INT32, (n_groups + 1,), a)
    bias_pointer = optional(arrays, "bias", bias, FLOAT32, (n_groups, n_columns), a)
    row_weight_pointer = optional(arrays, "row_weight", row_weight, FLOAT32, (n_rows,), a)
    shape = (n_rows, n_columns // 2 if activation in GATED else n_columns)
    scale_shape = (n_rows, -(-shape[1] // BLOCK))
    out = arrays.empty(shape, out_code, a)
    out_scale = arrays.empty(scale_shape, FLOAT32, a) if out_code == FLOAT8 else None
    if arrays.fake or n_rows == 0:
        return out, out_scale
    if row_index is not None and arrays.is_on_host(row_index):
        _check_row_index(arrays, row_index, offsets, a_rows)
    args = GroupedGemmArgs(
        a_pointer,
        a_scale_pointer,
        row_index_pointer,
        offsets_pointer,
        weight,
        bias_pointer,
        row_weight_pointer,
        arrays.pointer("out", out, out_code, shape, a),
        optional(arrays, "out_scale", out_scale, FLOAT32, scale_shape, a),
        n_rows,
        code,
        out_code,
        FLOAT32,
        activation_code,
        f32_code,
    )
    call(arrays, LIBRARY.mb_grouped_gemm, LIBRARY.mb_grouped_gemm_workspace, args, a)
    return out, out_scale


def _check_row_index(arrays: Any, row_index: Any, offsets: Any, a_rows: int) -> None:
    """ValueError for a row that a does not have: the C library is not told how many rows there are."""
    used = row_index if offsets is None else row_index[max(int(offsets[0]), 0) : max(int(offsets[-1]), 0)]
    last = int(used.max()) if len(used) else -1
    if last >= a_rows:
        raise arrays.value_error(f"row_index has {last}; it must be below {a_rows}, the rows of a")


def _gemm_out_code(arrays: Any, code: int, out_dtype: Any) -> int:
    if code == FLOAT8:
        if out_dtype is None:
            raise arrays.value_error("out_dtype is None; it must be given, because a is float8_e4m3fn")
        return arrays.dtype_code("out_dtype", out_dtype, (*ACTIVATION_DTYPES, FLOAT8))
    if out_dtype is None:
        return code
    return arrays.dtype_code("out_dtype", out_dtype, (FLOAT32,) if code == FLOAT32 else (code, FLOAT32, FLOAT8))


def reduce(
    arrays: Any, y: Any, weights: Any, token_row: Any, residual: Any, shared: Any, out_dtype: Any, out: Any
) -> Any:
    n_rows, hidden = arrays.shape("y", y, 2, "[R, H]")
    n_tokens, top_k = arrays.shape("weights", weights, 2, "[T, K]")
    code = arrays.code("y", y, ACTIVATION_DTYPES)
    if out_dtype is not None:
        out_code = arrays.dtype_code("out_dtype", out_dtype, (code, FLOAT32))
    else:
        out_code = code if out is None else arrays.code("out", out, (code, FLOAT32))
    shape = (n_tokens, hidden)
    if out is None:
        out = arrays.empty(shape, out_code, y)
    y_pointer = arrays.matrix("y", y, code, (n_rows, hidden), y)
    out_pointer = arrays.output_matrix("out", out, out_code, shape, y)
    pointers = (
        y_pointer,
        arrays.pointer("weights", weights, FLOAT32, (n_tokens, top_k), y),
        arrays.pointer("token_row", token_row, INT32, (n_tokens, top_k), y),
        optional_matrix(arrays, "residual", residual, out_code, shape, y),
        optional_matrix(arrays, "shared", shared, out_code, shape, y),
        out_pointer,
    )
    if arrays.fake or n_tokens == 0:
        return out
    y_bytes, out_bytes = n_rows * hidden * DTYPE_BYTES[code], n_tokens * hidden * DTYPE_BYTES[out_code]
    check_apart(arrays, "y", y_pointer, y_bytes, out_pointer, out_bytes)
    args = ReduceArgs(*pointers, n_tokens, hidden, top_k, code, out_code)
    status = arrays.run(LIBRARY.mb_moe_reduce, y, byref(args))
    if status:
        raise failure(status)
    return out
