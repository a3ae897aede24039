#!/usr/bin/env python3
"""
One MoE layer of Qwen3 against Hugging Face's Qwen3MoeSparseMoeBlock: first the results, then the time.

    python bench/moe_vs_torch.py                                  random weights of Qwen3-30B-A3B's shape
    python bench/moe_vs_torch.py --model_path Qwen3-30B-A3B       a layer of that checkpoint
    python bench/moe_vs_torch.py --dtype fp8 --output rows.jsonl

Prefill is four prompts of 64, 128, 256 and 256 tokens at once, decode 16 sequences of one token. The time is the whole
block's, the router's matrix included. Exit status 1 when moebius is absent or its results are wrong.
"""

import argparse
import sys

import torch

from measure import HOW, append_rows, capture, card_name, commit, median_us, moe_figures, row
from moe_contenders import make_all
from moe_layer import QWEN3_30B_A3B, difference, load_layer, random_layer, truth, with_fp8, without_ties
from plot import draw_block, need_matplotlib

PASSES = {"prefill": (64, 128, 256, 256), "decode": (1,) * 16}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.bfloat16}

# What moebius is held to. Against the truth: 1 - 2ab / (a^2 + b^2). Against HF, which rounds between its steps itself:
# the mean difference as a share of the mean, and the largest as a share of the largest value.
LIMITS = {
    "bf16": (1e-5, 1e-2, 2e-2),
    "fp16": (1e-5, 2e-3, 4e-3),
    "tf32": (1e-5, 2e-3, 4e-3),
    "fp32": (1e-10, 1e-5, 2e-5),
    "fp8_block": (1e-3, 6e-2, 6e-2),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", metavar="DIR", help="folder of a Qwen3-MoE checkpoint; else random weights")
    parser.add_argument("--layer", type=int, default=0, help="which of its layers (default 0)")
    parser.add_argument("--shape", default=",".join(map(str, QWEN3_30B_A3B)), help="H,I,E,K of random weights")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", metavar="FILE", help="append the rows to FILE; - prints them")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw the times as bars (needs matplotlib)")
    parser.add_argument("--commit", default=commit(), help="what the rows name as the measured commit")
    return parser.parse_args()


def make_layer(given):
    dtype, device = DTYPES[given.dtype], torch.device(given.device)
    if given.model_path:
        layer = load_layer(given.model_path, given.layer, dtype, device)
    else:
        layer = random_layer([int(n) for n in given.shape.split(",")], dtype, device)
    if given.dtype != "fp8":
        layer.fp8 = None
    return layer if given.dtype != "fp8" or layer.fp8 else with_fp8(layer)


def check(layer, contenders, n_tokens):
    """Prints everybody's differences; true when moebius is there and within its limits."""
    x = layer.tokens(n_tokens)
    logits = layer.router_logits(x)
    clear = without_ties(layer, logits)
    expected = truth(layer, x, logits)[clear]
    outputs = {c: c.experts(x, logits)[clear].float() for c in contenders}
    hf = next(out for c, out in outputs.items() if c.name == "HF eager")
    print(f"\n{n_tokens} tokens, {int((~clear).sum())} left out because logits at the edge of the choice are equal")
    print(f"  {'':26}{'against fp32':>14}  against HF eager: {'max abs':>9}{'mean rel':>10}")
    verdicts = []
    for c, out in outputs.items():
        to_truth, apart = difference(out, expected), (out - hf).abs()
        largest, mean = float(apart.max()), float(apart.mean() / hf.abs().mean())
        verdict = ""
        if c.name.startswith("moebius"):
            limits = LIMITS[c.dtype]
            fits = to_truth <= limits[0] and mean <= limits[1] and largest <= limits[2] * float(hf.abs().max())
            verdicts.append(fits)
            verdict = "  good" if fits else "  WRONG"
        print(f"  {c.name:26}{to_truth:14.1e}{largest:28.2e}{mean:10.1e}{verdict}")
    return bool(verdicts) and all(verdicts)


def time_all(layer, contenders, name, lengths, given):
    """Rows of the pass, HF eager first."""
    device, n_tokens = layer.w2.device, sum(lengths)
    x = layer.tokens(n_tokens)
    n_hit = layer.routing(layer.router_logits(x))[1].unique().numel()
    card, shape, rows = card_name(device), {"T": n_tokens, **layer.shape}, []
    for c in contenders:
        variants = {"": lambda c=c: c.block(x)}
        replay = capture(variants[""]) if device.type == "cuda" and c.capturable else None
        if replay:
            variants[" (graph)"] = replay
        for suffix, function in variants.items():
            us = median_us(function, device)
            how = f"{layer.source}; {'L2 flushed' if device.type == 'cuda' else 'wall clock'}, {HOW}"
            figures = {"pass": name, "tok_s": round(n_tokens / us * 1e6), **moe_figures(card, c.dtype, shape, n_hit, us)}
            rows.append(row("moe_block", c.name + suffix, card, c.dtype, shape, figures, how, given.commit))
    return rows


def print_times(rows):
    first, shape = rows[0], rows[0]["shape"]
    eager = next(r["us"] for r in rows if r["who"] == "HF eager")
    print(f"\n{first['pass']}: {shape['T']} tokens" + (f", floor {first['floor_us']:.0f} µs" if "floor_us" in first else ""))
    print(f"  {'':34}{'dtype':>10}{'µs':>11}{'tokens/s':>13}{'against HF eager':>19}")
    for r in rows:
        print(f"  {r['who']:34}{r['dtype']:>10}{r['us']:11.1f}{r['tok_s']:13,}{eager / r['us']:18.1f}x")


@torch.inference_mode()
def main():
    given = parse()
    if given.plot:
        need_matplotlib()
    torch.manual_seed(1)
    layer = make_layer(given)
    print(f"{layer.source}, {layer.shape}, {given.dtype}, {card_name(layer.w2.device)}, torch {torch.__version__}")
    contenders, missing = make_all(layer)
    for name, why in missing.items():
        print(f"  {name}: {why}")
    good = all([check(layer, contenders, sum(lengths)) for lengths in PASSES.values()])
    rows = []
    for name, lengths in PASSES.items():
        rows.append(time_all(layer, contenders, name, lengths, given))
        print_times(rows[-1])
    rows = [r for part in rows for r in part if good or not r["who"].startswith("moebius")]  # a wrong result has no time
    if given.output:
        append_rows(given.output, rows)
    if given.plot:
        draw_block(rows, given.plot)
    if not good:
        sys.exit("moe_vs_torch: moebius is not installed here, or its results are wrong (see above)")


if __name__ == "__main__":
    main()
