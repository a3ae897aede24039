#!/usr/bin/env python3
"""
Where the time of one mb_moe_forward goes: when each kernel starts and ends, and what Nsight Compute counts in it.

    python bench/moe_profile.py --output FILE    measures both and appends the rows; needs a GPU and ncu
    python bench/moe_profile.py page FILE        draws docs/img/moe-timeline.png, writes docs/findings/moe-profile.md's tables

FILE is bench/results/<card>/moe_profile.jsonl.

Times come from replays of a CUDA graph with L2 flushed before each, traced by torch.profiler: the median of 7. Counters
come from another run: ncu runs one kernel after another, each many times, and leaves the clocks alone.
"""

import argparse
import csv
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "img" / "moe-timeline.png"
PAGE = ROOT / "docs" / "findings" / "moe-profile.md"
PAGE_MARKS = "<!-- tables: bench/moe_profile.py page -->\n", "<!-- end of tables -->\n"
LAYERS = {(2048, 768, 128, 8): (1, 16, 704), (4096, 1024, 128, 8): (32768,)}  # H, I, E, K: values of T
REPLAYS = 7
LAST_KERNEL = "reduce"  # of every forward

# What a row of ncu's holds: our name, its metric, what to multiply it with.
METRICS = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "read_mb": ("dram__bytes_read.sum", 1e-6),
    "write_mb": ("dram__bytes_write.sum", 1e-6),
    "dram_pct": ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "l2_pct": ("lts__throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "sm_pct": ("sm__throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "tensor_pct": ("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed", 1),
    "mhz": ("sm__cycles_elapsed.avg.per_second", 1e-6),
    "issue_pct": ("sm__inst_issued.avg.pct_of_peak_sustained_elapsed", 1),
    "warps_pct": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1),
    "registers": ("launch__registers_per_thread", 1),
    "ctas": ("launch__grid_size", 1),
    "threads": ("launch__block_size", 1),
}
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+?)_per_issue_active\.ratio")
N_STALLS = 4


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=["measure", "page", "forwards"], default="measure",
                        help="forwards: only runs them, for ncu to look at")
    parser.add_argument("rows", nargs="?", metavar="FILE", help="page: the rows")
    parser.add_argument("--tool", choices=["trace", "ncu"], help="only one of the two measurements")
    parser.add_argument("--output", metavar="FILE", default="-", help="append the rows to FILE (default: print them)")
    parser.add_argument("--commit", help="what the rows name as the measured commit")
    parser.add_argument("--keep", metavar="DIR", help="leave ncu's table and the trace there")
    return parser.parse_args()


def kernel_name(signature):
    """`void experts<0, 64>(experts_params)` is `experts`."""
    return re.search(r"(\w+)\s*(?:[<(]|$)", re.sub(r"^void |\(anonymous namespace\)::", "", signature)).group(1)


def split_forwards(items, name_of):
    """Lists of items in order, each ending with a forward's last kernel."""
    forwards = [[]]
    for item in items:
        forwards[-1].append(item)
        if name_of(item) == LAST_KERNEL:
            forwards.append([])
    return forwards[:-1]


# ---- on the GPU


def each_forward():
    """Yields dtype, shape, number of experts hit, and a function that runs the forward, for one case after another."""
    import torch

    import moebius
    from moe_layer import random_layer, with_fp8

    torch.manual_seed(1)
    for sides, token_counts in LAYERS.items():
        layer = random_layer(sides, torch.bfloat16, torch.device("cuda"))
        for dtype in ("bf16", "fp8_block"):
            weights, scales = (layer.w13, layer.w2), {}
            if dtype == "fp8_block":
                w13, w13_scale, w2, w2_scale = with_fp8(layer).fp8
                weights, scales = (w13, w2), {"w13_scale": w13_scale, "w2_scale": w2_scale}
            for n_tokens in token_counts:
                x = layer.tokens(n_tokens)
                logits = layer.router_logits(x).float()
                n_hit = layer.routing(logits)[1].unique().numel()
                out = torch.empty_like(x)

                forward = functools.partial(moebius.moe_from_logits, x, logits, *weights, layer.top_k, out=out, **scales)
                yield dtype, {"T": n_tokens, **layer.shape}, n_hit, forward


