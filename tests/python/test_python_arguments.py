"""Every wrong kind of value of every argument: a TypeError or ValueError names the function and the argument."""

import ast
import inspect
from pathlib import Path

import ml_dtypes
import moebius
import numpy
import pytest

try:
    import torch
except ModuleNotFoundError:
    torch = None

T, H, I, E, K = 4, 8, 6, 3, 2  # noqa: E741
FLOAT8 = "float8_e4m3fn"


class Numpy:
    @staticmethod
    def ones(shape, dtype="float32"):
        return numpy.ones(shape, getattr(ml_dtypes, dtype) if dtype in ("bfloat16", FLOAT8) else dtype)

    @staticmethod
    def dtype(name):
        return numpy.dtype(name)

    @staticmethod
    def every_other(array):
        """The same shape with gaps between the elements."""
        return numpy.ones((*array.shape, 2), array.dtype)[..., 0]

    @staticmethod
    def wrong_arrays(array):
        unaligned = numpy.zeros(array.nbytes + 1, numpy.uint8)[1:].view(array.dtype).reshape(array.shape)
        if array.itemsize > 1:
            yield "unaligned", unaligned
        yield "big endian", array.astype(">f8")
        yield "an object", numpy.full(array.shape, None)
        if torch is not None:
            yield "a tensor", torch.ones(array.shape)


class Torch:
    @staticmethod
    def ones(shape, dtype="float32"):
        return torch.ones(shape).to(getattr(torch, dtype))

    @staticmethod
    def dtype(name):
        return getattr(torch, name)

    @staticmethod
    def every_other(array):
        return torch.ones((*array.shape, 2)).to(array.dtype)[..., 0]

    @staticmethod
    def wrong_arrays(array):
        yield "another device", array.to("meta")
        yield "sparse", array.to(torch.float32).to_sparse().to(array.dtype)
        yield "a numpy array", numpy.ones(array.shape, numpy.float32)


LIBRARIES = [Numpy, pytest.param(Torch, marks=pytest.mark.skipif(torch is None, reason="no torch"))]


def layer(ones, kind):
    """moe's arguments, with float8 weights when `kind` is "block" or "tensor"."""
    dtype, weight_dtype = ("float32", "float32") if kind is None else ("bfloat16", FLOAT8)
    arguments = {
        "x": ones((T, H), dtype),
        "w13": ones((E, 2 * I, H), weight_dtype),
        "w2": ones((E, H, I), weight_dtype),
        "topk_weights": ones((T, K)),
        "topk_ids": ones((T, K), "int32"),
        "activation": "swiglu",
        "bias13": ones((E, 2 * I), dtype),
        "bias2": ones((E, H), dtype),
        "residual": ones((T, H), dtype),
        "shared": ones((T, H), dtype),
        "first_expert": 0,
        "n_experts": E,
        "f32": "tf32",
        "out": ones((T, H), dtype),
    }
    if kind is not None:
        shape = (E, 1, 1) if kind == "block" else (E,)
        arguments |= {"w13_scale": ones(shape), "w2_scale": ones(shape)}
    if kind == "tensor":
        arguments |= {"x_scale": ones((1,)), "h_scale": ones((1,))}
    return arguments


def experts(ones, kind):
    arguments = layer(ones, kind)
    for name in ("topk_weights", "topk_ids", "residual", "shared", "first_expert", "n_experts"):
        del arguments[name]
    arguments["out"] = ones((5, H), "float32" if kind is None else "bfloat16")
    return {**arguments, "offsets": ones((E + 1,), "int32"), "row_index": ones((5,), "int32")}


def from_logits(ones, kind):
    arguments = layer(ones, kind)
    for name in ("topk_weights", "topk_ids", "n_experts"):
        del arguments[name]
    return {**arguments, "router_logits": ones((T, E)), "top_k": K, "renormalize": True, "order": "softmax_topk"}


