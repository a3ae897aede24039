"""moebius as the experts of Hugging Face transformers, and fused_experts with the parameters of vLLM and SGLang."""

import moe_reference as reference
import pytest

torch = pytest.importorskip("torch")

import moebius  # noqa: E402


def normal(*shape):
    return torch.randn(shape)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(20261123)


@pytest.fixture
def experts():
    pytest.importorskip("transformers")
    import moebius.integrations.transformers as module

    module.register()
    return module


@pytest.fixture
def config():
    transformers = pytest.importorskip("transformers")
    return transformers.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=48,
        moe_intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=12,
        num_experts_per_tok=3,
        norm_topk_prob=True,
    )


def randomised(model):
    """The model with weights so large that the experts decide the result."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(normal(*parameter.shape) / parameter.shape[-1] ** 0.5)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qwen3_moe_gives_what_eager_gives(experts, config, dtype, monkeypatch):
    transformers = pytest.importorskip("transformers")
    model = randomised(transformers.Qwen3MoeForCausalLM(config)).to(dtype)
    tokens = torch.randint(0, 64, (2, 17))
    with torch.no_grad():
        model.set_experts_implementation("eager")
        expected = model(tokens).logits
        original, calls = experts.moe, []
        monkeypatch.setattr(experts, "moe", lambda *inputs, **options: calls.append(1) or original(*inputs, **options))
        model.set_experts_implementation("moebius")
        got = model(tokens).logits
    assert len(calls) == config.num_hidden_layers
    difference = reference.calc_diff(got.double().numpy(), expected.double().numpy())
    assert difference < (1e-11 if dtype == torch.float32 else 1e-4)


def test_qwen3_moe_generates_the_same_tokens(experts, config):
    transformers = pytest.importorskip("transformers")
    model = randomised(transformers.Qwen3MoeForCausalLM(config))
    tokens = torch.randint(0, 64, (1, 5))
    generated = []
    for implementation in ("eager", "moebius"):
        model.set_experts_implementation(implementation)
        generated.append(model.generate(tokens, max_new_tokens=12, do_sample=False, pad_token_id=0))
    assert generated[0].shape[1] > 5 and (generated[0] == generated[1]).all()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_qwen3_moe_trains_as_eager_does(experts, config, checkpointed):
    transformers = pytest.importorskip("transformers")
    config.output_router_logits = True  # adds the load-balancing loss
    model = randomised(transformers.Qwen3MoeForCausalLM(config)).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    tokens = torch.randint(0, 64, (2, 17))
    losses, gradients = [], []
    for implementation in ("eager", "moebius"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: value.grad.double().numpy() for name, value in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, expected in gradients[0].items():
        assert reference.calc_diff(gradients[1][name], expected) < 1e-9, name


def test_qwen3_moe_trains_under_autocast(experts, config):
    transformers = pytest.importorskip("transformers")
    model = randomised(transformers.Qwen3MoeForCausalLM(config)).train()
    tokens = torch.randint(0, 64, (2, 17))
    gradients = []
    for implementation in ("eager", "moebius"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(tokens, labels=tokens).loss.backward()
        gradients.append(model.model.layers[0].mlp.experts.down_proj.grad.double().numpy())
    assert reference.calc_diff(gradients[1], gradients[0]) < 1e-3


def test_a_compiled_block_is_one_graph(experts, config):
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config._experts_implementation = "moebius"
    block = randomised(Qwen3MoeSparseMoeBlock(config))
    x = normal(2, 9, 64)
    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=1e-6)


def test_choices_of_other_ranks_add_nothing(experts, config, monkeypatch):
    """transformers' expert parallelism gives such choices the id after the last local one."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config._experts_implementation = "moebius"
    module = randomised(Qwen3MoeExperts(config))
    x, ids = normal(5, 64), torch.randint(0, 12, (5, 3))
    weights = torch.rand(5, 3)
    elsewhere = torch.zeros(5, 3, dtype=torch.bool)
    elsewhere[1], elsewhere[3, 2] = True, True
    original, n_experts = experts.moe, []
    monkeypatch.setattr(
        experts,
        "moe",
        lambda *inputs, **options: n_experts.append(options["n_experts"]) or original(*inputs, **options),
    )
    with torch.no_grad():
        got = module(x, ids.masked_fill(elsewhere, 12), weights)
        config._experts_implementation = "eager"
        expected = module(x, ids, weights.masked_fill(elsewhere, 0))
    assert n_experts == [13] and (got[1] == 0).all()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def fp8_experts(config):
    from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS, FP8Experts
    from transformers.integrations.moe import use_experts_implementation

    made = use_experts_implementation(experts_class=FP8Experts, experts_interface=ALL_FP8_EXPERTS_FUNCTIONS)
    config._experts_implementation = "moebius"
    return made(config=config, block_size=(128, 128))


