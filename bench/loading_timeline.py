#!/usr/bin/env python3
"""
What loading batches costs a training step on a GPU, three ways, each with a timeline of the copies and of the computation.

    python bench/loading_timeline.py                      batches of 32 MiB, steps of ten matrix products of 8192
    python bench/loading_timeline.py --mib 8 --products 3

pageable     tensor.to(device) from ordinary memory: the driver copies through a buffer of its own, and the host waits
pinned       the same from pinned memory, not waited for, on the stream that computes
two buffers  tools/demo/loading.py: pinned memory, a stream for copies, the next batch on its way during a step

The lanes come from torch.profiler (CUPTI). "beside" is the share of the copies' time in which something computes.
"""

import argparse
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools/demo"))
WARM_UP, TIMED, DRAWN, WIDTH = 5, 30, 3, 100


def merged(intervals):
    """Sorted, without overlaps."""
    found = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def beside(some, others):
    """The share of the time of `some` in which one of `others` runs as well; both are merged."""
    both = sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in some for b in others)
    total = sum(end - begin for begin, end in some)
    return both / total if total else 0.0


def lane(intervals, begin, end, width=WIDTH):
    """A character for each part of [begin, end): # where something runs in half of it or more, - in less, else a dot."""
    part, text = (end - begin) / width, ""
    for i in range(width):
        window = [(begin + i * part, begin + (i + 1) * part)]
        share = beside(window, intervals)
        text += "#" if share >= 0.5 else "-" if share > 0 else "."
    return text


def pageable(batches, device):
    for batch in batches:
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def pinned(batches, device):
    for batch in batches:
        yield {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


def run(torch, load, n, given, device, matrix):
    """n steps -> us a step by wall clock."""
    host = [{"x": torch.randint(100, (given.mib << 17,))} for _ in range(4)]  # int64
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for batch in load((host[i % 4] for i in range(n)), device):
        total = batch["x"].sum()
        for _ in range(given.products):
            matrix = matrix @ matrix * 0
        matrix[0, 0] += total.to(matrix.dtype)
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / n * 1e6


def lanes_of(torch, work):
    """work() under the profiler -> (copies, kernels), merged, in us."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
    copies, kernels = [], []
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            span = (event.time_range.start, event.time_range.end)
            (copies if event.name.startswith("Memcpy HtoD") else kernels).append(span)
    return merged(copies), merged(kernels)


def main():
    import loading
    import torch
    from measure import card_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=32, help="of a batch (default 32)")
    parser.add_argument("--products", type=int, default=10, help="matrix products of a step (default 10)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("loading_timeline: there is no GPU; on the CPU nothing is copied")
    device = torch.device("cuda")
    matrix = torch.zeros(8192, 8192, dtype=torch.bfloat16, device=device)
    print(f"{card_name(device)}, torch {torch.__version__}, batches of {given.mib} MiB, {given.products} products")
    nothing = {"x": torch.zeros(given.mib << 17, dtype=torch.int64, device=device)}
    ways = {
        "no loading": lambda batches, device: (nothing for _ in batches),
        "pageable": pageable,
        "pinned": pinned,
        "two buffers": loading.on_device,
    }
    for name, load in ways.items():
        run(torch, load, WARM_UP, given, device, matrix)
        us = run(torch, load, TIMED, given, device, matrix)
        copies, kernels = lanes_of(torch, lambda load=load: run(torch, load, 2 * DRAWN, given, device, matrix))
        print(f"\n{name}: {us:.0f} us a step")
        if copies and kernels:
            print(f"  {beside(copies, kernels):.0%} of the copies beside computation")
            end = max(copies[-1][1], kernels[-1][1])
            begin = end - (end - min(copies[0][0], kernels[0][0])) / 2  # the second half: the start is another matter
            print(f"  copies   {lane(copies, begin, end)}\n  compute  {lane(kernels, begin, end)}")
            print(f"           {0:<{WIDTH - 8}}{end - begin:5.0f} us")


if __name__ == "__main__":
    main()
