"""All checks of a device in one call, within a time: python3 tests/gpu/run_all.py [--device cuda] [--budget 540]
[--only NAME ...]

--sanitize: the demo model from start to end, and every kernel's small cases, under compute-sanitizer in place
of the checks.

Builds nothing: --build says where the programs and the library are. The engine's checks come first, then the
kernels', --jobs of them beside each other: nothing is timed, and much of their time is the host's. backward_check,
which takes 40 GB, runs alone, and then random traffic, which watches the device's memory and has what time is left.
What a stage prints goes to OUT/NAME.log. OUT/summary.txt has a line for each stage, with its last line of output, and below it every line
that says WRONG; OUT/summary.json has the same for programs. A stage that had no time, or what it needs is not
installed, is LEFT OUT and said to be. Exit status: 0 when all that was to run is right, 1 when something is
wrong, 3 when nothing is wrong but stages were left out.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = "tests/gpu"
TRAFFIC_MOST = 1800  # seconds
# What each kernel is checked with: nothing is timed.
KERNELS = {"ops_check": [], "attention_check": ["--no-times"], "decode_check": ["--check"], "gemm_check": ["--check"],
           "api_check": [], "front_check": ["--check"], "simt_check": ["--check"], "activation_check": [],
           "rows_check": ["--check"], "grouped_gemm_check": ["--check"], "streams_check": [],
           "moe_check": ["--check"], "moe_block_check": [], "training_front_check": ["--check"],
           "backward_rows_check": ["--check"], "backward_weights_check": ["--check"], "backward_check": []}  # fmt: skip

# What ops_check can run by itself.
OPERATORS = ["embed", "norm", "gemm", "rope", "attention", "decode_attention", "sample", "moe_plan", "grouped_gemm", "moe", "bits"]


@dataclasses.dataclass
class Stage:
    name: str
    command: list
    least: int  # seconds that must be left for it to begin
    most: int  # seconds after which it is ended, and wrong
    modules: tuple = ()  # of Python, that it needs
    only_cuda: bool = False
    alone: bool = False  # takes much of the device's memory, or watches it


def stages(given, scratch):
    """The order is that of what a fault would say most about; the large model's, which take long, come last."""
    python, device, build = sys.executable, given.device, given.build
    on_cpu = device == "cpu"
    script = lambda name, *options: [python, f"{HERE}/{name}.py", "--device", device, *map(str, options)]  # noqa: E731
    small = ["--longest", 200] if on_cpu else []
    found = [
        Stage("test_device", [f"{build}/tests/test_device"], 5, 60),
        Stage("test_golden", [f"{build}/tests/test_golden"], 10, 200),
        Stage("test_device_faults", [f"{build}/tests/test_device_faults"], 10, 200),
        Stage("trace_check", script("trace_check"), 20, 300, ("numpy",)),
        Stage("bits_check", script("bits_check", *small), 20, 400, ("numpy",)),
        Stage(
            "hf_check_demo",
            script("hf_check", "--only", "demo", *(["--rows", 12] if on_cpu else [])),
            50,
            400,
            ("torch", "transformers", "safetensors"),
        ),
        Stage("accuracy_check", script("accuracy_check", *(["--every", 50] if on_cpu else [])), 20, 300, ("numpy",)),
        Stage("python_gpu_check", [python, "tests/python/gpu_check.py"], 20, 200, ("torch",), True),
    ]
    found += [
        Stage(name, [f"{build}/tests/{name}", *options], 10, 400, (), True, name == "backward_check")
        for name, options in KERNELS.items()
    ]
    found += [
        Stage("bits_check_slice", script("bits_check", "--model", scratch / "slice", *small), 20, 400, ("numpy",)),
        Stage(
            "hf_check_slice", script("hf_check", "--only", "slice"), 80, 400, ("torch", "transformers", "safetensors")
        ),
    ]
    # Half of the time that is left is for each model; the minutes are filled in when the time is known.
    traffic = {"traffic_check_slice": ["--model", scratch / "slice"], "traffic_check": []}
    found += [
        Stage(name, script("traffic_check", *options), 40 if options else 20, TRAFFIC_MOST, ("numpy",), alone=True)
        for name, options in traffic.items()
    ]
    return [stage for stage in found if not (stage.only_cuda and on_cpu)]


