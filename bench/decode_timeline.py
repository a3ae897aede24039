#!/usr/bin/env python3
"""
Draws docs/img/decode-layer.png: the launches of one layer in a decode step of batch 1, today and as
docs/findings/decode-step.md plans them.

    python bench/decode_timeline.py         draws (needs matplotlib)
    python bench/decode_timeline.py --sums  prints the sums, and the tokens/s that they give

Times marked `measured` come from a kernel alone (docs/findings/moe-profile.md, the READMEs of src/ops/moe/front and plain,
less an empty kernel's time). The other times of today are estimates whose sum, with the measured ones, is the measured step.
Those of the plan are predictions. Replace both by what `moebius bench --profile` gives.
"""

import sys

from engine_floor import RATES, ROOT, config_of, layer_work, microseconds

PICTURE = ROOT / "docs" / "img" / "decode-layer.png"
LAYERS, CONTEXT = 48, 512
# Of a step, around the layers, in us: embedding and final norm 6, lm_head 225, sampler 40, copies and the graph's start 15.
AROUND_US = 286

STREAM, ATTENTION, SMALL = "streams weights", "attention", "small: latency"
COLOURS = {STREAM: "#0072B2", ATTENTION: "#009E73", SMALL: "#D55E00"}
MEASURED = "measured"

# Name, kind, us, operators of engine_floor whose floor it has, and MEASURED or how many of the launches before it run while
# it asks for its weights.
TODAY = {
    "bf16": [
        ("norm", SMALL, 3.0, []),
        ("tiles", SMALL, 1.9, [], MEASURED),
        ("qkv", STREAM, 12.5, ["qkv"]),
        ("rope, store", SMALL, 4.0, []),
        ("attention", ATTENTION, 11.5, ["attention"]),
        ("merge", SMALL, 3.0, []),
        ("tiles", SMALL, 1.9, [], MEASURED),
        ("o", STREAM, 15.8, ["o"]),
        ("add residual", SMALL, 2.5, []),
        ("norm", SMALL, 3.0, []),
        ("router", SMALL, 3.7, ["router"], MEASURED),
        ("route, plan", SMALL, 4.0, [], MEASURED),
        ("experts", STREAM, 33.0, ["experts"], MEASURED),
        ("reduce", SMALL, 2.2, [], MEASURED),
    ],
    "fp8_e4m3": [
        ("norm", SMALL, 3.0, []),
        ("x to fp8", SMALL, 1.7, [], MEASURED),
        ("tiles", SMALL, 1.9, [], MEASURED),
        ("qkv", STREAM, 11.2, ["qkv"]),
        ("rope, store", SMALL, 4.0, []),
        ("attention", ATTENTION, 11.5, ["attention"]),
        ("merge", SMALL, 3.0, []),
        ("x to fp8", SMALL, 1.7, [], MEASURED),
        ("tiles", SMALL, 1.9, [], MEASURED),
        ("o", STREAM, 14.0, ["o"]),
        ("add residual", SMALL, 2.5, []),
        ("norm", SMALL, 3.0, []),
        ("router", SMALL, 3.7, ["router"], MEASURED),
        ("route, plan, x to fp8", SMALL, 3.8, [], MEASURED),
        ("experts", STREAM, 24.2, ["experts"], MEASURED),
        ("reduce", SMALL, 2.3, [], MEASURED),
    ],
}
PLAN = {
    "bf16": [
        ("norm, qkv", STREAM, 8.5, ["qkv"]),
        ("rope, store, attention, merge", ATTENTION, 8.0, ["attention"]),
        ("o, residual", STREAM, 3.0, ["o"], 1),
        ("norm, router, route, plan", SMALL, 6.5, ["router"]),
        ("experts", STREAM, 33.0, ["experts"]),
        ("reduce", SMALL, 2.2, []),
    ],
    "fp8_e4m3": [
        ("norm, to fp8, qkv", STREAM, 5.5, ["qkv"]),
        ("rope, store, attention, merge, to fp8", ATTENTION, 8.0, ["attention"]),
        ("o, residual", STREAM, 3.0, ["o"], 1),
        ("norm, router, route, plan, to fp8", SMALL, 6.5, ["router"]),
        ("experts", STREAM, 24.2, ["experts"]),
        ("reduce", SMALL, 2.3, []),
    ],
}


