#!/usr/bin/env python3
"""
The whole model beside Hugging Face transformers in one run: prefill and decode of the same shape, on the same
card.

    python bench/engine_vs_hf.py                              random weights of Qwen3-30B-A3B's shape
    python bench/engine_vs_hf.py --model Qwen3-30B-A3B        a checkpoint, for both
    python bench/engine_vs_hf.py --layers 4 --output rows.jsonl

moebius is measured first, by `moebius bench`, which ends and gives its memory back; then transformers in this
process: both models do not fit one card together. Random weights are normal numbers for both, each made on
the device by its owner. Prompts are random ids. Prefill: all prompts of the batch until each has its first
token. Decode: tokens of the batch in a second after that, the next token chosen on the device, nothing read
in between; one run to warm up, then the median. transformers runs as it is (bf16, sdpa, DynamicCache), and
with --compile also with a StaticCache and torch.compile(mode="reduce-overhead"), which takes minutes.
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
    parser.add_argument("--compile", action="store_true", help="time transformers compiled, too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--moebius", type=pathlib.Path, help="the program; default: of build/cuda, or else build/cpu")
    parser.add_argument("--output", metavar="FILE", help="append the rows to FILE; - prints them")
    given = parser.parse_args()
    given.lengths, given.batches = ([int(n) for n in text.split(",")] for text in (given.lengths, given.batches))
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
    return rows


def load(directory, given):
    if given.model:
        return (
            transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).to(given.device).eval()
        )
    config = transformers.AutoConfig.from_pretrained(directory)
    with torch.device(given.device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def synchronize(given):
    if given.device == "cuda":
        torch.cuda.synchronize()


class HuggingFace:
    """A contender: how its cache is made, and the model that decodes."""

    def __init__(self, name, model, decoder, cache):
        self.name, self.model, self.decoder, self.cache = name, model, decoder, cache

    def run(self, ids, n_new, given):
        """-> seconds of prefill, seconds of n_new decode steps."""
        batch, length = ids.shape
        cache = self.cache(batch, length + n_new + 1)
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
        return middle - begin, time.perf_counter() - middle


def contenders(model, given):
    found = [HuggingFace("HF eager", model, model, lambda batch, n: transformers.DynamicCache(config=model.config))]
    if given.compile:
        kept = {}  # a shape's cache is the same in every run, because graphs have its address in them

        def static_cache(batch, n):
            cache = kept.setdefault((batch, n), transformers.StaticCache(config=model.config, max_cache_len=n))
            cache.reset()
            return cache

        decoder = torch.compile(model, mode="reduce-overhead", dynamic=False)
        found.append(HuggingFace("HF compiled", model, decoder, static_cache))
    return found


def rows_of_contender(hf, like, given):
    """Rows in the form of moebius bench's; `like` is one of them."""
    rows, chance = [], torch.Generator().manual_seed(1)
    for length in given.lengths:
        for batch in given.batches:
            ids = torch.randint(0, hf.model.config.vocab_size, (batch, length), generator=chance).to(given.device)
            times = [hf.run(ids, given.new, given) for _ in range(given.repeat + 1)][1:]
            prefill, decode = (statistics.median(column) for column in zip(*times, strict=True))
            versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
            how = f"{versions}, sdpa, random prompts, 1 warm-up, median of {given.repeat}"
            for bench, tok_s in (("prefill", batch * length / prefill), ("decode", batch * given.new / decode)):
                figures = {"weights": "bf16", "kv": "bf16", "tok_s": round(tok_s, 1)}
                new = row(
                    bench,
                    hf.name,
                    card_name(torch.device(given.device)),
                    "bf16",
                    {"batch": batch, "context": length},
                    figures,
                    how,
                    like["commit"],
                )
                rows.append(new | {"model": like["model"]})
    return rows


def print_table(rows, names):
    print(
        f"\n{'':9}{'prompt':>8}{'batch':>7}"
        + "".join(f"{name + ', tok/s':>22}" for name in names)
        + f"{'moebius is':>13}"
    )
    keys = list(dict.fromkeys((r["bench"], r["shape"]["context"], r["shape"]["batch"]) for r in rows))
    for bench, context, batch in sorted(keys, key=lambda key: (key[0] == "decode", key)):
        shape = {"batch": batch, "context": context}
        speeds = {r["who"]: r["tok_s"] for r in rows if r["bench"] == bench and r["shape"] == shape}
        best = max(speed for name, speed in speeds.items() if name != "moebius")
        line = "".join(f"{speeds[name]:>22,.1f}" if name in speeds else f"{'-':>22}" for name in names)
        print(f"{bench:9}{context:>8}{batch:>7}{line}{speeds['moebius'] / best:>12.1f}x")


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


@torch.inference_mode()
def main():
    given = parse()
    torch.manual_seed(1)
    transformers.utils.logging.disable_progress_bar()
    with model_directory(given) as directory:
        print(f"{directory.name}, bf16, {card_name(torch.device(given.device))}, commit {commit()}", flush=True)
        rows = rows_of_moebius(directory, given)
        model = load(directory, given)
        names = ["moebius"]
        for hf in contenders(model, given):
            rows += rows_of_contender(hf, rows[0], given)
            names.append(hf.name)
    print_table(rows, names)
    if given.output:
        append_rows(given.output, rows)


if __name__ == "__main__":
    main()
