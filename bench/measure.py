"""Timing, the floor, and the result rows that the benchmark scripts of this folder share."""

import datetime
import json
import pathlib
import statistics
import subprocess
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLUSH_BYTES = 256 << 20  # several times the L2 cache
REPEATS, WARM_UP = 31, 3
SLOW_US, SLOW_REPEATS = 10_000, 7  # what takes longer is repeated less often
HOW = f"median of {REPEATS}, of {SLOW_REPEATS} above {SLOW_US // 1000} ms"
# What floors count: 88 % of cuBLAS's rate in a large GEMM on an H100 (789 in bf16, 397 in tf32, 51 in fp32), in fp8 97 % (1448).
TFLOPS = {"bf16": 700, "fp16": 700, "tf32": 350, "fp32": 45, "fp8_block": 1400, "fp8_tensor": 1400, "fp8_row": 1400}
WEIGHT_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4, "fp8_block": 1, "fp8_tensor": 1, "fp8_row": 1}

_flush = None


def capture(function):
    """A CUDA graph's replay that does what function() did, or None when it waits for the GPU or looks at results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def median_us(function, device):
    """Median time of function() in microseconds, L2 flushed before each call; on the CPU by wall clock."""
    begin = time.perf_counter()
    for _ in range(WARM_UP):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    repeats = REPEATS if (time.perf_counter() - begin) / WARM_UP * 1e6 < SLOW_US else SLOW_REPEATS
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            function()
            times.append((time.perf_counter() - begin) * 1e6)
        return statistics.median(times)
    global _flush
    if _flush is None:
        _flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    pairs = []
    for _ in range(repeats):
        _flush.zero_()
        pairs.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        pairs[-1][0].record()
        function()
        pairs[-1][1].record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) * 1e3 for start, end in pairs)


def sample(line):
    """Clock, power and limit of a line of nvidia-smi; None where one is missing: "[N/A]", or a field that it does not know."""
    try:
        clock, power, limit = map(float, line.split(","))
    except ValueError:
        return None
    return clock, power, limit


class Sensors:
    """What nvidia-smi tells of a GPU while the block runs, every 50 ms; nothing on the CPU or without nvidia-smi.
    Power is that of the moment; where the driver has no such field, its mean of a second."""

    def __init__(self, device):
        self.device, self.samples, self.program, self.power = device, [], None, "instant"

    def command(self, power):
        uuid = str(torch.cuda.get_device_properties(self.device).uuid)
        draw = "power.draw.instant" if power == "instant" else "power.draw"
        return ["nvidia-smi", "-i", uuid if uuid.startswith("GPU-") else f"GPU-{uuid}",
                f"--query-gpu=clocks.sm,{draw},enforced.power.limit", "--format=csv,noheader,nounits"]  # fmt: skip

    def __enter__(self):
        if self.device.type != "cuda":
            return self
        try:
            once = subprocess.run(self.command("instant"), capture_output=True, text=True)
            if sample(once.stdout) is None:
                self.power = "mean"
            command = [*self.command(self.power), "-lms", "50"]
            self.program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:  # no nvidia-smi here
            pass
        return self

    def __exit__(self, *_):
        if self.program is None:
            return
        self.program.terminate()
        for line in self.program.communicate()[0].splitlines():
            if sample(line) is not None:  # the last line may be cut off
                self.samples.append(sample(line))

    def figures(self):
        """Medians, for a result row."""
        if not self.samples:
            return {}
        clock, power, limit = map(statistics.median, zip(*self.samples, strict=True))
        return {"sm_mhz": clock, "watts": power, "limit_watts": limit, "power": self.power}


def card_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "cpu"


def commit():
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        found = ""
    return found or "unknown"


def moe_figures(card, dtype, shape, n_hit, us):
    """The figures of a result row: weights of the experts hit, flops, and the larger time of the two as the floor."""
    n_flops = 6.0 * shape["T"] * shape["K"] * shape["H"] * shape["I"]
    n_bytes = 3.0 * n_hit * shape["H"] * shape["I"] * WEIGHT_BYTES[dtype]
    figures = {"us": round(us, 1), "tflops": round(n_flops / us * 1e-6, 1), "gbps": round(n_bytes / us * 1e-3)}
    if card.startswith("NVIDIA"):
        bytes_per_second = 4.3e12 if "H200" in card else 3.0e12
        figures["floor_us"] = round(max(n_bytes / bytes_per_second, n_flops / (TFLOPS[dtype] * 1e12)) * 1e6, 1)
    return figures


def row(bench, who, card, dtype, shape, figures, how, at_commit):
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    start = {"bench": bench, "who": who, "commit": at_commit, "card": card, "date": date, "dtype": dtype}
    return {**start, "shape": shape, **figures, "how": how}


def append_rows(path, rows):
    """To the file's end; "-" prints them."""
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    if path == "-":
        print(lines, end="", flush=True)
        return
    with open(path, "a") as file:
        file.write(lines)
