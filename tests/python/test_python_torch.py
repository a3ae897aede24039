"""The operators on PyTorch tensors on the CPU: every dtype, torch.library's rules, torch.compile, fake tensors."""

import zlib

import moe_reference as reference
import pytest

torch = pytest.importorskip("torch")

import moebius  # noqa: E402

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]


def rounding(dtype):
    return lambda values: torch.as_tensor(values).to(dtype).double().numpy()


def wide(tensor):
    return tensor.double().numpy()


def normal(generator, *shape):
    return torch.randn(shape, generator=generator)


@pytest.fixture
def generator(request):
    return torch.Generator().manual_seed(zlib.crc32(request.node.name.encode()))


def layer(generator, dtype, n_tokens=9, hidden=48, intermediate=24, n_experts=6, top_k=3, gated=True):
    x = normal(generator, n_tokens, hidden).to(dtype)
    n_rows = (2 if gated else 1) * intermediate
    w13 = (normal(generator, n_experts, n_rows, hidden) / hidden**0.5).to(dtype)
    w2 = (normal(generator, n_experts, hidden, intermediate) / intermediate**0.5).to(dtype)
    weights, ids = moebius.route(normal(generator, n_tokens, n_experts), top_k)
    return x, w13, w2, weights, ids


def expected_moe(x, w13, w2, weights, ids, **terms):
    return reference.moe(wide(x), w13, w2, wide(weights), ids.numpy(), rounding(x.dtype), **terms)


def quantised(generator, n_experts, rows, columns, kind):
    """float8 weights, their scales, and the products of both."""
    values = (normal(generator, n_experts, rows, columns) / columns**0.5 * 64).to(torch.float8_e4m3fn)
    shape = (n_experts,) if kind == "tensor" else (n_experts, -(-rows // 128), -(-columns // 128))
    scale = (torch.rand(shape, generator=generator) + 0.5) / 64
    return values, scale, reference.dequantised(wide(values), wide(scale))


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["softmax_topk", "topk_softmax"])
def test_route(generator, dtype, order):
    logits = normal(generator, 12, 40).to(dtype)
    weights, ids = moebius.route(logits, 6, order=order)
    expected_weights, expected_ids = reference.route(wide(logits), 6, order=order)
    assert (ids.numpy() == expected_ids).all() and weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), torch.from_numpy(expected_weights), rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weight_dtype", FLOATS)
def test_router_gemm(generator, dtype, weight_dtype):
    x, weight = normal(generator, 7, 64).to(dtype), normal(generator, 10, 64).to(weight_dtype)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(moebius.router_gemm(x, weight).double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", [*reference.GATED, "silu", "gelu", "relu", "relu2"])
def test_moe(generator, dtype, activation):
    x, w13, w2, weights, ids = layer(generator, dtype, gated=activation in reference.GATED)
    terms = {
        "bias13": normal(generator, *w13.shape[:2]).to(dtype),
        "bias2": normal(generator, *w2.shape[:2]).to(dtype),
        "residual": normal(generator, *x.shape).to(dtype),
        "shared": normal(generator, *x.shape).to(dtype),
    }
    got = moebius.moe(x, w13, w2, weights, ids, activation=activation, **terms)
    wide_terms = {name: wide(tensor) for name, tensor in terms.items()}
    expected = expected_moe(x, wide(w13), wide(w2), weights, ids, activation=activation, **wide_terms)
    assert got.dtype == dtype
    assert reference.calc_diff(wide(got), expected) < (1e-12 if dtype == torch.float32 else 1e-5)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [*((dtype, None) for dtype in FLOATS), *((dtype, kind) for dtype in HALVES for kind in ("block", "tensor"))],
)
def test_plan_moe_experts_and_reduce_are_moe_bit_for_bit(generator, dtype, kind):
    x, w13, w2, weights, ids = layer(generator, dtype, hidden=256)
    scales = {}
    if kind is not None:
        w13, scales["w13_scale"], _ = quantised(generator, 6, 256, 256, kind)
        w2, scales["w2_scale"], _ = quantised(generator, 6, 256, 128, kind)
    if kind == "tensor":
        scales |= {"x_scale": torch.tensor([0.1]), "h_scale": torch.tensor([0.2])}
    plan = moebius.plan(ids, 6)
    y = moebius.moe_experts(x, w13, w2, plan.offsets, row_index=plan.row_token, **scales)
    out = moebius.reduce(y, weights, plan.token_row, residual=x)
    assert (bits(out) == bits(moebius.moe(x, w13, w2, weights, ids, residual=x, **scales))).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["block", "tensor"])
