"""The texts of errors: which argument is wrong, what it is and what it must be; on NumPy arrays and on tensors."""

import re

import moebius
import numpy
import pytest

try:
    import torch
except ModuleNotFoundError:
    torch = None

LIBRARIES = ["numpy", pytest.param("torch", marks=pytest.mark.skipif(torch is None, reason="no torch"))]


class Arrays:
    """Makes arrays of zeros of one library. dtypes are names."""

    def __init__(self, library):
        self.library = library

    def zeros(self, *shape, dtype="float32"):
        if self.library == "torch":
            return torch.zeros(shape, dtype=getattr(torch, dtype))
        return numpy.zeros(shape, dtype)

    def columns_of_wider(self, *shape):
        """An array that is not contiguous."""
        return self.zeros(*shape[:-1], shape[-1] + 1)[..., :-1]

    def moe(self):
        """moe's arguments for T=4 H=8 I=6 E=3 K=2."""
        return {
            "x": self.zeros(4, 8),
            "w13": self.zeros(3, 12, 8),
            "w2": self.zeros(3, 8, 6),
            "topk_weights": self.zeros(4, 2),
            "topk_ids": self.zeros(4, 2, dtype="int32"),
        }


@pytest.fixture(params=LIBRARIES)
def arrays(request):
    return Arrays(request.param)


def fails(exception, text, function, **arguments):
    with pytest.raises(exception, match=re.escape(text)):
        function(**arguments)


MOE_SHAPES = {
    "x": ((8,), "x has shape (8,); it must be [T, H]"),
    "w13": ((3, 6, 8), "w13 has shape (3, 6, 8); it must be (3, 12, 8)"),
    "w2": ((3, 8), "w2 has shape (3, 8); it must be [E, H, I]"),
    "topk_weights": ((4, 3), "topk_weights has shape (4, 3); it must be (4, 2)"),
    "bias13": ((3, 6), "bias13 has shape (3, 6); it must be (3, 12)"),
    "bias2": ((8,), "bias2 has shape (8,); it must be (3, 8)"),
    "residual": ((5, 8), "residual has shape (5, 8); it must be (4, 8)"),
    "shared": ((4, 1), "shared has shape (4, 1); it must be (4, 8)"),
    "out": ((4, 6), "out has shape (4, 6); it must be (4, 8)"),
}


@pytest.mark.parametrize("name", MOE_SHAPES)
def test_moe_names_the_array_of_a_wrong_shape(arrays, name):
    shape, text = MOE_SHAPES[name]
    fails(ValueError, text, moebius.moe, **{**arrays.moe(), name: arrays.zeros(*shape)})


def test_moe_names_ids_of_a_wrong_shape(arrays):
    arguments = {**arrays.moe(), "topk_ids": arrays.zeros(8, dtype="int32")}
    fails(ValueError, "topk_ids has shape (8,); it must be [T, K]", moebius.moe, **arguments)


MOE_DTYPES = {
    "x": ("float64", "float32, bfloat16 or float16"),
    "w13": ("float16", "float32"),
    "w2": ("float16", "float32"),
    "topk_weights": ("float16", "float32"),
    "topk_ids": ("int64", "int32"),
    "bias13": ("float64", "float32"),
    "residual": ("float16", "float32"),
    "out": ("float16", "float32"),
}


@pytest.mark.parametrize("name", MOE_DTYPES)
def test_moe_names_the_array_of_a_wrong_dtype(arrays, name):
    dtype, wanted = MOE_DTYPES[name]
    shapes = {"x": (4, 8), "w13": (3, 12, 8), "w2": (3, 8, 6), "bias13": (3, 12), "residual": (4, 8), "out": (4, 8)}
    arguments = {**arrays.moe(), name: arrays.zeros(*shapes.get(name, (4, 2)), dtype=dtype)}
    prefix = "torch." if arrays.library == "torch" else ""
    fails(TypeError, f"{name} has dtype {prefix}{dtype}; it must be {wanted}", moebius.moe, **arguments)


