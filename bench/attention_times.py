#!/usr/bin/env python3
"""
Attention of prompts and of decode steps on a GPU, kernel by kernel, as rows: runs the checks that time them and reads what
they print.

    python bench/attention_times.py [--programs build/cuda/tests] [--output rows.jsonl --commit ID]

Prefill: `attention_check --times-only`, queries that are the last of a sequence's positions; TFLOP/s of the causal pairs
alone. Decode: `decode_check`, one query a sequence, norm, rotation and the store of its k and v included; TB/s of the cache
that is read. decode_check checks bits, too: when it finds a fault, there are no rows.
"""

import argparse
import datetime
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = r"Hq=(?P<heads>\d+) Hkv=(?P<kv_heads>\d+) D=(?P<D>\d+) L=(?P<context>\d+)"
PREFILL = re.compile(rf"time +(?P<n>\d+) x +(?P<queries>\d+) of (?P<dtype>\w+)/(?P<kv>\w+) {SIZES} +(?P<us>[\d.]+) us +(?P<rate>\d+) TFLOP/s")
DECODE = re.compile(r" *(?P<n>\d+) x +(?P<context>\d+) +cache (?P<kv>\w+) +(?P<us>[\d.]+) us +(?P<rate>[\d.]+) TB/s")
# Of decode_check, which prints no more than what differs: Qwen3-30B-A3B's.
DECODE_SIZES = {"queries": 1, "heads": 32, "kv_heads": 4, "D": 128, "dtype": "bf16"}
HOW = "graph of the kernel, L2 flushed"


def rows_of(text, pass_name, facts):
    """Rows of the lines that have a time."""
    pattern, rate = (PREFILL, "tflops") if pass_name == "prefill" else (DECODE, "tbps")
    for line in text.splitlines():
        match = pattern.match(line)
        if match:
            found = {**DECODE_SIZES, **match.groupdict()}
            shape = {"sequences": int(found["n"])} | {k: int(found[k]) for k in ("queries", "context", "heads", "kv_heads", "D")}
            yield {"bench": "attention", "who": "moebius", **facts, "dtype": found["dtype"], "kv": found["kv"], "pass": pass_name,
                   "shape": shape, "us": float(found["us"]), rate: float(found["rate"]), "how": HOW}  # fmt: skip


def output_of(*command):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"attention_times: {' '.join(map(str, command))}: exit status {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "build/cuda/tests", help="where the checks are")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="append the rows to FILE")
    parser.add_argument("--commit", help="of the programs, for the rows")
    given = parser.parse_args()
    if given.output and not given.commit:
        parser.error("--output needs --commit: a row names the commit of what was measured")
    card = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()[0]
    facts = {"commit": given.commit, "card": card, "date": str(datetime.date.today())}
    programs = {"prefill": ["attention_check", "--times-only"], "decode": ["decode_check"]}
    for pass_name, (program, *options) in programs.items():
        text = output_of(given.programs / program, *options)
        print(text, end="", flush=True)
        rows = list(rows_of(text, pass_name, facts))
        if not rows:
            sys.exit(f"attention_times: {program} printed no times that are understood")
        if given.output:
            with open(given.output, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