@pytest.mark.parametrize("shape", [(256, 128), (144, 72), (64, 32)])
def test_moe_with_float8_weights(generator, dtype, kind, shape):
    hidden, intermediate = shape
    x, _, _, weights, ids = layer(generator, dtype, hidden=hidden)
    w13, scale13, wide13 = quantised(generator, 6, 2 * intermediate, hidden, kind)
    w2, scale2, wide2 = quantised(generator, 6, hidden, intermediate, kind)
    scales = {"x_scale": torch.tensor([0.1]), "h_scale": torch.tensor([0.2])} if kind == "tensor" else {}
    got = moebius.moe(x, w13, w2, weights, ids, w13_scale=scale13, w2_scale=scale2, **scales)
    assert reference.calc_diff(wide(got), expected_moe(x, wide13, wide2, weights, ids)) < 1e-5


def test_merged_matrices_may_have_blocks_of_fewer_rows(generator):
    """Gate and up have 96 rows each and were quantised apart: blocks of 32 rows keep them apart."""
    x, _, _, weights, ids = layer(generator, torch.bfloat16, hidden=64)
    w13, _, _ = quantised(generator, 6, 192, 64, "block")
    scale13 = torch.rand(6, 6, 1, generator=generator) / 64
    w2, scale2, wide2 = quantised(generator, 6, 64, 96, "block")
    got = moebius.moe(x, w13, w2, weights, ids, w13_scale=scale13, w2_scale=scale2)
    wide13 = wide(w13) * wide(scale13).repeat(32, axis=1)
    assert reference.calc_diff(wide(got), expected_moe(x, wide13, wide2, weights, ids)) < 1e-5


def test_grouped_gemm_of_float8_in_and_out(generator):
    a = normal(generator, 20, 256).to(torch.float8_e4m3fn)
    a_scale = torch.rand(20, 2, generator=generator)
    b, b_scale, wide_b = quantised(generator, 3, 160, 256, "block")
    offsets = torch.tensor([0, 4, 4, 20], dtype=torch.int32)
    out, out_scale = moebius.grouped_gemm(
        a, b, offsets, a_scale=a_scale, b_scale=b_scale, out_dtype=torch.float8_e4m3fn
    )
    plain = moebius.grouped_gemm(a, b, offsets, a_scale=a_scale, b_scale=b_scale, out_dtype=torch.float32)
    wide_a = wide(a) * wide(a_scale).repeat(128, axis=1)
    expected = torch.cat([torch.from_numpy(wide_a[:4] @ wide_b[0].T), torch.from_numpy(wide_a[4:] @ wide_b[2].T)])
    assert reference.calc_diff(wide(plain), expected.numpy()) < 1e-11
    assert out_scale.shape == (20, 2)
    back = wide(out) * wide(out_scale).repeat(128, axis=1)[:, :160]
    assert reference.calc_diff(back, expected.numpy()) < 1e-3
    amax = expected.abs()[:, :128].amax(1)
    torch.testing.assert_close(out_scale[:, 0].double(), amax / 448, rtol=1e-5, atol=0)