def calls(library):
    """{name: (function, right arguments)}. The calls of a function together give all of its parameters."""
    ones = library.ones
    float8_gemm = {
        "a": ones((T, H), FLOAT8),
        "b": ones((1, I, H), FLOAT8),
        "a_scale": ones((T, 1)),
        "b_scale": ones((1, 1, 1)),
        "out_dtype": library.dtype("float32"),
    }
    gemm = {
        "a": ones((T, H)),
        "b": ones((E, I, H)),
        "offsets": ones((E + 1,), "int32"),
        "row_index": ones((5,), "int32"),
        "bias": ones((E, I)),
        "row_weight": ones((5,)),
        "activation": "none",
        "out_dtype": library.dtype("float32"),
        "f32": "tf32",
    }
    reduce = {
        "y": ones((7, H)),
        "weights": ones((T, K)),
        "token_row": ones((T, K), "int32"),
        "residual": ones((T, H)),
        "shared": ones((T, H)),
        "out_dtype": library.dtype("float32"),
        "out": ones((T, H)),
    }
    route = {
        "logits": ones((T, E)),
        "top_k": K,
        "renormalize": True,
        "order": "softmax_topk",
        "nan_flag": ones((1,), "int32"),
    }
    plan = {"ids": ones((T, K), "int32"), "n_experts": E, "first_expert": 0, "n_local_experts": E}
    rows, starts = ones((T,), "int32"), ones((2,), "int32")
    starts[0], starts[1] = 0, T
    cache = {"k_cache": ones((2, 1, 64, 4)), "v_cache": ones((2, 1, 64, 4))}
    float8_cache = {
        "k_cache": ones((2, 1, 64, 4), FLOAT8),
        "v_cache": ones((2, 1, 64, 4), FLOAT8),
        "k_scale": ones((1,)),
        "v_scale": ones((1,)),
    }
    rope = {
        "qkv": ones((T, 16)),
        **cache,
        "positions": rows,
        "slots": rows,
        "inv_freq": ones((2,)),
        "q_norm": ones((4,)),
        "k_norm": ones((4,)),
        "eps": 1e-6,
        "rope_scale": 1.0,
    }
    attention = {
        "q": ones((T, 2, 4)),
        **cache,
        "block_table": ones((1, 2), "int32"),
        "kv_lengths": ones((1,), "int32") * 70,
        "query_starts": starts,
        "scale": 0.5,
        "max_query_length": T,
        "max_kv_length": 70,
        "out": ones((T, 2, 4)),
    }
    norm = {"x": ones((T, H)), "weight": ones((H,)), "eps": 1e-6, "residual": ones((T, H))}
    norm["out_dtype"] = library.dtype("float32")
    linear = {"x": ones((T, H)), "weight": ones((I, H)), "bias": ones((I,)), "residual": ones((T, I))}
    linear |= {"out_dtype": library.dtype("float32"), "out": ones((T, I))}
    float8_linear = {"x": ones((T, H), "bfloat16"), "weight": ones((I, H), FLOAT8), "weight_scale": ones((1, 1))}
    lengths = ones((1,), "int32") * 70
    decode = {
        **rope,
        "block_table": ones((1, 2), "int32"),
        "kv_lengths": lengths,
        "query_starts": starts,
        "schedule": moebius.decode_schedule(lengths, starts, 2, 1),
        "scale": 0.5,
        "max_query_length": T,
        "max_kv_length": 70,
    }
    schedule = {"kv_lengths": lengths, "query_starts": starts, "n_heads": 2, "n_kv_heads": 1, "max_query_length": T}
    long = ones((T,), "int64")
    sample = {"logits": ones((T, 40)), "seeds": long, "positions": long, "top_k": rows}
    sample |= {name: ones((T,)) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
    sample |= {name: ones((T,)) for name in ("presence_penalty", "frequency_penalty")}
    sample |= {"seen": ones((T, 40), "int32"), "allowed": ones((T, 2), "int32")}
    return {
        "sample": (moebius.sample, sample),
        "decode_schedule": (moebius.decode_schedule, schedule),
        "decode_attention": (moebius.decode_attention, decode),
        "decode_attention, float8": (moebius.decode_attention, {**decode, **float8_cache}),
        "rms_norm": (moebius.rms_norm, norm),
        "linear": (moebius.linear, linear),
        "linear, float8": (moebius.linear, float8_linear),
        "qk_norm_rope_store": (moebius.qk_norm_rope_store, rope),
        "qk_norm_rope_store, float8": (moebius.qk_norm_rope_store, {**rope, **float8_cache}),
        "attention": (moebius.attention, attention),
        "attention, float8": (moebius.attention, {**attention, **float8_cache}),
        "router_gemm": (moebius.router_gemm, {"x": ones((T, H)), "weight": ones((E, H)), "bias": ones((E,))}),
        "route": (moebius.route, route),
        "plan": (moebius.plan, plan),
        "grouped_gemm": (moebius.grouped_gemm, gemm),
        "grouped_gemm, float8": (moebius.grouped_gemm, float8_gemm),
        "reduce": (moebius.reduce, reduce),
        "moe": (moebius.moe, layer(ones, None)),
        "moe, blocks": (moebius.moe, layer(ones, "block")),
        "moe, per tensor": (moebius.moe, layer(ones, "tensor")),
        "moe_experts": (moebius.moe_experts, experts(ones, None)),
        "moe_experts, blocks": (moebius.moe_experts, experts(ones, "block")),
        "moe_experts, per tensor": (moebius.moe_experts, experts(ones, "tensor")),
        "moe_from_logits": (moebius.moe_from_logits, from_logits(ones, None)),
        "moe_from_logits, blocks": (moebius.moe_from_logits, from_logits(ones, "block")),
        "moe_from_logits, per tensor": (moebius.moe_from_logits, from_logits(ones, "tensor")),
    }


CALLS = list(calls(Numpy))
FUNCTIONS = [getattr(moebius, name) for name in moebius.__all__ if inspect.isfunction(getattr(moebius, name))]


def wrong_values(library, value, is_first):
    """Pairs (description, wrong value) for an argument whose right value is `value`."""
    array = library.ones((2, 2))
    anything = {"a float": 1.5, "a list": [1], "a dict": {}, "a complex": 1j, "an object": object(), "bytes": b"swiglu"}
    if isinstance(value, str):
        yield from {**anything, "None": None, "a bool": True, "an array": array, "another": "sorted"}.items()
    elif isinstance(value, bool):
        yield from {**anything, "None": None, "an int": 1, "a str": "yes", "an array": array}.items()
    elif isinstance(value, float):
        del anything["a float"]
        wrong = {"a bool": True, "a str": "1", "an array": array, "an array of one": library.ones(())}
        yield from {**anything, **wrong, "negative": -1.0, "NaN": float("nan"), "infinite": float("inf")}.items()
    elif isinstance(value, int):
        yield from {**anything, "a bool": True, "a str": "3", "an array": array, "negative": -1}.items()
        yield from {"huge": 2**31, "beyond 64 bits": 10**30, "a whole float": 3.0, "an array of one": library.ones((), "int32")}.items()
    elif hasattr(value, "dtype"):
        yield from {**anything, "a bool": True, "a str": "x", "an int": 1}.items()
        yield "float64", library.ones(value.shape, "float64")
        yield "bool", library.ones(value.shape, "bool")
        yield "another rank", library.ones((1, 1, *value.shape), str(value.dtype).removeprefix("torch."))
        if max(value.shape) > 1:
            yield "not contiguous", library.every_other(value)
        if not is_first:  # where the first argument differs from the others, the error names one of those
            yield from library.wrong_arrays(value)
    else:
        yield from {
            **anything,
            "a bool": True,
            "an int": 1,
            "an array": array,
            "another": library.dtype("int32"),
        }.items()
        if library is Torch:
            yield from {"a name": "float32", "NumPy's": numpy.dtype("float32"), "a type": float}.items()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", CALLS)
def test_right_arguments_are_right(library, name):
    function, arguments = calls(library)[name]
    function(**arguments)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_argument_of_every_function_stands_here(library):
    seen = {}
    for function, arguments in calls(library).values():
        seen.setdefault(function, set()).update(arguments)
    assert seen == {function: set(inspect.signature(function).parameters) for function in FUNCTIONS}


def test_every_parameter_and_result_has_a_type():
    for function in FUNCTIONS:
        types = inspect.get_annotations(function, eval_str=True)
        assert set(types) == {*inspect.signature(function).parameters, "return"}, function


def test_the_package_is_python_3_10():
    for source in Path(moebius.__file__).parent.rglob("*.py"):
        ast.parse(source.read_text(), str(source), feature_version=(3, 10))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", CALLS)
def test_wrong_kinds_of_arguments(library, name):
    function, arguments = calls(library)[name]
    wrong = []
    for argument, value in arguments.items():
        required = inspect.signature(function).parameters[argument].default is inspect.Parameter.empty
        values = dict(wrong_values(library, value, argument == next(iter(arguments))))
        if required:
            values["None"] = None
        for kind, bad in values.items():
            try:
                function(**{**arguments, argument: bad})
                wrong.append(f"{argument}, {kind}: no error")
            except (TypeError, ValueError) as error:
                if not str(error).startswith(f"{function.__name__}: {argument} "):
                    wrong.append(f"{argument}, {kind}: {error}")
            except Exception as error:
                wrong.append(f"{argument}, {kind}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", LIBRARIES)
def test_numpy_integers_and_bools_are_integers_and_bools(library):
    logits = library.ones((T, E))
    weights, ids = moebius.route(logits, numpy.int64(K), numpy.bool_(True))
    assert (ids == moebius.route(logits, K)[1]).all()
    assert len(moebius.plan(ids, numpy.int32(E)).offsets) == E + 1
    x, w13, w2 = library.ones((T, H)), library.ones((E, 2 * I, H)), library.ones((E, H, I))
    moebius.moe(x, w13, w2, weights, ids, first_expert=numpy.int8(1), n_experts=numpy.int64(9))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["rms_norm", "qk_norm_rope_store", "attention", "decode_attention"])
