#!/usr/bin/env python3
"""Writes docs/performance.md from bench/results/**/*.jsonl alone: of each shape the newest row counts.

Benchmarks append the rows (bench/README.md says how); nobody types them. `--check` fails when the page is stale.
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
            if row["bench"] == "text":  # has no shapes; docs/text.md cites these rows
                continue
            details = [row.get(key) for key in ("model", "weights", "kv", "pass", "routing", "grad_dtype", "beside")]
            details += [row.get("activation", "swiglu"), row.get("bias", False), row.get("graphs", "step")]
            key = json.dumps([row["who"], row["dtype"], row["shape"], *details], sort_keys=True)
            tables.setdefault((row["bench"], row["card"]), {})[key] = row
    return tables


# Dtypes that stand side by side: the same floor.
MOE_FAMILIES = {"bf16": ["bf16"], "fp16": ["fp16"], "fp8": ["fp8_block", "fp8_tensor", "fp8_row"], "tf32": ["tf32"], "fp32": ["fp32"]}


def moe_picture(card, family, shape):
    """Where plot.py draws this card's times of one layer, relative to docs/."""
    words = card.replace("NVIDIA ", "").lower().split()
    return f"img/moe-{'-'.join(words)}-{family}-" + "-".join(f"{k.lower()}{shape[k]}" for k in "HIEK") + ".png"


def moe_label(row):
    label = ", ".join(str(row["shape"][k]) for k in "THIEK")
    activation = row.get("activation", "swiglu")
    return label + (f", {activation}" if activation != "swiglu" else "") + (", biases" if row.get("bias") else "")


def moe_order(row):
    return [row["shape"][k] for k in "HIEKT"] + [moe_label(row)]


def moe_share(row, form):
    """The share of the floor in %; nothing where there is no floor."""
    return form % round(100 * row["floor_us"] / row["us"]) if "floor_us" in row else ""


def moe_dtype_table(rows, dtype):
    """Ours, and beside it the others in a column each: their time, and its share of the floor of their draw."""
    ours = {moe_label(r): r for r in rows if r["who"] == "moebius" and r["dtype"] == dtype}
    peers = {}
    for r in rows:
        if r["who"] != "moebius":
            peers.setdefault((r["who"], r["dtype"]), {})[moe_label(r)] = r
    # A peer of another dtype of the family is shown beside the first of ours.
    peers = {k: times for k, times in peers.items() if ours.keys() & times.keys()}
    names = "".join(f" {who} |" if peer_dtype == dtype else f" {who}, {peer_dtype} |" for who, peer_dtype in peers)
    yield "| T, H, I, E, K | floor µs | moebius µs | % of floor | TFLOP/s |" + names + " commit |"
    yield "|---|---|---|---|---|" + "---|" * len(peers) + "---|"
    for label, r in sorted(ours.items(), key=lambda item: moe_order(item[1])):
        floor = f"{r['floor_us']:.1f}" if "floor_us" in r else "-"
        beside = "".join(f" {times[label]['us']:.1f}{moe_share(times[label], ' (%d %%)')} |" if label in times else " |"
                         for times in peers.values())
        yield f"| {label} | {floor} | {r['us']:.1f} | {moe_share(r, '%d')} | {r['tflops']:.1f} |{beside} {r['commit']} |"


def moe_table(rows):
    for family, dtypes in MOE_FAMILIES.items():
        members = [r for r in rows if r["dtype"] in dtypes]
        for dtype in dtypes:
            if not any(r["who"] == "moebius" and r["dtype"] == dtype for r in members):
                continue
            yield from [f"### {dtype}", "", *moe_dtype_table(members, dtype), ""]
        pictures = {moe_picture(r["card"], family, r["shape"]): r["shape"] for r in members}
        for picture, shape in sorted(pictures.items()):
            if (PAGE.parent / picture).exists():
                layer = ", ".join(f"{k} {shape[k]}" for k in "HIEK")
                yield from [f"![Time against T, {family}, {layer}]({picture})", ""]


