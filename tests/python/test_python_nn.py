"""moebius.nn.MoE on the CPU: gradients against PyTorch's autograd in float64, and what PyTorch does with a layer."""

import copy
import itertools
import pickle

import moe_reference as reference
import pytest

torch = pytest.importorskip("torch")

import moebius  # noqa: E402
from moebius import training  # noqa: E402
from moebius.nn import MoE  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

HIDDEN, INTERMEDIATE, EXPERTS, TOKENS = 24, 16, 6, 17
ACTIVATIONS = [*reference.GATED, "silu", "gelu", "relu", "relu2"]
ONE_SIDED = {
    "silu": torch.nn.functional.silu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(20261127)
    torch._dynamo.reset()


def make(top_k=2, dtype=None, **options):
    return MoE(HIDDEN, INTERMEDIATE, EXPERTS, top_k, dtype=dtype, **options)


def tokens(n=TOKENS, dtype=torch.float32):
    return torch.randn(n, HIDDEN).to(dtype)


def wide(module):
    """The parameters as float64 leaves."""
    return {name: value.detach().double().requires_grad_() for name, value in module.named_parameters()}


def expected(module, p, x, ids, before=None):
    """Output and losses in float64, written as the definitions read; ids are constants, -1 is no choice."""
    logits = x @ p["router"].T
    q = torch.softmax(logits, -1)
    chosen = q.gather(1, ids.long().clamp(min=0)).masked_fill(ids < 0, 0)
    if module.renormalize or module.order == "topk_softmax":
        chosen = chosen / chosen.sum(-1, keepdim=True).clamp(min=1e-300)
    out = torch.zeros_like(x)
    for e in range(module.n_experts):
        t, k = (ids == e).nonzero(as_tuple=True)
        up = x[t] @ p["w13"][e].T + (p["bias13"][e] if "bias13" in p else 0)
        if module.activation in reference.GATED:
            gate, linear = up.chunk(2, -1)
            hidden = ONE_SIDED[reference.GATED[module.activation]](gate) * linear
        else:
            hidden = ONE_SIDED[module.activation](up)
        y = hidden @ p["w2"][e].T + (p["bias2"][e] if "bias2" in p else 0)
        out = out.index_add(0, t, chosen[t, k, None] * y)
    before = ids if before is None else before
    counts = torch.bincount(before[before >= 0], minlength=module.n_experts).double()
    return out, module.n_experts * (counts / len(x) * q.mean(0)).sum(), (torch.logsumexp(logits, -1) ** 2).mean()


def gradients(module):
    return {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}


def check(module, x, tolerance, before=None, **options):
    """One step against `expected`: the output, the losses, every gradient."""
    x = x.detach().requires_grad_()
    d_out = torch.randn_like(x)
    out, routing = module(x, return_routing=True, **options)
    ((out * d_out).sum() + 0.1 * routing.load_balance + 0.01 * routing.z).backward()
    p, wide_x = wide(module), x.detach().double().requires_grad_()
    out64, load_balance, z = expected(module, p, wide_x, routing.ids, before)
    ((out64 * d_out.double()).sum() + 0.1 * load_balance + 0.01 * z).backward()
    pairs = {"out": (out, out64), "load_balance": (routing.load_balance, load_balance), "z": (routing.z, z)}
    pairs["x"] = (x.grad, wide_x.grad)
    pairs |= {name: (value.grad, p[name].grad) for name, value in module.named_parameters()}
    for name, (got, wanted) in pairs.items():
        difference = (got.double() - wanted).abs().mean() / wanted.abs().mean()
        assert difference <= tolerance, f"{name}: {difference}"
        assert reference.calc_diff(got.detach().double(), wanted.detach()) <= max(tolerance**2, 1e-13), name


@pytest.mark.parametrize(("activation", "bias"), list(itertools.product(ACTIVATIONS, (False, True))))
def test_gradients(activation, bias):
    for top_k, (order, renormalize) in zip(
        (1, 2, 6), (("softmax_topk", False), ("softmax_topk", True), ("topk_softmax", True)), strict=True
    ):
        module = make(top_k, activation=activation, bias=bias, order=order, renormalize=renormalize)
        check(module, tokens(), 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_16_bits(dtype):
    check(make(dtype=dtype, bias=True), tokens(dtype=dtype), 1e-2)


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
def test_gradcheck():
    module = MoE(3, 2, 3, 2, bias=True)
    x = torch.randn(4, 3, requires_grad=True)
    ids = moebius.route(moebius.router_gemm(x.detach(), module.router.detach()), 2)[1]
    names, leaves = zip(*module.named_parameters(), strict=True)

    def step(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,), {"ids": ids})

    # float32 has few digits for differences: a large step, and tolerances for its error.
    assert torch.autograd.gradcheck(step, (x, *leaves), eps=2e-2, atol=4e-3, rtol=2e-2)


def test_the_forward_has_the_bits_of_inference():
    module, x = make(bias=True, dtype=torch.bfloat16), tokens(dtype=torch.bfloat16).reshape(1, TOKENS, HIDDEN)
    trained = module(x)
    with torch.no_grad():
        logits = moebius.router_gemm(x[0], module.router)
        terms = {"bias13": module.bias13, "bias2": module.bias2}
        plain = moebius.moe_from_logits(x[0], logits, module.w13, module.w2, 2, **terms)
        assert (module(x) == trained).all()
    assert trained.requires_grad and trained.shape == x.shape and (trained[0] == plain).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_and_recomputation_change_no_bit(reentrant):
    module, x = make(bias=True), tokens().requires_grad_()
    module(x).square().sum().backward()
    wanted, of_x = gradients(module), x.grad.clone()
    module.zero_grad(), setattr(x, "grad", None)
    checkpoint(module, x, use_reentrant=reentrant).square().sum().backward()
    assert (x.grad == of_x).all() and all((gradients(module)[name] == value).all() for name, value in wanted.items())
    module.zero_grad(), setattr(x, "grad", None)
    module.recompute = True
    module(x).square().sum().backward()
    assert (x.grad == of_x).all() and all((gradients(module)[name] == value).all() for name, value in wanted.items())


def saved_bytes(module, x):
    """What autograd keeps for the backward, each memory once, without parameters and x."""
    mine = {value.untyped_storage().data_ptr() for value in (x, *module.parameters())}
    found = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in mine:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(x)
    del out
    return sum(found.values())


def test_memory_does_not_grow_with_finer_experts():
    """K * I constant: p is as large, and ids and weights of the choices are all that grows."""
    sizes = []
    for top_k, intermediate in ((1, 256), (8, 32)):
        module = MoE(HIDDEN, intermediate, 8, top_k, dtype=torch.bfloat16)
        size = saved_bytes(module, tokens(64, torch.bfloat16))
        assert size == 64 * (2 * 2 * top_k * intermediate + 8 * top_k + 4 * 8)  # p, weights and ids, logits
        sizes.append(size)
        module.recompute = True
        assert saved_bytes(module, tokens(64, torch.bfloat16)) == size - 64 * 2 * 2 * top_k * intermediate
    assert sizes[1] - sizes[0] == 64 * 8 * 7


def test_memory_of_token_rounding():
    """Every place of a token has its row of p, also one that stays empty; the router's ids are kept for the losses."""
    module = MoE(HIDDEN, 32, 16, 8, routing="rounding", tile_rows=16, dtype=torch.bfloat16)
    places = 10  # a quarter more than top_k
    size = saved_bytes(module, tokens(64, torch.bfloat16))
    assert size == 64 * (2 * 2 * places * 32 + 8 * places + 4 * 16 + 4 * 8)


def test_gradient_accumulation():
    """Two parts of a batch: autograd adds; main_grad adds in float32 with one rounding."""
    module = make(bias=True, dtype=torch.bfloat16)
    parts = [tokens(n, torch.bfloat16) for n in (9, 5)]
    for part in parts:
        module(part).float().square().sum().backward()
    added = gradients(module)
    module.zero_grad()
    module.keep_main_grads()
    for part in parts:
        module(part).float().square().sum().backward()
    assert gradients(module).keys() == {"router"} and (gradients(module)["router"] == added["router"]).all()
    for name in ("w13", "w2", "bias13", "bias2"):
        total = getattr(module, name).main_grad
        assert total.dtype == torch.float32
        assert (total - added[name]).abs().mean() <= 4e-3 * total.abs().mean(), name

    one = torch.zeros_like(module.w13.main_grad)
    for part in parts:
        module.zero_main_grads()
        module(part).float().square().sum().backward()
        one += module.w13.main_grad
    module.zero_main_grads()
    outs = [module(part).float().square().sum() for part in parts]  # two forwards, then two backwards
    sum(outs).backward()
    torch.testing.assert_close(module.w13.main_grad, one, rtol=1e-6, atol=1e-6)


def test_a_copy_has_no_sums_until_it_is_asked_to():
    module, x = make(), tokens()
    module.keep_main_grads()
    other = copy.deepcopy(module)
    other(x).square().sum().backward()
    assert not hasattr(other.w13, "main_grad") and (other.w13.grad != 0).any()
    expected = other.w13.grad
    other.zero_grad()
    other.keep_main_grads()
    other(x).square().sum().backward()
    assert other.w13.grad is None and (other.w13.main_grad == expected).all()
    assert (module.w13.main_grad == 0).all() and module.w13.grad is None


def test_sums_of_some_parameters():
    module, x = make(), tokens()
    module.keep_main_grads()
    module.w2.requires_grad_(False)
    module(x).square().sum().backward()
    assert (module.w13.main_grad != 0).any() and (module.w2.main_grad == 0).all()
    module.router.requires_grad_(False)
    module(x).square().sum().backward()  # neither of x nor of the router
    del module.w2.main_grad
    with pytest.raises(ValueError, match="some of w13, w2 and their biases have a main_grad and some have none"):
        module(x)


def test_fully_sharded(tmp_path):
    """FSDP2 gathers plain tensors for the forward and the backward, and shards the gradients."""
    distributed = pytest.importorskip("torch.distributed")
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not distributed.is_available() or not hasattr(fsdp, "fully_shard"):
        pytest.skip("needs torch.distributed with FSDP2")
    module, x = make(bias=True), tokens()
    sharded = copy.deepcopy(module)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        fsdp.fully_shard(sharded, mesh=distributed.device_mesh.init_device_mesh("cpu", (1,)))
        module(x).square().sum().backward()
        sharded(x).square().sum().backward()
        for name, value in gradients(module).items():
            assert (sharded.get_parameter(name).grad.full_tensor() == value).all()
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="needs PyTorch 2.10")
def test_gradients_in_float32():
    narrow, x = make(dtype=torch.bfloat16), tokens(dtype=torch.bfloat16)
    module = make(dtype=torch.bfloat16, grad_dtype=torch.float32)
    module.load_state_dict(narrow.state_dict())
    narrow(x).float().square().sum().backward()
    module(x).float().square().sum().backward()
    for name in ("w13", "w2"):
        got = getattr(module, name).grad
        assert got.dtype == torch.float32 and (got != got.bfloat16()).any()
        assert (got.bfloat16() == getattr(narrow, name).grad).all()


