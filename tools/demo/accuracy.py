#!/usr/bin/env python3
"""How many of the demo model's 2 000 held-out prompts are answered right, with weights and KV cache in other types.

    python tools/demo/accuracy.py [--device cuda] [--every 10] [--dtype bf16]

A story has no single right answer: stories are counted when they are the reference's, word for word. Needs the Python
package (pip install ., or PYTHONPATH=python) and its library."""

import argparse
import collections
import json
from pathlib import Path

import moebius

ROOT = Path(__file__).resolve().parents[2]
KINDS = [(None, None), ("fp8", None), (None, "fp8"), ("fp8", "fp8")]  # quant, kv_dtype


def answers(engine, rows):
    prompts = [row["prompt_ids"] for row in rows]
    return engine.generate(prompts, temperature=0, max_new_tokens=512)


def is_right(row, text):
    answer = text.rsplit("</think>", 1)[-1].strip("\n")
    return answer == (row["expected"] or row["hf_answer"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--every", type=int, default=1, help="take every n-th prompt")
    given = parser.parse_args()
    with open(ROOT / "models/demo/heldout.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:: given.every]
    print(f"{len(rows)} prompts\n{'weights':28} {'KV cache':10} {'right':>12} {'stories as the reference':>26} {'ids as the reference':>22}")
    for quant, kv_dtype in KINDS:
        right, total, same = collections.Counter(), collections.Counter(), 0
        options = {"device": given.device, "dtype": given.dtype, "quant": quant, "kv_dtype": kv_dtype}
        with moebius.Engine(str(ROOT / "models/demo"), **options) as engine:
            info = engine.info
            for row, answer in zip(rows, answers(engine, rows), strict=True):
                kind = "story" if row["family"] == "story" else "other"
                total[kind] += 1
                right[kind] += is_right(row, answer.text)
                same += answer.ids == row["hf_ids"][:-1]  # its end-of-text token is not delivered
        print(
            f"{info['weight_dtype']:28} {info['kv_dtype']:10} {right['other']:5} of {total['other']:4}"
            f" {right['story']:18} of {total['story']:4} {same:14} of {len(rows):4}"
        )


if __name__ == "__main__":
    main()
