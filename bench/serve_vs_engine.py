"""A server beside the bare engine, on the same machine with the same random weights:

    python bench/serve_vs_engine.py [--batches 64 256] [--quant none fp8] [--kv-dtype fp8] [--output-tokens 1024]

For each type of weights `moebius bench` runs once, with all batches, and then one server, which has places for the largest batch.
These are the figures:

- **whole**: N requests at once; all output tokens, divided by the time from the first request to the last end. It has all that clients
  wait for: prompts, answers, and the beginning and end, when not all N decode. Beside it stands the engine's time for the same work:
  its prefill of N prompts, then its decoding of N sequences. This is the figure to judge a server by. (The engine's
  decode rate alone is no measure for it: at 1024 tokens in and out a tenth to a quarter of the time is prefill.)
- **steady**: output tokens per second in the time in which all N decode, beside the engine's decode rate. It shows what HTTP and
  planning cost while nothing else happens. There is no such time when the first answers end before the last begin.
- **long**: the time between tokens, p99 by p50, of N / 2 requests, while 16 prompts of 4096 tokens arrive, 2 in a second.
- **prefix**: the time to the first token, p50, of new prompts, and of prompts of which the server has seen 80 % before: one at a time,
  of several lengths, and 16 of 4096 tokens at once.

The engine decodes for 64 steps around the mean context of the requests. Its prefill is timed with prompts of that length, too, which take 2
to 4 % longer for each token than those of the requests: less than 1 % of the whole. A first burst with short answers, which does
not count, lets the server make its CUDA graphs.

Server and client are this machine's processes. The tokenizer is made up (tools/made_up_vocabulary.py).
"""

import argparse
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = 0.8
STEPS = 64  # that the engine decodes
AT_ONCE = 16  # prompts that share a prefix
PARTS = ["throughput", "long", "prefix"]


def say(text):
    print(text, flush=True)


def judge(what, value, bar, good):
    say(f"{'met   ' if good else 'MISSED'}  {what}: {value}, must {bar}")


class Timed:
    """Tells how long a part took."""

    def __init__(self, what):
        self.what = what

    def __enter__(self):
        self.begin = time.monotonic()

    def __exit__(self, kind, *_):
        if kind is None:
            say(f"        {self.what}: {time.monotonic() - self.begin:.1f} s")


