#!/usr/bin/env python3
"""
Draws where the time of a step goes, from what `moebius bench DIR --profile --output FILE` has measured: a panel for each
pass, batch and context, a bar for each operator, its floor as the dark part of the bar.

    python bench/plot_profile.py rows.jsonl [more.jsonl] -o picture.png        (needs matplotlib; .svg works too)
    python bench/plot_profile.py rows.jsonl --pass decode --shapes 1x512,64x1024 -o picture.png      only these panels

Of rows with the same model, card, types, pass and shape the newest counts.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from plot import DPI, OTHERS, OURS, need_matplotlib  # noqa: E402

KEY = ("model", "card", "dtype", "weights", "kv", "pass")


def read_rows(paths):
    """The newest row of each kind, in the order of their first ones."""
    rows = {}
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                sys.exit(f"{path}:{number}: not JSON: {error}")
            if row.get("bench") == "profile":
                rows[tuple(row[key] for key in KEY) + (json.dumps(row["shape"], sort_keys=True),)] = row
    return list(rows.values())


def shape_text(row):
    return f"{row['shape']['batch']}x{row['shape']['context']}"


def bars(row):
    """(label, us, floor us or None, what stands beside the bar, is an operator), the longest first."""
    found = []
    for o in row["operators"]:
        label = o["op"] + (" {}×{}".format(*o["weight"]) if "weight" in o else "")
        note = f"{100 * o['share']:.1f} %"
        if o["tflops"] >= 50:
            note += f", {o['tflops']:,.0f} TFLOP/s"
        elif o["gbps"] >= 10:
            note += f", {o['gbps']:,.0f} GB/s"
        if "floor_us" in o and o["us"] > 0:
            note += f", {100 * o['floor_us'] / o['us']:.0f} % of the floor"
        found.append((label, o["us"], o.get("floor_us"), note, True))
    between = row["between_us"]
    return found + [("between operators", between, None, f"{100 * between / row['device_us']:.1f} %", False)]


def time_text(us):
    return f"{us / 1e3:,.0f} ms" if us >= 1e6 else f"{us / 1e3:.3g} ms" if us >= 100 else f"{us:.3g} µs"


def title(row):
    shape, card = row["shape"], row["card"].replace("NVIDIA ", "")
    return (f"{row['pass']}, batch {shape['batch']}, context {shape['context']}: {row['model']}, {row['weights']} weights, {card}"
            f"\n{time_text(row['device_us'])} on the device when profiled, {time_text(row['step_us'])} when not; "
            f"the host's part {time_text(row['host_us'])}")


def draw(rows, path):
    from matplotlib.figure import Figure

    heights = [1.6 + 0.3 * len(bars(row)) for row in rows]
    figure = Figure(figsize=(8.5, sum(heights)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, row in zip(panels, rows):
        items = bars(row)
        labels, longest = [item[0] for item in items], max(item[1] for item in items)
        has_floors = any(item[2] for item in items)
        colours = [(OURS[1] if has_floors else OURS[0]) if item[4] else OTHERS[4] for item in items]
        axes.barh(labels, [item[1] / 1e3 for item in items], color=colours, height=0.7)
        if has_floors:
            axes.barh(labels, [min(item[2] or 0, item[1]) / 1e3 for item in items], color=OURS[0], height=0.7)
        for label, us, _, note, _ in items:
            axes.annotate(f"{time_text(us)}, {note}", (us / 1e3, label), (4, 0), textcoords="offset points",
                          va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, (1.8 if has_floors else 1.4) * longest / 1e3)
        axes.set_title(title(row), fontsize=9, loc="left")
        axes.set_xlabel("ms of a step" + (", dark: the floor" if has_floors else ""), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(True, axis="x", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Software": None} if path.suffix == ".png" else None
    figure.savefig(path, dpi=DPI, metadata=metadata)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=pathlib.Path, help="files of --output")
    parser.add_argument("--pass", dest="name", choices=("prefill", "decode"), help="only rows of this pass")
    parser.add_argument("--shapes", metavar="BxL,...", help="only rows of these batches and contexts")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="the picture")
    given = parser.parse_args()
    need_matplotlib()
    wanted = given.shapes.split(",") if given.shapes else None
    rows = [row for row in read_rows(given.rows) if given.name in (None, row["pass"]) and (wanted is None or shape_text(row) in wanted)]
    missing = set(wanted or []) - {shape_text(row) for row in rows}
    if missing or not rows:
        of = "".join(f" of {what}" for what in (given.name, ", ".join(sorted(missing))) if what)
        sys.exit(f"there are no rows of bench --profile in these files{of}")
    draw(rows, given.output)
    print(given.output)


if __name__ == "__main__":
    main()
