"""The experts of one layer, alone or between the router and the sum, in the manner of _operators.py."""

import ctypes
from typing import Any

from ._arrays import ACTIVATION_DTYPES, DTYPE_BYTES, INT32
from ._library import (
    BFLOAT16,
    F32_MATH,
    FLOAT8,
    FLOAT32,
    GATED,
    LIBRARY,
    MOE_ACTIVATIONS,
    ExpertsArgs,
    ForwardArgs,
    Weight,
)
from ._operators import (
    INT32_MAX,
    WEIGHT_DTYPES,
    call,
    check_apart,
    optional,
    routing_struct,
    weight_struct,
)


def _check_activation_scales(
    arrays: Any, weight_code: int, up: Weight, down: Weight, x_scale: Any, h_scale: Any
) -> None:
    """Both weights must have the same kind of scales; x_scale and h_scale are given exactly when it is per tensor."""
    per_tensor = weight_code == FLOAT8 and up.scale_rows == 0
    if weight_code == FLOAT8 and (down.scale_rows == 0) != per_tensor:
        kinds = ("one scale per expert", "block scales")
        raise arrays.value_error(
            f"w2_scale has {kinds[per_tensor]}; it must have {kinds[not per_tensor]}, as w13_scale has"
        )
    for name, scale in (("x_scale", x_scale), ("h_scale", h_scale)):
        if per_tensor and scale is None:
            raise arrays.value_error(f"{name} is None; it must be given, because w13_scale and w2_scale are per tensor")
        if scale is not None and not per_tensor:
            raise arrays.value_error(
                f"{name} is given; it must be None without float8_e4m3fn weights scaled per tensor"
            )


