"""Many kinds of clients drive one server for minutes: python tests/server/soak.py [MINUTES] (./dev soak).

Healthy clients must all be served, also beside clients that crash, read slowly or send wrong requests. After a warm-up the
server's memory, threads and open files stay as they are. At the end nothing is left of the requests, the counters of /metrics
agree with what the clients saw, and SIGTERM ends the server with 0."""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import re
import socket
import struct
import sys
import threading
import time

from server_support import DEMO, Server, events_of

N_CLIENTS = 12
MIB = 1 << 20
MOST_GROWTH = 4 * MIB  # from the second to the last third of a run: 1 KiB a request is seen in 10 minutes, 100 bytes in 2 hours
RECEIVE_TIMEOUT = 20  # seconds. Of some thousand resets libmicrohttpd misses one, and closes that connection after this time
PREFIX = "You are a clerk who adds numbers, and who says nothing else. " * 6
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "required": ["a", "unit"], "properties": {"a": {"type": "integer"}, "unit": {"enum": ["C", "F"]}}}}}]  # fmt: skip
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
WRONG = [
    (400, b"{"),
    (400, b"\xff\xfe"),
    (400, b"[" * 100000),
    (400, json.dumps({"messages": []}).encode()),
    (400, json.dumps({"messages": [{"role": "user", "content": "x"}], "temperature": -1}).encode()),
    (400, json.dumps({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}}).encode()),
    (400, json.dumps({"messages": [{"role": "user", "content": "word " * 20000}]}).encode()),
    (404, json.dumps({"model": "nobody", "messages": [{"role": "user", "content": "x"}]}).encode()),
]


