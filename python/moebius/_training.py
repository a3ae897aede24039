"""The operators of train.h, in the manner of _operators.py: the forward that keeps p, the backward, the router's."""

from ctypes import byref
from typing import Any

from ._arrays import ACTIVATION_DTYPES, INT32, INT64
from ._layer import choices, experts, moe
from ._library import (
    BFLOAT16,
    FLOAT32,
    GATED,
    LIBRARY,
    ORDERS,
    ROUNDINGS,
    BackwardArgs,
    RouteBackwardArgs,
    RouterLossesArgs,
    TokenRoundingArgs,
    failure,
)
from ._operators import INT32_MAX, call, optional, optional_matrix

REPORT_VALUES = 6  # mb_moe_rounding_report as int64; the last is a double


def train_moe(
    arrays: Any,
    x: Any,
    w13: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    first_expert: int,
    n_experts: int | None,
    activation: str,
    bias13: Any,
    bias2: Any,
    residual: Any,
    shared: Any,
    f32: str,
    recompute: bool,
) -> tuple[Any, Any]:
    """moe's result and p; p has no rows when the backward is to compute it again."""
    code = arrays.code("x", x, ACTIVATION_DTYPES)
    arrays.code("w13", w13, (code,))
    n_tokens, top_k = arrays.shape("topk_ids", topk_ids, 2, "[T, K]")
    n_columns = arrays.shape("w13", w13, 3, "[E, 2I or I, H]")[1]
    p = arrays.empty((0 if recompute else n_tokens * top_k, n_columns), code, x)
    terms = (activation, bias13, bias2, residual, shared, None, None, None, None, f32, None)
    routed = (x, w13, w2, topk_weights, topk_ids, first_expert, n_experts)
    return moe(arrays, *routed, *terms, None if recompute else p), p


def _parameter_gradients(
    arrays: Any, names: tuple[str, ...], given: tuple[Any, ...], code: int, shapes: tuple[Any, ...], x: Any
) -> tuple[Any, ...]:
    """The addresses of gradients, as BackwardArgs has them; None stays None."""
    pointers = []
    for name, array, shape in zip(names, given, shapes, strict=True):
        pointers.append(None if array is None else arrays.output_matrix(name, array, code, shape, x))
    return tuple(pointers)


def _backward(
    arrays: Any,
    x: Any,
    w13: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    d_out: Any,
    p: Any,
    first_expert: int,
    n_experts: int | None,
    activation: str,
    bias13: Any,
    bias2: Any,
    give_dx: bool,
    give_dweights: bool,
    gradients: Any,
    accumulate: bool,
) -> tuple[Any, ...]:
    """dx, dweights, and what `gradients(code, shapes)` gives for dw13, dw2, dbias13 and dbias2."""
    weights_pointer, ids_pointer, top_k, n_experts = choices(
        arrays, x, w13, topk_weights, topk_ids, first_expert, n_experts
    )
    pointers, sizes = experts(arrays, x, w13, w2, activation, bias13, bias2, None, None, None, None, "tf32")
    x_pointer, up, down, bias13_pointer, bias2_pointer = pointers[:5]
    n_tokens, hidden, intermediate, n_local, code, activation_code, _ = sizes
    first_expert = arrays.integer("first_expert", first_expert, 0, INT32_MAX)
    n_experts = arrays.integer("n_experts", n_experts, first_expert + n_local, INT32_MAX)
    n_columns = 2 * intermediate if activation in GATED else intermediate
    arrays.code("w13", w13, (code,))
    d_out_pointer = arrays.matrix("d_out", d_out, code, (n_tokens, hidden), x)
    p_pointer = optional_matrix(arrays, "p", p, code, (n_tokens * top_k, n_columns), x)
    dx = arrays.empty((n_tokens, hidden), code, x) if give_dx else None
    dweights = arrays.empty((n_tokens, top_k), FLOAT32, x) if give_dweights else None
    shapes = (
        (n_local, n_columns, hidden),
        (n_local, hidden, intermediate),
        None if bias13 is None else (n_local, n_columns),
        None if bias2 is None else (n_local, hidden),
    )
    grad_code, given = gradients(code, shapes)
    names = ("dw13", "dw2", "dbias13", "dbias2")
    grad_pointers = _parameter_gradients(arrays, names, given, grad_code, shapes, x)
    if arrays.fake:
        return (dx, dweights, *given)
    args = BackwardArgs(
        x_pointer,
        weights_pointer,
        ids_pointer,
        up,
        down,
        bias13_pointer,
        bias2_pointer,
        p_pointer,
        d_out_pointer,
        optional_matrix(arrays, "dx", dx, code, (n_tokens, hidden), x),
        optional(arrays, "dweights", dweights, FLOAT32, (n_tokens, top_k), x),
        *grad_pointers,
        n_tokens,
        hidden,
        intermediate,
        top_k,
        n_experts,
        first_expert,
        n_local,
        code,
        grad_code,
        activation_code,
        int(accumulate),
    )
    call(arrays, LIBRARY.mb_moe_backward, LIBRARY.mb_moe_backward_workspace, args, x)
    return (dx, dweights, *given)