def moe_zipf_table(rows, uniform):
    """Beside each row uniform routing of the same commit, and the quotient of the two shares of the floor."""
    plain = {(moe_label(r), r["dtype"], r["commit"]): r for r in uniform if r["who"] == "moebius"}
    yield "| dtype | T, H, I, E, K | floor µs | µs | % of floor | uniform: µs | % of floor | share of uniform's | commit |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in sorted(rows, key=lambda r: ([d for family in MOE_FAMILIES.values() for d in family].index(r["dtype"]), moe_order(r))):
        floor = f"{r['floor_us']:.1f}" if "floor_us" in r else "-"
        beside, quotient = plain.get((moe_label(r), r["dtype"], r["commit"])), ""
        cells = f"{beside['us']:.1f} | {moe_share(beside, '%d')}" if beside else "|"
        if beside and "floor_us" in r and "floor_us" in beside:
            quotient = f"{r['floor_us'] / r['us'] / (beside['floor_us'] / beside['us']):.2f}"
        yield f"| {r['dtype']} | {moe_label(r)} | {floor} | {r['us']:.1f} | {moe_share(r, '%d')} | {cells} | {quotient} | {r['commit']} |"


def moe_block_table(rows):
    yield "| pass | tokens | H, I, E, K | who | dtype | µs | tokens/s | against HF eager | commit |"
    yield "|---|---|---|---|---|---|---|---|---|"
    eager = {(r["pass"], str(r["shape"]), r["dtype"]): r["us"] for r in rows if r["who"] == "HF eager"}
    compared = {"tf32": "fp32", "fp32": "fp32", "fp16": "fp16"}
    for r in rows:
        layer = ", ".join(str(r["shape"][k]) for k in "HIEK")
        slow = eager.get((r["pass"], str(r["shape"]), compared.get(r["dtype"], "bf16")))
        times = f"{slow / r['us']:.1f}x" if slow else "-"
        yield (f"| {r['pass']} | {r['shape']['T']} | {layer} | {r['who']} | {r['dtype']} | {r['us']:.1f} | {r['tok_s']} "
               f"| {times} | {r['commit']} |")


# T, H, I, E, K -> TFLOP/s of forward and backward in bf16 with swiglu that we set out to reach on an H100.
TRAIN_GOALS = {
    (32768, 4096, 1024, 128, 8): (610, 600),
    (32768, 2048, 768, 128, 8): (560, 565),
    (4096, 4096, 1024, 128, 8): (500, 420),
    (24576, 1536, 256, 128, 8): (385, 375),
    (32768, 4096, 512, 128, 8): (520, 520),
    (32768, 4096, 2048, 64, 4): (610, 600),
    (24576, 1536, 1024, 32, 2): (480, 480),
    (4096, 4096, 1024, 256, 8): (300, 250),
    (16384, 4096, 1024, 256, 8): (560, 520),
}
PASSES = ("forward", "backward", "both", "inference")


def train_steps(rows):
    """The rows of a step together: pass -> row, in the order of the goals, then of first measurement."""
    steps = {}
    for r in rows:
        kind = [r.get(key) for key in ("who", "dtype", "grad_dtype", "routing", "activation", "bias")]
        steps.setdefault(json.dumps([r["shape"], kind]), {})[r["pass"]] = r
    order = list(TRAIN_GOALS)
    sides = [(tuple(first["shape"][k] for k in "THIEK"), step) for step in steps.values() for first in [next(iter(step.values()))]]
    return sorted(sides, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))


def train_types(r):
    """What differs from bf16 throughout with swiglu and without biases."""
    return "".join(
        f", {word}"
        for word in (
            r["dtype"] if r["dtype"] != "bf16" else "",
            f"gradients {r['grad_dtype']}" if r.get("grad_dtype", r["dtype"]) != r["dtype"] else "",
            r["activation"] if r["activation"] != "swiglu" else "",
            "biases" if r["bias"] else "",
        )
        if word
    )


