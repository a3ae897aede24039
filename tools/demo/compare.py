#!/usr/bin/env python3
"""Trains the demo model with moebius's experts and with transformers' own, side by side on one device.

    python tools/demo/compare.py --out results [--seconds 110] [--steps 2000]
    python tools/demo/compare.py --draw results             draws losses.jsonl again

Three runs read the same batches: transformers' experts, moebius's experts from the same first weights, and
transformers' experts from other first weights. The third says how far apart two equally good trainings are. Then the
checkpoints answer held-out prompts (eval.py's), all three in the inference engine. In the folder afterwards:

  losses.jsonl   mean loss of every 10 steps of each run
  trains.jsonl   a row for each run: right answers, loss of the last tenth, steps, seconds
  losses.png     the curves, and each run's distance from the first (needs matplotlib)
  0, 1, 2        the checkpoints

Without --steps all runs take as many steps as the slowest can in --seconds. Needs the Python package and its library
(pip install ., or PYTHONPATH=python and MOEBIUS_LIBRARY). Exit status 1 when the curves lie further apart than those
of the two seeds by a quarter (late in a training a rounding has become as large a difference as another seed), or
the accuracy differs by more than between the seeds and chance.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import pickle
import shutil
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))

RUNS = (("transformers", "eager", 1), ("moebius", "moebius", 1), ("transformers, other seed", "eager", 2))
CHUNK = 20  # batches in a file
WINDOW = 10  # steps in a mean
MAX_NEW = 256


# ---- Batches: files that every run reads in the same order --------------------------------------------------


def chunk_path(folder, number):
    return Path(folder) / f"{number}.pickle"


def write_batches(folder, first, stride, rows, n_steps):
    """Chunks first, first + stride, ... until n_steps are there. A chunk depends on its number alone."""
    import data
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(ROOT / "models" / "demo" / "tokenizer.json"))
    for number in itertools.count(first, stride):
        if number * CHUNK >= n_steps.value:
            return
        batches = list(itertools.islice(data.Packer(tokenizer, 1_000_000 + number, rows).batches(), CHUNK))
        path = chunk_path(folder, number)
        path.with_suffix(".part").write_bytes(pickle.dumps(batches, protocol=5))
        path.with_suffix(".part").rename(path)  # whole or not there


def read_batches(folder):
    for number in itertools.count():
        path = chunk_path(folder, number)
        while not path.exists():
            time.sleep(0.01)
        yield from pickle.loads(path.read_bytes())


# ---- A run: a process of its own -----------------------------------------------------------------------------


def hold(pilot):
    """Steps before the rate begins to fall. Until then a run need not know how many steps it takes."""
    return 4 * pilot


def rate_at(step, n_steps, pilot, rate):
    """Rises for two pilots, stays, falls to zero at n_steps."""
    rest = 1.0 if step < hold(pilot) else (n_steps - step) / (n_steps - hold(pilot))
    return rate * min(1.0, (step + 1) / (2 * pilot)) * rest


def run(connection, batches, out, experts, seed, given):
    """Sends [(step, loss), ...] with the seconds since the first step, and None at the end; receives n_steps."""
    import loading
    import torch
    import train
    from tokenizers import Tokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(seed)
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    tokenizer = Tokenizer.from_file(str(ROOT / "models" / "demo" / "tokenizer.json"))
    model = train.build_model(tokenizer, device, None)
    packed = device.type == "cuda" and train.packed_attention_works(device)
    train.swap_parts(model, experts, packed)
    adam = train.optimiser(model, given.rate, device.type == "cuda")
    source = loading.on_device(train.prefetch(read_batches(batches), packed), device)
    n_steps, losses, begin = given.steps, [], time.perf_counter()
    for step in itertools.count():
        if n_steps is None and (step == hold(given.pilot) or connection.poll()):
            n_steps = connection.recv()
        if step == n_steps:
            break
        rate = rate_at(step, n_steps, given.pilot, given.rate)
        loss, _ = train.update(model, adam, next(source), packed, given.balance, rate)
        losses.append(loss)
        if step % WINDOW == WINDOW - 1:
            values = torch.stack(losses).tolist()  # waits for the device
            connection.send((step + 1, statistics.mean(values), time.perf_counter() - begin))
            losses = []
    if device.type == "cuda":
        torch.cuda.synchronize()
    train.export(model, ROOT / "models" / "demo", out)
    connection.send(None)
    time.sleep(3600)  # the parent ends the process, whose thread waits for batches that never come


# ---- All runs --------------------------------------------------------------------------------------------------


def decide(points, pilot, seconds):
    """How many steps the slowest run takes in `seconds`; None while a run's pilot goes on. points: of each run. The
    first half of the pilot does not count: programs start slowly."""
    if any(not curve or curve[-1][0] < pilot for curve in points):
        return None
    n_steps = []
    for curve in points:
        times = {step: at for step, _, at in curve}
        half = pilot // 2 // WINDOW * WINDOW
        pace = (times[pilot] - times[half]) / (pilot - half)
        n_steps.append(pilot + (seconds - times[pilot]) / pace)
    return max(hold(pilot) + WINDOW, int(min(n_steps)) // WINDOW * WINDOW)


def start(given, batches):
    """The processes of all runs, and our end of the pipe to each."""
    context = multiprocessing.get_context("spawn")
    processes, ends = [], []
    for number, (_, experts, seed) in enumerate(RUNS):
        ours, theirs = context.Pipe()
        arguments = (theirs, batches, given.out / str(number), experts, seed, given)
        processes.append(context.Process(target=run, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        ends.append(ours)
    return processes, ends


def follow(given, ends, producers, n_steps):
    """The points (step, mean loss, seconds) of every run, and whether all came to their end in time."""
    points, running = [[] for _ in RUNS], list(ends)
    decided, deadline = given.steps is not None, time.monotonic() + given.limit
    while running and time.monotonic() < deadline:
        if any(process.exitcode for process in producers):
            sys.exit("compare: a process that makes batches died (see above)")
        for end in wait(running, timeout=1):
            number = ends.index(end)
            try:
                point = end.recv()
            except EOFError:
                sys.exit(f"compare: the run {RUNS[number][0]!r} died (see above)")
            if point is None:
                running.remove(end)
            else:
                points[number].append(point)
        if not decided and (n := decide(points, given.pilot, given.seconds)):
            decided, n_steps.value = True, n
            print(f"{n} steps; a pilot of {given.pilot} took {', '.join(f'{curve[-1][2]:.1f}' for curve in points)} s", flush=True)
            for end in ends:
                end.send(n)
    return points, not running


def accuracies(given, rows):
    """For each checkpoint how many answers are right, in the inference engine."""
    import eval as judge
    import moebius

    right = []
    for number in range(len(RUNS)):
        with moebius.Engine(str(given.out / str(number)), device=given.device) as engine:
            answers = engine.generate([row["prompt_ids"] for row in rows], temperature=0, max_new_tokens=MAX_NEW)
        ended = (answer.finish_reason == "stop" for answer in answers)
        texts = (judge.answer_of(answer.text) for answer in answers)
        right.append(sum(end and judge.is_right(row, text) for row, end, text in zip(rows, ended, texts, strict=True)))
    return right


# ---- What comes of it ------------------------------------------------------------------------------------------


def distance(curve, other):
    return statistics.mean(abs(a - b) for a, b in zip(curve, other, strict=True))


def verdict(curves, right, n_prompts):
    """Sentences, and whether ours is about as near to transformers' as another seed is. Accuracy has two standard errors
    of a difference between two shares on top."""
    ours, noise = distance(curves[1], curves[0]), distance(curves[2], curves[0])
    share = right[0] / n_prompts
    chance = 2 * math.sqrt(2 * share * (1 - share) * n_prompts)
    apart, seeds = abs(right[1] - right[0]), abs(right[2] - right[0])
    lines = [
        f"mean distance of the loss from transformers': moebius {ours:.4f}, other seed {noise:.4f}",
        f"right answers of {n_prompts}: transformers {right[0]}, moebius {right[1]}, other seed {right[2]}"
        f" (chance: ± {chance:.0f})",
    ]
    return lines, ours <= 1.25 * noise and apart <= seeds + chance


def draw(folder):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = {name: [] for name, _, _ in RUNS}
    for line in (folder / "losses.jsonl").read_text().splitlines():
        point = json.loads(line)
        curves[point["run"]].append((point["step"], point["loss"]))
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(2, 1), layout="constrained")
    first = np.array(curves[RUNS[0][0]])
    for (name, _, _), style in zip(RUNS, ("-", "--", ":"), strict=True):
        values = np.array(curves[name])
        above.plot(values[:, 0], values[:, 1], style, label=name, linewidth=1.2)
        below.plot(values[:, 0], values[:, 1] - first[:, 1], style, linewidth=1.2)
    above.set(ylabel=f"loss, mean of {WINDOW} steps", yscale="log", title="The demo model, trained on the same batches")
    above.legend()
    below.set(xlabel="step", ylabel="loss - transformers'")
    figure.savefig(folder / "losses.png", dpi=130)


def write_losses(given, points):
    with open(given.out / "losses.jsonl", "w") as file:
        for (name, _, _), curve in zip(RUNS, points, strict=True):
            for step, loss, _ in curve:
                file.write(json.dumps({"run": name, "step": step, "loss": round(loss, 5)}) + "\n")


def write_runs(given, points, right, n_prompts):
    import torch
    from measure import card_name, commit

    card, n_steps = card_name(torch.device(given.device)), points[0][-1][0]
    with open(given.out / "trains.jsonl", "w") as file:
        for (name, experts, seed), curve, n_right in zip(RUNS, points, right, strict=True):
            tail = curve[-max(1, len(curve) // 10) :]
            facts = {"bench": "trains", "who": name, "commit": given.commit or commit(), "card": card}
            facts |= {"date": time.strftime("%Y-%m-%d", time.gmtime()), "dtype": "bf16", "experts": experts, "seed": seed}
            facts |= {"shape": {"steps": n_steps, "rows": given.rows}, "seconds": round(curve[-1][2], 1)}
            facts |= {"loss": round(statistics.mean(loss for _, loss, _ in tail), 5), "right": n_right, "prompts": n_prompts}
            file.write(json.dumps(facts) + "\n")
            print(f"{name:26} loss {facts['loss']:.4f}, right {n_right} of {n_prompts}, {n_steps} steps in {facts['seconds']} s")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("compare"))
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="only draw")
    parser.add_argument("--seconds", type=float, default=110, help="of training when --steps is not given (default 110)")
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--pilot", type=int, default=100, help="steps after which the number of steps is decided (default 100)")
    parser.add_argument("--limit", type=float, default=600, help="end the training after so many seconds (default 600)")
    parser.add_argument("--rows", type=int, default=32, help="rows of 512 tokens in a batch (default 32)")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the load-balancing loss")
    parser.add_argument("--per-family", type=int, default=200, help="prompts of each kind of task (default 200)")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2 * len(RUNS)), help="that make batches")
    parser.add_argument("--threads", type=int, default=2, help="of each run on the CPU (default 2)")
    parser.add_argument("--device", help='"cuda" or "cpu"; default: cuda when there is one')
    parser.add_argument("--commit", help="what the rows name as the measured commit")
    return parser.parse_args()


def main():
    given = parse()
    if given.draw:
        draw(given.draw)
        return
    for name, value, least in (("--steps", given.steps, WINDOW), ("--pilot", given.pilot, 2 * WINDOW)):
        if value is not None and (value < least or value % WINDOW):
            sys.exit(f"compare: {name} is {value}; give a multiple of {WINDOW}, {least} at least")
    for name in ("rows", "per_family", "workers", "threads"):
        if getattr(given, name) < 1:
            sys.exit(f"compare: --{name.replace('_', '-')} is {getattr(given, name)}; give 1 at least")
    given.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    n_steps = context.Value("l", given.steps or 10**9, lock=False)
    batches = tempfile.mkdtemp(prefix="moebius-batches-")
    arguments = [(batches, first, given.workers, given.rows, n_steps) for first in range(given.workers)]
    producers = [context.Process(target=write_batches, args=each, daemon=True) for each in arguments]
    processes = []
    try:
        import torch

        given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
        processes, ends = start(given, batches)
        for producer in producers:
            producer.start()
        import eval as judge
        from transformers import AutoTokenizer

        rows = judge.held_out_set(AutoTokenizer.from_pretrained(ROOT / "models" / "demo"), given.per_family)
        points, is_complete = follow(given, ends, producers, n_steps)
    finally:
        for process in (*processes, *producers):
            if process.pid:  # it was started
                process.kill()
                process.join()  # the device's memory is free again
        shutil.rmtree(batches, ignore_errors=True)
    points = [curve[: min(map(len, points))] for curve in points]
    write_losses(given, points)
    if not is_complete:
        sys.exit(f"compare: the runs have not ended after {given.limit:.0f} s; give fewer --steps or --seconds, or a larger --limit")
    print("trained", flush=True)
    right = accuracies(given, rows)
    write_runs(given, points, right, len(rows))
    try:
        draw(given.out)
    except ImportError:
        print("no picture: matplotlib is not installed (later: --draw)")
    lines, is_same = verdict([[loss for _, loss, _ in curve] for curve in points], right, len(rows))
    print(*lines, sep="\n")
    if not is_same:
        sys.exit("compare: moebius differs from transformers by more than another seed does")


if __name__ == "__main__":
    main()