def test_numbers_are_floats_of_c(library, name):
    """What would be infinite or zero as a float of C is refused; NumPy's numbers are numbers."""
    function, arguments = calls(library)[name]
    for argument in {"eps", "rope_scale", "scale"} & arguments.keys():
        for value in (1, 0.5, 3.4e38, numpy.float16(0.5), numpy.float32(0.5), numpy.float64(0.5), numpy.longdouble(0.5), numpy.int64(1)):
            function(**{**arguments, argument: value})
        low = "0" if argument == "eps" else "1.5e-45"
        small = () if argument == "eps" else (0, 0.0, 1e-60, numpy.float32(0))
        for value in (1e39, numpy.longdouble("1e39"), numpy.float32("inf"), 10**30 * 10**9, 10**400, 10**5000, -1, -1e-60, *small):
            with pytest.raises(ValueError) as caught:
                function(**{**arguments, argument: value})
            error = str(caught.value)
            assert error.startswith(f"{name}: {argument} is ") and len(error) < 200
            assert error.endswith(f"; it must be from {low} to 3.4e38, what a float32 holds"), error


def test_linear_writes_over_no_argument():
    memory = numpy.ones((9, 16), "float32")
    x, weight, bias = numpy.ones((8, 16), "float32"), numpy.ones((16, 16), "float32"), memory[0]

    def refuses(text, out, x=x, weight=weight, bias=None, residual=None):
        with pytest.raises(ValueError) as caught:
            moebius.linear(x, weight, bias=bias, residual=residual, out=out)
        assert str(caught.value) == f"linear: out {text}; it must be other memory"

    refuses("is x", x)
    refuses("is weight", weight[:8])
    refuses("overlaps weight", weight[8:])
    refuses("is bias", memory[:8], bias=bias)
    refuses("overlaps residual", memory[1:], residual=memory[:8])
    refuses("overlaps residual", memory[:8], residual=memory[1:])
    moebius.linear(x, weight, bias=bias, residual=memory[1:], out=memory[1:])
    assert (memory[1:] == 18).all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_dtype_is_offered_once(library):
    x = library.ones((2, 4))
    with pytest.raises(TypeError, match="it must be float32$"):
        moebius.linear(x, x, out_dtype=library.dtype("int32"))
