"""The operators of training on NumPy arrays: against their definitions in float64 and finite differences."""

import moe_reference as reference
import numpy
import pytest

import moebius
from moebius import training

T, H, I, E, K = 5, 8, 6, 4, 2
ACTIVATIONS = [*reference.GATED, "silu", "gelu", "relu", "relu2"]


def layer(activation="swiglu", seed=1):
    random = numpy.random.default_rng(seed)
    rows = 2 * I if activation in reference.GATED else I
    arrays = {
        "x": random.standard_normal((T, H)),
        "w13": random.standard_normal((E, rows, H)) / H**0.5,
        "w2": random.standard_normal((E, H, I)) / I**0.5,
        "bias13": random.standard_normal((E, rows)),
        "bias2": random.standard_normal((E, H)),
        "d_out": random.standard_normal((T, H)),
        "logits": random.standard_normal((T, E)),
    }
    return {name: array.astype(numpy.float32) for name, array in arrays.items()}


def differences(function, array, step=1e-5):
    """The gradient of function(array) in float64."""
    array = array.astype(numpy.float64)
    gradient = numpy.zeros_like(array)
    for index in numpy.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = function(array)
        array[index] = value - step
        gradient[index] = (above - function(array)) / (2 * step)
        array[index] = value
    return gradient


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_moe_and_its_backward(activation):
    a = layer(activation)
    weights, ids = moebius.route(a["logits"], K)
    options = {"activation": activation, "bias13": a["bias13"], "bias2": a["bias2"]}
    routed = (a["x"], a["w13"], a["w2"], weights, ids)
    out, p = training.moe(*routed, **options)
    assert (out == moebius.moe(*routed, **options)).all()
    plan = moebius.plan(ids, E)
    rows = moebius.grouped_gemm(a["x"], a["w13"], plan.offsets, row_index=plan.row_token, bias=a["bias13"])
    assert (p == rows).all()
    got = training.moe_backward(*routed, a["d_out"], p=p, **options)
    again = training.moe_backward(*routed, a["d_out"], **options)
    assert all((one == other).all() for one, other in zip(got, again))

    inputs = {"x": a["x"], "w13": a["w13"], "w2": a["w2"], "weights": weights} | {k: a[k] for k in ("bias13", "bias2")}
    names = {"x": "dx", "weights": "dweights", "w2": "dw2", "bias13": "dbias13", "bias2": "dbias2"}
    wide = {name: array.astype(numpy.float64) for name, array in inputs.items()}

    def loss(name, array):
        return (a["d_out"] * reference.moe(ids=ids, activation=activation, **wide | {name: array})).sum()

    for name, gradient in names.items():
        if name in ("w2", "bias13") and activation not in ("swiglu", "relu2"):
            continue  # the C tests have all; here it is enough that every pointer is in its place
        expected = differences(lambda array, name=name: loss(name, array), inputs[name])
        numpy.testing.assert_allclose(getattr(got, gradient), expected, rtol=1e-4, atol=1e-4)
    assert got.dw13.shape == a["w13"].shape


def test_only_what_is_asked_for():
    a = layer()
    weights, ids = moebius.route(a["logits"], K)
    routed = (a["x"], a["w13"], a["w2"], weights, ids, a["d_out"])
    whole = training.moe_backward(*routed)
    assert whole.dbias13 is None and whole.dbias2 is None
    some = training.moe_backward(*routed, dx=False, parameters=False)
    assert (some.dweights == whole.dweights).all()
    assert [name for name, value in some._asdict().items() if value is not None] == ["dweights"]