def run_forwards():
    """One forward of each case inside of what ncu looks at."""
    import torch

    with torch.inference_mode():
        for *_, forward in each_forward():
            forward()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()
            forward()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()


def bar(event, begin):
    start = event["ts"] - begin
    return [kernel_name(event["name"]), round(start, 2), round(start + event["dur"], 2)]


def timelines(folder):
    """(dtype, shape, figures) of each case: its kernels with start and end in us, and its time when nobody traces."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from measure import FLUSH_BYTES, capture, card_name, median_us, moe_figures

    device, cases, replays = torch.device("cuda"), [], []
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    with torch.inference_mode():
        for dtype, shape, n_hit, forward in each_forward():
            replays.append((capture(forward), forward))  # forward keeps what the graph reads
            us = median_us(replays[-1][0], device)
            cases.append((dtype, shape, moe_figures(card_name(device), dtype, shape, n_hit, us)))
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            for replay, _ in replays:
                for _ in range(REPLAYS):
                    flush.zero_()
                    replay()
                torch.cuda.synchronize()
    path = folder / "trace.json"
    trace.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    events = sorted((e for e in events if e.get("cat") == "kernel" and "at::" not in e["name"]), key=lambda e: e["ts"])
    forwards = split_forwards(events, lambda e: kernel_name(e["name"]))
    if len(forwards) != REPLAYS * len(cases):
        sys.exit(f"the trace has {len(forwards)} forwards, not {REPLAYS * len(cases)}")
    for i, (dtype, shape, figures) in enumerate(cases):
        runs = [[bar(k, kernels[0]["ts"]) for k in kernels] for kernels in forwards[REPLAYS * i : REPLAYS * (i + 1)]]
        runs.sort(key=lambda bars: bars[-1][2])
        yield dtype, shape, {"tool": "trace", **figures, "kernels": runs[REPLAYS // 2]}


def counters(folder):
    """(dtype, shape, figures) of each kernel of each case."""
    log = folder / "ncu.csv"
    known = subprocess.run(["ncu", "--query-metrics"], capture_output=True, text=True, check=False).stdout.split()
    metrics = [metric for metric, _ in METRICS.values() if not metric.startswith("launch__")]
    names = [metric for metric in metrics if metric.split(".")[0] in known] or metrics  # cards differ
    command = ["ncu", "--profile-from-start", "off", "--clock-control", "none", "--cache-control", "all",
               "--section", "WarpStateStats", "--section", "LaunchStats", "--metrics", ",".join(names),
               "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log),
               sys.executable, __file__, "forwards"]  # fmt: skip
    status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    lines = log.read_text().splitlines() if log.exists() else []
    table = [line for line in lines if line.startswith('"')]
    if len(table) < 3:
        sys.exit("\n".join([f"ncu found nothing, status {status}:", *lines[-20:]]))
    rows = list(csv.DictReader([table[0], *table[2:]]))  # the second line has the units
    forwards = split_forwards(rows, lambda row: kernel_name(row["Kernel Name"]))
    cases = [(dtype, sides, n_tokens) for sides, token_counts in LAYERS.items() for dtype in ("bf16", "fp8_block")
             for n_tokens in token_counts]  # fmt: skip
    if len(forwards) != len(cases):
        print(f"ncu saw {len(forwards)} forwards, not {len(cases)}", file=sys.stderr)
    for (dtype, sides, n_tokens), kernels in zip(cases, forwards):
        for kernel in kernels:
            yield dtype, {"T": n_tokens, **dict(zip("HIEK", sides))}, kernel_figures(kernel)


def number(text):
    try:
        return float(text.replace(",", ""))
    except (AttributeError, ValueError):
        return None


def kernel_figures(kernel):
    figures = {"tool": "ncu", "kernel": kernel_name(kernel["Kernel Name"])}
    for name, (metric, scale) in METRICS.items():
        value = number(kernel.get(metric))
        if value is not None:
            figures[name] = int(value) if metric.startswith("launch__") else round(value * scale, 1 + (name == "us"))
    if "read_mb" in figures:
        figures["dram_gbps"] = round((figures["read_mb"] + figures["write_mb"]) / figures["us"] * 1e3)
    stalls = {STALL.fullmatch(k)[1]: number(value) or 0 for k, value in kernel.items() if STALL.fullmatch(k or "")}
    total = sum(stalls.values())
    largest = sorted(stalls, key=stalls.get, reverse=True)[:N_STALLS] if total else []
    figures["stalls_pct"] = {reason: round(100 * stalls[reason] / total) for reason in largest}
    return figures


def measure(given):
    import torch

    from measure import append_rows, card_name, commit, row

    card, at_commit = card_name(torch.device("cuda")), given.commit or commit()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(given.keep or temporary)
        tools = {
            "trace": (timelines, f"graph replay, L2 flushed; kernels traced by CUPTI, the middle of {REPLAYS}"),
            "ncu": (counters, "ncu, kernel replay, caches flushed before each pass, clocks not locked"),
        }
        for tool, (figures_of, how) in tools.items():
            if given.tool not in (None, tool):
                continue
            for dtype, shape, figures in figures_of(folder):
                append_rows(given.output, [row("moe_profile", "moebius", card, dtype, shape, figures, how, at_commit)])
            torch.cuda.empty_cache()


# ---- anywhere

ROLES = {"experts": ("#0072B2", "experts: both GEMMs, activation"), "reduce": ("#009E73", "reduce: weighted sum"),
         "few": ("#D55E00", "few: router, plan, x to fp8"), "route": ("#E69F00", "route: router (and x to fp8)"),
         "route_and_quantize": ("#E69F00", "route: router (and x to fp8)"),
         "count": ("#CC79A7", "count, place: plan"), "place": ("#CC79A7", "count, place: plan")}  # fmt: skip


def newest_rows(path):
    """Traces by T and dtype, counters by T, dtype and kernel; later rows replace earlier ones."""
    rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    traces = {(r["shape"]["T"], r["dtype"]): r for r in rows if r["tool"] == "trace"}
    return traces, {(r["shape"]["T"], r["dtype"], r["kernel"]): r for r in rows if r["tool"] == "ncu"}


def working_times(kernels):
    """name, when it is launched, when the kernel before has ended, its own end."""
    end_before = 0.0
    for name, start, end in kernels:
        yield name, start, min(max(start, end_before), end), end
        end_before = max(end_before, end)


def table(trace, counts):
    shape = trace["shape"]
    title = "### T = {T}, H {H}, I {I}, E {E}, K {K}: {dtype}, ".format(**shape, dtype=trace["dtype"])
    yield title + f"{trace['us']:,.1f} µs, floor {trace['floor_us']:,.1f}"
    yield ""
    columns = "kernel | µs | CTAs x threads | registers | DRAM MB | DRAM | L2 | tensor cores | issue slots | warps wait for"
    yield f"| {columns} |"
    yield "|---" * 10 + "|"
    for name, _, begin, end in working_times(trace["kernels"]):
        r = counts.get((shape["T"], trace["dtype"], name), {})
        stalls = {k: v for k, v in r.get("stalls_pct", {}).items() if k not in ("selected", "not_selected")}
        waits = ", ".join(f"{reason.replace('_', ' ')} {stalls[reason]}" for reason in list(stalls)[:3])
        cells = ["-"] * 3
        if r:
            cells = [f"{r['ctas']:,} x {r['threads']}", str(r["registers"]), f"{r['read_mb'] + r['write_mb']:,.1f}"]
        cells += [f"{r[key]:.0f} %" if key in r else "-" for key in ("dram_pct", "l2_pct", "tensor_pct", "issue_pct")]
        yield f"| {name} | {end - begin:,.1f} | {' | '.join(cells)} | {waits} |"
    yield ""


def write_tables(traces, counts):
    lines = [line for key in sorted(traces) for line in table(traces[key], counts)]
    text = PAGE.read_text()
    before, rest = text.split(PAGE_MARKS[0])
    after = rest.split(PAGE_MARKS[1])[1]
    PAGE.write_text("".join([before, PAGE_MARKS[0], "\n", *(line + "\n" for line in lines), PAGE_MARKS[1], after]))


def draw_bars(axes, row, top, span):
    """A kernel a line, from `top` downwards; pale while it waits for the kernel before. Gives the next top."""
    for i, (name, start, works_from, end) in enumerate(working_times(row["kernels"])):
        colour = ROLES[name][0]
        axes.barh(top - i, works_from - start, left=start, height=0.72, color=colour, alpha=0.28, linewidth=0)
        axes.barh(top - i, end - works_from, left=works_from, height=0.72, color=colour, linewidth=0)
        label, took = f"{name} {end - works_from:,.1f} µs", (end - works_from) / span
        style = {"va": "center", "fontsize": 8.5}
        if took > 0.3:
            axes.text((works_from + end) / 2, top - i, label, ha="center", color="white", **style)
        else:
            axes.text(end + 0.008 * span, top - i, label, ha="left", **style)
    return top - len(row["kernels"])


def draw(traces):
    from plot import DPI, need_matplotlib

    need_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    token_counts = sorted({t for t, _ in traces})
    dtypes = sorted({d for _, d in traces})
    lines = [sum(len(traces[t, d]["kernels"]) for d in dtypes if (t, d) in traces) for t in token_counts]
    figure = Figure(figsize=(9, 1.4 + 0.75 * len(lines) + 0.24 * sum(lines)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    used = {}
    panels = figure.subplots(len(lines), 1, squeeze=False, height_ratios=[n + 1.5 for n in lines])[:, 0]
    for axes, t in zip(panels, token_counts):
        top, places, rows = 0, [], [traces[t, d] for d in dtypes if (t, d) in traces]
        span = max(row["kernels"][-1][2] for row in rows)
        for row in rows:
            below = draw_bars(axes, row, top, span)
            places.append(((top + below + 1) / 2, f"{row['dtype']}\n{row['us']:,.{1 if row['us'] < 100 else 0}f} µs"))
            top = below - 0.5
            used.update(ROLES[name] for name, *_ in row["kernels"])
        layer = "H {H}, I {I}, {E} experts, top {K}".format(**row["shape"])
        axes.set_title(f"T = {t}   ({layer})", fontsize=10, loc="left")
        axes.set_yticks([place for place, _ in places], [label for _, label in places], fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlim(0, 1.15 * span)
        axes.set_axisbelow(True)
        axes.grid(True, axis="x", color="#DDDDDD", linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("µs since the first kernel's start")
    handles = [Patch(color=colour, label=label) for colour, label in used.items()]
    handles.append(Patch(color="#7F7F7F", alpha=0.28, label="launched early, waits for the kernel before"))
    figure.legend(handles=handles, fontsize=8.5, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(PICTURE, dpi=DPI, metadata={"Software": None})
    print(os.path.relpath(PICTURE, ROOT))


def main():
    given = parse()
    if given.mode == "page":
        if not given.rows:
            sys.exit("page: name the file with the rows")
        traces, counts = newest_rows(given.rows)
        draw(traces)
        write_tables(traces, counts)
    elif given.mode == "forwards":
        run_forwards()
    else:
        measure(given)


if __name__ == "__main__":
    main()
