#!/usr/bin/env python3
"""
The floor of the decode and prefill rows in bench/results/, operator by operator: the least time that the bytes and flops of
the model take on the card.

    python bench/engine_floor.py                        a line for each newest row on a card whose rates are known
    python bench/engine_floor.py --layer BATCH CONTEXT  the operators of one layer in one decode step

A matrix counts once a step, and of the experts those that are hit. How many are hit depends on the routing, which these rows
do not hold. So there are two floors: with uniform routing, E (1 - (1 - K/E)^T) experts for T tokens, and with the K experts
that are the fewest possible. `moebius bench` itself counts the experts that its run has hit; take its share of the floor
where a row has one. KV counts at the context that decoding begins with. The shapes are bench/shapes/<model>/config.json.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from performance import newest_rows  # noqa: E402

# Bytes a second, and flops a second beside 16-bit and fp8 weights: those of docs/performance.md.
RATES = {"NVIDIA H100 80GB HBM3": (3.0e12, 700e12, 1400e12), "NVIDIA H200": (4.3e12, 700e12, 1400e12)}
KV_BYTES = {"bf16": 2, "fp16": 2, "fp8_e4m3": 1}
FIRST_LAYER_KV = {"bf16": "bf16", "fp16": "fp16", "fp8_e4m3": "bf16"}  # its cache is never in fp8


def config_of(model):
    path = ROOT / "bench" / "shapes" / model / "config.json"
    return json.loads(path.read_text()) if path.exists() else None


def experts_hit(config, n_tokens, uniform=True):
    n, k = config["num_experts"], config["num_experts_per_tok"]
    return n * (1 - (1 - k / n) ** n_tokens) if uniform else k


def dense_weights(config):
    """Weights of the dense matrices of a layer, by name."""
    head, hidden = config["head_dim"], config["hidden_size"]
    q = config["num_attention_heads"] * head
    return {"qkv": (q + 2 * config["num_key_value_heads"] * head) * hidden, "o": q * hidden}


def layer_work(config, weights, kv, n_tokens, kv_tokens, pairs, uniform):
    """Operator -> (bytes, flops, whether the flops are fp8's) of a layer. kv_tokens: cached tokens that are read; pairs:
    queries times the positions that each sees."""
    is_fp8 = weights.startswith("fp8")
    width, head, hidden = (1 if is_fp8 else 2), config["head_dim"], config["hidden_size"]
    expert = 3 * hidden * config["moe_intermediate_size"]
    router = config["num_experts"] * hidden
    work = {name: (n * width, 2 * n_tokens * n, is_fp8) for name, n in dense_weights(config).items()}
    work["attention"] = (2 * config["num_key_value_heads"] * head * KV_BYTES[kv] * kv_tokens,
                         4 * config["num_attention_heads"] * head * pairs, False)
    work["router"] = (2 * router, 2 * n_tokens * router, False)
    work["experts"] = (experts_hit(config, n_tokens, uniform) * expert * width,
                       2 * n_tokens * config["num_experts_per_tok"] * expert, is_fp8)
    return work


def head_work(config, n_rows):
    n = config["vocab_size"] * config["hidden_size"]
    return 2 * n, 2 * n_rows * n, False


def microseconds(work, rates):
    n_bytes, flops, is_fp8 = work
    return 1e6 * max(n_bytes / rates[0], flops / rates[2 if is_fp8 else 1])


def floor_ms(row, config, rates, uniform):
    """Of one decode step, or of all the row's prompts with every weight read once."""
    batch, length = row["shape"]["batch"], row["shape"]["context"]
    if row["bench"] == "decode":
        n_tokens, kv_tokens, pairs = batch, batch * length, batch * length
    else:
        n_tokens, kv_tokens, pairs = batch * length, 0, batch * length * (length + 1) // 2
    def layer_us(kv):
        layer = layer_work(config, row["weights"], kv, n_tokens, kv_tokens, pairs, uniform)
        return sum(microseconds(work, rates) for work in layer.values())

    us = layer_us(FIRST_LAYER_KV[row["kv"]]) + layer_us(row["kv"]) * (config["num_hidden_layers"] - 1)
    return (us + microseconds(head_work(config, batch), rates)) / 1e3


def measured_ms(row):
    batch, length = row["shape"]["batch"], row["shape"]["context"]
    return 1e3 * (batch if row["bench"] == "decode" else batch * length) / row["tok_s"]


def print_rows():
    print("| pass | weights | KV | batch | context | tokens/s | ms | floor ms, uniform | % | floor ms, fewest experts | % |")
    print("|---" * 11 + "|")
    for (bench, card), rows in sorted(newest_rows().items()):
        for row in rows.values():
            config = config_of(row.get("model", "")) if bench in ("decode", "prefill") and card in RATES else None
            if config is None:
                continue
            ms, shape = measured_ms(row), row["shape"]
            floors = [floor_ms(row, config, RATES[card], uniform) for uniform in (True, False)]
            cells = [f"{floor:.2f} | {100 * floor / ms:.0f}" for floor in floors]
            print(f"| {bench} | {row['weights'].split()[0]} | {row['kv']} | {shape['batch']} | {shape['context']} "
                  f"| {row['tok_s']:.0f} | {ms:.2f} | {' | '.join(cells)} |")


def print_layer(batch, context, model="qwen3-30b-a3b"):
    config, rates = config_of(model), RATES["NVIDIA H100 80GB HBM3"]
    print("| operator | MB, bf16 | floor µs | MB, fp8 weights and KV | floor µs |")
    print("|---" * 5 + "|")
    kinds = [layer_work(config, weights, kv, batch, batch * context, batch * context, True)
             for weights, kv in (("bf16", "bf16"), ("fp8_e4m3", "fp8_e4m3"))]
    for name in kinds[0]:
        cells = [f"{kind[name][0] / 1e6:.1f} | {microseconds(kind[name], rates):.1f}" for kind in kinds]
        print(f"| {name} | {' | '.join(cells)} |")
    sums = [sum(microseconds(work, rates) for work in kind.values()) for kind in kinds]
    print(f"| layer | | {sums[0]:.1f} | | {sums[1]:.1f} |")
    head = microseconds(head_work(config, batch), rates)
    steps = [config["num_hidden_layers"] * us + head for us in sums]
    print(f"| lm_head | | {head:.0f} | | {head:.0f} |")
    print(f"| step | | {steps[0]:.0f} | | {steps[1]:.0f} |")
    print(f"| tokens/s | | {1e6 * batch / steps[0]:.0f} | | {1e6 * batch / steps[1]:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", nargs=2, type=int, metavar=("BATCH", "CONTEXT"))
    given = parser.parse_args()
    if given.layer:
        print_layer(*given.layer)
    else:
        print_rows()


if __name__ == "__main__":
    main()
