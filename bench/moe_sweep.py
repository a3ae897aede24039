#!/usr/bin/env python3
"""
Times every contender on one MoE layer, from T tokens and their router logits, for many T: the rows that plot.py draws.

    python bench/moe_sweep.py --output bench/results/h100-80gb-hbm3/moe.jsonl

Every result is checked against fp32 first; a contender whose result is wrong is not timed. A contender that can be
captured is timed as a CUDA graph.
"""

import argparse
import sys

import torch

from measure import HOW, append_rows, capture, card_name, commit, median_us, moe_figures, row
from moe_contenders import make_all
from moe_layer import QWEN3_30B_A3B, difference, random_layer, truth, with_fp8, without_ties
from moe_vs_torch import DTYPES

# Contenders round as they like; more than this is another result, not another rounding.
MOST_DIFFERENT = {"bf16": 1e-4, "fp16": 1e-4, "tf32": 1e-5, "fp32": 1e-5, "fp8_block": 2e-3, "fp8_row": 5e-3}
N_CHECKED = 128


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,4,16,64,256,704,4096,16384", help="values of T")
    parser.add_argument("--shape", default=",".join(map(str, QWEN3_30B_A3B)), help="H,I,E,K")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", metavar="FILE", default="-", help="append the rows to FILE (default: print them)")
    parser.add_argument("--commit", default=commit(), help="what the rows name as the measured commit")
    return parser.parse_args()


def measure_one(contender, layer, x, logits, n_hit, given):
    """A row, or None and a message when the result is wrong."""
    device = x.device
    clear = without_ties(layer, logits[:N_CHECKED])
    out, expected = contender.experts(x, logits)[:N_CHECKED][clear], truth(layer, x[:N_CHECKED], logits[:N_CHECKED])[clear]
    found = difference(out, expected)
    if not found <= MOST_DIFFERENT[contender.dtype]:
        print(f"T = {len(x)}: {contender.name} is wrong, difference {found:.1e}: not timed", file=sys.stderr)
        return None

    def function():
        contender.experts(x, logits)

    how = "wall clock"
    if device.type == "cuda":
        replay = capture(function) if contender.capturable else None
        how = ("graph" if replay else "launched from Python") + ", L2 flushed"
        function = replay or function
    us = median_us(function, device)
    card, shape = card_name(device), {"T": len(x), **layer.shape}
    figures = moe_figures(card, contender.dtype, shape, n_hit, us)
    # What the package adds is launches from Python; the rows of `moebius bench moe` go by the plain name.
    who = contender.name.replace("moebius", "moebius (Python)")
    return row("moe", who, card, contender.dtype, shape, figures, f"{how}, {HOW}", given.commit)


@torch.inference_mode()
def main():
    given = parse()
    torch.manual_seed(1)
    layer = random_layer([int(n) for n in given.shape.split(",")], DTYPES[given.dtype], torch.device(given.device))
    if given.dtype == "fp8":
        layer = with_fp8(layer)
    contenders, missing = make_all(layer)
    if given.dtype == "fp8":  # the others compute the same weights in bf16, as without --dtype
        contenders = [c for c in contenders if c.dtype.startswith("fp8")]
    for name, why in missing.items():
        print(f"{name}: {why}", file=sys.stderr)
    for n_tokens in map(int, given.tokens.split(",")):
        x = layer.tokens(n_tokens)
        logits = layer.router_logits(x)
        n_hit = layer.routing(logits)[1].unique().numel()
        rows = [measure_one(c, layer, x, logits, n_hit, given) for c in contenders]
        append_rows(given.output, [r for r in rows if r])


if __name__ == "__main__":
    main()
