"""The demo model on two devices, operator by operator: python tests/gpu/trace_check.py [--device cuda] [--keep
DIR]

Both devices compute the same ids, and every operator's output is compared (MOEBIUS_TRACE, see
src/model/trace.h), in the order in which a layer computes them. A row's error is |device - CPU in fp32| /
|CPU in fp32|.

- fp32: no row's error is more than 1e-4.
- bf16: the median of an operator's rows is at most 2 times, and the worst at most 4 times that of the CPU
  in bf16.
- an fp8 KV cache: as bf16, with the CPU's fp8 KV cache.
- fp8 weights: a GPU also rounds what is multiplied with them to fp8, the CPU does not. The median is at most
  1/16, which is as far as rounding to fp8 (e4m3) moves a value.

In fp32 the router chooses experts as the model has it. In the other kinds every token goes to all experts: a
choice between two that are nearly equal (0.6779 and 0.6889, say, with logits that are 0.01 off) is a jump,
which may fall either way, and is 7 times the limit for a row. Without choices all operators are continuous,
and one row beyond the limit is a fault.

The first operator beyond its limit is named: what comes after only inherits its error.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy
from engine_support import DEMO, Model, Session, Verdict, demo_conversations

FP32_WORST, MEDIAN_FACTOR, WORST_FACTOR, FP8_MEDIAN = 1e-4, 2.0, 4.0, 1 / 16
KINDS = {"fp32": {}, "bf16": {}, "fp8 weights": {"quant": "fp8"}, "fp8 KV": {"kv_dtype": "fp8"}}


def with_all_experts(folder):
    """The demo model, but every token goes to all experts."""
    for path in DEMO.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((DEMO / "config.json").read_text())
    config["num_experts_per_tok"] = config["num_local_experts"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(device, dtype, kind):
    """Three sessions: prompts in one batch, one in chunks, one token by token as in decoding. No token is fed back."""
    ids = sorted(demo_conversations(100), key=len)
    with tempfile.TemporaryDirectory() as scratch, Model(
        DEMO if kind == "fp32" else with_all_experts(pathlib.Path(scratch)), device, dtype=dtype, **KINDS[kind]
    ) as model:
        for prompts, chunk in ((ids[-4:], 512), (ids[-1:], 64), ([ids[0][:12], ids[1][:12]], 1)):
            options = {"prefill_chunk": chunk, "steps_in_flight": 1, "max_decode_slowdown": 0.0, "prefix_caching": 0}
            with Session(model, kv_tokens=8192, max_context=1024, **options) as session:
                session.finish([session.submit(prompt, 1) for prompt in prompts])


def traced(folder, device, dtype, kind):
    """Runs this script in a process of its own: the environment is read once."""
    folder.mkdir()
    command = [sys.executable, __file__, "--device", device, "--run", dtype, "--kind", kind]
    subprocess.run(command, env={**os.environ, "MOEBIUS_TRACE": str(folder)}, check=True)
    return folder


def order(name):
    """ "LL-NN-operator": embed comes before layer 0, the logits after the last layer."""
    return {"embed": "", "logits": "~"}.get(name, name)


def rows_by_operator(folder):
    """{operator: rows of all steps}; -> in the order of the forward pass."""
    found = {}
    for path in sorted(folder.glob("*.npy")):
        step, name = path.stem.split("-", 1)
        found.setdefault(name, []).append(numpy.load(path))
    return {name: numpy.concatenate(found[name]).astype(numpy.float64) for name in sorted(found, key=order)}


def errors(got, expected):
    norms = numpy.linalg.norm(expected, axis=1)
    return numpy.linalg.norm(got - expected, axis=1) / numpy.where(norms == 0, 1, norms)


def limits_of(kind, of_cpu):
    """Of the median and of the worst row."""
    if kind == "fp32":
        return FP32_WORST, FP32_WORST
    if kind == "fp8 weights":
        return FP8_MEDIAN, numpy.inf
    return MEDIAN_FACTOR * numpy.median(of_cpu), WORST_FACTOR * of_cpu.max()


def compare(verdict, kind, got, expected, of_cpu):
    """got: the device's; expected: the CPU's in fp32; of_cpu: the CPU's in bf16, None where the kind is fp32."""
    same = list(got) == list(expected) and all(got[name].shape == expected[name].shape for name in got)
    verdict.say(same and len(got) > 50, f"{kind}: {len(got)} operators' outputs, the same on both devices")
    if not same:
        return
    first, nearest = None, (0.0, "")
    for name in expected:
        of_device = errors(got[name], expected[name])
        median, most = limits_of(kind, errors(of_cpu[name], expected[name]) if of_cpu else None)
        middle, worst = numpy.median(of_device), of_device.max()
        if median > 0:
            nearest = max(nearest, (max(middle / median, worst / most), name))
        if not (middle <= median and worst <= most):  # a NaN is not within, either
            first = first or (
                f"{name} (layer-number-operator): median of the rows {middle:.1e}, limit {median:.1e}; "
                f"worst {worst:.1e} in row {of_device.argmax()} of {len(of_device)}, limit {most:.1e}"
            )
    n_rows = sum(len(rows) for rows in expected.values())
    verdict.say(
        first is None,
        f"{kind}: " + (first or f"{n_rows} rows; the nearest to its limit is {nearest[1]}, {nearest[0]:.0%} of it"),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="what is compared with the CPU (default cuda)")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="leave the outputs in DIR")
    parser.add_argument("--run", metavar="DTYPE", help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run(given.device, given.run, given.kind)
        return
    verdict = Verdict("trace_check")
    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(4) as pool:
        folder = given.keep or pathlib.Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)

        def begin(who, device, dtype, kind):
            return pool.submit(traced, folder / f"{kind.replace(' ', '-')}-{who}", device, dtype, kind)

        runs = {}
        for kind in KINDS:
            dtype = "fp32" if kind == "fp32" else "bf16"
            runs[kind, "got"] = begin("got", given.device, dtype, kind)
            runs[kind, "truth"] = begin("truth", "cpu", "fp32", kind)
            if kind not in ("fp32", "fp8 weights"):
                runs[kind, "cpu"] = begin("cpu", "cpu", "bf16", kind)
        rows = lambda *key: rows_by_operator(runs[key].result()) if key in runs else None  # noqa: E731
        for kind in KINDS:
            compare(verdict, kind, rows(kind, "got"), rows(kind, "truth"), rows(kind, "cpu"))
    verdict.end()


if __name__ == "__main__":
    main()