def moe_backward(
    arrays: Any,
    x: Any,
    w13: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    d_out: Any,
    p: Any,
    first_expert: int,
    n_experts: int | None,
    activation: str,
    bias13: Any,
    bias2: Any,
    grad_dtype: Any,
    dx: bool,
    dweights: bool,
    parameters: bool,
) -> tuple[Any, ...]:
    """dx, dweights, dw13, dw2, dbias13, dbias2; None for what is not asked for, and of biases that are not there."""

    def allocated(code: int, shapes: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
        grad_code = code if grad_dtype is None else arrays.dtype_code("grad_dtype", grad_dtype, _grad_codes(code))
        make = [None if shape is None or not parameters else arrays.empty(shape, grad_code, x) for shape in shapes]
        return grad_code, tuple(make)

    routed = (x, w13, w2, topk_weights, topk_ids, d_out, p, first_expert, n_experts, activation, bias13, bias2)
    return _backward(arrays, *routed, dx, dweights, allocated, False)


def moe_backward_add(
    arrays: Any,
    x: Any,
    w13: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    d_out: Any,
    p: Any,
    first_expert: int,
    n_experts: int | None,
    activation: str,
    bias13: Any,
    bias2: Any,
    dx: bool,
    dweights: bool,
    *sums: Any,
) -> tuple[Any, Any]:
    """dx and dweights, as moe_backward; the parameters' gradients are added to sums: dw13, dw2, dbias13, dbias2, any of them None."""

    def given(code: int, shapes: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
        first = next((array for array in sums if array is not None), None)
        return code if first is None else arrays.code("dw13", first, _grad_codes(code)), sums

    routed = (x, w13, w2, topk_weights, topk_ids, d_out, p, first_expert, n_experts, activation, bias13, bias2)
    return _backward(arrays, *routed, dx, dweights, given, True)[:2]


def _grad_codes(code: int) -> tuple[int, ...]:
    return (FLOAT32,) if code == FLOAT32 else (FLOAT32, code)


def _logits(arrays: Any, logits: Any) -> tuple[int, int, int, int]:
    """Their address, T, E and dtype."""
    n_tokens, n_experts = arrays.shape("logits", logits, 2, "[T, E]")
    code = arrays.code("logits", logits, (FLOAT32, BFLOAT16))
    return arrays.pointer("logits", logits, code, (n_tokens, n_experts), logits), n_tokens, n_experts, code


def router_losses(arrays: Any, logits: Any, ids: Any) -> tuple[Any, Any, Any]:
    """load_balance, z (both without dimensions) and counts [E]."""
    pointer, n_tokens, n_experts, code = _logits(arrays, logits)
    top_k = arrays.shape("ids", ids, 2, "[T, K]")[1]
    ids_pointer = arrays.pointer("ids", ids, INT32, (n_tokens, top_k), logits)
    load_balance, z = arrays.empty((), FLOAT32, logits), arrays.empty((), FLOAT32, logits)
    counts = arrays.empty((n_experts,), INT32, logits)
    if not arrays.fake:
        args = RouterLossesArgs(
            pointer,
            ids_pointer,
            arrays.pointer("counts", counts, INT32, (n_experts,), logits),
            arrays.pointer("load_balance", load_balance, FLOAT32, (), logits),
            arrays.pointer("z", z, FLOAT32, (), logits),
            n_tokens,
            n_experts,
            top_k,
            code,
        )
        call(arrays, LIBRARY.mb_moe_router_losses, LIBRARY.mb_moe_router_losses_workspace, args, logits)
    return load_balance, z, counts


def route_backward(
    arrays: Any,
    logits: Any,
    ids: Any,
    dweights: Any,
    counts: Any,
    d_load_balance: Any,
    d_z: Any,
    renormalize: bool,
    order: str,
) -> Any:
    """dlogits [T, E] float32."""
    pointer, n_tokens, n_experts, code = _logits(arrays, logits)
    top_k = arrays.shape("ids", ids, 2, "[T, K]")[1]
    order_code = arrays.choice("order", order, ORDERS)
    shape = (n_tokens, n_experts)
    pointers = (
        arrays.pointer("ids", ids, INT32, (n_tokens, top_k), logits),
        optional(arrays, "dweights", dweights, FLOAT32, (n_tokens, top_k), logits),
        optional(arrays, "counts", counts, INT32, (n_experts,), logits),
        optional(arrays, "d_load_balance", d_load_balance, FLOAT32, (), logits),
        optional(arrays, "d_z", d_z, FLOAT32, (), logits),
    )
    dlogits = arrays.empty(shape, FLOAT32, logits)
    if arrays.fake or n_tokens == 0:
        return dlogits
    args = RouteBackwardArgs(
        pointer,
        *pointers,
        arrays.pointer("dlogits", dlogits, FLOAT32, shape, logits),
        n_tokens,
        n_experts,
        top_k,
        code,
        order_code,
        bool(renormalize),
    )
    status = arrays.run(LIBRARY.mb_moe_route_backward, logits, byref(args))
    if status:
        raise failure(status)
    return dlogits


def token_rounding(
    arrays: Any,
    logits: Any,
    ids: Any,
    tile_rows: int,
    rounding: str,
    max_choices: int | None,
    renormalize: bool,
    order: str,
) -> tuple[Any, Any, Any, Any]:
    """weights, ids, counts and the report."""
    pointer, n_tokens, n_experts, code = _logits(arrays, logits)
    top_k = arrays.shape("ids", ids, 2, "[T, K]")[1]
    most = min(n_experts, 32)
    if max_choices is None:
        max_choices = min(top_k + (top_k + 3) // 4, most) if rounding != "none" else top_k
    max_choices = arrays.integer("max_choices", max_choices, min(top_k, most), most)
    tile_rows = arrays.integer("tile_rows", tile_rows, 1, INT32_MAX)
    rounding_code = arrays.choice("rounding", rounding, ROUNDINGS)
    order_code = arrays.choice("order", order, ORDERS)
    ids_pointer = arrays.pointer("ids", ids, INT32, (n_tokens, top_k), logits)
    shape = (n_tokens, max_choices)
    weights, out_ids = arrays.empty(shape, FLOAT32, logits), arrays.empty(shape, INT32, logits)
    counts, report = arrays.empty((n_experts,), INT32, logits), arrays.empty((REPORT_VALUES,), INT64, logits)
    if not arrays.fake:
        args = TokenRoundingArgs(
            pointer,
            ids_pointer,
            arrays.pointer("ids", out_ids, INT32, shape, logits),
            arrays.pointer("weights", weights, FLOAT32, shape, logits),
            arrays.pointer("counts", counts, INT32, (n_experts,), logits),
            arrays.pointer("report", report, INT64, (REPORT_VALUES,), logits),
            n_tokens,
            n_experts,
            top_k,
            max_choices,
            tile_rows,
            rounding_code,
            code,
            order_code,
            bool(renormalize),
        )
        call(arrays, LIBRARY.mb_moe_token_rounding, LIBRARY.mb_moe_token_rounding_workspace, args, logits)
    return weights, out_ids, counts, report
