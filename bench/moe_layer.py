"""One MoE layer of Qwen3, from a checkpoint or of random weights; Hugging Face's block with it; its result in fp32."""

import copy
import dataclasses
import json
import pathlib

import torch
import torch.nn.functional as F

BLOCK = 128  # of fp8 scales
E4M3_MAX = 448.0
# T does not belong to a layer; these are H, I, E, K.
QWEN3_30B_A3B = (2048, 768, 128, 8)


@dataclasses.dataclass
class Layer:
    """Weights in the compute dtype. With fp8 they are what w13_fp8 * w13_scale gives, exactly, rounded to that dtype."""

    gate: torch.Tensor  # [E, H]
    w13: torch.Tensor  # [E, 2I, H]: gate rows, then up rows
    w2: torch.Tensor  # [E, H, I]
    norm: torch.Tensor  # [H]: what the norm in front multiplies by, so that inputs look like the model's
    top_k: int
    renormalize: bool
    source: str
    fp8: tuple = None  # w13, w13_scale, w2, w2_scale

    @property
    def shape(self):
        n_experts, hidden, intermediate = self.w2.shape
        return {"H": hidden, "I": intermediate, "E": n_experts, "K": self.top_k}

    def tokens(self, n_tokens):
        # A generator of its own: a capture that failed leaves the default one unusable.
        generator = torch.Generator(self.w2.device).manual_seed(n_tokens)
        x = torch.randn(n_tokens, self.w2.shape[1], device=self.w2.device, generator=generator)
        return (x * self.norm.float()).to(self.w2.dtype)

    def router_logits(self, x):
        return F.linear(x, self.gate)

    def routing(self, logits):
        """Weights and ids as the block of Hugging Face computes them, before it rounds the weights."""
        weights, ids = F.softmax(logits, dtype=torch.float, dim=-1).topk(self.top_k, dim=-1)
        if self.renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, ids


def dequantize(weight, scale):
    rows, cols = weight.shape[-2:]
    scale = scale.repeat_interleave(BLOCK, -2)[..., :rows, :].repeat_interleave(BLOCK, -1)[..., :cols]
    return weight.float() * scale


