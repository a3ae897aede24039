#!/usr/bin/env python3
"""
The whole model beside Hugging Face transformers in one run: prefill and decode of the same shape, on the same
card.

    python bench/engine_vs_hf.py                              random weights of Qwen3-30B-A3B's shape
    python bench/engine_vs_hf.py --model Qwen3-30B-A3B        a checkpoint, for both
    python bench/engine_vs_hf.py --layers 4 --output rows.jsonl

moebius is measured first, by `moebius bench`, which ends and gives its memory back; then transformers in this
process: both models do not fit one card together. Random weights are normal numbers for both, each made on
the device by its owner, of the same deviations, so that the router of both spreads the tokens. Prompts are random
ids. Prefill: all prompts of the batch until each has its first token. Decode: tokens of the batch in a second after
that, the next token chosen on the device, nothing read in between; one run to warm up, then the median.

transformers runs as it is (bf16, sdpa, DynamicCache), with each implementation of --experts in its turn, and
with --compile also with a StaticCache and torch.compile(mode="reduce-overhead"), which takes minutes. A shape that
is slow there gets fewer decode steps and runs, so that it ends after some --seconds; its row says how many.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers
from measure import ROOT, append_rows, card_name, commit, row

BENCH = "engine_vs_hf"
FEWEST_STEPS = 4  # of decoding in a timed run, however slow


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=pathlib.Path, metavar="DIR", help="a checkpoint; else random weights of --config"
    )
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "bench/shapes/qwen3-30b-a3b/config.json")
    parser.add_argument("--layers", type=int, help="only so many layers of the random weights")
    parser.add_argument("--lengths", default="512", help="tokens of a prompt, separated by commas (default 512)")
    parser.add_argument("--batches", default="1,16", help="sequences at once, separated by commas (default 1,16)")
    parser.add_argument("--new", type=int, default=64, help="decode steps of a timed run (default 64)")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs after one to warm up (default 3)")
    parser.add_argument("--experts", default="grouped_mm,eager",
                        help="implementations of transformers' experts, separated by commas (default grouped_mm,eager)")
    parser.add_argument("--seconds", type=float, default=6, metavar="S",
                        help="of the timed runs of transformers for one shape, about (default 6)")
    parser.add_argument("--compile", action="store_true", help="time transformers compiled, too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--moebius", type=pathlib.Path, help="the program; default: of build/cuda, or else build/cpu")
    parser.add_argument("--output", metavar="FILE", help="append the rows to FILE; - prints them")
    given = parser.parse_args()
    given.lengths, given.batches = ([int(n) for n in text.split(",")] for text in (given.lengths, given.batches))
    given.experts = given.experts.split(",")
    if given.moebius is None:
        programs = [ROOT / "build" / name / "moebius" for name in ("cuda", "cpu")]
        given.moebius = next((p for p in programs[given.device == "cpu" :] if p.exists()), programs[0])
    return given


def rows_of_moebius(directory, given):
    command = [given.moebius, "bench", directory, "--json", "--quiet", "--device", given.device, "--dtype", "bf16",
               "--prompt-lengths", ",".join(map(str, given.lengths)), "--batches", ",".join(map(str, given.batches)),
               "-n", str(given.new), "--repeat", str(given.repeat)]  # fmt: skip
    command += [] if given.model else ["--random-weights"]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"engine_vs_hf: {given.moebius} bench failed, see above")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if len(rows) != 2 * len(given.lengths) * len(given.batches):
        sys.exit(f"engine_vs_hf: moebius bench left out shapes, see above: {len(rows)} rows")
    return [{**r, "bench": BENCH, "pass": r["bench"]} for r in rows]


def load(directory, given):
    if given.model:
        return (
            transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).to(given.device).eval()
        )
    config = transformers.AutoConfig.from_pretrained(directory)
    with torch.device(given.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.get_input_embeddings().weight.normal_(0, 1)  # as src/model/weights/weights_random.c, which says why
    for layer in model.model.layers:
        layer.input_layernorm.weight.fill_(0.1)
        layer.post_attention_layernorm.weight.fill_(0.1)
    return model


def synchronize(given):
    if given.device == "cuda":
        torch.cuda.synchronize()


class HuggingFace:
    """A contender: which experts it has, how its cache is made, and the model that decodes."""

    def __init__(self, name, model, decoder, cache, experts):
        self.name, self.model, self.decoder, self.cache, self.experts = name, model, decoder, cache, experts

    def run(self, ids, n_new, given):
        """-> seconds of prefill, seconds of a decode step, of which there are n_new."""
        batch, length = ids.shape
        cache = self.cache(batch, length + given.new + 1)
        synchronize(given)
        begin = time.perf_counter()
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        synchronize(given)
        middle = time.perf_counter()
        for i in range(n_new):
            position = torch.full((batch, 1), length + i, device=ids.device)
            out = self.decoder(token, past_key_values=cache, position_ids=position, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        synchronize(given)
        return middle - begin, (time.perf_counter() - middle) / n_new


def runs_that_fit(prefill, step, given):
    """Decode steps of a run and runs that take about --seconds, of a prefill and a step of so many."""
    n_new = int((given.seconds / given.repeat - prefill) / step)
    n_new = max(min(FEWEST_STEPS, given.new), min(n_new, given.new))
    return n_new, max(1, min(int(given.seconds / (prefill + n_new * step)), given.repeat))


def contenders(model, given):
    found = []
    kept = {}  # a shape's cache is the same in every run, because graphs have its address in them

    def static_cache(batch, n):
        cache = kept.setdefault((batch, n), transformers.StaticCache(config=model.config, max_cache_len=n))
        cache.reset()
        return cache

    def dynamic_cache(_batch, _n):
        return transformers.DynamicCache(config=model.config)

    for experts in given.experts:
        found.append(HuggingFace(f"HF {experts}", model, model, dynamic_cache, experts))
        if given.compile and experts != "eager":  # that one asks the GPU which experts are hit
            decoder = torch.compile(model, mode="reduce-overhead", dynamic=False)
            found.append(HuggingFace(f"HF {experts} compiled", model, decoder, static_cache, experts))
    return found


def rows_of_shape(hf, batch, length, like, given):
    """Rows of prefill and decode in the form of moebius bench's; `like` is one of them."""
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(0, hf.model.config.vocab_size, (batch, length), generator=chance).to(given.device)
    is_compiled = hf.decoder is not hf.model  # which takes some steps
    first = hf.run(ids, FEWEST_STEPS if is_compiled else 1, given)
    if is_compiled or sum(first) < given.seconds:  # without what is made at the first call
        first = hf.run(ids, 1, given)
    n_new, n_runs = runs_that_fit(*first, given)
    times = [hf.run(ids, n_new, given) for _ in range(n_runs)]
    prefill, decode = (statistics.median(column) for column in zip(*times, strict=True))
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    how = f"{versions}, sdpa, random prompts, 1 warm-up, median of {n_runs}, {n_new} decode steps"
    card, shape = card_name(torch.device(given.device)), {"batch": batch, "context": length}
    rows = []
    for name, tok_s in (("prefill", batch * length / prefill), ("decode", batch / decode)):
        figures = {"weights": "bf16", "kv": "bf16", "tok_s": round(tok_s, 1)}
        new = row(BENCH, hf.name, card, "bf16", shape, figures, how, like["commit"])
        rows.append({**new, "model": like["model"], "pass": name})
    return rows