def sustained_rate(row):
    """TFLOP/s of the pass again and again; None where it was not measured."""
    return row["tflops"] * row["us"] / row["sustained_us"] if row.get("sustained_us") else None


def rounding_ratio(row, plain):
    """Of the sustained rates, where both are there: at the power limit the rates after a rest depend on the rest."""
    rates = [sustained_rate(r) for r in (row, plain)]
    return rates[0] / rates[1] if all(rates) else row["tflops"] / plain["tflops"]


def power_text(row):
    """SM clock and power. Rows that do not say that it is the moment's power have the driver's mean of a second."""
    if not row.get("watts"):
        return ""
    return f"{row['sm_mhz']:.0f}, {row['watts']:.0f}" + ("" if row.get("power") == "instant" else " (mean)")


def train_rates(step):
    return " | ".join(f"{step[name]['tflops']:.0f}" if name in step else "" for name in PASSES)


def train_table(rows):
    plain = {(sides, train_types(r)): step for sides, step in train_steps(rows) for r in step.values() if r["routing"] == "topk"}
    yield ("| T, H, I, E, K | routing | goal, forward / backward | forward | backward | both | inference | sustained, forward / backward "
           "| step ms | MHz, W | padding | commit |")
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for sides, step in train_steps(rows):
        r = step.get("both")
        if not r:
            continue
        has_goal = sides in TRAIN_GOALS and not train_types(r)
        routing = "top-k"
        if r["routing"] == "rounding":
            routing = "rounding"
            other = plain.get((sides, train_types(r)))
            if other:
                ratios = " / ".join(f"{rounding_ratio(step[name], other[name]):.2f}" for name in ("forward", "backward"))
                routing += f" ({ratios} of top-k)"
        goal = " / ".join(map(str, TRAIN_GOALS[sides])) if has_goal else ""
        sustained = " / ".join(f"{sustained_rate(one):.0f}"
                               for one in (step.get("forward"), step.get("backward")) if one and sustained_rate(one))
        yield (f"| {', '.join(map(str, sides))}{train_types(r)} | {routing} | {goal} | {train_rates(step)} | {sustained} "
               f"| {r['us'] / 1e3:.2f} "
               f"| {power_text(r)} | {100 * r['wasted_ratio']:.1f} % | {r['commit']} |")


def train_block_table(rows):
    yield "| T, H, I, E, K | who | forward | backward | both | inference | kept MiB | peak MiB | MHz, W | commit |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for sides, step in train_steps(rows):
        first = next(iter(step.values()))
        kept, peak = (step[name].get(key) if name in step else None for name, key in (("forward", "kept_bytes"), ("both", "peak_bytes")))
        memory = " | ".join(f"{n / (1 << 20):.0f}" if n else "" for n in (kept, peak))
        routing = ", rounding" if first["routing"] == "rounding" else ""
        yield (f"| {', '.join(map(str, sides))}{train_types(first)}{routing} | {first['who']} | {train_rates(step)} | {memory} | {power_text(first)} "
               f"| {first['commit']} |")


def trains_table(rows):
    yield "| experts | seed | steps | tokens in a step | loss of the last tenth | right answers | commit |"
    yield "|---|---|---|---|---|---|---|"
    for r in rows:
        yield (f"| {r['who']} | {r['seed']} | {r['shape']['steps']} | {512 * r['shape']['rows']} | {r['loss']:.4f} | {r['right']} of "
               f"{r['prompts']} | {r['commit']} |")