def sanitizer_stages(given):
    """The demo model from start to end, with graphs, in each type; then the kernels' small cases."""
    build, found = given.build, []
    demo = [f"{build}/moebius", "run", "models/demo", "-p", "What is 17 + 25?", "--device", given.device, "--quiet"]

    def add(tool, name, program, *options):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *options, *program]
        found.append(Stage(f"{tool}_{name}", command, 10, 300))

    kinds = {"demo": [], "demo_fp32": ["--dtype", "fp32"], "demo_fp8": ["--quant", "fp8", "--kv-dtype", "fp8"]}
    for tool in ("memcheck", "synccheck", "racecheck", "initcheck"):
        for name, options in kinds.items():
            n_new = 3 if tool == "racecheck" else 12  # racecheck is slow
            add(tool, name, [*demo, "-n", n_new, *options], *(["--leak-check", "full"] if tool == "memcheck" else []))
    small = {"api_check": [], "moe_check": ["--small", "--check", "--picked"], "activation_check": [],
             **{name: ["--small"] for name in ("attention_check", "decode_check", "front_check", "gemm_check",
                                               "grouped_gemm_check", "moe_block_check", "rows_check", "simt_check",
                                               "training_front_check", "backward_rows_check",
                                               "backward_weights_check", "backward_check")}}  # fmt: skip
    for tool in ("memcheck", "synccheck", "racecheck", "initcheck"):
        for name, options in small.items():
            add(tool, name, [f"{build}/tests/{name}", *options])
        for name in OPERATORS:  # the same program; all of it takes long
            add(tool, f"ops_{name}", [f"{build}/tests/ops_check", name])
    return found


def write_slice_config(folder, device):
    """Three layers of Qwen3-30B-A3B's shape for the checks that need no trained weights; on the CPU a small shape."""
    config = json.loads((ROOT / "bench/shapes/qwen3-30b-a3b/config.json").read_text()) | {
        "num_hidden_layers": 3,
        "eos_token_id": 1,
    }
    if device == "cpu":
        config |= {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "num_experts": 8,
                   "num_experts_per_tok": 2, "moe_intermediate_size": 48, "vocab_size": 1000, "max_position_embeddings": 2048}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def divided(chosen, n_jobs):
    """The places of the stages that run beside each other, and of those that run alone after them."""
    alone = [i for i, stage in enumerate(chosen) if stage.alone and n_jobs > 1]
    return [i for i in range(len(chosen)) if i not in alone], alone


def why_left_out(stage, left):
    missing = [module for module in stage.modules if importlib.util.find_spec(module) is None]
    if missing:
        return f"Python has no {', '.join(missing)}"
    if not shutil.which(stage.command[0]):
        return f"there is no {stage.command[0]}"
    if left < stage.least:
        return f"no time: {left:.0f} s of the budget are left, {stage.least} are needed"
    return ""


def with_minutes(stage, left, n_left):
    """Traffic gets its share of what is left, less 20 s to start and to end."""
    if not stage.name.startswith("traffic"):
        return stage
    seconds = min(TRAFFIC_MOST, left / n_left) - 20
    return dataclasses.replace(stage, command=[*stage.command, "--minutes", f"{seconds / 60:.2f}"])


def run(stage, left, out, environment):
    """-> what the summary says of the stage."""
    log, begin = out / f"{stage.name}.log", time.monotonic()
    limit = min(stage.most, left)
    with open(log, "wb") as file:
        command = list(map(str, stage.command))
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"ended after {limit:.0f} s, which is its limit or the end of the budget"
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if "WRONG" in line or "[  FAILED  ]" in line][:20]
    result = {
        "name": stage.name,
        "result": "good" if status == 0 else "WRONG",
        "seconds": round(time.monotonic() - begin, 1),
    }
    last = lines[-1] if lines else "no output"
    if status != 0:
        last = f"{f'exit status {status}' if isinstance(status, int) else status}; {last}"
    return {**result, "last": last, "wrong": wrong}


