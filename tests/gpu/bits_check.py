"""Bits never depend on company: python tests/gpu/bits_check.py [--device cpu|cuda] [--model DIR] [--longest N]

The same sequences run in many ways, and must give the same token ids and the same log-probabilities, bit for
bit: again, all in one batch, with prompts cut into chunks of 64, 512 and 2048, kernel by kernel and with
other graphs, with one step in flight in place of two, with and without prefix cache, and preempted. With the
compute type of the device, with fp8 weights and with an fp8 KV cache. --model: a checkpoint, or a folder with
a config.json alone, whose weights are then random; default: the demo model.
"""

import argparse
import pathlib
import random
import struct

import numpy
from engine_support import DEMO, LOAD_ALL, LOAD_RANDOM, Model, Session, Verdict, demo_conversations

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1, "presence_penalty": 0.3,
           "frequency_penalty": 0.2}  # fmt: skip
NO_GRAPHS, GRAPHS_OF_ATTENTION, TWO_STREAMS = 1, 2, 3  # mb_graphs
N_NEW = 24
SHORT = 700  # tokens of a prompt; of longer ones whole rows are compared in the plain kind alone


def checksum(row):
    """Of the row's bits; sums and xors go as fast as memory, and a row has up to 600 KB."""
    even = row[: len(row) // 2 * 2].view(numpy.uint64)
    return int(even.sum()), int(numpy.bitwise_xor.reduce(even)), row[len(even) * 2 :].tobytes()


class Problem:
    """Prompts that are many blocks long, end at the edge of a block, and begin alike; half of the answers are sampled."""

    def __init__(self, model, is_demo, longest, longest_with_rows):
        chance = random.Random(1)
        most = min(model.info.max_positions - N_NEW - 1, longest)
        lengths = [n for n in (1, 63, 64, 65, 130, 500, 700, 1900, 3000) if n <= most]
        if is_demo:  # text, so that the model is in its element
            text = [id for ids in demo_conversations(20) for id in ids]
        else:
            text = [chance.randrange(model.info.vocab) for _ in range(4 * most)]
        self.prompts = [text[i * 37 : i * 37 + n] for i, n in enumerate(lengths)]
        self.prompts += [text[:200] + text[500:510], text[:200] + text[600:620]]  # these share three blocks
        self.has_rows = [len(prompt) <= longest_with_rows for prompt in self.prompts]
        self.blocks = [(len(prompt) + N_NEW + 63) // 64 + 1 for prompt in self.prompts]

    def submit(self, session, i, rows=None):
        """rows: a list that gets a checksum of each reported row; a step with rows runs without a graph."""
        sampling = {**SAMPLED, "seed": i} if i % 2 else {}
        on_row = (lambda position, row: rows.append((position, checksum(row)))) if rows is not None else None
        return session.submit(self.prompts[i], N_NEW, on_row=on_row, prompt_rows=rows is not None, **sampling)


def bits(sequence):
    """Token ids, and log-probabilities as the bits of floats: NaN is equal to itself, and -0 is not 0."""
    return sequence.state, [(id, struct.pack("<f", logprob)) for id, logprob in sequence.tokens]


def compare(verdict, what, got, expected):
    for i, (one, other) in enumerate(zip(got, expected, strict=True)):
        if one != other:
            at = next((k for k, (a, b) in enumerate(zip(one[1], other[1])) if a != b), "its end")
            verdict.say(False, f"{what}: sequence {i} differs from token {at} on ({one[0]}, {other[0]})")
            return
    verdict.say(True, f"{what}: {len(got)} sequences")


def together(problem, model, **options):
    """The bits of all at once."""
    with Session(model, **options) as session:
        return [bits(s) for s in session.finish([problem.submit(session, i) for i in range(len(problem.prompts))])]


def alone(problem, model, with_rows):
    answers, rows = [], []
    with Session(model, max_sequences=1, prefix_caching=0, kv_tokens=64 * max(problem.blocks)) as session:
        for i in range(len(problem.prompts)):
            rows.append([] if with_rows and problem.has_rows[i] else None)
            answers.append(bits(session.finish([problem.submit(session, i, rows[-1])])[0]))
    return answers, rows


def check_rows(verdict, name, problem, model, expected):
    """Every row of the prompts in one batch, too."""
    room = 64 * sum(problem.blocks)
    with Session(model, kv_tokens=room) as session:
        rows = [[] if has_rows else None for has_rows in problem.has_rows]
        session.finish([problem.submit(session, i, rows[i]) for i in range(len(rows))])
    n_rows = sum(map(len, filter(None, rows)))
    verdict.say(rows == expected, f"{name}, {n_rows} whole rows of log-probabilities, in one batch as alone")


def check(verdict, name, model, is_demo, longest, is_thorough):
    problem = Problem(model, is_demo, longest, longest if is_thorough else SHORT)
    room = 64 * sum(problem.blocks)
    expected, rows = alone(problem, model, True)
    verdict.say(all(state == "length" for state, _ in expected), f"{name}, every sequence alone ends by its length")
    compare(verdict, f"{name}, alone, again, without rows", alone(problem, model, False)[0], expected)
    check_rows(verdict, name, problem, model, rows)
    ways = {"one batch": {}, "chunks of 64": {"prefill_chunk": 64}}
    if is_thorough:
        ways |= {
            "the same batch again": {},
            "chunks of 512": {"prefill_chunk": 512},
            "chunks of 2048": {"prefill_chunk": 2048},
            "steps of 100 tokens": {"max_step_tokens": 100, "max_sequences": 16},
            "kernel by kernel": {"graphs": NO_GRAPHS},
            "graphs of attention": {"graphs": GRAPHS_OF_ATTENTION},
            "two streams in the graph": {"graphs": TWO_STREAMS},
            "one step in flight": {"steps_in_flight": 1},
            "two steps in flight": {"steps_in_flight": 2},
            "no prefix cache": {"prefix_caching": 0},
            "kernel by kernel, one step, no cache": {"graphs": NO_GRAPHS, "steps_in_flight": 1, "prefix_caching": 0},
        }  # fmt: skip
    for what, options in ways.items():
        compare(verdict, f"{name}, {what}", together(problem, model, kv_tokens=room, **options), expected)

    with Session(model, kv_tokens=room) as session:  # the second time the blocks are there
        for _ in range(2):
            sequences = session.finish([problem.submit(session, i) for i in range(len(problem.prompts))])
        n_cached = sum(sequence.n_cached for sequence in sequences)
        compare(verdict, f"{name}, {n_cached} tokens from the prefix cache", [bits(s) for s in sequences], expected)
        verdict.say(n_cached > 0, f"{name}, the prefix cache was used")
        stats = session.stats()
        verdict.say(stats.kv_blocks_free == stats.kv_blocks_total, f"{name}, all blocks are free at the end")


def check_preemption(verdict, model, is_demo):
    """Sequences that grow at the same time until the cache is full: the last must lose its blocks."""
    text = demo_conversations(20) if is_demo else None
    prompts = [(text[i] * 8)[:60] if text else [i + 1] * 60 for i in range(6)]
    answers = []
    for kv_tokens in (64 * 40, 64 * 8):
        with Session(model, kv_tokens=kv_tokens, prefix_caching=0) as session:
            sequences = session.finish([session.submit(p, 200, **SAMPLED, seed=i) for i, p in enumerate(prompts)])
            answers.append([bits(s) for s in sequences])
            n_preemptions = session.stats().n_preemptions
    compare(
        verdict, f"6 answers of 200 tokens in a cache of 8 blocks, {n_preemptions} preemptions", answers[1], answers[0]
    )
    verdict.say(n_preemptions > 0, "sequences were preempted")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=pathlib.Path, default=DEMO)
    parser.add_argument(
        "--longest", type=int, default=3000, help="most tokens of a prompt (default 3000, as far as the model goes)"
    )
    given = parser.parse_args()
    load = LOAD_ALL if list(given.model.glob("*.safetensors")) else LOAD_RANDOM
    is_demo = given.model.resolve() == DEMO
    verdict = Verdict("bits_check")
    kinds = {"plain": {}, "fp8 weights": {"quant": "fp8"}, "fp8 KV": {"kv_dtype": "fp8"},
             "fp8 weights and KV": {"quant": "fp8", "kv_dtype": "fp8"}}  # fmt: skip
    if given.device == "cpu":
        kinds["bf16"] = {"dtype": "bf16"}
    for name, options in kinds.items():
        with Model(given.model, given.device, load=load, **options) as model:
            print(
                f"{name}: {given.model.name} on {model.info.device.decode()}, {model.info.dtype.decode()}", flush=True
            )
            check(verdict, name, model, is_demo, given.longest, name == "plain")
            if name == "plain":
                check_preemption(verdict, model, is_demo)
    verdict.end()


if __name__ == "__main__":
    main()