def engine_table(rows):
    """With a column for the kind of graphs where a row has others than the usual ones, the step's."""
    tells_graphs = any(r.get("graphs", "step") != "step" for r in rows)
    yield f"| who | model | batch | context | compute | weights | KV |{' graphs |' if tells_graphs else ''} tokens/s | ms a step | % of floor | commit |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|" + "---|" * tells_graphs
    for r in rows:
        graphs = f" {r.get('graphs', 'step')} |" if tells_graphs else ""
        step = f"{r['step_us'] / 1e3:.2f}" if "step_us" in r else ""
        share = f"{100 * r['floor_us'] / r['step_us']:.0f}" if "floor_us" in r else ""
        yield (f"| {r['who']} | {r['model']} | {r['shape']['batch']} | {r['shape']['context']} | {r['dtype']} | {r['weights']} | {r['kv']} |"
               f"{graphs} {r['tok_s']:.0f} | {step} | {share} | {r['commit']} |")


def engine_vs_hf_table(rows):
    """Ours, and beside it every contender's speed and how many times ours is as fast."""
    names = [who for who in dict.fromkeys(r["who"] for r in rows) if who != "moebius"]
    shapes = {}
    for r in rows:
        shapes.setdefault((r["model"], r["pass"], r["shape"]["batch"], r["shape"]["context"]), {})[r["who"]] = r
    yield "| model | pass | batch | prompt | moebius |" + "".join(f" {name} |" for name in names) + " commit |"
    yield "|---|---|---|---|---|" + "---|" * len(names) + "---|"
    for (model, name, batch, length), found in sorted(shapes.items(), key=lambda item: (item[0][0], item[0][1] != "decode", item[0])):
        ours = found.get("moebius")
        if ours is None:
            continue
        cells = (f"{found[who]['tok_s']:.1f} ({ours['tok_s'] / found[who]['tok_s']:.1f}x) |" if who in found else "|" for who in names)
        yield f"| {model} | {name} | {batch} | {length} | {ours['tok_s']:.1f} | " + " ".join(cells) + f" {ours['commit']} |"


def gemm_table(rows):
    shapes = {}
    for r in rows:
        shapes.setdefault(tuple(r["shape"][k] for k in "TNK"), {})[r["who"]] = r
    yield "| rows, N, K | dtype | cuBLAS µs | moebius µs | TFLOP/s | of cuBLAS | commit |"
    yield "|---|---|---|---|---|---|---|"
    for shape, found in sorted(shapes.items(), key=lambda item: (item[0][1:], item[0])):
        ours, peer = found.get("moebius"), found.get("cuBLAS")
        if ours and peer:
            yield (f"| {', '.join(map(str, shape))} | {ours['dtype']} | {peer['us']:.1f} | {ours['us']:.1f} | {ours['tflops']:.0f} "
                   f"| {100 * peer['us'] / ours['us']:.0f} % | {ours['commit']} |")


def attention_table(rows):
    yield "| pass | sequences x queries | context | heads, kv heads, D | KV | µs | rate | commit |"
    yield "|---|---|---|---|---|---|---|---|"
    for r in rows:
        shape = r["shape"]
        rate = f"{r['tflops']:.0f} TFLOP/s" if "tflops" in r else f"{r['tbps']:.2f} TB/s"
        yield (f"| {r['pass']} | {shape['sequences']} x {shape['queries']} | {shape['context']} | {shape['heads']}, {shape['kv_heads']}, {shape['D']} "
               f"| {r['kv']} | {r['us']:.1f} | {rate} | {r['commit']} |")


def load_table(rows):
    yield "| who | model | weights | GB | seconds | GB/s | commit |"
    yield "|---|---|---|---|---|---|---|"
    for r in rows:
        seconds = ", ".join(f"{s:.2f}" for s in r["seconds"])
        yield (f"| {r['who']} | {r['model']} | {r['weights']} | {r['bytes'] / 1e9:.1f} | {seconds} "
               f"| {r['bytes'] / min(r['seconds']) / 1e9:.1f} | {r['commit']} |")