def test_out_may_be_residual_and_its_version_counts(generator):
    x, w13, w2, weights, ids = layer(generator, torch.bfloat16)
    residual = normal(generator, *x.shape).to(x.dtype)
    expected = moebius.moe(x, w13, w2, weights, ids, residual=residual)
    version = residual._version
    got = moebius.moe(x, w13, w2, weights, ids, residual=residual, out=residual)
    assert got is residual and residual._version == version + 1
    assert (bits(got) == bits(expected)).all()


def test_out_in_inference_mode(generator):
    with torch.inference_mode():
        arguments = layer(generator, torch.float32)
        out = torch.full_like(arguments[0], torch.nan)
        assert (moebius.moe(*arguments, out=out) == moebius.moe(*arguments)).all() and out.isfinite().all()


def test_no_tokens(generator):
    x, w13, w2, weights, ids = layer(generator, torch.float32, n_tokens=0)
    assert moebius.moe(x, w13, w2, weights, ids).shape == (0, 48)
    assert (moebius.plan(ids, 6).offsets == 0).all()


def test_numpy_gives_the_same_bits(generator):
    arguments = layer(generator, torch.float32)
    got = moebius.moe(*arguments)
    assert (moebius.moe(*(tensor.numpy() for tensor in arguments)) == got.numpy()).all()