@pytest.mark.parametrize("name", ["x", "w13", "w2", "topk_weights", "bias13", "bias2", "residual", "shared", "out"])
def test_moe_names_the_array_that_is_not_contiguous(arrays, name):
    shapes = {"w13": (3, 12, 8), "w2": (3, 8, 6), "topk_weights": (4, 2), "bias13": (3, 12), "bias2": (3, 8)}
    arguments = {**arrays.moe(), name: arrays.columns_of_wider(*shapes.get(name, (4, 8)))}
    with pytest.raises(ValueError, match=rf"^moe: {name} has strides \(.*\); it must be contiguous"):
        moebius.moe(**arguments)


MOE_VALUES = {
    "activation": ("swish", "activation is 'swish'; it must be one of 'swiglu', 'geglu'"),
    "f32": ("fast", "f32 is 'fast'; it must be one of 'tf32', 'exact'"),
    "first_expert": (2, "n_experts is None; it must be given, because first_expert is 2"),
    "n_experts": (2, "n_experts is 2; it must be in [3, 2147483647]"),
}


@pytest.mark.parametrize("name", MOE_VALUES)
def test_moe_names_the_value_that_is_wrong(arrays, name):
    value, text = MOE_VALUES[name]
    fails(ValueError, text, moebius.moe, **{**arrays.moe(), name: value})


def test_moe_has_no_activation_none(arrays):
    fails(ValueError, "activation is 'none'", moebius.moe, **{**arrays.moe(), "activation": "none"})


def test_out_may_not_be_x(arrays):
    arguments = arrays.moe()
    fails(ValueError, "moe: out is x; it must be other memory", moebius.moe, **arguments, out=arguments["x"])


def test_out_may_not_overlap_what_is_read(arrays):
    memory = arrays.zeros(7, 8)
    arguments = {**arrays.moe(), "x": memory[:4], "out": memory[3:]}
    fails(ValueError, "moe: out overlaps x; it must be other memory", moebius.moe, **arguments)
    weights, token_row = arrays.zeros(3, 2), arrays.zeros(3, 2, dtype="int32")
    arguments = {"y": memory[:5], "weights": weights, "token_row": token_row, "out": memory[4:]}
    fails(ValueError, "reduce: out overlaps y; it must be other memory", moebius.reduce, **arguments)
    moebius.reduce(**{**arguments, "y": memory[:4]})
    arguments = {name: array for name, array in arrays.moe().items() if name in ("w13", "w2")}
    arguments |= {"x": memory[:5], "offsets": arrays.zeros(4, dtype="int32"), "out": memory[2:]}
    fails(ValueError, "moe_experts: out overlaps x; it must be other memory", moebius.moe_experts, **arguments)


def test_scales_belong_to_float8_only(arrays):
    scale = arrays.zeros(3)
    text = "w2_scale is given; it must be None, because w2 is not float8_e4m3fn"
    fails(ValueError, text, moebius.moe, **arrays.moe(), w2_scale=scale)
    fails(ValueError, "x_scale is given; it must be None", moebius.moe, **arrays.moe(), x_scale=arrays.zeros(1))


def test_things_that_are_no_arrays():
    arguments = Arrays("numpy").moe()
    text = "x is a list; it must be a numpy.ndarray or a torch.Tensor"
    fails(TypeError, text, moebius.moe, **{**arguments, "x": [1.0]})
    fails(TypeError, "w13 is a list; it must be", moebius.moe, **{**arguments, "w13": [1.0]})
    fails(
        TypeError,
        "topk_weights is None; it must be a numpy.ndarray",
        moebius.moe,
        **{**arguments, "topk_weights": None},
    )


def test_arrays_of_two_libraries():
    pytest.importorskip("torch")
    arguments = {**Arrays("numpy").moe(), "w13": Arrays("torch").zeros(3, 12, 8)}
    fails(TypeError, "w13 is a Tensor; it must be a numpy.ndarray", moebius.moe, **arguments)
    arguments = {**Arrays("torch").moe(), "w13": numpy.zeros((3, 12, 8), numpy.float32)}
    fails(
        TypeError,
        "moe: w13 is an ndarray; it must be a torch.Tensor, as the first argument is",
        moebius.moe,
        **arguments,
    )