class Soak:
    def __init__(self, server, seed):
        self.server, self.seed = server, seed
        self.lock = threading.Lock()
        self.ends = threading.Event()
        self.counts = collections.Counter()  # requests by kind
        self.longest = collections.Counter()  # seconds that one took
        self.n_answers = 0  # that healthy clients got in full
        self.n_at_risk = 0  # answers of clients that left: the server may have ended them in time
        self.known = {}  # greedy answers, by question: the same each time, in any company

    # -- Kinds of clients. Each makes one visit, and answers how many answers it got.

    def check_greedy(self, question, text):
        with self.lock:
            assert self.known.setdefault(question, text) == text, (question, text, self.known[question])

    def chat(self, **fields):
        reply = self.server.post("/v1/chat/completions", fields)
        assert reply.status == 200, (fields, reply.status, reply.body)
        choices = reply.json()["choices"]
        assert all(choice["finish_reason"] in ("stop", "length", "tool_calls") for choice in choices), choices
        return choices

    @staticmethod
    def question(chance):
        return f"What is {chance.randrange(10)} + {chance.randrange(10)}?"

    def whole(self, chance):
        """Some go first. None goes last: while others come, such a request waits without end."""
        question = self.question(chance)
        choices = self.chat(messages=[{"role": "user", "content": question}], temperature=0, priority=chance.randrange(-2, 1))
        self.check_greedy(question, choices[0]["message"]["content"])
        return 1

    def streaming(self, chance):
        question = self.question(chance)
        chunks = self.server.stream("/v1/chat/completions", {"messages": [{"role": "user", "content": question}], "temperature": 0})
        self.check_greedy(question, "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]))
        return 1

    def several(self, chance):
        n = chance.randrange(2, 5)
        message = {"role": "user", "content": self.question(chance)}
        assert len(self.chat(messages=[message], n=n, temperature=1, logprobs=True, top_logprobs=3, max_tokens=40)) == n
        return n

    def shared(self, chance):
        question = self.question(chance)
        messages = [{"role": "system", "content": PREFIX}, {"role": "user", "content": question}]
        choices = self.chat(messages=messages, temperature=0, max_tokens=30)
        self.check_greedy("shared " + question, choices[0]["message"]["content"])
        return 1

    def structured(self, chance):
        """Each time another schema, so that compiled ones are dropped, too."""
        low = chance.randrange(1, 40)
        schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer", "minimum": low, "maximum": low + 3}}}
        form = {"type": "json_schema", "json_schema": {"name": f"f{chance.randrange(1000)}", "schema": schema, "strict": True}}
        message = {"role": "user", "content": "Tell me of Ann."}
        choice = self.chat(messages=[message], response_format=form, max_tokens=200, temperature=1, **NO_THINKING)[0]
        if choice["finish_reason"] == "stop":
            assert low <= json.loads(choice["message"]["content"])["age"] <= low + 3, choice
        return 1

    def tools(self, chance):
        message = {"role": "user", "content": self.question(chance)}
        choice = self.chat(messages=[message], tools=TOOLS, tool_choice="required", max_tokens=200, temperature=1, **NO_THINKING)[0]
        if choice["finish_reason"] != "length":
            assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])["unit"] in ("C", "F"), choice
        return 1

    def slow(self, chance):
        """Reads a stream piece by piece with pauses."""
        client = self.server.send("/v1/completions", {"prompt": "Once", "stream": True, "ignore_eos": True, "max_tokens": 150})
        data = b""
        with contextlib.closing(client):
            while b"[DONE]" not in data:
                piece = client.recv(chance.choice([100, 2000, 60000]))
                assert piece, data[-200:]
                data += piece
                time.sleep(chance.random() * 0.02)
        return 1

    def crashing(self, chance):
        """Leaves at any moment, as a program that crashes or one that ends."""
        n = chance.choice([1, 1, 1, 3])
        body = {"prompt": "Once " * chance.choice([1, 50, 300]), "max_tokens": chance.choice([5, 50, 300]), "n": n,
                "ignore_eos": True, "stream": chance.random() < 0.5}  # fmt: skip
        with self.lock:
            self.n_at_risk += n
        with contextlib.suppress(ConnectionError, TimeoutError):
            client = self.server.send("/v1/completions", body)
            client.settimeout(chance.choice([0.001, 0.01, 0.1, 0.3]))
            with contextlib.suppress(TimeoutError):
                client.recv(chance.choice([1, 300]))
            if chance.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            client.close()
        return 0

    def half_sent(self, chance):
        """Leaves before the request is whole."""
        with contextlib.closing(self.server.socket()) as client:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
            client.sendall((head + b" " * 50000)[: chance.choice([10, len(head), len(head) + 50000])])
        return 0

    def wrong(self, chance):
        status, body = chance.choice(WRONG)
        reply = self.server.post("/v1/chat/completions", body)
        assert reply.status == status and reply.error()["message"], (status, body[:100], reply.status, reply.body)
        return 0

    def watching(self, chance):
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/version"):
            assert self.server.get(path).status == 200, path
        return 0

    KINDS = (whole, streaming, several, shared, structured, tools, slow, crashing, crashing, crashing, half_sent, wrong, watching)

    # -- The run

    def fill(self):
        """Three long prompts, more than the KV cache holds, so that the warm-up touches all its pages on a slow machine, too."""

        def one(i):
            self.server.complete([random.Random(i).randrange(500) for _ in range(1500)], max_tokens=4, ignore_eos=True)

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            list(pool.map(one, range(3)))
        self.server.wait_until_idle()
        self.before = self.finished()

    def finished(self):
        """Answers that the server ended, by reason."""
        found = collections.Counter()
        for labels, value in self.server.metrics()["request_success_total"].items():
            found[re.search(r'finished_reason="(\w+)"', labels)[1]] += int(value)
        return found

    def state(self):
        values = self.server.metrics()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total", "generation_tokens_total")
        return {name: sum(values[name].values()) for name in names}

    def client(self, number):
        chance = random.Random(f"{self.seed} {number}")
        while not self.ends.is_set():
            kind = chance.choice(self.KINDS)
            began = time.monotonic()
            try:
                n_answers = kind(self, chance)
            except BaseException:
                self.ends.set()
                print(f"a client failed ({kind.__name__}); then the server had", self.state(), flush=True)
                raise
            finally:
                with self.lock:
                    self.longest[kind.__name__] = max(self.longest[kind.__name__], time.monotonic() - began)
            with self.lock:
                self.counts[kind.__name__] += 1
                self.n_answers += n_answers

    def sample(self):
        with self.lock:
            n_requests = sum(self.counts.values())
        n_threads = len(os.listdir(f"/proc/{self.server.process.pid}/task"))
        return n_requests, self.server.memory(), self.server.n_files(), n_threads

    def run(self, seconds):
        """Samples, one a second."""
        samples = []
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(N_CLIENTS) as pool:
            clients = [pool.submit(self.client, i) for i in range(N_CLIENTS)]
            while not self.ends.wait(1) and time.monotonic() - began < seconds:
                samples.append(self.sample())
                if len(samples) % 30 == 0:
                    show(time.monotonic() - began, samples[-1])
            self.ends.set()
            for one in clients:
                one.result()
        return samples