def op_samples(generator):
    x, w13, w2, weights, ids = layer(generator, torch.bfloat16)
    logits = normal(generator, 9, 6)
    with_nan = logits.clone()
    with_nan[4, 2] = torch.nan
    plan = moebius.plan(ids, 6)
    terms = ("swiglu", None, None, x.clone(), None, None, None, None, None, "tf32")
    moe = (x, w13, w2, weights, ids, 0, None, *terms)
    from_logits = (x, logits, w13, w2, 3, True, "softmax_topk", 0, *terms)
    gemm = (x, w13, plan.offsets, plan.row_token, None, None, "swiglu", None, None, None, "tf32")
    experts = (x, w13, w2, plan.offsets, plan.row_token, "swiglu", *(None,) * 6, "tf32")
    gemm8 = (*gemm[:-2], torch.float8_e4m3fn, "tf32")
    reduce = (x, weights[:3], plan.token_row[:3] % 9, None, x[:3].clone())
    train_moe = (x, w13, w2, weights, ids, 0, None, "swiglu", None, None, x.clone(), None, "tf32", False)
    backward = (x, w13, w2, weights, ids, x.clone(), None, 0, None, "swiglu", None, None)
    sums = [torch.zeros(w.shape) for w in (w13, w2)]
    seen = (torch.ones((9, 6), dtype=torch.int32),)
    norm, norm8 = (x, w13[0, 0].clone(), 1e-6), (torch.float8_e4m3fn,)
    linear = (x, w13[0].clone(), None, None, None, None)
    k_cache, v_cache = (normal(generator, 3, 1, 64, 12).to(x.dtype) for _ in range(2))
    table, lengths, starts = (torch.tensor(values, dtype=torch.int32) for values in ([[2, 0]], [70], [0, 9]))
    positions = torch.arange(61, 70, dtype=torch.int32)
    store = (x, k_cache, v_cache, positions, positions, torch.ones(6), None, None, 1e-6, 1.0, None, None)
    attention = (x.view(9, 4, 12)[:, :2].contiguous(), k_cache, v_cache, table, lengths, starts, *(None,) * 5)
    return {
        "rms_norm": (*norm, None, None),
        "rms_norm_fp8": (*norm, None, *norm8),
        "add_rms_norm": (*norm, x.clone(), None),
        "add_rms_norm_fp8": (*norm, x.clone(), *norm8),
        "linear": linear,
        "linear_out": (*linear, torch.empty(9, 48, dtype=x.dtype)),
        "qk_norm_rope_store": store,
        "attention": attention,
        "decode_schedule": (lengths, starts, 2, 1, 8),
        "sample": (logits, *(torch.arange(9),) * 2, *(torch.ones(9), None) * 2, None, None, torch.ones(9), *seen, None),
        "decode_attention": (
            *(t[-8:].contiguous() if t.shape[0] == 9 else t for t in store[:6]),
            *(table, lengths, starts - starts // 9, moebius.decode_schedule(lengths, starts, 2, 1)),
            *(None, None, 1e-6, 1.0, None, None, None, None, None),
        ),
        "attention_out": (*attention, torch.empty_like(attention[0])),
        "route": (with_nan, 3, True, "softmax_topk", torch.zeros(1, dtype=torch.int32)),
        "router_gemm": (x, w13[0], None),
        "plan": (ids, 6, 0, None),
        "grouped_gemm": gemm,
        "grouped_gemm_fp8": gemm8,
        "reduce": (*reduce, None),
        "reduce_out": (*reduce, None, torch.empty_like(x[:3])),
        "moe": moe,
        "moe_experts": experts,
        "moe_experts_out": (*experts, torch.empty(27, 48, dtype=x.dtype)),
        "moe_out": (*moe, torch.empty_like(x)),
        "moe_from_logits": from_logits,
        "moe_from_logits_out": (*from_logits, torch.empty_like(x)),
        "train_moe": (*train_moe, None, *(None,) * 4),
        "moe_backward": (*backward, None, True, True, True),
        "moe_backward_add": (*backward, True, False, *sums, None, None),
        "train_route": (logits, 3, True, "softmax_topk"),
        "router_losses": (logits, ids),
        "route_backward": (logits, ids, weights, None, None, None, True, "softmax_topk"),
        "token_rounding": (logits, ids, 4, "nearest", 4, True, "softmax_topk"),
    }


def gradient_calls(generator):
    """{name: (function, the tensors that may require a gradient)}, for every MoE function and way without a gradient."""
    x, w13, w2, weights, ids = layer(generator, torch.bfloat16)
    logits = normal(generator, 9, 6)
    plan = moebius.plan(ids, 6)
    y = normal(generator, 27, 48)
    moe = {"x": x, "w13": w13, "w2": w2, "topk_weights": weights}
    from_logits = {"x": x, "router_logits": logits, "w13": w13, "w2": w2}
    terms = {name: torch.ones_like(x) for name in ("residual", "shared")}
    float8, scales = [w.to(torch.float8_e4m3fn) for w in (w13, w2)], {"w13_scale": torch.ones(6, 1, 1)}
    scales["w2_scale"] = scales["w13_scale"]
    return {
        "grouped_gemm": (
            lambda **t: moebius.grouped_gemm(**t, offsets=plan.offsets, row_index=plan.row_token),
            {"a": x, "b": w13, "bias": torch.ones(6, 48), "row_weight": torch.ones(27)},
        ),
        "grouped_gemm to float8": (
            lambda **t: moebius.grouped_gemm(**t, out_dtype=torch.float8_e4m3fn)[0].float(),
            {"a": x, "b": w13[:1].clone()},
        ),
        "grouped_gemm's out_scale": (
            lambda **t: moebius.grouped_gemm(**t, out_dtype=torch.float8_e4m3fn)[1],
            {"a": x, "b": w13[:1].clone()},
        ),
        "reduce": (lambda **t: moebius.reduce(**t, token_row=plan.token_row), {"y": y, "weights": weights}),
        "reduce to out": (
            lambda **t: moebius.reduce(**t, token_row=plan.token_row, out=torch.empty(9, 48)),
            {"y": y, "weights": weights, "residual": torch.ones(9, 48)},
        ),
        "reduce to residual": (
            lambda residual, **t: moebius.reduce(
                **t, token_row=plan.token_row, residual=(sum_of := residual * 1), out=sum_of
            ),
            {"y": y, "weights": weights, "residual": torch.ones(9, 48)},
        ),
        "moe of float8": (
            lambda x, topk_weights: moebius.moe(x, *float8, topk_weights, ids, **scales),
            {"x": x, "topk_weights": weights},
        ),
        "moe to out": (lambda **t: moebius.moe(**t, topk_ids=ids, out=torch.empty_like(x)), moe | terms),
        "moe to residual": (
            lambda residual, **t: moebius.moe(**t, topk_ids=ids, residual=(sum_of := residual * 1), out=sum_of),
            moe | terms,
        ),
        "moe_experts": (
            lambda **t: moebius.moe_experts(**t, offsets=plan.offsets, row_index=plan.row_token),
            {"x": x, "w13": w13, "w2": w2, "bias13": torch.ones(6, 48).to(x.dtype), "bias2": w2[..., 0].clone()},
        ),
        "moe_experts to out": (
            lambda **t: moebius.moe_experts(**t, offsets=torch.arange(7, dtype=torch.int32), out=torch.empty_like(x)),
            {"x": x, "w13": w13, "w2": w2},
        ),
        "moe_from_logits to out": (
            lambda **t: moebius.moe_from_logits(**t, top_k=3, out=torch.empty_like(x)),
            from_logits,
        ),
    }


@pytest.mark.parametrize("how", ["eager", "compiled", "compiled as one graph"])
@pytest.mark.parametrize("name", list(gradient_calls(torch.Generator().manual_seed(0))))
def test_a_backward_pass_fails(generator, name, how):
    """Whichever tensor requires the gradient, and although another term of the loss gives it one."""
    call, tensors = gradient_calls(generator)[name]
    if how != "eager":
        torch._dynamo.reset()
        call = torch.compile(call, fullgraph=how == "compiled as one graph", backend="aot_eager")
    for wanted in tensors if how == "eager" else list(tensors)[:1]:
        leaves = {key: tensor.detach().clone().requires_grad_(key == wanted) for key, tensor in tensors.items()}
        with pytest.raises((NotImplementedError, torch._dynamo.exc.Unsupported)):
            (call(**leaves).sum() + leaves[wanted].sum()).backward()
        assert leaves[wanted].grad is None
        with torch.no_grad():
            assert not call(**leaves).requires_grad


def test_the_text_of_a_backward_pass(generator):
    x, w13, w2, weights, ids = layer(generator, torch.float32)
    plan = moebius.plan(ids, 6)
    y = moebius.moe_experts(x, w13.requires_grad_(), w2, plan.offsets, row_index=plan.row_token)
    assert y.requires_grad
    with pytest.raises(NotImplementedError, match="moe_experts: there is no backward pass for this.*no_grad"):
        y.sum().backward()
    with pytest.raises(NotImplementedError, match="moe: out is given and an argument requires a gradient"):
        moebius.moe(x, w13, w2, weights, ids, out=torch.empty_like(x))
    with torch.inference_mode():
        assert not moebius.moe(x, w13, w2, weights, ids).requires_grad


TRAINS = ("router_gemm", "train_moe", "train_route", "router_losses", "token_rounding")


@pytest.mark.parametrize(
    "name",
    [name for name in op_samples(torch.Generator().manual_seed(0)) if name not in ("plan", "decode_schedule", *TRAINS)],
)
def test_the_bare_operators_refuse_a_gradient(generator, name):
    """torch.ops.moebius.* have no autograd of their own; a call that needs one fails, eager and compiled."""
    operator = getattr(torch.ops.moebius, name).default
    arguments = list(op_samples(generator)[name])
    first = next(i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.is_floating_point())
    arguments[first] = arguments[first].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="no backward pass"):
        operator(*arguments)
    compiled = torch.compile(lambda *a: operator(*a), backend="aot_eager")
    with pytest.raises(NotImplementedError, match="no backward pass"):
        compiled(*arguments)
    with torch.no_grad():
        operator(*arguments)


