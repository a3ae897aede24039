"""The operators on NumPy arrays, against their definitions in float64."""

import subprocess
import sys
from pathlib import Path

import moe_reference as reference
import moebius
import numpy
import pytest

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [numpy.float32, numpy.float16]


def rounding(dtype):
    return lambda values: numpy.asarray(values).astype(dtype).astype(numpy.float64)


@pytest.fixture
def random(request):
    """Random numbers, seeded by the name of the test."""
    return numpy.random.default_rng(list(request.node.name.encode()))


def layer(random, n_tokens, hidden, intermediate, n_experts, top_k, dtype=numpy.float32, gated=True):
    def normal(*shape):
        return (random.standard_normal(shape) / shape[-1] ** 0.5).astype(dtype)

    x = random.standard_normal((n_tokens, hidden)).astype(dtype)
    w13 = normal(n_experts, (2 if gated else 1) * intermediate, hidden)
    w2 = normal(n_experts, hidden, intermediate)
    logits = random.standard_normal((n_tokens, n_experts)).astype(numpy.float32)
    weights, ids = reference.route(logits, top_k)
    return x, w13, w2, weights.astype(numpy.float32), ids.astype(numpy.int32)


def wide(*arrays):
    return [array.astype(numpy.float64) for array in arrays]


@pytest.mark.parametrize("order", ["softmax_topk", "topk_softmax"])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("shape", [(0, 8, 2), (1, 1, 1), (7, 128, 8), (3, 33, 32), (2, 1024, 5)])
def test_route(random, shape, renormalize, order):
    n_tokens, n_experts, top_k = shape
    logits = random.integers(-3, 4, (n_tokens, n_experts)).astype(numpy.float32)  # with ties
    weights, ids = moebius.route(logits, top_k, renormalize, order)
    expected_weights, expected_ids = reference.route(logits, top_k, renormalize, order)
    assert weights.dtype == numpy.float32 and ids.dtype == numpy.int32
    assert (ids == expected_ids).all()
    numpy.testing.assert_allclose(weights, expected_weights, rtol=2e-6)


def test_route_raises_the_flag_for_nan_and_keeps_ids_in_range(random):
    flag = numpy.zeros(1, numpy.int32)
    logits = random.standard_normal((4, 16)).astype(numpy.float32)
    moebius.route(logits, 4, nan_flag=flag)
    assert flag[0] == 0
    logits[2] = numpy.nan
    _, ids = moebius.route(logits, 4, nan_flag=flag)
    assert flag[0] == 1 and (ids >= 0).all() and (ids < 16).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_router_gemm(random, dtype, with_bias):
    x = random.standard_normal((5, 48)).astype(dtype)
    weight = random.standard_normal((9, 48)).astype(numpy.float32)
    bias = random.standard_normal(9).astype(numpy.float32) if with_bias else None
    logits = moebius.router_gemm(x, weight, bias)
    expected = x.astype(float) @ weight.astype(float).T + (bias if with_bias else 0)
    assert logits.dtype == numpy.float32
    numpy.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (50, 3, 7), (40, 8, 300)])
