#!/usr/bin/env python3
"""
Dense layers of Qwen3 (qkv and o) against torch.matmul, which is cuBLAS: first the results, then the time.

    python bench/gemm_vs_torch.py                           Qwen3-30B-A3B, 64 to 8192 rows, bf16
    python bench/gemm_vs_torch.py --rows 8192 --model 235B --output rows.jsonl

moebius is mb_grouped_gemm with one group, the engine's kernel for more rows than few. Both are graphs of one call; in turns,
twice each, the smaller median counts. Exit status 1 when a result is wrong.
"""

import argparse
import sys

import torch

from measure import HOW, append_rows, capture, card_name, commit, median_us, row

SHAPES = {
    "30B": {"qkv": (5120, 2048), "o": (2048, 4096)},
    "235B": {"qkv": (9216, 4096), "o": (4096, 8192)},
}
ROUNDS = 2
LARGEST_DIFFERENCE = 1e-5  # 1 - 2ab / (a^2 + b^2), against fp32


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="30B")
    parser.add_argument("--rows", default="128,512,2048,4096,8192", help="of x, by commas")
    parser.add_argument("--output", metavar="FILE", help="append the rows to FILE; - prints them")
    parser.add_argument("--commit", default=commit(), help="what the rows name as the measured commit")
    return parser.parse_args()


def difference(a, b):
    a, b = a.double(), b.double()
    return float(1 - 2 * (a * b).sum() / (a * a + b * b).sum())


@torch.inference_mode()
def main():
    given = parse()
    import moebius

    torch.manual_seed(1)
    device = torch.device("cuda")
    card, good = card_name(device), True
    print(f"{card}, torch {torch.__version__}, bf16\n{'':5}{'rows':>6}{'cuBLAS us':>12}{'moebius us':>12}{'TFLOP/s':>9}")
    for name, (n, k) in SHAPES[given.model].items():
        weight = torch.randn(n, k, device=device, dtype=torch.bfloat16) * k**-0.5
        for n_rows in map(int, given.rows.split(",")):
            x = torch.randn(n_rows, k, device=device, dtype=torch.bfloat16)
            calls = {
                "cuBLAS": lambda x=x, w=weight: x @ w.T,
                "moebius": lambda x=x, w=weight: moebius.grouped_gemm(x, w[None]),
            }
            wrong = difference(calls["moebius"](), x.float() @ weight.float().T) > LARGEST_DIFFERENCE
            good = good and not wrong
            graphs = {who: capture(call) for who, call in calls.items()}
            us = {who: float("inf") for who in graphs}
            for _ in range(ROUNDS):
                for who, graph in graphs.items():
                    us[who] = min(us[who], median_us(graph, device))
            tflops = {who: 2e-6 * n_rows * n * k / time for who, time in us.items()}
            share = us["cuBLAS"] / us["moebius"]
            print(
                f"{name:5}{n_rows:6}{us['cuBLAS']:12.1f}{us['moebius']:12.1f}{tflops['moebius']:9.0f}"
                f"  {share:.0%} of cuBLAS{'  WRONG' if wrong else ''}"
            )
            shape = {"T": n_rows, "N": n, "K": k}
            how = f"graph, L2 flushed, {HOW}, the better of {ROUNDS}"
            rows = [
                row("gemm", who, card, "bf16", shape, {"us": round(us[who], 1), "tflops": round(tflops[who])}, how, given.commit)
                for who in us
            ]
            if given.output and not wrong:
                append_rows(given.output, rows)
    if not good:
        sys.exit("gemm_vs_torch: a result is wrong (see above)")


if __name__ == "__main__":
    main()