def test_every_operator_has_a_sample(generator):
    defined = {name.removeprefix("moebius::") for name in torch._C._dispatch_get_all_op_names() if "moebius::" in name}
    assert defined == set(op_samples(generator))


@pytest.mark.parametrize("name", list(op_samples(torch.Generator().manual_seed(0))))
def test_opcheck(generator, name):
    operator = getattr(torch.ops.moebius, name).default
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not name.endswith("_fp8"):  # PyTorch cannot compare float8 tensors
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, op_samples(generator)[name], test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_as_one_graph(generator, dynamic):
    def block(x, router, w13, w2, residual):
        logits = moebius.router_gemm(x, router)
        weights, ids = moebius.route(logits, 2)
        y = moebius.moe(x * 2, w13, w2, weights, ids, residual=residual)
        return torch.relu(moebius.moe_from_logits(y, logits, w13, w2, 2, out=residual) + 1)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n_tokens in (5, 8, 1):
        x, w13, w2, _, _ = layer(generator, torch.bfloat16, n_tokens=n_tokens)
        router = normal(generator, 6, 48).to(torch.bfloat16)
        residual = normal(generator, *x.shape).to(x.dtype)
        residual_eager = residual.clone()
        expected = block(x, router, w13, w2, residual_eager)
        got = compiled(x, router, w13, w2, residual)
        assert (bits(got) == bits(expected)).all() and (bits(residual) == bits(residual_eager)).all()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_moe_experts(generator, dynamic):
    def block(x, w13, w2, weights, ids):
        plan = moebius.plan(ids, 6)
        y = moebius.moe_experts(x, w13, w2, plan.offsets, row_index=plan.row_token)
        return moebius.reduce(y * 2, weights, plan.token_row)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n_tokens in (5, 8):
        arguments = layer(generator, torch.bfloat16, n_tokens=n_tokens)
        assert (bits(compiled(*arguments)) == bits(block(*arguments))).all()