def show(seconds, sample):
    print(f"{seconds:6.0f} s: {sample[0]} requests, {sample[1] / MIB:.1f} MiB, {sample[2]} files, {sample[3]} threads", flush=True)


def median(values):
    return sorted(values)[len(values) // 2]


def check_flat(samples):
    """The first third is the warm-up: pages of the KV cache, threads and buffers are used for the first time."""
    third = len(samples) // 3
    early, late = samples[third : 2 * third], samples[2 * third :]
    n_requests = median([s[0] for s in late]) - median([s[0] for s in early])
    growth = median([s[1] for s in late]) - median([s[1] for s in early])
    print(f"memory grew by {growth / MIB:+.2f} MiB during {n_requests} requests, {growth / max(n_requests, 1):.0f} bytes each")
    assert growth < MOST_GROWTH, "the server's memory grows"
    assert max(s[2] for s in late) <= max(s[2] for s in early) + N_CLIENTS, "the server's open files grow"
    assert max(s[3] for s in samples) == samples[0][3], "the server's threads grow"


def check_end(soak, files_before):
    server = soak.server
    server.wait_until_idle()  # nothing runs or waits, and every block is free or idle in the prefix cache
    assert server.get("/load").json() == {"server_load": 0}
    values = server.metrics()
    finished = soak.finished()
    everything = finished["stop"] + finished["length"]
    finished.subtract(soak.before)
    total = finished["stop"] + finished["length"]
    print(f"answers: {soak.n_answers} for healthy clients, {soak.n_at_risk} asked for by clients that left; the server ended {dict(finished)}")
    assert finished["error"] == 0
    assert soak.n_answers <= total <= soak.n_answers + soak.n_at_risk
    assert total + finished["abort"] <= soak.n_answers + soak.n_at_risk
    for name in ("e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens"):
        assert sum(values[name + "_count"].values()) == everything, name
    generated = sum(values["request_generation_tokens_sum"].values())
    assert generated <= sum(values["generation_tokens_total"].values())
    assert sum(values["prefix_cache_hits_total"].values()) <= sum(values["prefix_cache_queries_total"].values())
    end = time.monotonic() + 3 * RECEIVE_TIMEOUT
    while server.n_files() > files_before and time.monotonic() < end:
        time.sleep(0.1)
    assert server.n_files() <= files_before, f"files stay open: {server.files()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", nargs="?", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kv-tokens", type=int, default=4096, help="its pages are all touched soon")
    given = parser.parse_args()
    server = Server(DEMO, "--max-num-seqs", 8, "--max-queue", 64, "--kv-tokens", given.kv_tokens,
                    "--receive-timeout", RECEIVE_TIMEOUT)
    with contextlib.closing(server):
        files_before = server.n_files()
        soak = Soak(server, given.seed)
        soak.fill()
        samples = soak.run(given.minutes * 60)
        print("requests, and the longest:", ", ".join(f"{n} {kind} {soak.longest[kind]:.1f} s" for kind, n in sorted(soak.counts.items())))
        check_flat(samples)
        check_end(soak, files_before)
        show(given.minutes * 60, soak.sample())
        server.signal()
        status = server.wait()
        assert status == 0, f"after SIGTERM the server ended with {status}"
        assert b"a step failed" not in server.messages, server.messages
    print("soak passed")


if __name__ == "__main__":
    sys.exit(main())