def summary(results, given, seconds):
    text = [f"{given.device}, {given.build}, {datetime.date.today()}, {seconds:.0f} s of {given.budget} s"]
    for one in results:
        text.append(f"{one['result']:9} {one['name']:22} {one['seconds']:7.1f} s  {one['last'][:160]}")
    for one in results:
        text += [f"  {one['name']}: {line[:300]}" for line in one["wrong"]]
    counts = {kind: sum(one["result"] == kind for one in results) for kind in ("good", "WRONG", "LEFT OUT")}
    text.append(", ".join(f"{n} {kind}" for kind, n in counts.items()))
    return "\n".join(text) + "\n", 1 if counts["WRONG"] else 3 if counts["LEFT OUT"] else 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu, which is to try the scripts")
    parser.add_argument("--build", type=pathlib.Path, help="default build/cuda, with --device cpu build/cpu")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything (default 540)")
    parser.add_argument("--out", type=pathlib.Path, help="default BUILD/checks")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these stages, and no others")
    parser.add_argument("--sanitize", action="store_true", help="compute-sanitizer in place of the checks")
    parser.add_argument("--jobs", type=int, default=1, help="stages beside each other (default 1)")
    parser.add_argument("--list", action="store_true", help="print the stages' names and commands")
    given = parser.parse_args()
    given.build = (given.build or ROOT / "build" / ("cpu" if given.device == "cpu" else "cuda")).resolve()
    given.out = (given.out or given.build / "checks").resolve()
    return given, parser


def main():
    given, parser = parse()
    begin, results = time.monotonic(), {}  # by the stage's place in `chosen`
    chosen = sanitizer_stages(given) if given.sanitize else stages(given, given.out)
    if given.only:
        unknown = set(given.only) - {stage.name for stage in chosen}
        if unknown:
            parser.error(f"--only: no stage is named {', '.join(sorted(unknown))}; --list prints them")
        chosen = [stage for stage in chosen if stage.name in given.only]
    if given.list:
        for stage in chosen:
            print(f"{stage.name:22} {' '.join(map(str, stage.command))}")
        return 0
    write_slice_config(given.out / "slice", given.device)
    environment = {
        **os.environ,
        "MOEBIUS_LIBRARY": str(given.build / "libmoebius.so"),
        "MOEBIUS_TEST_DEVICE": given.device,
    }

    def result_of(i):
        stage, left = chosen[i], given.budget - (time.monotonic() - begin)
        reason = why_left_out(stage, left)
        if reason:
            return {"name": stage.name, "result": "LEFT OUT", "seconds": 0, "last": reason, "wrong": []}
        print(f"== {stage.name}, {left:.0f} s are left", flush=True)
        return run(with_minutes(stage, left, len(chosen) - i), left, given.out, environment)

    def run_stages(these, n_jobs):
        """The summary's text and the exit status so far, which are kept after every stage: the machine may go away.
        The summary has the stages in their order, whichever ended first."""
        text, status = "", 0
        with concurrent.futures.ThreadPoolExecutor(n_jobs) as pool:
            running = {pool.submit(result_of, i): i for i in these}
            for ended in concurrent.futures.as_completed(running):
                results[running[ended]] = ended.result()
                so_far = [results[i] for i in sorted(results)]
                text, status = summary(so_far, given, time.monotonic() - begin)
                (given.out / "summary.txt").write_text(text)
                (given.out / "summary.json").write_text(json.dumps(so_far, indent=1))
        return text, status

    for these, n_jobs in zip(divided(chosen, given.jobs), (given.jobs, 1), strict=True):
        if these:
            text, status = run_stages(these, n_jobs)
    print(text, end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