def quantize(weight):
    """fp8 e4m3 with a scale for each 128 x 128 block, as Qwen3's FP8 checkpoints have it."""
    count, rows, cols = weight.shape
    n_row_blocks, n_col_blocks = -(-rows // BLOCK), -(-cols // BLOCK)
    padded = F.pad(weight.float(), (0, n_col_blocks * BLOCK - cols, 0, n_row_blocks * BLOCK - rows))
    blocks = padded.view(count, n_row_blocks, BLOCK, n_col_blocks, BLOCK)
    scale = blocks.abs().amax(dim=(2, 4)).clamp(min=1e-12) / E4M3_MAX
    scaled = (blocks / scale[:, :, None, :, None]).reshape(count, n_row_blocks * BLOCK, n_col_blocks * BLOCK)
    return scaled[:, :rows, :cols].to(torch.float8_e4m3fn).contiguous(), scale.contiguous()


def with_fp8(layer):
    """The same layer with weights that fp8 can hold, each expert by itself so that little more memory is needed."""
    if layer.w2.shape[2] % BLOCK or layer.w2.shape[1] % BLOCK:
        raise SystemExit(f"fp8: H and I must be multiples of {BLOCK}, this layer has {layer.shape}")
    parts = []
    for weight in (layer.w13, layer.w2):
        pairs = [quantize(weight[e : e + 1]) for e in range(len(weight))]
        for e, (values, scale) in enumerate(pairs):
            weight[e] = dequantize(values[0], scale[0]).to(weight.dtype)
        parts += [torch.cat([values for values, _ in pairs]), torch.cat([scale for _, scale in pairs])]
    layer.fp8 = tuple(parts)
    return layer


def random_layer(shape, dtype, device):
    hidden, intermediate, n_experts, top_k = shape

    def weights(*size):
        return torch.randn(*size, device=device, dtype=dtype) / size[-1] ** 0.5

    gate = weights(n_experts, hidden)
    w13, w2 = weights(n_experts, 2 * intermediate, hidden), weights(n_experts, hidden, intermediate)
    norm = torch.ones(hidden, device=device)
    return Layer(gate, w13, w2, norm, top_k, True, "random weights")


class _Checkpoint:
    """Tensors by name out of a folder's safetensors files."""

    def __init__(self, folder):
        from safetensors import safe_open

        self.folder, self.open = pathlib.Path(folder), safe_open
        index = self.folder / "model.safetensors.index.json"
        self.files = json.loads(index.read_text())["weight_map"] if index.exists() else None

    def tensor(self, name, optional=False):
        file = self.files.get(name) if self.files is not None else "model.safetensors"
        if file is not None:
            with self.open(self.folder / file, "pt") as tensors:
                if name in tensors.keys():
                    return tensors.get_tensor(name)
        if optional:
            return None
        raise SystemExit(f"{self.folder}: there is no tensor {name}")

    def weight(self, name):
        """A matrix in fp32, and its fp8 values and scales when the checkpoint holds such."""
        values, scale = self.tensor(name + ".weight"), self.tensor(name + ".weight_scale_inv", optional=True)
        return (values.float(), None) if scale is None else (dequantize(values, scale.float()), (values, scale.float()))


def load_layer(folder, i_layer, dtype, device):
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    n_experts = config.get("num_experts", config.get("num_local_experts", 0))
    checkpoint, prefix = _Checkpoint(folder), f"model.layers.{i_layer}."
    if not n_experts or checkpoint.tensor(prefix + "mlp.gate.weight", optional=True) is None:
        raise SystemExit(f"{folder}: layer {i_layer} is not an MoE layer; name another with --layer")
    w13, w2, fp8 = [], [], []
    for e in range(n_experts):
        gate, up, down = (checkpoint.weight(f"{prefix}mlp.experts.{e}.{part}_proj") for part in ("gate", "up", "down"))
        w13.append(torch.cat([gate[0], up[0]]).to(device, dtype))
        w2.append(down[0].to(device, dtype))
        if gate[1] and gate[0].shape[0] % BLOCK == 0:
            merged = [torch.cat([a, b]) for a, b in zip(gate[1], up[1])]
            fp8.append([part.to(device) for part in (*merged, *down[1])])
    layer = Layer(
        gate=checkpoint.tensor(prefix + "mlp.gate.weight").to(device, dtype),
        w13=torch.stack(w13),
        w2=torch.stack(w2),
        norm=checkpoint.tensor(prefix + "post_attention_layernorm.weight").to(device),
        top_k=config["num_experts_per_tok"],
        renormalize=bool(config.get("norm_topk_prob", False)),
        source=f"{pathlib.Path(folder).resolve().name}, layer {i_layer}",
    )
    if fp8:
        layer.fp8 = tuple(torch.stack([parts[i] for parts in fp8]).contiguous() for i in range(4))
    return layer


def hugging_face_block(layer, implementation):
    """Qwen3MoeSparseMoeBlock of transformers on the layer's own memory."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    n_experts, hidden, intermediate = layer.w2.shape
    config = Qwen3MoeConfig(
        hidden_size=hidden,
        moe_intermediate_size=intermediate,
        num_experts=n_experts,
        num_experts_per_tok=layer.top_k,
        norm_topk_prob=layer.renormalize,
        hidden_act="silu",
    )
    config = copy.deepcopy(config)
    config._experts_implementation = implementation
    with torch.device("meta"):
        block = Qwen3MoeSparseMoeBlock(config)
    names = {"experts.gate_up_proj": layer.w13, "experts.down_proj": layer.w2, "gate.weight": layer.gate}
    block.load_state_dict(names, assign=True)
    return block.eval().requires_grad_(False)


def truth(layer, x, logits):
    """The layer's output for x in fp32, nothing rounded in between."""
    weights, ids = layer.routing(logits.float())
    x, out = x.float(), torch.zeros(x.shape, device=x.device)
    for e in ids.unique().tolist():
        tokens, choices = torch.where(ids == e)
        gate, up = F.linear(x[tokens], layer.w13[e].float()).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, layer.w2[e].float())
        out.index_add_(0, tokens, y * weights[tokens, choices, None])
    return out


def without_ties(layer, logits):
    """Tokens whose choice is unambiguous: the best logit not chosen is smaller than the last chosen one."""
    if layer.top_k == logits.shape[1]:
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    best = logits.float().topk(layer.top_k + 1, dim=-1).values
    return best[:, -2] > best[:, -1]


def difference(a, b):
    """1 - 2ab / (a^2 + b^2), 0 for equal ones."""
    a, b = a.double(), b.double()
    return float(1 - 2 * (a * b).sum() / (a * a + b * b).sum())
