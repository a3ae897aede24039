"""The operators in float64 NumPy, written as their definitions read. `rounded` rounds to the activations' dtype."""

import numpy


def calc_diff(got, expected):
    """1 - 2xy / (x^2 + y^2): 0 when equal, 2 when opposite."""
    got, expected = numpy.asarray(got, numpy.float64), numpy.asarray(expected, numpy.float64)
    if got.shape != expected.shape:
        raise AssertionError(f"shapes differ: {got.shape}, {expected.shape}")
    if not numpy.isfinite(got).all():
        raise AssertionError("not finite")
    squares = (got * got + expected * expected).sum()
    return 0.0 if squares == 0 else float(1 - 2 * (got * expected).sum() / squares)


def _sigmoid(x):
    return 1 / (1 + numpy.exp(-x))


def _gelu_tanh(x):
    return 0.5 * x * (1 + numpy.tanh(numpy.sqrt(2 / numpy.pi) * (x + 0.044715 * x**3)))


ONE_SIDED = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu_tanh,
    "relu": lambda x: numpy.maximum(x, 0),
    "relu2": lambda x: numpy.maximum(x, 0) ** 2,
    "none": lambda x: x,
}
GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}


def activate(activation, values):
    if activation in GATED:
        gate, up = numpy.split(values, 2, axis=-1)
        return ONE_SIDED[GATED[activation]](gate) * up
    return ONE_SIDED[activation](values)


def route(logits, top_k, renormalize=True, order="softmax_topk"):
    """Returns weights and ids. Of equal logits the lower id comes first."""
    logits = numpy.asarray(logits, numpy.float64)
    ids = numpy.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    chosen = numpy.take_along_axis(logits, ids, -1)
    largest = logits.max(-1, keepdims=True)
    weights = numpy.exp(chosen - largest)
    if order == "topk_softmax":
        return weights / weights.sum(-1, keepdims=True), ids
    weights /= numpy.exp(logits - largest).sum(-1, keepdims=True)
    return (weights / weights.sum(-1, keepdims=True) if renormalize else weights), ids


def plan(ids, n_local, first_expert=0):
    """Returns offsets, row_token (as long as there are rows) and token_row."""
    flat = ids.reshape(-1).astype(numpy.int64) - first_expert
    flat = numpy.where((flat >= 0) & (flat < n_local), flat, n_local)
    order = numpy.argsort(flat, kind="stable")
    offsets = numpy.concatenate([[0], numpy.bincount(flat, minlength=n_local + 1)[:n_local].cumsum()])
    order = order[: offsets[-1]]
    token_row = numpy.full(flat.shape, -1)
    token_row[order] = numpy.arange(len(order))
    return offsets, order // ids.shape[1], token_row.reshape(ids.shape)


def moe(
    x,
    w13,
    w2,
    weights,
    ids,
    rounded=lambda value: value,
    activation="swiglu",
    bias13=None,
    bias2=None,
    residual=None,
    shared=None,
    first_expert=0,
):
    """All arguments except ids are float64."""
    out = numpy.zeros_like(x)
    for t, k in numpy.ndindex(ids.shape):
        e = int(ids[t, k]) - first_expert
        if not 0 <= e < len(w13):
            continue
        up = rounded(w13[e] @ x[t] + (0 if bias13 is None else bias13[e]))
        hidden = rounded(activate(activation, up))
        out[t] += weights[t, k] * rounded(w2[e] @ hidden + (0 if bias2 is None else bias2[e]))
    for term in (residual, shared):
        out = out if term is None else out + term
    return rounded(out)


def dequantised(values, scale):
    """float8 values [E, rows, columns] times their scales, [E, ceil(rows/n), ceil(columns/128)] or [E]."""
    if scale.ndim == 1:
        return values * scale[:, None, None]
    rows, columns = values.shape[1:]
    height = next(n for n in (128, 64, 32, 16, 8, 4, 2, 1) if -(-rows // n) == scale.shape[1])
    full = scale.repeat(height, axis=1)[:, :rows].repeat(128, axis=2)[:, :, :columns]
    return values * full