def rows_of_contender(hf, like, given):
    """A shape's rows as soon as they are there: the whole takes minutes."""
    hf.model.set_experts_implementation(hf.experts)
    for length in given.lengths:
        for batch in given.batches:
            rows = rows_of_shape(hf, batch, length, like, given)
            speeds = ", ".join(f"{r['pass']} {r['tok_s']:,.1f} tok/s" for r in rows)
            print(f"{hf.name}, {batch} x {length}: {speeds}", flush=True)
            yield rows


def print_table(rows, names):
    print(
        f"\n{'':9}{'prompt':>8}{'batch':>7}"
        + "".join(f"{name + ', tok/s':>22}" for name in names)
        + f"{'moebius is':>13}"
    )
    keys = list(dict.fromkeys((r["pass"], r["shape"]["context"], r["shape"]["batch"]) for r in rows))
    for name, context, batch in sorted(keys, key=lambda key: (key[0] == "decode", key)):
        shape = {"batch": batch, "context": context}
        speeds = {r["who"]: r["tok_s"] for r in rows if r["pass"] == name and r["shape"] == shape}
        best = max(speed for who, speed in speeds.items() if who != "moebius")
        line = "".join(f"{speeds[who]:>22,.1f}" if who in speeds else f"{'-':>22}" for who in names)
        print(f"{name:9}{context:>8}{batch:>7}{line}{speeds['moebius'] / best:>12.1f}x")


@contextlib.contextmanager
def model_directory(given):
    """The checkpoint, or a folder with the config.json of --config and --layers."""
    if given.model:
        yield given.model
        return
    config = json.loads(given.config.read_text())
    name = given.config.resolve().parent.name
    if given.layers:
        config["num_hidden_layers"] = given.layers
        name += f"-{given.layers}-layers"
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch) / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        yield directory


def keep(rows, given):
    if given.output:
        append_rows(given.output, rows)


@torch.inference_mode()
def main():
    given = parse()
    torch.manual_seed(1)
    transformers.utils.logging.disable_progress_bar()
    with model_directory(given) as directory:
        print(f"{directory.name}, bf16, {card_name(torch.device(given.device))}, commit {commit()}", flush=True)
        rows = rows_of_moebius(directory, given)
        keep(rows, given)
        model = load(directory, given)
        names = ["moebius"]
        for hf in contenders(model, given):
            names.append(hf.name)
            for new in rows_of_contender(hf, rows[0], given):
                keep(new, given)
                rows += new
    print_table(rows, names)


if __name__ == "__main__":
    main()
