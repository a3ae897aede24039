"""How long a GPU is idle between two decode steps: python bench/step_gap.py [--batch 64] [--prompt-tokens 1024]

Two steps are in flight, as always. CUPTI, by way of PyTorch's profiler, tells when each kernel of the process began
and ended, those of CUDA graphs too. The gap of a step is the time from the end of the last kernel of the step
before to the beginning of its first kernel, which looks up the embeddings; the copies in between count as idle.
A model of the shape with random weights is used; all sequences decode. The tool makes steps slower, so the gaps
are what it takes at most. Needs PyTorch.
"""

import argparse
import collections
import json
import pathlib
import random
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/gpu"))

import torch  # noqa: E402
from engine_support import LOAD_ALL, LOAD_RANDOM, Model, Session  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402


def gaps_of(events):
    """(us without a kernel before each step but the first, what ran meanwhile) of a trace's device events."""
    events = sorted(events, key=lambda event: event["ts"])
    kernels = [event for event in events if event["cat"] == "kernel"]
    first = [i for i, kernel in enumerate(kernels) if "embed" in kernel["name"]]
    gaps, meanwhile = [], collections.Counter()
    for i in first[1:]:
        end = max(kernel["ts"] + kernel["dur"] for kernel in kernels[max(0, i - 20) : i])
        gaps.append(kernels[i]["ts"] - end)
        meanwhile.update(
            event["name"] for event in events if event["cat"] != "kernel" and end <= event["ts"] <= kernels[i]["ts"]
        )
    steps = [kernels[b]["ts"] - kernels[a]["ts"] for a, b in zip(first, first[1:], strict=False)]
    return gaps, steps, meanwhile


def decode(session, n_steps):
    """Seconds of a step."""
    begin = time.perf_counter()
    for _ in range(n_steps):
        session.step()
    return (time.perf_counter() - begin) / n_steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "bench/shapes/qwen3-30b-a3b")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--quant", choices=["fp8"])
    given = parser.parse_args()
    load = LOAD_ALL if list(given.model.glob("*.safetensors")) else LOAD_RANDOM
    context = given.prompt_tokens + 8 * given.steps + 64
    with Model(given.model, "cuda", quant=given.quant, load=load) as model:
        room = given.batch * (context + 64)
        with Session(model, max_sequences=given.batch, max_queued=given.batch, max_context=context, kv_tokens=room) as session:
            chance, vocab = random.Random(1), model.info.vocab
            sequences = [
                session.submit([chance.randrange(vocab) for _ in range(given.prompt_tokens)], 8 * given.steps)
                for _ in range(given.batch)
            ]
            while not all(session.read(sequence).tokens for sequence in sequences):
                session.step()
            decode(session, given.steps)  # its graph is made
            plain = decode(session, given.steps)
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                decode(session, 3)
                traced = decode(session, given.steps)
                torch.cuda.synchronize()
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                profiler.export_chrome_trace(file.name)
                events = json.loads(pathlib.Path(file.name).read_text())["traceEvents"]
    on_device = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e]
    gaps, steps, meanwhile = gaps_of(on_device)
    if len(gaps) < given.steps // 2:
        sys.exit(f"step_gap: the trace has {len(gaps)} steps of {given.steps}: is CUPTI there?")
    gaps = gaps[3:]  # behind the beginning of the profiler
    print(f"{torch.cuda.get_device_name()}: {given.batch} sequences after {given.prompt_tokens} tokens, {given.model.name}"
          f"{', fp8 weights' if given.quant else ''}")  # fmt: skip
    print(f"a step: {1e6 * plain:.0f} us, while it is traced {1e6 * traced:.0f} us (median on the device "
          f"{statistics.median(steps):.0f})")  # fmt: skip
    print(f"idle before a step: median {statistics.median(gaps):.1f} us, least {min(gaps):.1f}, most {max(gaps):.1f}, "
          f"of {len(gaps)}; meanwhile {dict(meanwhile)}")  # fmt: skip


if __name__ == "__main__":
    main()