def test_experts_of_an_fp8_checkpoint(experts, config):
    config.hidden_size, config.moe_intermediate_size = 256, 128
    module = fp8_experts(config)
    wide = []
    with torch.no_grad():
        for name in ("gate_up_proj", "down_proj"):
            weight, scale = getattr(module, name), getattr(module, name + "_scale_inv")
            weight.copy_((normal(*weight.shape) * 16).to(weight.dtype))
            scale.copy_((torch.rand(scale.shape) + 0.5) / 256)
            wide.append(reference.dequantised(weight.double().numpy(), scale.double().numpy()))
        x = normal(6, 256).bfloat16()
        weights, ids = torch.rand(6, 3), torch.randint(0, 12, (6, 3))
        got = module(x, ids, weights)

    def rounded(values):
        return torch.as_tensor(values).bfloat16().double().numpy()

    expected = reference.moe(x.double().numpy(), *wide, weights.double().numpy(), ids.numpy(), rounded)
    assert got.dtype == torch.bfloat16 and reference.calc_diff(got.double().numpy(), expected) < 1e-5


def test_experts_that_compute_something_else_are_refused(experts, config):
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config._experts_implementation = "moebius"
    x, ids, weights = normal(5, 64), torch.zeros(5, 3, dtype=torch.long), torch.rand(5, 3)
    module = randomised(Qwen3MoeExperts(config))
    module.is_transposed = True
    with pytest.raises(NotImplementedError, match="transposed"):
        module(x, ids, weights)
    module = randomised(Qwen3MoeExperts(config))
    module.act_fn = torch.nn.Tanh()
    with pytest.raises(NotImplementedError, match="Tanh"):
        module(x, ids, weights)
    module = fp8_experts(config)
    module.activation_scheme = "static"
    with pytest.raises(NotImplementedError, match="dynamically"):
        module(x, ids, weights)

    class OwnGate(Qwen3MoeExperts):
        def _apply_gate(self, gate_up):
            return gate_up[..., :40]

    with pytest.raises(NotImplementedError, match="gate of its own"):
        randomised(OwnGate(config))(x, ids, weights)


# ---- fused_experts


@pytest.fixture
def layer():
    weights, ids = moebius.route(normal(7, 8), 3)
    return normal(7, 32), normal(8, 48, 32) / 6, normal(8, 32, 24) / 5, weights, ids


def test_fused_experts_is_moe(layer):
    from moebius.integrations.fused_moe import fused_experts

    x, w1, w2, weights, ids = layer
    expected = moebius.moe(*layer)
    assert (fused_experts(x, w1, w2, weights, ids.long()) == expected).all()
    geglu = fused_experts(x, w1, w2, weights, ids, activation="gelu_tanh")
    assert (geglu == moebius.moe(*layer, activation="geglu")).all()
    assert fused_experts(x, w1, w2, weights, ids, inplace=True) is x
    assert (x == expected).all()


def test_fused_experts_with_an_expert_map(layer):
    from moebius.integrations.fused_moe import fused_experts

    x, w1, w2, weights, ids = layer
    total = torch.zeros_like(x)
    for mine in ([0, 3, 6], [1, 2, 4, 5, 7]):
        expert_map = torch.full((8,), -1, dtype=torch.int32)
        expert_map[mine] = torch.arange(len(mine), dtype=torch.int32)
        total += fused_experts(x, w1[mine], w2[mine], weights, ids, global_num_experts=8, expert_map=expert_map)
    torch.testing.assert_close(total, moebius.moe(*layer), rtol=1e-5, atol=1e-5)


