#!/usr/bin/env python3
"""
Draws what `moebius bench serve --output FILE` has measured, against the load: time to first token, time per output token
(median, and the 99th percentile as a thin line), and tokens per second.

    python bench/plot_serve.py rows.jsonl [more.jsonl] -o picture.png        (needs matplotlib)

The load is the rate of arrivals, or how many requests ran at once. Each server, model, card and kind of prompt is a curve;
of rows with the same load the newest counts.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from plot import DPI, MARKERS, OTHERS, OURS, need_matplotlib  # noqa: E402

PANELS = [
    ("time to first token, ms", lambda r: r["ttft_ms"]["p50"], lambda r: r["ttft_ms"]["p99"]),
    ("time per output token, ms", lambda r: r["tpot_ms"]["p50"], lambda r: r["tpot_ms"]["p99"]),
    ("output tokens/s", lambda r: r["tok_s"], None),
]


def read_rows(paths):
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                sys.exit(f"{path}:{number}: not JSON: {error}")
            if row.get("bench") == "serve":
                rows.append(row)
    return rows


def kinds(rows):
    """"rate" or "concurrency" -> curve's label -> load -> row."""
    found = {}
    for row in rows:
        shape = dict(row["shape"])
        kind = "rate" if "rate" in shape else "concurrency"
        load = shape.pop(kind)
        prompts = f"{shape['in']} in, {shape['out']} out" if "in" in shape else "lengths up to " + str(shape["longest"])
        if "prefix" in shape:
            prompts += f", {shape['prefixes']} prefixes of {shape['prefix']}"
        label = f"{row['who']}, {row['model']} on {row['card'].replace('NVIDIA ', '')}: {prompts}"
        found.setdefault(kind, {}).setdefault(label, {})[load] = row
    return found


def draw(found, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(found), 9.5), layout="constrained")
    panels = figure.subplots(len(PANELS), len(found), squeeze=False, sharex="col")
    for column, (kind, curves) in enumerate(sorted(found.items())):
        for row, (name, middle, high) in enumerate(PANELS):
            axes = panels[row][column]
            i_ours = i_other = 0
            for i, (label, points) in enumerate(sorted(curves.items())):
                is_ours = label.startswith("moebius")
                colour = OURS[i_ours % len(OURS)] if is_ours else OTHERS[i_other % len(OTHERS)]
                i_ours, i_other = i_ours + is_ours, i_other + (not is_ours)
                loads = sorted(points)
                axes.plot(loads, [middle(points[x]) for x in loads], color=colour, label=label,
                          marker="o" if is_ours else MARKERS[i % len(MARKERS)], linewidth=2.2 if is_ours else 1.5)
                if high:
                    axes.plot(loads, [high(points[x]) for x in loads], color=colour, linewidth=0.9, linestyle=(0, (4, 2)))
            axes.set(ylabel=name, xscale="log", **({"yscale": "log"} if high else {"ylim": (0, None)}))
            ticks = sorted({load for points in curves.values() for load in points})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
            axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0][column].set_title("solid: median, dashed: 99th percentile", fontsize=9)
        panels[0][column].legend(fontsize=8, frameon=False)
        panels[-1][column].set_xlabel("requests that arrive in a second" if kind == "rate" else "requests at once")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=pathlib.Path, help="files of --output")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="the picture")
    given = parser.parse_args()
    need_matplotlib()
    found = kinds(read_rows(given.rows))
    if not found:
        sys.exit("there are no rows of bench serve in these files")
    draw(found, given.output)
    print(given.output)


if __name__ == "__main__":
    main()