def test_losses_and_the_gradient_of_the_router():
    a = layer()
    logits, dweights = a["logits"], numpy.random.default_rng(2).standard_normal((T, K)).astype(numpy.float32)
    weights, ids = moebius.route(logits, K)
    losses = training.router_losses(logits, ids)
    counts = numpy.bincount(ids.reshape(-1), minlength=E)

    def values(array):
        shifted = numpy.exp(array - array.max(-1, keepdims=True))
        q = shifted / shifted.sum(-1, keepdims=True)
        z = ((numpy.log(shifted.sum(-1)) + array.max(-1)) ** 2).mean()
        chosen = numpy.take_along_axis(q, ids, -1)
        return E * (counts / T * q.mean(0)).sum(), z, (dweights * chosen / chosen.sum(-1, keepdims=True)).sum()

    load_balance, z, _ = values(logits.astype(numpy.float64))
    assert (losses.counts == counts).all() and losses.counts.dtype == numpy.int32
    numpy.testing.assert_allclose([losses.load_balance, losses.z], [load_balance, z], rtol=1e-6)
    coefficients = numpy.array(0.5, numpy.float32), numpy.array(0.25, numpy.float32)

    def loss(array):
        load_balance, z, weighted = values(array)
        return 0.5 * load_balance + 0.25 * z + weighted

    got = training.route_backward(
        logits, ids, dweights=dweights, counts=losses.counts, d_load_balance=coefficients[0], d_z=coefficients[1]
    )
    numpy.testing.assert_allclose(got, differences(loss, logits), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rounding", ["nearest", "up", "down", "balanced"])
def test_token_rounding(rounding):
    random = numpy.random.default_rng(3)
    logits = random.standard_normal((50, 6)).astype(numpy.float32)
    weights, ids = moebius.route(logits, 2)
    rounded = training.token_rounding(logits, ids, tile_rows=4, rounding=rounding, max_choices=4)
    routed, processed, hardware, dropped, added = rounded.report.tolist()
    assert (rounded.counts % 4 == 0).all() and rounded.wasted_ratio == 0
    assert routed == 100 and processed == hardware == rounded.counts.sum() == routed - dropped + added
    assert {"up": dropped == 0, "down": added == 0}.get(rounding, True)
    assert (rounded.counts == numpy.bincount(rounded.ids[rounded.ids >= 0], minlength=6)).all()
    assert (rounded.weights[rounded.ids < 0] == 0).all()
    none = training.token_rounding(logits, ids, tile_rows=4, rounding="none")
    assert (none.ids == ids).all() and (none.weights == weights).all()
    assert none.wasted_ratio == 1 - 100 / none.report[2] > 0


def test_bad_arguments():
    a = layer()
    weights, ids = moebius.route(a["logits"], K)
    routed = (a["x"], a["w13"], a["w2"], weights, ids)
    with pytest.raises(ValueError, match=r"moe_backward: d_out has shape \(5, 7\); it must be \(5, 8\)"):
        training.moe_backward(*routed, a["d_out"][:, :-1].copy())
    with pytest.raises(ValueError, match=r"moe_backward: p has shape \(5, 8\); it must be \(10, 12\)"):
        training.moe_backward(*routed, a["d_out"], p=a["x"])
    with pytest.raises(TypeError, match="moe_backward: grad_dtype has dtype float16; it must be float32"):
        training.moe_backward(*routed, a["d_out"], grad_dtype="float16")
    with pytest.raises(TypeError, match="moe: x is None"):
        training.moe(None, *routed[1:])
    with pytest.raises(ValueError, match="moe: activation is 'none'"):
        training.moe(*routed, activation="none")
    with pytest.raises(ValueError, match="token_rounding: rounding is 'odd'; it must be one of 'none', 'nearest'"):
        training.token_rounding(a["logits"], ids, rounding="odd")
    with pytest.raises(ValueError, match=r"token_rounding: max_choices is 1; it must be in \[2, 4\]"):
        training.token_rounding(a["logits"], ids, max_choices=1)
    with pytest.raises(moebius.Error, match="ids of token 0 have expert 1 twice"):
        training.token_rounding(a["logits"], numpy.ones_like(ids))
    with pytest.raises(moebius.Error, match="counts"):
        training.route_backward(a["logits"], ids, d_load_balance=numpy.array(1, numpy.float32))
    with pytest.raises(TypeError, match="router_losses: ids has dtype int64; it must be int32"):
        training.router_losses(a["logits"], ids.astype(numpy.int64))