def serve_load(row):
    shape = row["shape"]
    parts = [f"{shape['rate']:g} arrive in a second"] if "rate" in shape else []
    parts += [f"{shape['concurrency']} at once"] if "concurrency" in shape else []
    if "beside" in row:
        beside = row["beside"]
        many = f"{beside['rate']:g} a second" if "rate" in beside else beside["concurrency"]
        parts.append(f"beside {many} of {serve_prompts(beside)}")
    return ", ".join(parts)


def serve_prompts(shape):
    if "in" not in shape:
        return f"{shape['prompts']}, up to {shape['longest']}"
    prefix = ""
    if "prefix" in shape:
        prefix = f"a prefix of {shape['prefix']}" if shape["prefixes"] == 1 else f"one of {shape['prefixes']} prefixes of {shape['prefix']}"
        prefix += ", then "
    return f"{prefix}{shape['in']} in, {shape['out']} out"


def serve_order(row):
    """By load; prompts that share a prefix follow those of the same length that do not."""
    shape = row["shape"]
    length = shape.get("in", 0) + shape.get("prefix", 0)
    load = [shape.get("rate", 0), shape.get("concurrency", 0), length, shape.get("prefix", 0), shape.get("out", 0)]
    return [row["who"] != "moebius", row["who"], row["model"], row.get("weights", ""), load, serve_prompts(shape)]


def serve_table(rows):
    yield ("| server | model | weights | load | tokens | requests | first token ms, p50, p99 | between tokens ms, p50, p99 "
           "| per token ms, p50, p99 | output tokens/s | of the engine | requests/s | good requests/s | commit |")
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for r in sorted(rows, key=serve_order):
        times = " | ".join(f"{r[key]['p50']:{form}}, {r[key]['p99']:{form}}"
                           for key, form in (("ttft_ms", ".1f"), ("itl_ms", ".2f"), ("tpot_ms", ".2f")))
        weights = r.get("weights", "") + (f", KV {r['kv']}" if "kv" in r else "")
        engine = f"{100 * r['tok_s'] / r['engine_tok_s']:.1f} %" if "engine_tok_s" in r else ""
        yield (f"| {r['who']} | {r['model']} | {weights} | {serve_load(r)} | {serve_prompts(r['shape'])} | {r['requests']} "
               f"| {times} | {r['tok_s']:.0f} | {engine} | {r['requests_s']:.2f} "
               f"| {format(r['goodput_s'], '.2f') if 'goodput_s' in r else ''} | {r['commit']} |")