def total(launches):
    return sum(launch[2] for launch in launches)


def tokens_per_second(launches):
    return 1e6 / (LAYERS * total(launches) + AROUND_US)


def floors(weights):
    config, rates = config_of("qwen3-30b-a3b"), RATES["NVIDIA H100 80GB HBM3"]
    work = layer_work(config, weights, "bf16", 1, CONTEXT, CONTEXT, True)
    return {name: microseconds(w, rates) for name, w in work.items()}


def print_sums():
    for name, lists in (("today", TODAY), ("plan, steps 1 to 3", PLAN)):
        for weights, launches in lists.items():
            print(f"{name}, {weights}: {len(launches)} launches, {total(launches):.1f} us a layer, "
                  f"{tokens_per_second(launches):.0f} tokens/s, floor {sum(floors(weights).values()):.1f} us")


def draw_launches(axes, launches, floor, span):
    """A launch a line, from the top. Dark: its floor. Pale: it waits, and its weights are on their way."""
    begin, starts = 0, []
    for i, (name, kind, us, operators, *more) in enumerate(launches):
        starts.append(begin)
        note = more[0] if more else 0
        asks = starts[i - note] if note != MEASURED else begin
        axes.barh(-i, begin - asks, left=asks, height=0.72, color=COLOURS[kind], alpha=0.28, linewidth=0)
        axes.barh(-i, us, left=begin, height=0.72, color=COLOURS[kind], alpha=0.55, linewidth=0)
        axes.barh(-i, sum(floor[o] for o in operators), left=asks, height=0.72, color=COLOURS[kind], linewidth=0)
        label = f"{name} {us:.1f}{' *' if note == MEASURED else ''}"
        if begin + us > 0.72 * span:
            axes.text(begin - 0.008 * span, -i, label, va="center", ha="right", fontsize=8)
        else:
            axes.text(begin + us + 0.008 * span, -i, label, va="center", ha="left", fontsize=8)
        begin += us


def draw():
    from plot import DPI, need_matplotlib

    need_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = [(title, weights, lists[weights]) for weights in ("bf16", "fp8_e4m3")
              for title, lists in (("today", TODAY), ("planned, steps 1 to 3", PLAN))]
    span = max(total(launches) for *_, launches in panels)
    heights = [len(launches) + 1.5 for *_, launches in panels]
    figure = Figure(figsize=(9, 1.6 + 0.24 * sum(heights)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    for axes, (title, weights, launches) in zip(figure.subplots(len(panels), 1, sharex=True, height_ratios=heights), panels):
        draw_launches(axes, launches, floors(weights), span)
        axes.set_title(f"{weights.split('_')[0]} weights, {title}: {len(launches)} launches, {total(launches):.1f} µs a layer",
                       fontsize=10, loc="left")
        axes.set(yticks=[], ylim=(-len(launches) + 0.4, 0.6), xlim=(0, 1.02 * span))
        axes.tick_params(axis="x", labelsize=8)
        axes.set_axisbelow(True)
        axes.grid(True, axis="x", color="#DDDDDD", linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("µs, one layer of Qwen3-30B-A3B, one token, context 512. * measured alone; the others are estimates and "
                    "predictions", fontsize=9)
    handles = [Patch(color=colour, alpha=0.55, label=kind) for kind, colour in COLOURS.items()]
    handles.append(Patch(color="#333333", label="dark: its floor at 3.0 TB/s"))
    handles.append(Patch(color="#0072B2", alpha=0.28, label="pale: waits, weights under way"))
    figure.legend(handles=handles, fontsize=8.5, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(PICTURE, dpi=DPI, metadata={"Software": None})
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    if sys.argv[1:] == ["--sums"]:
        print_sums()
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        draw()