@pytest.mark.parametrize("routing", ["topk", "rounding"])
def test_compiled(routing):
    """As one graph, with the bits of eager mode; any number of tokens; main_grad too."""
    module = make(bias=True, routing=routing, tile_rows=4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for n_tokens in (12, 17):
        x = tokens(n_tokens).requires_grad_()
        results = []
        for function in (module, compiled):
            module.zero_grad()
            x.grad = None
            out, routed = function(x, return_routing=True)
            (out.square().sum() + routed.load_balance + routed.z).backward()
            results.append([out.detach(), x.grad, *gradients(module).values()])
        assert all((one == other).all() for one, other in zip(*results, strict=True))
    module.keep_main_grads()
    x = tokens()
    module(x).square().sum().backward()
    wanted = module.w13.main_grad.clone()
    module.zero_main_grads()
    torch.compile(module, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    assert (module.w13.main_grad == wanted).all()


def test_choices_that_are_given():
    module, x = make(), tokens()
    out, routing = module(x, return_routing=True)
    replayed, again = module(x, ids=routing.ids.long(), return_routing=True)
    assert (replayed == out).all() and (again.weights == routing.weights).all()
    assert again.load_balance == routing.load_balance
    ids = torch.stack([torch.randperm(EXPERTS)[:3] for _ in range(TOKENS)])
    ids[2] = -1  # a token without any expert
    ids[4, 1] = -1
    check(module, x, 2e-6, ids=ids)
    assert (module(x, ids=ids)[2] == 0).all()
    cubic = module(x[:16].view(2, 8, HIDDEN), ids=routing.ids[:16].view(2, 8, 2))
    assert (cubic.view(16, HIDDEN) == out[:16]).all() and (module(x[0], ids=routing.ids[0]) == out[0]).all()
    assert module(x[:0], ids=ids[:0]).shape == (0, HIDDEN)


@pytest.mark.parametrize("rounding", ["nearest", "up", "down", "balanced"])
def test_token_rounding(rounding):
    module = make(routing="rounding", rounding=rounding, tile_rows=4, max_choices=4)
    x = tokens(40)
    logits = moebius.router_gemm(x, module.router.detach())
    before = moebius.route(logits, 2)[1]
    check(module, x, 2e-6, before=before)
    out, routing = module(x, return_routing=True)
    assert (routing.counts % 4 == 0).all() and routing.report[1] == routing.report[2] == routing.counts.sum()
    assert (module(x, ids=routing.ids) == out).all()  # the rounded choices can be replayed
    module.eval()
    assert (module(x, return_routing=True)[1].ids == before).all()


def test_what_needs_no_gradient():
    module, x = make(bias=True), tokens().requires_grad_()
    module(x).sum().backward()
    wanted, of_x = gradients(module), x.grad.clone()
    for frozen in (["w13", "w2", "bias13", "bias2"], ["router"], ["w2"], list(wanted)):
        part = copy.deepcopy(module)
        part.zero_grad()
        x.grad = None
        for name in frozen:
            getattr(part, name).requires_grad_(False)
        part(x).sum().backward()
        got = gradients(part)
        assert got.keys() == wanted.keys() - set(frozen) and (x.grad == of_x).all()
        assert all((value == wanted[name]).all() for name, value in got.items())
    module.zero_grad()
    module(x.detach()).sum().backward()
    assert all((value == wanted[name]).all() for name, value in gradients(module).items())


def test_no_tokens_and_experts_without_tokens():
    module = make(bias=True)
    module(tokens(0)).sum().backward()
    assert all((value == 0).all() for value in gradients(module).values())
    module.zero_grad()
    module(tokens(), ids=torch.full((TOKENS, 1), 3)).sum().backward()
    assert (module.w13.grad[:3] == 0).all() and (module.w2.grad[4:] == 0).all() and (module.w13.grad[3] != 0).any()


def test_residual_and_shared_of_moe_have_gradients():
    module, x = make(), tokens()
    weights, ids = moebius.route(torch.randn(TOKENS, EXPERTS), 2)
    residual, shared = tokens().requires_grad_(), tokens().requires_grad_()
    d_out = tokens()
    out = moebius.moe(x, module.w13, module.w2, weights, ids, residual=residual, shared=shared)
    (out * d_out).sum().backward()
    assert (residual.grad == d_out).all() and (shared.grad == d_out).all()


def test_autocast():
    module, x = make(bias=True), tokens().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert x.grad.dtype == torch.float32 and all(value.dtype == torch.float32 for value in gradients(module).values())
    with torch.no_grad():
        assert reference.calc_diff(out.detach().float(), module(x)) < 1e-4


def test_there_is_no_second_derivative():
    module, x = make(), tokens().requires_grad_()
    with pytest.raises(NotImplementedError, match="torch.ops.moebius.moe_backward: there is no backward pass for this"):
        torch.autograd.grad(module(x).square().sum(), x, create_graph=True)


def test_it_learns():
    """A step against the gradient makes the loss smaller, and the load more even."""
    module, x = make(routing="rounding", tile_rows=4), tokens(64)
    target = torch.tanh(x.roll(1, 1))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        out, routing = module(x, return_routing=True)
        loss = (out - target).square().mean() + 0.01 * routing.load_balance + 1e-4 * routing.z
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_module_like_others():
    module = make(bias=True)
    assert repr(module).startswith(
        "MoE(hidden=24, intermediate=16, n_experts=6, top_k=2, activation='swiglu', bias=True"
    )
    other = make(bias=True)
    other.load_state_dict(module.state_dict())
    x = tokens()
    assert (other(x) == module(x)).all() and set(module.state_dict()) == {"router", "w13", "w2", "bias13", "bias2"}
    assert module.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    meta = MoE(8, 8, 4, 2, device="meta")
    assert meta(torch.empty(3, 8, device="meta")).shape == (3, 8)


WRONG = [
    ({"activation": "tanh"}, "activation is 'tanh'; it must be one of 'swiglu', 'geglu'"),
    ({"routing": "hash"}, "routing is 'hash'; it must be one of 'topk', 'rounding'"),
    ({"rounding": "odd"}, "rounding is 'odd'"),
    ({"order": "topk"}, "order is 'topk'"),
    ({"top_k": 7}, r"top_k is 7; it must be in \[1, 6\]"),
    ({"tile_rows": 0}, "tile_rows is 0; it must be at least 1"),
    ({"grad_dtype": torch.float16}, "grad_dtype is torch.float16; it must be torch.float32"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG)
def test_wrong_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**options)


def test_float32_does_not_train_on_a_gpu():
    """By tensors without data: there need be no GPU."""
    with (
        FakeTensorMode(),
        pytest.raises(moebius.Error, match="MoE: the layer is float32 on cuda:0, where it trains in"),
    ):
        make(device="cuda:0")(torch.empty(3, HIDDEN, device="cuda:0"))
    with FakeTensorMode(), torch.no_grad():
        make(device="cuda:0")(torch.empty(3, HIDDEN, device="cuda:0"))
    with FakeTensorMode():
        make(device="cuda:0", dtype=torch.bfloat16)(torch.empty(3, HIDDEN, device="cuda:0", dtype=torch.bfloat16))


def test_wrong_inputs():
    module = make()
    with pytest.raises(TypeError, match="moe: w13 has dtype torch.float32; it must be bfloat16"):
        module(tokens(dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"router_gemm: weight has shape \(6, 24\); it must be \(6, 23\)"):
        module(tokens()[:, :-1])
    with pytest.raises(moebius.Error, match="ids of token 0 have expert 2 twice"):
        module(tokens(), ids=torch.full((TOKENS, 2), 2))
    for shape in ((2 * TOKENS, 2), (2, TOKENS), (TOKENS,), (TOKENS, 0), (TOKENS, EXPERTS + 1), ()):
        with pytest.raises(ValueError, match=r"MoE: ids has shape .*; it must be \[T, K\] with T 17 and K in \[1, 6\]"):
            module(tokens(), ids=torch.full(shape, -1))
    for ids in (torch.full((TOKENS, 1), 1.7), torch.ones(TOKENS, 1, dtype=torch.bool)):
        with pytest.raises(TypeError, match="MoE: ids has dtype .*; it must be int32 or int64"):
            module(tokens(), ids=ids)
    for dtype in (torch.float64, torch.int32):
        with pytest.raises(ValueError, match=f"MoE: keep_main_grads: dtype is {dtype}; it must be torch.float32"):
            module.keep_main_grads(dtype)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="needs PyTorch 2.10")
def test_copies_keep_the_gradients_dtype():
    module = make(dtype=torch.bfloat16, bias=True, grad_dtype=torch.float32)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other(tokens(dtype=torch.bfloat16)).sum().backward()
        assert {value.grad.dtype for name, value in other.named_parameters() if name != "router"} == {torch.float32}


def test_the_functions_of_training_are_those_of_numpy():
    module, x = make(bias=True), tokens()
    weights, ids = moebius.route(torch.randn(TOKENS, EXPERTS), 2)
    parameters = [value.detach() for value in (module.w13, module.w2)]
    terms = {"bias13": module.bias13.detach(), "bias2": module.bias2.detach()}
    out, p = training.moe(x, *parameters, weights, ids, **terms)
    got = training.moe_backward(x, *parameters, weights, ids, out, p=p, **terms)
    numpy_terms = {name: value.numpy() for name, value in terms.items()}
    arrays = [value.numpy() for value in (x, *parameters, weights, ids, out)]
    for one, other in zip(got, training.moe_backward(*arrays, **numpy_terms), strict=True):
        assert (one.numpy() == other).all()
    none = training.moe_backward(x, *parameters, weights, ids, out, parameters=False)
    assert none.dw13 is None and none.dbias2 is None and none.dx is not None
    nothing = training.moe_backward(x, *parameters, weights, ids, out, dx=False, dweights=False, parameters=False)
    assert nothing == (None,) * 6