class Server:
    def __init__(self, command, log):
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            self.process.kill()
            sys.exit(f"serve_vs_engine: the server did not start: {line}{pathlib.Path(log).read_text()[-500:]}")
        self.url = found[0]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.process.send_signal(signal.SIGTERM)
        else:
            self.process.kill()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Measurement:
    """Of one type of weights."""

    def __init__(self, given, folder, quant):
        self.given, self.folder, self.quant = given, folder, quant
        self.model = [] if quant == "none" else [f"--quant={quant}"]
        if given.kv_dtype:
            self.model.append(f"--kv-dtype={given.kv_dtype}")
        self.weights = given.dtype if quant == "none" else quant

    # ---- Programs

    def keep(self, rows):
        if self.given.output:
            with open(self.given.output, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def start_load(self, server, **options):
        command = [self.given.moebius, "bench", "serve", "--url", server.url, "--vocabulary", self.given.vocabulary, "--json"]
        command += ["--card", self.given.card] if self.given.card else []
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", value]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)

    def result(self, process):
        text = process.communicate()[0]
        if process.returncode != 0:
            sys.exit("serve_vs_engine: moebius bench serve failed")
        return json.loads(text.strip().splitlines()[-1])

    def end_load(self, process, **facts):
        row = self.result(process)
        row |= {"weights": self.weights, **({"kv": self.given.kv_dtype} if self.given.kv_dtype else {}), **facts}
        self.keep([row])
        return row

    def load(self, server, **options):
        return self.end_load(self.start_load(server, **options))

    def start_server(self, log):
        command = [self.given.moebius, "serve", self.folder, "--random-weights", "--port", 0,
                   "--max-num-seqs", max(AT_ONCE, *self.given.batches), *self.model, *self.given.options]  # fmt: skip
        with Timed(f"server ready, {self.weights}"):
            return Server(list(map(str, command)), log)

    # ---- The engine

    def engine(self):
        """Of each batch that fits: tokens per second of prefill and decode."""
        given = self.given
        n_steps = min(STEPS, given.output_tokens)
        length = given.prompt_tokens + (given.output_tokens - n_steps) // 2
        command = [given.moebius, "bench", self.folder, "--random-weights", "--json", "--batches", ",".join(map(str, given.batches)),
                   "--prompt-lengths", length, "-n", n_steps, "--repeat", 1, *self.model, *given.options]  # fmt: skip
        with Timed(f"engine, {self.weights}"):
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit("serve_vs_engine: moebius bench failed, see above")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        self.keep(rows)
        rates = {}
        for row in rows:
            rates.setdefault(row["shape"]["batch"], {})[row["bench"]] = row["tok_s"]
        return rates

    # ---- Figures

    def throughput(self, server, batch, engine):
        given = self.given
        prefill_s = batch * given.prompt_tokens / engine["prefill"]
        decode_s = batch * given.output_tokens / engine["decode"]
        whole = batch * given.output_tokens / (prefill_s + decode_s)
        burst = {"concurrency": batch, "requests": batch, "prompt_tokens": given.prompt_tokens, "warmup": 0}
        with Timed(f"first burst of {batch}"):
            self.result(self.start_load(server, **burst, output_tokens=min(16, given.output_tokens)))
        with Timed(f"{batch} at once"):
            row = self.end_load(self.start_load(server, **burst, output_tokens=given.output_tokens), engine_tok_s=round(whole, 2))
        what = f"{self.weights}, {batch} at once, {given.prompt_tokens} in, {given.output_tokens} out"
        judge(f"{what}, whole", f"{row['tok_s']:.0f} tok/s, engine {whole:.0f} (prefill {prefill_s:.2f} s, decode {decode_s:.2f} s): "
              f"{100 * row['tok_s'] / whole:.1f} %", ">= 95 %", row["tok_s"] >= 0.95 * whole)  # fmt: skip
        steady, decode = row["steady_tok_s"], engine["decode"]
        if steady > 0:
            judge(f"{what}, steady", f"{steady:.0f} tok/s, engine {decode:.0f}: {100 * steady / decode:.1f} %", ">= 95 %",
                  steady >= 0.95 * decode)  # fmt: skip
        else:
            say("        at no time all of them decoded")
        first, between = row["ttft_ms"], row["itl_ms"]
        say(f"        first token p50 {first['p50']:.0f}, p99 {first['p99']:.0f} ms; between tokens p50 {between['p50']:.2f}, "
            f"p99 {between['p99']:.2f}, most {between['max']:.0f} ms; client {row['client_cpu_s']:.1f} s of processor time; "
            f"{row['errors']} errors")  # fmt: skip

    def long_prompts(self, server, batch):
        n, n_tokens = max(1, batch // 2), self.given.long_tokens
        answers, arriving = {"concurrency": n, "in": 256, "out": 512}, {"rate": 2, "in": n_tokens, "out": 4}
        with Timed(f"long prompts beside {n}"):
            decoders = self.start_load(server, concurrency=n, requests=n, prompt_tokens=256, output_tokens=512, warmup=0)
            time.sleep(1)
            arrivals = self.start_load(server, rate=2, requests=16, prompt_tokens=n_tokens, output_tokens=4, warmup=0)
            prompts = self.end_load(arrivals, beside=answers)
            between = self.end_load(decoders, beside=arriving)["itl_ms"]
        judge(f"{self.weights}, between tokens of {n} requests while prompts of {n_tokens} arrive, 2 in a second",
              f"p50 {between['p50']:.2f} ms, p99 {between['p99']:.2f} ms, most {between['max']:.2f} ms: "
              f"{between['p99'] / between['p50']:.2f}", "p99 <= 2 p50", between["p99"] <= 2 * between["p50"])  # fmt: skip
        say(f"        the long prompts' first token: p50 {prompts['ttft_ms']['p50']:.0f} ms")

    def shared_prefix(self, server, n_tokens, n_at_once):
        n_own = round(n_tokens * (1 - SHARED))
        n_requests = n_at_once if n_at_once > 1 else 8 if n_tokens < 8192 else 4
        load = {"concurrency": n_at_once, "requests": n_requests, "output_tokens": 2, "warmup": 1}
        with Timed(f"prompts of {n_tokens}, {n_at_once} at once"):
            fresh = self.load(server, **load, prompt_tokens=n_tokens)["ttft_ms"]["p50"]
            row = self.load(server, **load, prompts="shared-prefix", prefixes=1, prefix_tokens=n_tokens - n_own, prompt_tokens=n_own)
        shared = row["ttft_ms"]["p50"]
        judge(f"{self.weights}, first token of {n_tokens} tokens, {n_at_once} at once, {100 * SHARED:.0f} % shared "
              f"({100 * row['cached_tokens'] / row['prompt_tokens']:.1f} % found)",
              f"{shared:.1f} ms, of new prompts {fresh:.1f} ms: {fresh / shared:.2f} times sooner", ">= 3",
              fresh >= 3 * shared)  # fmt: skip

    def run(self, log):
        parts, batches = self.given.only, self.given.batches
        rates = self.engine() if "throughput" in parts else {}
        with self.start_server(log) as server:
            for batch in batches:
                if "throughput" in parts and "decode" in rates.get(batch, {}):
                    self.throughput(server, batch, rates[batch])
                elif "throughput" in parts:
                    say(f"MISSED  {batch} sequences do not fit the memory; give --kv-dtype fp8 or fewer tokens")
                if "long" in parts:
                    self.long_prompts(server, batch)
            if "prefix" in parts:
                for length in self.given.prefix_lengths:
                    self.shared_prefix(server, length, 1)
                self.shared_prefix(server, self.given.long_tokens, AT_ONCE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "bench/shapes/qwen3-30b-a3b/config.json")
    parser.add_argument("--batches", type=int, nargs="+", default=[64], help="requests at once")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--output-tokens", type=int, default=1024)
    parser.add_argument("--long-tokens", type=int, default=4096, help="of the prompts that arrive, and that share at once (4096)")
    parser.add_argument("--prefix-lengths", type=int, nargs="*", default=[4096, 16384, 32768], help="of prompts that share, alone")
    parser.add_argument("--quant", choices=["none", "fp8"], nargs="+", default=["none"], help="none: weights as the config has them")
    parser.add_argument("--kv-dtype", choices=["fp8"])
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--moebius", type=pathlib.Path, default=ROOT / "build/cuda/moebius")
    parser.add_argument("--card", help="the device's name, for the server's rows")
    parser.add_argument("--output", type=pathlib.Path, help="append the rows as JSON")
    parser.add_argument("options", nargs="*", help="further options of bench and serve, behind --")
    given = parser.parse_args()
    if min(given.batches) < 1:
        sys.exit(f"serve_vs_engine: --batches has {min(given.batches)}; give whole numbers from 1")
    if not given.moebius.is_file():
        sys.exit(f"serve_vs_engine: --moebius {given.moebius}: there is no such program; ./dev build cuda makes build/cuda/moebius")
    try:
        config = json.loads(given.config.read_text())
        if given.output:
            open(given.output, "a").close()  # not only when the first load has ended
    except OSError as error:
        sys.exit(f"serve_vs_engine: {error.filename}: {error.strerror}")
    given.vocabulary = config["vocab_size"] - 100  # without the special tokens
    given.dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[config.get("dtype") or config["torch_dtype"]]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("serve_vs_engine: ended by SIGTERM"))  # and the server with it
    with tempfile.TemporaryDirectory() as scratch, Timed("all"):
        folder = pathlib.Path(scratch) / given.config.parent.name
        subprocess.run([sys.executable, ROOT / "tools/made_up_vocabulary.py", folder, "--config", given.config,
                        "--tokens", str(given.vocabulary + 100)], check=True)  # fmt: skip
        for quant in given.quant:
            Measurement(given, folder, quant).run(pathlib.Path(scratch) / "serve.log")


if __name__ == "__main__":
    main()
