#!/usr/bin/env python3
"""Writes docs/performance.md from bench/results/**/*.jsonl alone: the newest row of each shape stands.

Rows are appended by the benchmarks (docs say how); nothing is typed in by hand. `--check` fails when the page is stale.
"""
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"

HEAD = """# Performance

Made by `tools/performance.py` from the rows in `bench/results/`, one file per card and benchmark; each row says at which
commit and how it was measured. Change the rows, not this page.
"""


def newest_rows():
    """bench -> card -> rows, in file order; a later row of the same shape and maker replaces the earlier one."""
    tables = {}
    for path in sorted((ROOT / "bench" / "results").rglob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                sys.exit(f"{path}:{number}: not JSON: {error}")
            key = json.dumps([row["who"], row.get("model"), row["dtype"], row["shape"]], sort_keys=True)
            tables.setdefault((row["bench"], row["card"]), {})[key] = row
    return tables


def moe_table(rows):
    yield "| T, H, I, E, K | dtype | who | µs | TFLOP/s | floor µs | % of floor | commit |"
    yield "|---|---|---|---|---|---|---|---|"
    for r in rows:
        shape = ", ".join(str(r["shape"][k]) for k in "THIEK")
        share = 100 * r["floor_us"] / r["us"]
        yield (f"| {shape} | {r['dtype']} | {r['who']} | {r['us']:.1f} | {r['tflops']:.1f} | {r['floor_us']:.1f} "
               f"| {share:.0f} | {r['commit']} |")


def engine_table(rows):
    yield "| model | batch | context | compute | weights | KV | tokens/s | commit |"
    yield "|---|---|---|---|---|---|---|---|"
    for r in rows:
        yield (f"| {r['model']} | {r['shape']['batch']} | {r['shape']['context']} | {r['dtype']} | {r['weights']} | {r['kv']} "
               f"| {r['tok_s']:.0f} | {r['commit']} |")


SECTIONS = [
    ("moe", "The MoE layer", "Router and experts, bf16. floor: the larger of the bytes of the distinct experts hit at 3.0 TB/s "
     "and the flops at 700 TFLOP/s; the card reads up to 3.1, so 102 % is possible. `./dev gpu-test --json FILE`.",
     moe_table),
    ("decode", "Decode", "Output tokens per second over all sequences. `moebius bench DIR --json FILE`.", engine_table),
    ("prefill", "Prefill", "Prompt tokens per second over all sequences. `moebius bench DIR --json FILE`.", engine_table),
]


def page():
    tables = newest_rows()
    parts = [HEAD]
    for bench, title, text, table in SECTIONS:
        for (name, card), rows in tables.items():
            if name != bench:
                continue
            values = list(rows.values())
            dates = sorted({r["date"] for r in values})
            hows = sorted({r["how"] for r in values})
            intro = f"{text} Measured {' and '.join(dates)}: {'; '.join(hows)}."
            parts.append(f"## {title}: {card}\n\n{intro}\n\n" + "\n".join(table(values)) + "\n")
    return "\n".join(parts)


def main():
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.exit("docs/performance.md is stale: run tools/performance.py")
        return
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
