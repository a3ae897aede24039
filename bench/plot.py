#!/usr/bin/env python3
"""
Draws docs/img/moe-*.png from bench/results alone: the time of one MoE layer against T, with the floor and every contender
that was measured; below, the share of the floor. One picture for each card, layer and family of dtypes.

    python bench/plot.py             draw all pictures anew (needs matplotlib)
    python bench/plot.py --check     fail when a picture was made from other rows than the newest (needs nothing)

A picture carries the rows that it was made from, as the PNG text "Rows".
"""

import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from performance import MOE_FAMILIES, moe_picture, newest_rows  # noqa: E402

FEWEST_POINTS = 4  # of ours, for a picture
DPI = 160
OURS = ["#0072B2", "#56B4E9"]  # Okabe and Ito's colours, which the colour-blind can tell apart
OTHERS = ["#D55E00", "#009E73", "#CC79A7", "#E69F00", "#7F7F7F", "#000000", "#F0E442"]
MARKERS = ["s", "^", "D", "v", "P", "X", "*"]


def pictures():
    """Path -> rows, by T; without activations, biases and shapes of which there are few."""
    found = {}
    for (bench, card), rows in newest_rows().items():
        if bench != "moe":
            continue
        for row in rows.values():
            if row.get("activation", "swiglu") != "swiglu" or row.get("bias") or "floor_us" not in row:
                continue
            family = next((f for f, dtypes in MOE_FAMILIES.items() if row["dtype"] in dtypes), None)
            if family:
                found.setdefault(ROOT / "docs" / moe_picture(card, family, row["shape"]), []).append(row)
    for path, rows in found.items():
        rows.sort(key=lambda row: (row["who"] != "moebius", row["who"], row["dtype"], row["shape"]["T"]))
    tokens = {path: {r["shape"]["T"] for r in rows if r["who"] == "moebius"} for path, rows in found.items()}
    return {path: rows for path, rows in found.items() if len(tokens[path]) >= FEWEST_POINTS}


def rows_text(rows):
    return json.dumps([[r["who"], r["dtype"], r["shape"]["T"], r["us"], r["commit"]] for r in rows])


def png_text(path, keyword):
    """The tEXt chunk of that keyword, or None."""
    data, at = path.read_bytes(), 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        name, _, text = data[at + 8 : at + 8 + length].partition(b"\0")
        if kind == b"tEXt" and name.decode("latin-1") == keyword:
            return text.decode("latin-1")
        at += 12 + length
    return None


def check():
    stale = [p for p, rows in pictures().items() if not p.exists() or png_text(p, "Rows") != rows_text(rows)]
    if stale:
        names = ", ".join(str(p.relative_to(ROOT)) for p in stale)
        sys.exit(f"made from other rows than the newest: {names}: run python bench/plot.py")


def need_matplotlib():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        sys.exit("pictures need matplotlib, which is not installed here: pip install matplotlib")


def curves(rows):
    """(who, dtype) -> rows, ours first."""
    found = {}
    for row in rows:
        found.setdefault((row["who"], row["dtype"]), []).append(row)
    return found


def style(who, i_ours, i_other):
    if who == "moebius":
        return {"color": OURS[i_ours % len(OURS)], "marker": "o", "linewidth": 2.4, "zorder": 5 - i_ours}
    i = i_other % len(OTHERS)
    return {"color": OTHERS[i], "marker": MARKERS[i], "linewidth": 1.4, "markersize": 5}


def shorten(values):
    """Labels of rising values on a logarithmic axis; none where it would lie on the one before."""
    labels, last = [], 0
    for v in values:
        fits = v >= 1.6 * last
        labels.append("" if not fits else f"{v // 1024}k" if v >= 1024 and v % 1024 == 0 else str(v))
        last = v if fits else last
    return labels


def draw(rows, path):
    from matplotlib.figure import Figure

    shape, card = rows[0]["shape"], rows[0]["card"].replace("NVIDIA ", "")
    dtypes = {r["dtype"] for r in rows}
    family = next(f for f, members in MOE_FAMILIES.items() if rows[0]["dtype"] in members)
    figure = Figure(figsize=(8, 7), layout="constrained")
    times, shares = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    i_ours = i_other = 0
    for (who, dtype), points in curves(rows).items():
        look = style(who, i_ours, i_other)
        label = who if len(dtypes) == 1 else f"{who}, {dtype}"
        tokens = [r["shape"]["T"] for r in points]
        times.plot(tokens, [r["us"] for r in points], label=label, **look)
        shares.plot(tokens, [100 * r["floor_us"] / r["us"] for r in points], label=label, **look)
        if who == "moebius":
            i_ours += 1
        else:
            i_other += 1
    floors = {}
    for r in rows:  # draws differ a little: ours come first; of dtypes that share memory, the lowest
        floors.setdefault(r["shape"]["T"], r["floor_us"])
    ticks = sorted(floors)
    times.plot(ticks, [floors[t] for t in ticks], color="black", linestyle=(0, (2, 2)), linewidth=1.2, label="floor")
    times.set(xscale="log", yscale="log", ylabel="µs, L2 flushed")
    times.set_title(
        f"One MoE layer, {family}: H {shape['H']}, I {shape['I']}, {shape['E']} experts, top {shape['K']}"
        f"\nfrom tokens and router logits, {card}",
        fontsize=11,
    )
    figure.legend(*times.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=4, frameon=False)
    shares.axhline(100, color="black", linestyle=(0, (2, 2)), linewidth=1.2)
    shares.set(xlabel="tokens T", ylabel="% of the floor", ylim=(0, 110))
    shares.set_xticks(ticks, shorten(ticks))
    shares.set_xticks([], minor=True)
    for axes in (times, shares):
        axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Rows": rows_text(rows), "Software": None})


def draw_block(rows, path):
    """moe_vs_torch.py's times, slowest first in each pass."""
    from matplotlib.figure import Figure

    passes = list(dict.fromkeys(r["pass"] for r in rows))
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    for axes, name in zip(figure.subplots(len(passes), 1, squeeze=False, sharex=True)[:, 0], passes):
        points = sorted((r for r in rows if r["pass"] == name), key=lambda r: r["us"])
        labels = [f"{r['who']}, {r['dtype']}" for r in points]
        colours = [OURS[0] if r["who"].startswith("moebius") else OTHERS[4] for r in points]
        axes.scatter([r["us"] for r in points], labels, color=colours, s=60, zorder=3)
        for label, r in zip(labels, points):
            axes.annotate(f"{r['us']:,.0f} µs", (r["us"], label), (8, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set(xscale="log", title=f"{name}, {points[0]['shape']['T']} tokens")
        axes.grid(True, color="#DDDDDD", linewidth=0.7)
        axes.margins(x=0.16, y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("µs, L2 flushed")
    figure.savefig(path, dpi=DPI)


def main():
    if sys.argv[1:] == ["--check"]:
        check()
        return
    if sys.argv[1:]:
        sys.exit(__doc__)
    need_matplotlib()
    for path, rows in pictures().items():
        draw(rows, path)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
