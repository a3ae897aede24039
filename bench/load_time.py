"""From the start of `moebius run` to its first token, with a checkpoint that is in the page cache:

    python bench/load_time.py [--shape DIR] [--layers N] [--folder DIR] [--moebius PROGRAM] [--times 3]

A checkpoint of the shape's size is written first: safetensors in bf16 with random weights, in as many files as
there are processes, beside the demo model's tokenizer. In a folder of memory (default /dev/shm) the files are in
the page cache by nature; elsewhere they are as long as the machine keeps what was just written. The folder is
removed at the end. --layers: fewer than the shape has, if there is no place for all.
"""

import argparse
import datetime
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = 1 << 22  # numbers, of which every tensor is a stretch


def tensors(config):
    """(name, rows, columns) of all, vectors with columns 0, in the order of the layers."""
    hidden, inner, dim = config["hidden_size"], config["moe_intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    yield "model.embed_tokens", config["vocab_size"], hidden
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm", hidden, 0
        yield layer + "post_attention_layernorm", hidden, 0
        yield layer + "self_attn.q_norm", dim, 0
        yield layer + "self_attn.k_norm", dim, 0
        yield layer + "self_attn.q_proj", heads * dim, hidden
        yield layer + "self_attn.k_proj", kv_heads * dim, hidden
        yield layer + "self_attn.v_proj", kv_heads * dim, hidden
        yield layer + "self_attn.o_proj", hidden, heads * dim
        yield layer + "mlp.gate", config["num_experts"], hidden
        for e in range(config["num_experts"]):
            yield f"{layer}mlp.experts.{e}.gate_proj", inner, hidden
            yield f"{layer}mlp.experts.{e}.up_proj", inner, hidden
            yield f"{layer}mlp.experts.{e}.down_proj", hidden, inner
    yield "model.norm", hidden, 0
    yield "lm_head", config["vocab_size"], hidden


def bf16(values):
    bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
    return ((bits + 0x8000) >> 16).astype(numpy.uint16)


def write_file(path, parts):
    """parts: [(name, rows, columns)]. A matrix is of size 1 / sqrt(columns), as its input's sums need."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, rows, columns in parts:
        n_bytes = 2 * rows * max(columns, 1)
        header[name + ".weight"] = {
            "dtype": "BF16",
            "shape": [rows, columns] if columns else [rows],
            "data_offsets": [at, at + n_bytes],
        }
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    chance = numpy.random.default_rng(len(parts))
    normal, blocks = chance.standard_normal(BLOCK, numpy.float32), {}
    with open(path, "wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, rows, columns in parts:
            if columns not in blocks:
                blocks[columns] = memoryview(bf16(normal / math.sqrt(columns) if columns else 1 + normal / 10)).cast("B")
            left = 2 * rows * max(columns, 1)
            while left:
                first = 2 * int(chance.integers(0, BLOCK // 2))
                left -= file.write(blocks[columns][first : first + min(left, BLOCK)])
    return at


def write_checkpoint(folder, config, n_files):
    parts = list(tensors(config))
    sizes = [rows * max(columns, 1) for _, rows, columns in parts]
    share, files, held = sum(sizes) / n_files, [[]], 0
    for part, size in zip(parts, sizes, strict=True):
        if held >= share * len(files) and len(files) < n_files:
            files.append([])
        files[-1].append(part)
        held += size
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    with multiprocessing.Pool(len(files)) as pool:
        n_bytes = sum(pool.starmap(write_file, [(folder / n, f) for n, f in zip(names, files, strict=True)]))
    where = {part[0] + ".weight": name for name, file in zip(names, files, strict=True) for part in file}
    index = {"metadata": {"total_size": n_bytes}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (ROOT / "models/demo" / name).exists():
            shutil.copy(ROOT / "models/demo" / name, folder)
    return n_bytes


def first_token(program, folder, options):
    """Seconds until the program's first byte of output, and until its end."""
    command = [program, "run", folder, "-p", "What is 17 + 25?", "-n", "1", "--quiet", *options]
    begin = time.monotonic()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"load_time: {' '.join(map(str, command))}: exit status {done.returncode}: {done.stderr[-500:]}")
    return time.monotonic() - begin


def output_of(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=pathlib.Path, default=ROOT / "bench/shapes/qwen3-30b-a3b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--folder", default="/dev/shm", help="where the checkpoint is written (default /dev/shm)")
    parser.add_argument("--files", type=int, default=os.cpu_count())
    parser.add_argument("--moebius", type=pathlib.Path, default=ROOT / "build/cuda/moebius")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, help="append a row as JSON")
    parser.add_argument("--card", help="what the model runs on, for the row; default: as nvidia-smi names it")
    parser.add_argument("--commit", help="of the program, for the row; default: of this folder")
    parser.add_argument("options", nargs="*", help="further options of moebius run, behind --")
    given = parser.parse_args()
    config = json.loads((given.shape / "config.json").read_text())
    config["num_hidden_layers"] = given.layers or config["num_hidden_layers"]
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder, begin = pathlib.Path(scratch), time.monotonic()
        n_bytes = write_checkpoint(folder, config, given.files)
        print(f"{n_bytes / 1e9:.1f} GB of {config['num_hidden_layers']} layers in {given.files} files, "
              f"written in {time.monotonic() - begin:.1f} s", flush=True)  # fmt: skip
        seconds = []
        for _ in range(given.times):
            seconds.append(first_token(given.moebius, folder, given.options))
            print(f"start to end with one token: {seconds[-1]:.2f} s, {n_bytes / seconds[-1] / 1e9:.1f} GB/s", flush=True)
    if given.output:
        card = given.card or output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()[0]
        row = {"bench": "load", "who": "moebius", "commit": given.commit or output_of("git", "-C", ROOT, "describe", "--always"),
               "card": card, "date": str(datetime.date.today()), "model": given.shape.name, "dtype": "bf16",
               "weights": " ".join(["bf16", *given.options]), "shape": {"layers": config["num_hidden_layers"], "files": given.files},
               "bytes": n_bytes, "seconds": seconds, "how": f"wall clock of the process, checkpoint in {given.folder}"}  # fmt: skip
        with open(given.output, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
