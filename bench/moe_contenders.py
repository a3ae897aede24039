"""
The contenders, which can compute the layer: Hugging Face, PyTorch's grouped GEMMs, moebius, other libraries if installed.

A contender is made from a layer and raises Missing when it cannot run here. It computes the layer from tokens and
router logits (`experts`), and from tokens alone (`block`: the router's matrix too).
"""

import functools

import torch
import torch.nn.functional as F

from moe_layer import E4M3_MAX, hugging_face_block


class Missing(Exception):
    """Why a contender cannot run here."""


class Contender:
    capturable = True  # in a CUDA graph, as far as is known

    def __init__(self, name, dtype, experts, block=None, router=None, layer=None):
        self.name, self.dtype, self.experts = name, dtype, experts
        router = router or (layer and layer.router_logits)
        self.block = block or (lambda x: experts(x, router(x)))


def dtype_name(layer):
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[layer.w2.dtype]


def hugging_face(implementation, layer):
    block = hugging_face_block(layer, implementation)

    def experts(x, logits):
        weights, ids = layer.routing(logits)
        return block.experts(x, ids, weights.to(x.dtype))

    found = Contender(f"HF {implementation}", dtype_name(layer), experts, lambda x: block(x.unsqueeze(0)).squeeze(0))
    found.capturable = implementation != "eager"  # that one asks the GPU which experts are hit
    return found


def sort_by_expert(ids, n_experts):
    """Sorted order of the T*K choices, the token of each, and where each expert's rows end."""
    sorted_ids, order = ids.flatten().sort(stable=True)
    ends = torch.searchsorted(sorted_ids, torch.arange(n_experts, device=ids.device), right=True)
    return order, order // ids.shape[1], ends.to(torch.int32)


def sum_by_token(y, weights, order):
    """y's rows back in the order of choices, weighted and summed: a product with one row of weights for each token."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return torch.bmm(weights.to(y.dtype).unsqueeze(1), y[back].view(*weights.shape, -1)).squeeze(1)


def torch_grouped_mm(layer):
    """Two torch._grouped_mm, with plain PyTorch around them."""
    if not hasattr(torch, "_grouped_mm"):
        raise Missing(f"torch {torch.__version__} has no _grouped_mm")

    def experts(x, logits):
        weights, ids = layer.routing(logits)
        order, tokens, ends = sort_by_expert(ids, layer.w2.shape[0])
        gate, up = torch._grouped_mm(x[tokens], layer.w13.mT, offs=ends).chunk(2, dim=-1)
        y = torch._grouped_mm(F.silu(gate) * up, layer.w2.mT, offs=ends)
        return sum_by_token(y, weights, order)

    return Contender("torch._grouped_mm", dtype_name(layer), experts, layer=layer)


def torch_scaled_grouped_mm(layer):
    """The same in fp8 with one scale per row of tokens and of weights, which is what PyTorch has."""
    if layer.fp8 is None:
        raise Missing("fp8 only")
    if layer.w2.device.type != "cuda" or not hasattr(torch, "_scaled_grouped_mm"):
        raise Missing("needs a GPU and torch._scaled_grouped_mm")

    def quantize_rows(rows):
        scale = rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
        return (rows.float() / scale).to(torch.float8_e4m3fn), scale.squeeze(-1)

    w13, w13_scale = quantize_rows(layer.w13)
    w2, w2_scale = quantize_rows(layer.w2)

    def experts(x, logits):
        weights, ids = layer.routing(logits)
        order, tokens, ends = sort_by_expert(ids, layer.w2.shape[0])
        x8, x_scale = quantize_rows(x)
        gemm = functools.partial(
            torch._scaled_grouped_mm, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        gate, up = gemm(x8[tokens], w13.mT, x_scale[tokens], w13_scale).chunk(2, dim=-1)
        h8, h_scale = quantize_rows(F.silu(gate) * up)
        return sum_by_token(gemm(h8, w2.mT, h_scale, w2_scale), weights, order)

    return Contender("torch._scaled_grouped_mm", "fp8_row", experts, layer=layer)


def moebius(math, layer):
    """math: "tf32" or "exact" with fp32 weights; without a meaning for the others."""
    try:
        import moebius as library
    except ImportError as error:
        raise Missing(f"not installed: {error}") from None
    dtype, weights, extra = dtype_name(layer), (layer.w13, layer.w2), {"f32": math}
    if layer.fp8 is not None:
        w13, w13_scale, w2, w2_scale = layer.fp8
        dtype, weights = "fp8_block", (w13, w2)
        extra.update(w13_scale=w13_scale, w2_scale=w2_scale)
    elif dtype == "fp32":
        dtype = "tf32" if math == "tf32" else "fp32"
    if math == "exact" and dtype != "fp32":
        raise Missing("fp32 only")

    def experts(x, logits):
        logits = logits.float() if logits.dtype == torch.float16 else logits
        return library.moe_from_logits(
            x, logits, *weights, top_k=layer.top_k, renormalize=layer.renormalize, **extra
        )

    name = "moebius, exact" if math == "exact" else "moebius"
    return Contender(name, dtype, experts, router=lambda x: library.router_gemm(x, layer.gate))


def vllm(layer):
    try:
        from vllm.model_executor.layers.fused_moe import fused_experts
    except ImportError:
        raise Missing("not installed") from None
    if layer.fp8 is not None:
        raise Missing("compared in bf16 and fp16")

    def experts(x, logits):
        weights, ids = layer.routing(logits)
        return fused_experts(x, layer.w13, layer.w2, weights, ids.to(torch.int32))

    return Contender("vLLM fused_experts", dtype_name(layer), experts, layer=layer)


# Name on the command line and in messages, and how it is made. Others run through Hugging Face's own adapters, which
# load them when their package (or `kernels`) is there.
MAKERS = {
    "HF eager": functools.partial(hugging_face, "eager"),
    "HF grouped_mm": functools.partial(hugging_face, "grouped_mm"),
    "HF deepgemm": functools.partial(hugging_face, "deepgemm"),
    "HF sonicmoe": functools.partial(hugging_face, "sonicmoe"),
    "torch._grouped_mm": torch_grouped_mm,
    "torch._scaled_grouped_mm": torch_scaled_grouped_mm,
    "vLLM fused_experts": vllm,
    "moebius": functools.partial(moebius, "tf32"),
    "moebius, exact": functools.partial(moebius, "exact"),
}


def make_all(layer):
    """The contenders that run on this layer here, and a sentence for each of the others."""
    found, missing = [], {}
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise SystemExit("transformers is not installed; it is what the results are checked against") from None
    probe = layer.tokens(2)
    for name, make in MAKERS.items():
        try:
            contender = make(layer)
            contender.experts(probe, layer.router_logits(probe))
            found.append(contender)
        except Missing as reason:
            missing[name] = str(reason)
        except Exception as error:  # many libraries, many reasons, of which the first line is enough
            missing[name] = f"does not run here: {(str(error) or type(error).__name__).splitlines()[0]}"
    return found, missing