def test_compile_plan_grouped_gemm_and_reduce(generator):
    def block(x, w13, w2, weights, ids):
        plan = moebius.plan(ids, 6)
        hidden = moebius.grouped_gemm(x, w13, plan.offsets, row_index=plan.row_token, activation="swiglu")
        y = moebius.grouped_gemm(hidden, w2, plan.offsets)
        return moebius.reduce(y, weights, plan.token_row, residual=x)

    arguments = layer(generator, torch.float16)
    got = torch.compile(block, fullgraph=True, backend="aot_eager")(*arguments)
    assert (bits(got) == bits(block(*arguments))).all()


def test_export(generator):
    class Layer(torch.nn.Module):
        def forward(self, x, w13, w2, weights, ids):
            return moebius.moe(x, w13, w2, weights, ids)

    arguments = layer(generator, torch.float32)
    exported = torch.export.export(Layer(), arguments)
    assert (exported.module()(*arguments) == moebius.moe(*arguments)).all()


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(generator):
    from torch._subclasses.fake_tensor import FakeTensorMode

    samples = op_samples(generator)
    for name, arguments in samples.items():
        operator = getattr(torch.ops.moebius, name).default
        real = operator(*arguments)
        with FakeTensorMode() as mode:
            fake = operator(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
        real, fake = ([x] if isinstance(x, torch.Tensor) else list(x or ()) for x in (real, fake))
        assert [(t.shape, t.dtype, t.stride()) for t in real] == [(t.shape, t.dtype, t.stride()) for t in fake], name


def test_meta_tensors_are_checked_too():
    x = torch.empty(4, 16, dtype=torch.bfloat16, device="meta")
    w13, w2 = x.new_empty(8, 64, 16), x.new_empty(8, 16, 32)
    weights, ids = moebius.route(x.new_empty(4, 8), 2)
    assert moebius.moe(x, w13, w2, weights, ids).device.type == "meta"
    with pytest.raises(ValueError, match=r"w2 has shape \(8, 8, 32\); it must be \(8, 16, 32\)"):
        moebius.moe(x, w13, w2[:, :8], weights, ids)