SECTIONS = [
    ("moe", "The MoE layer", "From tokens and router logits to the combined output. Other contenders stand beside moebius, with their "
     "share of the floor. The floor is the larger of two times: the bytes of the distinct experts hit at 3.0 TB/s (H200: 4.3), and the "
     "flops at 700 TFLOP/s in bf16 and fp16, 1400 in fp8, 350 in tf32, 45 in exact fp32. These are 88 % of what cuBLAS reaches in a "
     "large GEMM (789, 397 and 51; in fp8 97 % of 1448). The card reads up to 3.1 TB/s, so 102 % is possible. Below 100 tokens the "
     "floor follows which experts the random logits hit, so compare the shares, not the times. moebius: `moebius bench moe` and "
     "`build/cuda/tests/moe_check --output FILE`; the others: `bench/moe_sweep.py`.",
     moe_table),
    ("moe_zipf", "The MoE layer with skewed routing", "As above, but a token's first choice is the most popular expert twice as often as "
     "the second, three times as often as the third, and so on (Zipf); its other choices are drawn from the rest. Beside it uniform routing, where it was measured at the same commit. `moebius bench moe --routing zipf --output FILE`.",
     moe_zipf_table),
    ("moe_block", "Qwen3's MoE block", "From tokens to the combined output, the router's matrix included, beside Hugging Face's "
     "Qwen3MoeSparseMoeBlock with the same weights (bf16 in the rows of fp8 too). Prefill: prompts of 64, 128, 256 and 256 tokens at "
     "once. Decode: 16 sequences. (graph): replayed as a CUDA graph. `python bench/moe_vs_torch.py --output FILE`.",
     moe_block_table),
    ("train", "Training an MoE layer", "TFLOP/s of a step, from tokens and router logits to the gradients of all inputs, routing and its "
     "gradient included, the router's matrix not. Counted are 6 T K H I flops forward and 12 backward; with token rounding the rows that "
     "were processed. Gradients are of the weights' type unless named. Goal: what we set out to reach on an H100. MHz, W: SM clock "
     "and power in half a second of steps; (mean): the power is the driver's mean of the last second, in which the card has rested too; at the "
     "power limit the clock falls, so compare within a run. Beside rounding: its rate as a share of top-k's, of the sustained rates where both were measured. Padding: rows that fill up tiles of "
     "128. `moebius bench train --output FILE`.", train_table),
    ("train_block", "Training an MoE layer, beside PyTorch", "TFLOP/s, the router's matrix and its gradient included. Kept: what autograd "
     "keeps from the forward to the backward, tokens included. Peak: memory that a step takes beyond weights, tokens and the output's "
     "gradient. The batched GEMMs are the ceiling: experts with equally many rows, sorted beforehand; they and \"routing given\" do not "
     "route. `python bench/train_vs_torch.py --output FILE`.", train_block_table),
    ("trains", "Training the demo model", "The same batches with transformers' experts, with ours from the same first weights, and with "
     "transformers' from other first weights. `python tools/demo/compare.py`; docs/training.md shows the curves.", trains_table),
    ("decode", "Decode", "Output tokens per second over all sequences. The floor is that of the bytes and flops that a step's operators "
     "must move and compute (bench/README.md). Decode steps are CUDA graphs on a GPU unless a column names others. `moebius bench DIR --output FILE`.",
     engine_table),
    ("prefill", "Prefill", "Prompt tokens per second over all sequences. `moebius bench DIR --output FILE`.", engine_table),
    ("engine_vs_hf", "The engine beside Hugging Face", "Tokens per second over all sequences, in bf16, one after the other on the same card in one "
     "run, and how many times as fast moebius is. HF: transformers with the experts that are named, sdpa and a DynamicCache, launched from "
     "Python. `python bench/engine_vs_hf.py --output FILE`.", engine_vs_hf_table),
    ("attention", "Attention", "The kernels alone, each after the L2 cache was flushed. Prefill: the last queries of each sequence's context; "
     "TFLOP/s of the causal pairs. Decode: with the norm and rotation of the queries and the store of k and v; TB/s of the cache that is read. "
     "`python bench/attention_times.py --output FILE`.", attention_table),
    ("gemm", "Dense layers", "Of Qwen3's sizes beside cuBLAS (torch.matmul), in turns in one run. `python bench/gemm_vs_torch.py --output FILE`.",
     gemm_table),
    ("load", "Loading", "From the start of `moebius run` to its end after one token, with a checkpoint in the page cache; every run "
     "in its turn. `python bench/load_time.py --output FILE`.", load_table),
    ("serve", "Serving", "What the clients of a server see. Of the engine: beside the tokens/s that `moebius bench` makes of the same "
     "prompts and answers. `moebius bench serve --output FILE`, and `python bench/serve_vs_engine.py --output FILE` with random weights; "
     "bench/README.md tells what is measured.", serve_table),
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
            hows = sorted({r["how"] for r in values if "how" in r and bench != "serve"})  # of serve, columns say it
            intro = f"{text} Measured {' and '.join(dates)}{': ' if hows else ''}{'; '.join(hows)}."
            beside = [list(tables.get(("moe", card), {}).values())] if bench == "moe_zipf" else []
            parts.append(f"## {title}: {card}\n\n{intro}\n\n" + "\n".join(table(values, *beside)).rstrip() + "\n")
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