def experts(
    arrays: Any,
    x: Any,
    w13: Any,
    w2: Any,
    activation: str,
    bias13: Any,
    bias2: Any,
    w13_scale: Any,
    w2_scale: Any,
    x_scale: Any,
    h_scale: Any,
    f32: str,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What the structs of moe and moe_experts have in common: addresses and weights; sizes and codes."""
    n_tokens, hidden = arrays.shape("x", x, 2, "[T, H]")
    n_local, _, intermediate = arrays.shape("w2", w2, 3, "[E, H, I]")
    activation_code = arrays.choice("activation", activation, MOE_ACTIVATIONS)
    f32_code = arrays.choice("f32", f32, F32_MATH)
    code = arrays.code("x", x, ACTIVATION_DTYPES)
    weight_code = arrays.code("w13", w13, WEIGHT_DTYPES[code])
    n_rows13 = 2 * intermediate if activation in GATED else intermediate
    x_pointer = arrays.matrix("x", x, code, (n_tokens, hidden), x)
    up = weight_struct(arrays, "w13", w13, w13_scale, weight_code, (n_local, n_rows13, hidden), x)
    down = weight_struct(arrays, "w2", w2, w2_scale, weight_code, (n_local, hidden, intermediate), x)
    _check_activation_scales(arrays, weight_code, up, down, x_scale, h_scale)
    pointers = (
        x_pointer,
        up,
        down,
        None if bias13 is None else arrays.pointer("bias13", bias13, code, (n_local, n_rows13), x),
        None if bias2 is None else arrays.pointer("bias2", bias2, code, (n_local, hidden), x),
        None if x_scale is None else arrays.pointer("x_scale", x_scale, FLOAT32, (1,), x),
        None if h_scale is None else arrays.pointer("h_scale", h_scale, FLOAT32, (1,), x),
    )
    return pointers, (n_tokens, hidden, intermediate, n_local, code, activation_code, f32_code)


def moe_experts(
    arrays: Any,
    x: Any,
    w13: Any,
    w2: Any,
    offsets: Any,
    row_index: Any,
    activation: str,
    bias13: Any,
    bias2: Any,
    w13_scale: Any,
    w2_scale: Any,
    x_scale: Any,
    h_scale: Any,
    f32: str,
    out: Any,
) -> Any:
    pointers, sizes = experts(arrays, x, w13, w2, activation, bias13, bias2, w13_scale, w2_scale, x_scale, h_scale, f32)
    x_pointer, up, down, bias13_pointer, bias2_pointer, x_scale_pointer, h_scale_pointer = pointers
    n_tokens, hidden, intermediate, n_local, code, activation_code, f32_code = sizes
    n_rows = n_tokens if row_index is None else arrays.shape("row_index", row_index, 1, "[R]")[0]
    offsets_pointer = arrays.pointer("offsets", offsets, INT32, (n_local + 1,), x)
    row_index_pointer = optional(arrays, "row_index", row_index, INT32, (n_rows,), x)
    shape = (n_rows, hidden)
    if out is None:
        out = arrays.empty(shape, code, x)
    out_pointer = arrays.output_matrix("out", out, code, shape, x)
    if arrays.fake or n_rows == 0:
        return out
    row_bytes = hidden * DTYPE_BYTES[code]
    check_apart(arrays, "x", x_pointer, n_tokens * row_bytes, out_pointer, n_rows * row_bytes)
    args = ExpertsArgs(
        x_pointer,
        row_index_pointer,
        offsets_pointer,
        up,
        down,
        bias13_pointer,
        bias2_pointer,
        out_pointer,
        n_tokens,
        n_rows,
        hidden,
        intermediate,
        n_local,
        code,
        activation_code,
        f32_code,
        x_scale_pointer,
        h_scale_pointer,
    )
    call(arrays, LIBRARY.mb_moe_experts, LIBRARY.mb_moe_experts_workspace, args, x)
    return out


def choices(
    arrays: Any, x: Any, w13: Any, topk_weights: Any, topk_ids: Any, first_expert: int, n_experts: int | None
) -> tuple[Any, Any, int, int]:
    """The addresses of weights and ids, their top_k, and n_experts."""
    n_local = arrays.shape("w13", w13, 3, "[E, 2I or I, H]")[0]
    if n_experts is None and first_expert == 0:
        n_experts = n_local
    elif n_experts is None:
        raise arrays.value_error(f"n_experts is None; it must be given, because first_expert is {first_expert}")
    shape = (arrays.shape("x", x, 2, "[T, H]")[0], arrays.shape("topk_ids", topk_ids, 2, "[T, K]")[1])
    weights = arrays.pointer("topk_weights", topk_weights, FLOAT32, shape, x)
    ids = arrays.pointer("topk_ids", topk_ids, INT32, shape, x)
    return weights, ids, shape[1], n_experts


def moe(
    arrays: Any,
    x: Any,
    w13: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    first_expert: int,
    n_experts: int | None,
    *rest: Any,
) -> Any:
    """rest: the parameters of _forward from activation on."""
    weights, ids, top_k, n_experts = choices(arrays, x, w13, topk_weights, topk_ids, first_expert, n_experts)
    return _forward(arrays, x, w13, w2, (weights, ids, None), top_k, first_expert, n_experts, *rest)


def moe_from_logits(
    arrays: Any,
    x: Any,
    router_logits: Any,
    w13: Any,
    w2: Any,
    top_k: int,
    renormalize: bool,
    order: str,
    first_expert: int,
    *rest: Any,
) -> Any:
    n_experts = arrays.shape("router_logits", router_logits, 2, "[T, E]")[1]
    code = arrays.code("router_logits", router_logits, (FLOAT32, BFLOAT16))
    arrays.pointer("router_logits", router_logits, code, (arrays.shape("x", x, 2, "[T, H]")[0], n_experts), x)
    weights, ids, args = routing_struct(arrays, "router_logits", router_logits, top_k, renormalize, order, None)
    routing = (None, None, None) if args is None else (args.weights, args.ids, ctypes.pointer(args))
    return _forward(arrays, x, w13, w2, routing, top_k, first_expert, n_experts, *rest)


def _forward(
    arrays: Any,
    x: Any,
    w13: Any,
    w2: Any,
    routing: tuple[Any, Any, Any],
    top_k: int,
    first_expert: int,
    n_experts: int,
    activation: str,
    bias13: Any,
    bias2: Any,
    residual: Any,
    shared: Any,
    w13_scale: Any,
    w2_scale: Any,
    x_scale: Any,
    h_scale: Any,
    f32: str,
    out: Any,
    p: Any = None,
) -> Any:
    """routing: the addresses of weights and ids, and RouteArgs when the router runs first. p: an output of training."""
    pointers, sizes = experts(arrays, x, w13, w2, activation, bias13, bias2, w13_scale, w2_scale, x_scale, h_scale, f32)
    x_pointer, up, down, bias13_pointer, bias2_pointer, x_scale_pointer, h_scale_pointer = pointers
    n_tokens, hidden, intermediate, n_local, code, activation_code, f32_code = sizes
    first_expert = arrays.integer("first_expert", first_expert, 0, INT32_MAX)
    n_experts = arrays.integer("n_experts", n_experts, first_expert + n_local, INT32_MAX)
    shape = (n_tokens, hidden)
    residual_pointer = None if residual is None else arrays.matrix("residual", residual, code, shape, x)
    shared_pointer = None if shared is None else arrays.matrix("shared", shared, code, shape, x)
    if out is None:
        out = arrays.empty_like(x)
    out_pointer = arrays.output_matrix("out", out, code, shape, x)
    p_pointer = None if p is None else arrays.output_matrix("p", p, code, (n_tokens * top_k, up.rows), x)
    if arrays.fake or n_tokens == 0:
        return out
    n_bytes = n_tokens * hidden * DTYPE_BYTES[code]
    check_apart(arrays, "x", x_pointer, n_bytes, out_pointer, n_bytes)
    args = ForwardArgs(
        x_pointer,
        routing[0],
        routing[1],
        up,
        down,
        bias13_pointer,
        bias2_pointer,
        residual_pointer,
        shared_pointer,
        out_pointer,
        n_tokens,
        hidden,
        intermediate,
        top_k,
        n_experts,
        first_expert,
        n_local,
        code,
        activation_code,
        f32_code,
        x_scale_pointer,
        h_scale_pointer,
        routing[2],
        p_pointer,
    )
    call(arrays, LIBRARY.mb_moe_forward, LIBRARY.mb_moe_forward_workspace, args, x)
    return out