OUTSIDE = [-1, -8, 8, 9, 2**31 - 1, -(2**31), 2**32, 2**32 + 1, 2**40 + 3, -(2**63)]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, torch.uint32])
@pytest.mark.parametrize("mapped", [False, True])
def test_fused_experts_drops_ids_that_are_no_experts(layer, dtype, mapped):
    """Each such id alone, and all together; without a map and with the identity as the map."""
    from moebius.integrations.fused_moe import fused_experts

    x, w1, w2, weights, ids = layer
    limits = torch.iinfo(dtype)
    outside = [value for value in OUTSIDE if limits.min <= value <= limits.max]
    options = {"global_num_experts": 8, "expert_map": torch.arange(8, dtype=torch.int32)} if mapped else {}
    for values in (*([value] for value in outside), outside):
        some, kept = ids.long(), weights.clone()
        for i in range(len(values) if len(values) > 1 else 2):
            some[i % 7, i % 3], kept[i % 7, i % 3] = values[i % len(values)], 0
        got = fused_experts(x, w1, w2, weights, some.to(dtype), **options)
        torch.testing.assert_close(got, moebius.moe(x, w1, w2, kept, ids), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("map_dtype", [torch.int32, torch.int64])
def test_fused_experts_of_a_map_without_local_experts(layer, map_dtype):
    from moebius.integrations.fused_moe import fused_experts

    x, w1, w2, weights, ids = layer
    nothing = torch.full((8,), -1, dtype=map_dtype)
    for n_local in (3, 0):
        arguments = x.clone(), w1[:n_local], w2[:n_local], weights, ids.long()
        assert (fused_experts(*arguments, global_num_experts=8, expert_map=nothing) == 0).all()
        assert fused_experts(*arguments, expert_map=nothing, inplace=True) is arguments[0]
        assert (arguments[0] == 0).all()


@pytest.mark.parametrize("mapped", [False, True])
def test_fused_experts_of_no_tokens(layer, mapped):
    from moebius.integrations.fused_moe import fused_experts

    x, w1, w2, weights, ids = layer
    expert_map = torch.arange(8) if mapped else None
    for dtype in (torch.int32, torch.int64):
        arguments = x[:0], w1, w2, weights[:0], ids[:0].to(dtype)
        assert fused_experts(*arguments, expert_map=expert_map).shape == (0, 32)


@pytest.mark.parametrize("block_shape", [[128, 128], None])
def test_fused_experts_with_float8_weights(layer, block_shape):
    from moebius.integrations.fused_moe import fused_experts

    x, w1, w2, weights, ids = layer
    x, w1, w2 = x.bfloat16(), (w1 * 64).to(torch.float8_e4m3fn), (w2 * 64).to(torch.float8_e4m3fn)
    shape = (8, 1, 1) if block_shape else (8, 1)
    scales = {"w1_scale": torch.rand(shape) / 64, "w2_scale": torch.rand(shape) / 64}
    if not block_shape:
        scales |= {"a1_scale": torch.tensor(0.1), "a2_scale": torch.tensor(0.1)}
    got = fused_experts(x, w1, w2, weights, ids, use_fp8_w8a8=True, block_shape=block_shape, **scales)
    wide1, wide2 = (
        w.double() * scales[name].view(8, 1, 1).double() for w, name in ((w1, "w1_scale"), (w2, "w2_scale"))
    )

    def rounded(values):
        return torch.as_tensor(values).bfloat16().double().numpy()

    wide = [tensor.double().numpy() for tensor in (x, wide1, wide2, weights)]
    assert reference.calc_diff(got.double().numpy(), reference.moe(*wide, ids.numpy(), rounded)) < 1e-5


WRONG = {
    "activation": ("gelu", "activation is 'gelu'"),
    "block_shape": ([64, 64], "block_shape is"),
    "use_fp8_w8a8": (True, "use_fp8_w8a8 is True, but w1 has dtype torch.float32"),
    "global_num_experts": (16, "expert_map is None"),
    "expert_map": (torch.zeros(9, 1, dtype=torch.int32), "expert_map has shape"),
    "global_num_experts, too few": (7, "global_num_experts is 7, but w1 holds 8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_fused_experts_names_what_is_wrong(layer, name):
    from moebius.integrations.fused_moe import fused_experts

    value, text = WRONG[name]
    with pytest.raises(ValueError, match=text):
        fused_experts(*layer, **{name.split(",")[0]: value})


FUSED_TENSORS = ["hidden_states", "w1", "w2", "topk_weights", "topk_ids"]
FUSED_OPTIONAL = ["expert_map", "w1_scale", "w2_scale", "w1_bias", "w2_bias", "a1_scale", "a2_scale"]


@pytest.mark.parametrize("name", FUSED_TENSORS + FUSED_OPTIONAL)
def test_fused_experts_wants_tensors(layer, name):
    from moebius.integrations.fused_moe import fused_experts

    arguments = dict(zip(FUSED_TENSORS, layer, strict=True))
    with pytest.raises(TypeError, match=f"fused_experts: {name} is a list; it must be a torch.Tensor"):
        fused_experts(**{**arguments, name: [1.0]})
    if name in FUSED_TENSORS:
        with pytest.raises(TypeError, match=f"fused_experts: {name} is None; it must be a torch.Tensor"):
            fused_experts(**{**arguments, name: None})


def test_fused_experts_wants_integers(layer):
    from moebius.integrations.fused_moe import fused_experts

    x, w1, w2, weights, ids = layer
    with pytest.raises(TypeError, match="fused_experts: topk_ids has dtype torch.float32"):
        fused_experts(x, w1, w2, weights, ids.float())
    with pytest.raises(TypeError, match="fused_experts: expert_map has dtype torch.bool"):
        fused_experts(x, w1, w2, weights, ids, expert_map=torch.ones(8, dtype=torch.bool))
    with pytest.raises(ValueError, match="expert_map is on meta"):
        fused_experts(x, w1, w2, weights, ids, expert_map=torch.arange(8, device="meta"))
