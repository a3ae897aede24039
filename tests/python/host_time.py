"""
How long a call keeps the calling thread, in microseconds: python tests/python/host_time.py [cpu|cuda].

On the CPU the layer is so small that the operator's own work is lost in it; on a GPU the calls are only queued.
"""

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("MOEBIUS_LIBRARY", str(ROOT / "build/cpu/libmoebius.so"))

import moebius  # noqa: E402
import torch  # noqa: E402

CALLS, REPEATS = 50, 100  # 50 calls fit into a GPU's queue


def least(call, device):
    """The least of REPEATS means, each over CALLS calls."""
    means = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        means.append((time.perf_counter() - started) / CALLS * 1e6)
    return min(means)


def measure(device):
    """{call: microseconds}."""
    x = torch.randn(1, 16, device=device).to(torch.bfloat16)
    w13, w2 = (torch.randn(shape, device=device).to(torch.bfloat16) for shape in ((4, 32, 16), (4, 16, 16)))
    logits = torch.randn(1, 4, device=device)
    weights, ids = moebius.route(logits, 2)
    calls = {
        "torch.nn.functional.linear, to compare": lambda: torch.nn.functional.linear(x, w13[0]),
        "route": lambda: moebius.route(logits, 2),
        "moe": lambda: moebius.moe(x, w13, w2, weights, ids),
        "moe_from_logits": lambda: moebius.moe_from_logits(x, logits, w13, w2, 2),
    }
    with torch.inference_mode():
        return {name: least(call, device) for name, call in calls.items()}


if __name__ == "__main__":
    for name, microseconds in measure(torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")).items():
        print(f"{name}: {microseconds:.1f} us")