def test_tensors_on_two_devices():
    pytest.importorskip("torch")
    arguments = Arrays("torch").moe()
    fails(
        ValueError, "w2 is on meta; it must be on cpu", moebius.moe, **{**arguments, "w2": arguments["w2"].to("meta")}
    )


def test_float8_needs_its_scales():
    pytest.importorskip("torch")
    arguments = Arrays("torch").moe()
    arguments["x"] = arguments["x"].bfloat16()
    for name in ("w13", "w2"):
        arguments[name] = arguments[name].to(torch.float8_e4m3fn)
    block, tensor = torch.ones(3, 1, 1), torch.ones(3)
    one = torch.ones(1)

    def check(text, **scales):
        fails(ValueError, text, moebius.moe, **arguments, **scales)

    check("w13_scale is None; it must be given, because w13 is float8_e4m3fn")
    check("w13_scale has shape (3, 2, 2); it must be (3, 2, 1)", w13_scale=torch.ones(3, 2, 2))
    check("w13_scale has shape (2,); it must be (3,)", w13_scale=torch.ones(2))
    check("w13_scale has shape (3, 1); it must be (3, 1, 1)", w13_scale=torch.ones(3, 1))
    check("w2_scale has one scale per expert; it must have block scales", w13_scale=block, w2_scale=tensor)
    check("x_scale is None; it must be given", w13_scale=tensor, w2_scale=tensor)
    check("h_scale is None; it must be given", w13_scale=tensor, w2_scale=tensor, x_scale=one)
    check("x_scale has shape (); it must be (1,)", w13_scale=tensor, w2_scale=tensor, x_scale=one[0], h_scale=one)
    arguments["x"] = arguments["x"].float()
    fails(TypeError, "w13 has dtype torch.float8_e4m3fn; it must be float32", moebius.moe, **arguments)


def test_route(arrays):
    logits = arrays.zeros(4, 8)
    fails(ValueError, "top_k is 9; it must be in [1, 8]", moebius.route, logits=logits, top_k=9)
    fails(ValueError, "top_k is 0; it must be in [1, 8]", moebius.route, logits=logits, top_k=0)
    fails(ValueError, "order is 'sorted'; it must be one of", moebius.route, logits=logits, top_k=2, order="sorted")
    fails(
        TypeError, "it must be float32 or bfloat16", moebius.route, logits=arrays.zeros(4, 8, dtype="float16"), top_k=2
    )
    text = "nan_flag has shape (2,); it must be (1,)"
    fails(ValueError, text, moebius.route, logits=logits, top_k=2, nan_flag=arrays.zeros(2, dtype="int32"))


def test_plan(arrays):
    ids = arrays.zeros(4, 2, dtype="int32")
    fails(ValueError, "n_experts is 0; it must be in [1, 2147483647]", moebius.plan, ids=ids, n_experts=0)
    fails(ValueError, "n_experts is 8589934592; it must be", moebius.plan, ids=ids, n_experts=2**33)
    fails(ValueError, "first_expert is 5; it must be in [0, 4]", moebius.plan, ids=ids, n_experts=5, first_expert=5)
    arguments = {"ids": ids, "n_experts": 5, "first_expert": 3, "n_local_experts": 3}
    fails(ValueError, "n_local_experts is 3; it must be in [1, 2]", moebius.plan, **arguments)


def test_moe_experts(arrays):
    right = {name: array for name, array in arrays.moe().items() if name in ("x", "w13", "w2")}
    right["offsets"] = arrays.zeros(4, dtype="int32")

    def check(text, **arguments):
        fails(ValueError, "moe_experts: " + text, moebius.moe_experts, **{**right, **arguments})

    check("offsets has shape (3,); it must be (4,)", offsets=arrays.zeros(3, dtype="int32"))
    check("row_index has shape (4, 1); it must be [R]", row_index=arrays.zeros(4, 1, dtype="int32"))
    check("out has shape (4, 8); it must be (5, 8)", row_index=arrays.zeros(5, dtype="int32"), out=arrays.zeros(4, 8))
    check("w13 has shape (3, 6, 8); it must be (3, 12, 8)", w13=arrays.zeros(3, 6, 8))
    check("activation is 'none'; it must be one of 'swiglu'", activation="none")


