#!/usr/bin/env python3
"""Makes tests/golden/: tiny random Qwen3-MoE checkpoints and what Hugging Face transformers computes from them.

    python tools/make_goldens.py [--only NAME] [--out tests/golden]

Needs torch, transformers (5.17 was used) and safetensors. Everything runs in fp32 on the CPU with one thread,
and is deterministic for one version of those packages. tests/golden/README.md says what each checkpoint covers.
"""
import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from transformers.utils import logging

from golden_configs import GOLDENS

N_GREEDY = 32
MIN_MARGIN = 1e-3  # least distance of the two best logits at every greedy step, so that greedy has one answer
MIN_ROUTER_MARGIN = 5e-5  # least distance (router logits) of the last expert taken and the first one left out
MAX_NOISE = 1.5e-5  # fp32 against fp64: a golden that rounding can move this far would test rounding
FP8_MAX = 448.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# ---- Weights -------------------------------------------------------------------------------------------------


def is_moe_layer(config, i_layer):
    if i_layer in (config.get("mlp_only_layers") or []):
        return False
    return (i_layer + 1) % config.get("decoder_sparse_step", 1) == 0


def random_weights(config, generator, std):
    """Every tensor of a published checkpoint, by its published name, in fp32."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q_width = config["num_attention_heads"] * head_dim
    kv_width = config["num_key_value_heads"] * head_dim
    weights = {}

    def matrix(name, rows, columns, scale=1.0):
        # std is stated for 64 inputs: wider layers get smaller weights, so that all goldens have lively logits
        deviation = std * scale * math.sqrt(64 / columns)
        weights[name] = torch.randn(rows, columns, generator=generator) * deviation

    def norm(name, width, low=0.5, high=1.5):
        weights[name] = low + (high - low) * torch.rand(width, generator=generator)

    def swiglu(prefix, inner):
        matrix(f"{prefix}.gate_proj.weight", inner, hidden)
        matrix(f"{prefix}.up_proj.weight", inner, hidden)
        matrix(f"{prefix}.down_proj.weight", hidden, inner, 1.5)

    matrix("model.embed_tokens.weight", vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm.weight", hidden)
        for name, rows, columns in (("q", q_width, hidden), ("k", kv_width, hidden), ("v", kv_width, hidden),
                                    ("o", hidden, q_width)):
            matrix(f"{layer}.self_attn.{name}_proj.weight", rows, columns)
            if config.get("attention_bias"):
                weights[f"{layer}.self_attn.{name}_proj.bias"] = 0.3 * torch.randn(rows, generator=generator)
        norm(f"{layer}.self_attn.q_norm.weight", head_dim, 0.7, 1.6)  # around 1.1: attention that is not flat
        norm(f"{layer}.self_attn.k_norm.weight", head_dim, 0.7, 1.6)
        norm(f"{layer}.post_attention_layernorm.weight", hidden)
        if is_moe_layer(config, i):
            matrix(f"{layer}.mlp.gate.weight", config["num_experts"], hidden)
            for e in range(config["num_experts"]):
                swiglu(f"{layer}.mlp.experts.{e}", config["moe_intermediate_size"])
        else:
            swiglu(f"{layer}.mlp", config["intermediate_size"])
    norm("model.norm.weight", hidden)
    if not config.get("tie_word_embeddings"):
        matrix("lm_head.weight", vocab, hidden, 1.3)
    return weights


def is_fp8_weight(name):
    return name.endswith("_proj.weight")  # attention projections and experts; never router, norms, embeddings


def quantise_blocks(weight, block, scale_dtype):
    """Published FP8 layout: one scale for each block x block tile, the last row and column of tiles may be cut."""
    rows, columns = weight.shape
    padded = torch.zeros(math.ceil(rows / block) * block, math.ceil(columns / block) * block)
    padded[:rows, :columns] = weight
    tiles = padded.view(padded.shape[0] // block, block, padded.shape[1] // block, block)
    scale = (tiles.abs().amax(dim=(1, 3)) / FP8_MAX).to(scale_dtype)
    per_element = scale.float().repeat_interleave(block, 0).repeat_interleave(block, 1)[:rows, :columns]
    stored = (weight / per_element).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return stored, scale, stored.float() * per_element


def stored_and_exact(weights, golden):
    """What goes into the files, and the same values in fp32 for the reference run."""
    dtype = DTYPES[golden["dtype"]]
    stored, exact = {}, {}
    for name, weight in weights.items():
        if golden.get("fp8") and is_fp8_weight(name):
            scale_dtype = DTYPES[golden["fp8"]]
            stored[name], stored[f"{name}_scale_inv"], exact[name] = quantise_blocks(weight, 128, scale_dtype)
        else:
            keep_f32 = any(name.endswith(end) for end in golden.get("f32_tensors", ()))
            stored[name] = weight if keep_f32 else weight.to(dtype)
            exact[name] = stored[name].float()
    return stored, exact


def write_weights(directory, tensors, n_shards):
    if n_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    total = sum(t.nbytes for t in tensors.values())
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size >= total / n_shards and len(shards) < n_shards:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file_name = f"model-{i:05d}-of-{n_shards:05d}.safetensors"
        save_file(shard, directory / file_name, metadata={"format": "pt"})
        weight_map.update({name: file_name for name in shard})
    write_json(directory / "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


# ---- config.json in both spellings ---------------------------------------------------------------------------


def new_spelling(golden):
    """What transformers 5.17 itself writes."""
    with tempfile.TemporaryDirectory() as scratch:
        Qwen3MoeConfig(**golden["config"], dtype=golden["dtype"], architectures=["Qwen3MoeForCausalLM"],
                       rope_parameters=golden["rope"]).save_pretrained(scratch)
        return json.loads((Path(scratch) / "config.json").read_text())


def old_spelling(golden):
    """The keys of the checkpoints published in 2025."""
    rope = dict(golden["rope"])
    theta = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    scaling = None if kind == "default" else {golden.get("rope_kind_key", "rope_type"): kind, **rope}
    c = golden["config"]
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": c["num_hidden_layers"],
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "use_sliding_window": False,
        **c,
        "rope_scaling": scaling,
        "rope_theta": theta,
        "torch_dtype": golden["dtype"],
        "transformers_version": "4.51.0",
        "use_cache": True,
    }


def make_config(golden, weights):
    config = old_spelling(golden) if golden["keys"] == "old" else new_spelling(golden)
    if golden.get("fp8"):
        plain = [n.removesuffix(".weight") for n in weights if n.endswith(".weight") and not is_fp8_weight(n)
                 and "embed_tokens" not in n and n != "model.norm.weight" and "q_norm" not in n
                 and "k_norm" not in n]
        config["quantization_config"] = {
            "activation_scheme": "dynamic", "fmt": "e4m3", "modules_to_not_convert": sorted(plain),
            "quant_method": "fp8", "weight_block_size": [128, 128],
        }
    return config


# ---- The reference run ---------------------------------------------------------------------------------------


def load_reference(config, exact, dtype):
    """Through from_pretrained on the same config.json, so that HF's reading of its keys is what is tested."""
    with tempfile.TemporaryDirectory() as scratch:
        plain = {k: v for k, v in config.items() if k != "quantization_config"}
        write_json(Path(scratch) / "config.json", plain)
        save_file(exact, Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        model, info = AutoModelForCausalLM.from_pretrained(
            scratch, dtype=dtype, attn_implementation="eager", experts_implementation="eager",
            output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"transformers did not take every tensor: {info}")
    return model.eval()


def greedy(model, ids, banned):
    """32 greedy ids, or None when a step is too close to call or meets an end token."""
    new, cache, step = [], None, torch.tensor([ids])
    for _ in range(N_GREEDY):
        out = model(step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].topk(2)
        if best.values[0] - best.values[1] < MIN_MARGIN or best.indices[0].item() in banned:
            return None
        new.append(best.indices[0].item())
        step = best.indices[:1][None]
    return new


class RouterWatch:
    """Least distance between the router logits around the top-k cut, over every token that ran."""

    def __init__(self, model):
        self.margin = math.inf
        for module in model.modules():
            if type(module).__name__ == "Qwen3MoeTopKRouter":
                module.register_forward_hook(self.look)

    def look(self, router, _inputs, outputs):
        if router.top_k < router.num_experts:
            ranked = outputs[0].sort(dim=-1, descending=True).values
            self.margin = min(self.margin, (ranked[:, router.top_k - 1] - ranked[:, router.top_k]).min().item())


def expect(config, exact, prompts, banned):
    """-> (cases, logprobs, figures), or None when this seed leaves something to rounding."""
    model = load_reference(config, exact, torch.float32)
    double = load_reference(config, exact, torch.float64)
    watch = RouterWatch(double)
    cases, logprobs, noise, margin = [], [], 0.0, math.inf
    for ids in prompts:
        new = greedy(model, ids, banned)
        if new is None:
            return None
        rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        exact_logits = double(torch.tensor([ids + new])).logits[0]
        noise = max(noise, (rows - torch.log_softmax(exact_logits[: len(ids)], -1)).abs().max().item())
        steps = exact_logits[len(ids) - 1: -1].topk(2, dim=-1)
        margin = min(margin, (steps.values[:, 0] - steps.values[:, 1]).min().item())
        if steps.indices[:, 0].tolist() != new or watch.margin < MIN_ROUTER_MARGIN:
            return None
        cases.append({"ids": ids, "greedy": new})
        logprobs.append(rows.float())
    if noise > MAX_NOISE or margin < MIN_MARGIN:
        return None
    flat = torch.cat(logprobs)
    figures = {
        "fp32_noise": noise, "least_greedy_margin": margin,
        "least_router_margin": watch.margin if math.isfinite(watch.margin) else None,
        "mean_top_logprob": flat.max(-1).values.mean().item(),
    }
    return cases, flat, figures


# ---- Files ---------------------------------------------------------------------------------------------------


def write_json(path, value, indent=2):
    path.write_text(json.dumps(value, indent=indent) + "\n")


def round_figures(figures):
    return {k: None if v is None else float(f"{v:.3g}") for k, v in figures.items()}


def make(golden, out):
    banned = set(golden.get("generation", {}).get("eos_token_id", []))
    vocab = golden["config"]["vocab_size"]
    for seed in range(1000):
        generator = torch.Generator().manual_seed(1000 * golden["seed"] + seed)
        prompts = [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in golden["lengths"]]
        weights = random_weights(golden["config"], generator, golden.get("std", 0.15))
        stored, exact = stored_and_exact(weights, golden)
        config = make_config(golden, weights)
        found = expect(config, exact, prompts, banned)
        if found:
            break
    else:
        raise SystemExit(f"{golden['name']}: no seed gives clear greedy answers")
    cases, logprobs, figures = found
    directory = out / golden["name"]
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_json(directory / "config.json", config)
    if "generation" in golden:
        write_json(directory / "generation_config.json", golden["generation"])
    write_weights(directory, stored, golden.get("n_shards", 1))
    # dtype "<f4": little-endian on every machine
    (directory / "logprobs.bin").write_bytes(logprobs.numpy().astype("<f4").tobytes())
    for path in directory.iterdir():
        path.chmod(0o644)  # safetensors makes files that only their owner can read
    write_json(directory / "expect.json", {
        "about": golden["about"], "vocab_size": vocab, "n_positions": logprobs.shape[0],
        "logprobs_file": "logprobs.bin", "figures": round_figures(figures), "cases": cases,
    }, indent=None)
    size = sum(f.stat().st_size for f in directory.iterdir())
    print(f"{golden['name']:24} seed {seed:3}  {size / 1024:7.0f} KiB  {round_figures(figures)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one golden by name")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "golden")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    chosen = [g for g in GOLDENS if arguments.only in (None, g["name"])]
    if not chosen:
        sys.exit(f"no golden is named {arguments.only}")
    for golden in chosen:
        make(golden, arguments.out)


if __name__ == "__main__":
    main()