@pytest.mark.parametrize("part", ["all", "some"])
def test_plan(random, shape, part):
    n_tokens, top_k, n_experts = shape
    ids = random.integers(0, n_experts, (n_tokens, top_k)).astype(numpy.int32)
    first, n_local = (0, None) if part == "all" else (n_experts // 3, max(1, n_experts // 2))
    got = moebius.plan(ids, n_experts, first_expert=first, n_local_experts=n_local)
    offsets, row_token, token_row = reference.plan(ids, n_local or n_experts, first)
    assert (got.offsets == offsets).all() and (got.token_row == token_row).all()
    assert (got.row_token[: offsets[-1]] == row_token).all()
    assert {array.dtype for array in got} == {numpy.dtype("int32")}


@pytest.mark.parametrize("activation", [*reference.GATED, *reference.ONE_SIDED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_grouped_gemm(random, dtype, activation):
    n_groups, n_columns, depth, n_rows = 5, 36, 24, 31
    a = random.standard_normal((12, depth)).astype(dtype)
    b = random.standard_normal((n_groups, n_columns, depth)).astype(dtype)
    row_index = random.integers(0, 12, n_rows).astype(numpy.int32)
    offsets = numpy.array([0, 0, 9, 10, 27, n_rows], numpy.int32)
    bias = random.standard_normal((n_groups, n_columns)).astype(numpy.float32)
    row_weight = random.random(n_rows).astype(numpy.float32)
    got = moebius.grouped_gemm(
        a,
        b,
        offsets,
        row_index=row_index,
        bias=bias,
        row_weight=row_weight,
        activation=activation,
        out_dtype="float32",
    )
    group = numpy.searchsorted(offsets, numpy.arange(n_rows), side="right") - 1
    values = numpy.einsum("rk,rnk->rn", a[row_index].astype(float), b[group].astype(float)) + bias[group]
    expected = row_weight[:, None] * reference.activate(activation, values)
    assert got.dtype == numpy.float32
    assert reference.calc_diff(got, expected) < 1e-11


def test_grouped_gemm_of_one_group_is_a_linear_layer(random):
    a = random.standard_normal((6, 40)).astype(numpy.float32)
    b = random.standard_normal((1, 17, 40)).astype(numpy.float32)
    got = moebius.grouped_gemm(a, b)
    assert got.dtype == numpy.float32
    numpy.testing.assert_allclose(got, a.astype(float) @ b[0].astype(float).T, atol=1e-4)


def test_plan_grouped_gemm_and_reduce_make_moe(random):
    x, w13, w2, weights, ids = layer(random, 13, 32, 20, 6, 3)
    plan = moebius.plan(ids, 6)
    hidden = moebius.grouped_gemm(x, w13, plan.offsets, row_index=plan.row_token, activation="swiglu")
    y = moebius.grouped_gemm(hidden, w2, plan.offsets)
    residual = x.copy()
    out = moebius.reduce(y, weights, plan.token_row, residual=residual, out=residual)
    assert out is residual
    assert reference.calc_diff(out, moebius.moe(x, w13, w2, weights, ids, residual=x)) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [*reference.GATED, "silu", "gelu", "relu", "relu2"])
def test_plan_moe_experts_and_reduce_are_moe_bit_for_bit(random, dtype, activation):
    x, w13, w2, weights, ids = layer(random, 13, 32, 20, 6, 3, dtype, activation in reference.GATED)
    ids[2], ids[5, 1] = -1, 6
    biases = {
        "bias13": random.standard_normal(w13.shape[:2]).astype(dtype),
        "bias2": random.standard_normal(w2.shape[:2]).astype(dtype),
    }
    plan = moebius.plan(ids, 6)
    y = moebius.moe_experts(x, w13, w2, plan.offsets, row_index=plan.row_token, activation=activation, **biases)
    assert y.dtype == dtype and y.shape == (39, 32)
    out = moebius.reduce(y, weights, plan.token_row)
    assert (out == moebius.moe(x, w13, w2, weights, ids, activation=activation, **biases)).all()


def test_moe_experts_of_rows_in_order(random):
    """Without row_index x's rows are grouped already; rows of out that the offsets leave out are not written."""
    x, w13, w2, _, _ = layer(random, 12, 32, 20, 4, 2)
    offsets = numpy.array([2, 5, 5, 6, 10], numpy.int32)
    out = numpy.full_like(x, 7)
    assert moebius.moe_experts(x, w13, w2, offsets, out=out) is out
    assert (out[:2] == 7).all() and (out[10:] == 7).all()
    for expert, (first, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        up = x[first:end].astype(float) @ w13[expert].astype(float).T
        expected = reference.activate("swiglu", up) @ w2[expert].astype(float).T
        assert reference.calc_diff(out[first:end], expected) < 1e-12
    assert moebius.moe_experts(x[:0], w13, w2, numpy.zeros(5, numpy.int32)).shape == (0, 32)


def test_reduce_skips_rows_that_are_not_there(random):
    y = random.standard_normal((4, 8)).astype(numpy.float16)
    weights = random.random((2, 3)).astype(numpy.float32)
    token_row = numpy.array([[3, -1, 0], [-1, -1, -1]], numpy.int32)
    shared = random.standard_normal((2, 8)).astype(numpy.float32)
    out = moebius.reduce(y, weights, token_row, shared=shared, out_dtype=numpy.float32)
    expected = shared.astype(float)
    expected[0] += weights[0, 0] * y[3].astype(float) + weights[0, 2] * y[0].astype(float)
    numpy.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [*reference.GATED, "silu", "gelu", "relu", "relu2"])
@pytest.mark.parametrize("n_tokens", [0, 1, 9])
def test_moe(random, dtype, activation, n_tokens):
    gated = activation in reference.GATED
    x, w13, w2, weights, ids = layer(random, n_tokens, 40, 24, 5, 2, dtype, gated)
    terms = {
        "bias13": random.standard_normal(w13.shape[:2]).astype(dtype),
        "bias2": random.standard_normal(w2.shape[:2]).astype(dtype),
        "residual": random.standard_normal(x.shape).astype(dtype),
        "shared": random.standard_normal(x.shape).astype(dtype),
    }
    out = numpy.full_like(x, numpy.nan)
    got = moebius.moe(x, w13, w2, weights, ids, activation=activation, out=out, **terms)
    expected = reference.moe(
        *wide(x, w13, w2, weights),
        ids,
        rounding(dtype),
        activation=activation,
        **{name: array.astype(float) for name, array in terms.items()},
    )
    assert got is out and got.dtype == dtype
    assert reference.calc_diff(got, expected) < (1e-12 if dtype is numpy.float32 else 1e-6)


def test_moe_of_one_rank_takes_its_own_experts_only(random):
    x, w13, w2, weights, ids = layer(random, 11, 16, 8, 6, 3)
    parts = [
        moebius.moe(x, w13[first : first + n], w2[first : first + n], weights, ids, first_expert=first, n_experts=6)
        for first, n in ((0, 2), (2, 3), (5, 1))
    ]
    assert reference.calc_diff(sum(parts), moebius.moe(x, w13, w2, weights, ids)) < 1e-12


def test_ids_that_are_no_experts_add_nothing(random):
    x, w13, w2, weights, ids = layer(random, 11, 16, 8, 6, 3)
    kept = weights.copy()
    for row, id_ in enumerate((-1, 6, 7, 2**31 - 1, -(2**31))):
        ids[row, row % 3], kept[row, row % 3] = id_, 0
    expected = moebius.moe(x, w13, w2, kept, numpy.where((ids >= 0) & (ids < 6), ids, 0).astype(numpy.int32))
    assert reference.calc_diff(moebius.moe(x, w13, w2, weights, ids), expected) < 1e-12
    plan = moebius.plan(ids, 6)
    offsets, row_token, token_row = reference.plan(ids, 6)
    assert (plan.offsets == offsets).all() and (plan.token_row == token_row).all()
    assert (plan.row_token[: offsets[-1]] == row_token).all()


def test_vectors_may_start_anywhere(random):
    """Vectors whose addresses are aligned to their element and no further."""

    def moved(array):
        memory = numpy.empty(array.size + 1, array.dtype)
        memory[1:] = array.flat
        return memory[1:].reshape(array.shape)

    x, w13, w2, weights, ids = layer(random, 11, 16, 8, 6, 3)
    logits = random.standard_normal((11, 6)).astype(numpy.float32)
    for got, expected in zip(moebius.route(moved(logits), 3), moebius.route(logits, 3), strict=True):
        assert (got == expected).all()
    assert (moebius.moe(x, w13, w2, moved(weights), moved(ids)) == moebius.moe(x, w13, w2, weights, ids)).all()


@pytest.mark.parametrize("renormalize", [True, False])
def test_moe_from_logits_is_route_and_moe(random, renormalize):
    x, w13, w2, _, _ = layer(random, 9, 16, 8, 6, 3)
    logits = random.standard_normal((9, 6)).astype(numpy.float32)
    weights, ids = moebius.route(logits, 3, renormalize)
    got = moebius.moe_from_logits(x, logits, w13, w2, 3, renormalize=renormalize, residual=x)
    assert (got == moebius.moe(x, w13, w2, weights, ids, residual=x)).all()


def test_bfloat16_and_float8_of_ml_dtypes(random):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, w13, w2, weights, ids = layer(random, 5, 144, 136, 4, 2)
    x = x.astype(ml_dtypes.bfloat16)
    w13, w2 = w13.astype(ml_dtypes.float8_e4m3fn), w2.astype(ml_dtypes.float8_e4m3fn)
    scale13, scale2 = (random.random(shape).astype(numpy.float32) for shape in ((4, 3, 2), (4, 2, 2)))
    got = moebius.moe(x, w13, w2, weights, ids, w13_scale=scale13, w2_scale=scale2)
    w13, w2 = (reference.dequantised(*wide(*pair)) for pair in ((w13, scale13), (w2, scale2)))
    expected = reference.moe(*wide(x), w13, w2, weights, ids, rounding(ml_dtypes.bfloat16))
    assert got.dtype == ml_dtypes.bfloat16 and reference.calc_diff(got, expected) < 1e-5
    out, scale = moebius.grouped_gemm(x, x[None, :10], out_dtype=ml_dtypes.float8_e4m3fn)
    assert out.dtype == ml_dtypes.float8_e4m3fn and scale.shape == (5, 1)


def test_works_without_torch():
    program = f"""
import sys
sys.modules["torch"] = None
sys.path.insert(0, {str(ROOT / "python")!r})
import moebius, numpy
print(moebius.route(numpy.zeros((1, 4), numpy.float32), 2)[1].tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[[0, 1]]\n", done.stderr