def test_grouped_gemm(arrays):
    a, b = arrays.zeros(6, 8), arrays.zeros(2, 5, 8)
    offsets = arrays.zeros(3, dtype="int32")

    def check(exception, text, **arguments):
        fails(exception, text, moebius.grouped_gemm, **{"a": a, "b": b, "offsets": offsets, **arguments})

    check(ValueError, "b has shape (2, 5, 7); it must be (2, 5, 8)", b=arrays.zeros(2, 5, 7))
    check(ValueError, "offsets is None; it must be given, because b has 2 groups", offsets=None)
    check(ValueError, "offsets has shape (2,); it must be (3,)", offsets=arrays.zeros(2, dtype="int32"))
    check(ValueError, "row_index has shape (2, 2); it must be [R]", row_index=arrays.zeros(2, 2, dtype="int32"))
    check(ValueError, "bias has shape (5,); it must be (2, 5)", bias=arrays.zeros(5))
    check(ValueError, "row_weight has shape (5,); it must be (6,)", row_weight=arrays.zeros(5))
    check(ValueError, "b has 5 columns N; swiglu needs an even number", activation="swiglu")
    check(ValueError, "a_scale is given; it must be None, because a is float32", a_scale=arrays.zeros(1))
    half = "float16" if arrays.library == "numpy" else torch.float16
    check(TypeError, "out_dtype has dtype", out_dtype=half)


def test_grouped_gemm_of_rows_that_a_does_not_have(arrays):
    a, b, rows = arrays.zeros(6, 8), arrays.zeros(2, 5, 8), arrays.zeros(3, dtype="int32")
    offsets = arrays.zeros(3, dtype="int32")
    offsets[2] = 2
    rows[2] = 2**31 - 1  # beyond the last group: not read
    assert moebius.grouped_gemm(a, b, offsets, row_index=rows).shape == (3, 5)
    rows[1] = 10**9
    one = {"b": b[:1], "offsets": None, "row_index": rows[:2]}
    for arguments in ({"b": b, "offsets": offsets, "row_index": rows}, one):
        text = "row_index has 1000000000; it must be below 6, the rows of a"
        fails(ValueError, text, moebius.grouped_gemm, a=a, **arguments)


def test_reduce(arrays):
    y, weights, token_row = arrays.zeros(6, 8), arrays.zeros(3, 2), arrays.zeros(3, 2, dtype="int32")

    def check(exception, text, **arguments):
        fails(exception, text, moebius.reduce, **{"y": y, "weights": weights, "token_row": token_row, **arguments})

    check(ValueError, "token_row has shape (2, 2); it must be (3, 2)", token_row=arrays.zeros(2, 2, dtype="int32"))
    check(ValueError, "residual has shape (2, 8); it must be (3, 8)", residual=arrays.zeros(2, 8))
    check(ValueError, "out has shape (3, 9); it must be (3, 8)", out=arrays.zeros(3, 9))


def test_router_gemm(arrays):
    x, weight = arrays.zeros(4, 8), arrays.zeros(5, 8)
    text = "weight has shape (5, 7); it must be (5, 8)"
    fails(ValueError, text, moebius.router_gemm, x=x, weight=arrays.zeros(5, 7))
    fails(
        ValueError,
        "bias has shape (4,); it must be (5,)",
        moebius.router_gemm,
        x=x,
        weight=weight,
        bias=arrays.zeros(4),
    )


def test_what_the_library_refuses_is_its_error_and_text(arrays):
    """Only the library knows how many experts the router can take."""
    with pytest.raises(moebius.Error, match="moe_route: n_experts is 1025") as caught:
        moebius.route(arrays.zeros(1, 1025), 2)
    assert caught.value.status == "MB_ERR_ARGUMENT"


def test_a_read_only_array_is_not_written():
    arguments = Arrays("numpy").moe()
    out = numpy.zeros((4, 8), numpy.float32)
    out.flags.writeable = False
    fails(ValueError, "out is read-only; it must be writeable", moebius.moe, **arguments, out=out)
