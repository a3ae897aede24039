"""A server beside the bare engine, on the same machine with the same random weights:

    python bench/serve_vs_engine.py [--batch 64] [--quant fp8] [--kv-dtype fp8] [--output-tokens 1024]

Four figures, each with its bar:

- Output tokens per second of `moebius serve`, with so many requests at once, beside `moebius bench` at the same
  batch. The engine decodes at the mean context of the requests. The server's figure is that of the time in which
  all requests decode (steady_tok_s).
- The same with everything counted: all output tokens, divided by the time from the first request to the last end.
- The time between tokens, p99 by p50, of half as many requests, while prompts of 4096 tokens keep arriving.
- The time to the first token of prompts of 4096 tokens, alone, and when 80 % of them were seen before.

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


class Server:
    def __init__(self, command, log):
        self.begin = time.monotonic()
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            sys.exit(f"serve_vs_engine: the server did not start: {line}{pathlib.Path(log).read_text()[-500:]}")
        self.url = found[0]
        print(f"server ready after {time.monotonic() - self.begin:.1f} s", flush=True)

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()


def last_row(text):
    return json.loads(text.strip().splitlines()[-1])


class Measurement:
    def __init__(self, given, folder):
        self.given, self.folder, self.rows = given, folder, []
        self.model = [f"--{name}={value}" for name, value in (("quant", given.quant), ("kv-dtype", given.kv_dtype)) if value]

    def start_load(self, server, options):
        command = [self.given.moebius, "bench", "serve", "--url", server.url, "--vocabulary", self.given.vocabulary, "--json",
                   *options]  # fmt: skip
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)

    def load(self, server, *options):
        text, _ = self.start_load(server, options).communicate()
        row = last_row(text)
        self.rows.append(row)
        return row

    def engine(self):
        """Decode at the mean context: 64 steps around it."""
        given = self.given
        length = given.prompt_tokens + max(0, given.output_tokens // 2 - 32)
        command = [given.moebius, "bench", self.folder, "--random-weights", "--json", "--quiet", "--batches", given.batch,
                   "--prompt-lengths", length, "-n", 64, "--repeat", 2, *self.model, *given.options]  # fmt: skip
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        self.rows += rows
        found = {row["bench"]: row["tok_s"] for row in rows}
        if "decode" not in found:
            sys.exit(f"serve_vs_engine: {given.batch} sequences do not fit the memory; give --kv-dtype fp8 or fewer tokens")
        return found

    def say(self, what, value, bar, good):
        print(f"{'met   ' if good else 'MISSED'}  {what}: {value}, must {bar}", flush=True)

    def throughput(self, server, raw):
        given = self.given
        row = self.load(server, "--concurrency", given.batch, "--requests", given.batch, "--prompt-tokens", given.prompt_tokens,
                        "--output-tokens", given.output_tokens)  # fmt: skip
        share = row["steady_tok_s"] / raw["decode"]
        self.say(f"{given.batch} at once, {given.prompt_tokens} in, {given.output_tokens} out",
                 f"{row['steady_tok_s']:.0f} tok/s, engine {raw['decode']:.0f}: {100 * share:.1f} %", ">= 95 %",
                 share >= 0.95)  # fmt: skip
        seconds = given.batch * (given.prompt_tokens / raw["prefill"] + given.output_tokens / raw["decode"])
        whole = given.batch * given.output_tokens / seconds
        print(f"        with prefill: {row['tok_s']:.0f} tok/s, engine {whole:.0f}: {100 * row['tok_s'] / whole:.1f} %; "
              f"between tokens p50 {row['itl_ms']['p50']:.2f}, p99 {row['itl_ms']['p99']:.2f} ms; client "
              f"{row['client_cpu_s']:.1f} s of processor time; {row['errors']} errors", flush=True)  # fmt: skip

    def long_prompts(self, server):
        n = max(1, self.given.batch // 2)
        arrivals = ["--rate", 2, "--requests", 16, "--prompt-tokens", self.given.long_tokens, "--output-tokens", 4, "--warmup", 0]
        decoders = self.start_load(server, ["--concurrency", n, "--requests", n, "--prompt-tokens", 256, "--output-tokens", 512,
                                            "--warmup", 0])  # fmt: skip
        time.sleep(1)
        prompts = self.load(server, *arrivals)
        row = last_row(decoders.communicate()[0])
        self.rows.append(row)
        itl = row["itl_ms"]
        self.say(f"between tokens of {n} requests while prompts of {self.given.long_tokens} arrive, 2 in a second",
                 f"p50 {itl['p50']:.2f} ms, p99 {itl['p99']:.2f} ms, most {itl['max']:.2f} ms", "p99 <= 2 p50",
                 itl["p99"] <= 2 * itl["p50"])  # fmt: skip
        print(f"        the long prompts' first token: p50 {prompts['ttft_ms']['p50']:.0f} ms", flush=True)

    def shared_prefix(self, server):
        n = self.given.long_tokens
        n_own = round(n * (1 - SHARED))
        alone = ["--concurrency", 1, "--requests", 8, "--output-tokens", 2, "--warmup", 2]
        fresh = self.load(server, *alone, "--prompt-tokens", n)["ttft_ms"]["p50"]
        shared = self.load(server, *alone, "--prompts", "shared-prefix", "--prefixes", 1, "--prefix-tokens", n - n_own,
                           "--prompt-tokens", n_own)["ttft_ms"]["p50"]  # fmt: skip
        self.say(f"first token of {n} tokens, {100 * SHARED:.0f} % of them shared",
                 f"{shared:.1f} ms, of a new prompt {fresh:.1f} ms: {fresh / shared:.2f} times sooner", ">= 3",
                 fresh >= 3 * shared)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "bench/shapes/qwen3-30b-a3b/config.json")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--output-tokens", type=int, default=1024)
    parser.add_argument("--long-tokens", type=int, default=4096, help="of the prompts that arrive, and that share (default 4096)")
    parser.add_argument("--quant", choices=["fp8"])
    parser.add_argument("--kv-dtype", choices=["fp8"])
    parser.add_argument("--only", choices=["throughput", "long", "prefix"], nargs="+", default=["throughput", "long", "prefix"])
    parser.add_argument("--moebius", type=pathlib.Path, default=ROOT / "build/cuda/moebius")
    parser.add_argument("--output", type=pathlib.Path, help="append the rows as JSON")
    parser.add_argument("options", nargs="*", help="further options of bench and serve, behind --")
    given = parser.parse_args()
    given.vocabulary = json.loads(given.config.read_text())["vocab_size"] - 100  # without the special tokens
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / given.config.parent.name
        subprocess.run([sys.executable, ROOT / "tools/made_up_vocabulary.py", folder, "--config", given.config,
                        "--tokens", str(given.vocabulary + 100)], check=True)  # fmt: skip
        measurement = Measurement(given, folder)
        raw = measurement.engine() if "throughput" in given.only else None
        command = [given.moebius, "serve", folder, "--random-weights", "--port", 0, "--max-num-seqs", max(given.batch, 8),
                   *measurement.model, *given.options]  # fmt: skip
        server = Server(list(map(str, command)), pathlib.Path(scratch) / "serve.log")
        try:
            if "throughput" in given.only:
                measurement.throughput(server, raw)
            if "long" in given.only:
                measurement.long_prompts(server)
            if "prefix" in given.only:
                measurement.shared_prefix(server)
        finally:
            server.close()
    if given.output:
        with open(given.output, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in measurement.rows)


if __name__ == "__main__":
    main()
