"""Random traffic on the engine: python tests/gpu/traffic_check.py [--device cpu|cuda] [--minutes 30] [--model DIR]

Requests of 1 to 8192 tokens (--context; as far as the model goes) come at random, with every setting of
sampling, penalties, log-probabilities, grammars, priorities, shared beginnings and salts; some are cancelled
or released while they wait or run. What must hold:

- nothing fails, and what was not cancelled ends by its length or an end of text; an answer with a grammar
  obeys the grammar;
- the same request has the same bits whenever it comes, in whatever company, preempted or not;
- a round ends when nothing is left to do: then every block is free, and nothing runs or waits;
- host and device memory of the last quarter of the run are those of the second, but for 16 MiB.

--beside-others: for a run by hand on a GPU that other programs use meanwhile. What they take is missing from the
device's free memory too, so growth of device memory is not judged; all else is. Without others leave it out:
run_all.py, which runs this check alone, never gives it.

--model: a checkpoint, or a folder with a config.json alone, whose weights are then random; default: the demo
model. --quant and --kv-dtype: as of moebius run, so

    python tests/gpu/traffic_check.py --model bench/shapes/qwen3-30b-a3b --quant fp8 --kv-dtype fp8

is the model of that size in fp8.
"""

import argparse
import collections
import pathlib
import random
import re
import statistics
import struct
import time

from engine_support import (
    DEMO, GRAMMAR_REGEX, LOAD_ALL, LOAD_RANDOM, Model, Session, Verdict, demo_conversations, resident_bytes,
)  # fmt: skip

MOST_GROWTH = 16 << 20  # bytes. A GPU's graphs, made when a step of a new size comes, take some of it
MOST_KNOWN = 40  # requests whose bits are remembered
REGEX = "[0-9]{3}-[0-9]{2}( yes| no)"


class Traffic:
    def __init__(self, model, session, context, seed):
        self.model, self.session, self.context = model, session, context
        self.chance = random.Random(seed)
        self.counts = collections.Counter()
        self.known = {}  # the number of a request: its bits
        self.faults = []
        conversations = demo_conversations(50)
        self.text = [id % model.info.vocab for ids in conversations for id in ids]
        self.grammar = model.grammar(GRAMMAR_REGEX, REGEX) if model.info.has_tokenizer else None
        self.alive = []  # (sequence, number or None, moment of its end or None)

    def request(self, number):
        """Arguments of the request with this number: always the same."""
        chance = random.Random(number)
        longest = self.context - 1
        kind = chance.random()
        if kind < 0.15:
            n_ids = chance.randint(longest // 2, longest)
        elif kind < 0.5:
            n_ids = chance.randint(1, min(longest, 100))
        else:
            n_ids = chance.randint(1, min(longest, 1000))
        at = chance.randrange(0, 40) * 64
        ids = (self.text[at:] + self.text * (n_ids // len(self.text) + 1))[:n_ids]
        if chance.random() < 0.5:  # else the beginning is one that others have
            ids[chance.randrange(n_ids)] = chance.randrange(self.model.info.vocab)
        most = min(self.context - n_ids, 300)
        arguments = {"ids": ids, "max_new": chance.randint(1, max(1, most)), "ignore_eos": chance.random() < 0.5}
        if chance.random() < 0.7:
            arguments |= {
                "temperature": chance.uniform(0.1, 2), "top_p": chance.choice([1.0, 0.9, 0.5]), "top_k": chance.choice([0, 1, 20]),
                "min_p": chance.choice([0.0, 0.05]), "seed": number, "repetition_penalty": chance.choice([1.0, 1.2]),
                "presence_penalty": chance.choice([0.0, 0.5]), "frequency_penalty": chance.choice([0.0, -0.3]),
            }  # fmt: skip
        self.uses_grammar = self.grammar is not None and chance.random() < 0.1 and most >= 16
        if self.uses_grammar:
            arguments |= {"grammar": self.grammar, "max_new": 16, "ignore_eos": False}
        return arguments

    def submit(self):
        chance = self.chance
        number = chance.randrange(MOST_KNOWN) if chance.random() < 0.5 else chance.getrandbits(60) + MOST_KNOWN
        arguments = self.request(number)
        n_rows = []
        if chance.random() < 0.1:
            arguments |= {
                "on_row": lambda position, _row: n_rows.append(position),
                "prompt_rows": chance.random() < 0.3,
            }
            self.counts["with log-probabilities"] += 1
        sequence = self.session.submit(priority=chance.randint(-1, 1), salt=chance.choice([0, 0, 7]), **arguments)
        sequence.uses_grammar = self.uses_grammar
        self.counts["requests"] += 1
        self.counts["with a grammar"] += self.uses_grammar
        self.counts["tokens of prompts"] += len(sequence.ids)
        ends_early = chance.random() < 0.15
        self.alive.append((sequence, number, chance.randint(0, 100) if ends_early else None))

    def fault(self, text):
        self.faults.append(text)
        print(f"  WRONG  {text}", flush=True)

    def check_end(self, sequence, number):
        if sequence.state not in ("stop", "length"):
            self.fault(f"request {number} ended as {sequence.state}")
            return
        bits = sequence.state, [(id, struct.pack("<f", logprob)) for id, logprob in sequence.tokens]
        self.counts["tokens of answers"] += len(sequence.tokens)
        self.counts["preemptions"] += sequence.n_preemptions
        self.counts["cached tokens"] += sequence.n_cached
        if number < MOST_KNOWN:
            self.counts["compared with an earlier answer"] += number in self.known
            if self.known.setdefault(number, bits) != bits:
                self.fault(f"request {number} of {len(sequence.ids)} tokens has other bits than before")
        if sequence.uses_grammar and sequence.state == "stop":
            text = self.model.text([id for id, _ in sequence.tokens])
            if not re.fullmatch(REGEX, text):
                self.fault(f"request {number}: {text!r} is not of the grammar {REGEX}")

    def look(self):
        """Reads what is new, drops what has ended, and ends early what is to."""
        kept = []
        for sequence, number, steps_left in self.alive:
            self.session.read(sequence)
            if sequence.is_done:
                self.session.release(sequence)
                self.check_end(sequence, number)
            elif steps_left is not None and steps_left <= 0:
                if self.chance.random() < 0.5:
                    self.session.cancel(sequence)
                    self.session.read(sequence)
                    if sequence.state != "cancelled":
                        self.fault(f"request {number} was cancelled and is {sequence.state}")
                self.session.release(sequence)
                self.counts["ended early"] += 1
            else:
                kept.append((sequence, number, None if steps_left is None else steps_left - 1))
        self.alive = kept

    def round(self, seconds, last_moment):
        """Requests for so many seconds, then what is left of them; what is left at the last moment is released."""
        end = time.monotonic() + seconds
        most_alive = self.chance.choice([2, 10, 40])
        while (time.monotonic() < end or self.alive) and time.monotonic() < last_moment:
            while time.monotonic() < end and len(self.alive) < most_alive and self.chance.random() < 0.5:
                self.submit()
            self.session.step()
            self.look()
        for sequence, _, _ in self.alive:
            self.session.release(sequence)
        self.counts["ended early"] += len(self.alive)
        self.alive = []
        while self.session.step():  # what was released while it ran
            continue
        stats = self.session.stats()
        if stats.kv_blocks_free != stats.kv_blocks_total or stats.n_running or stats.n_waiting:
            self.fault(
                f"at the end of a round {stats.kv_blocks_free} of {stats.kv_blocks_total} blocks are free, "
                f"{stats.n_running} sequences run, {stats.n_waiting} wait"
            )


def drive(traffic, session, minutes):
    """-> [(host bytes, device bytes that are not free)] after each round."""
    begin, samples = time.monotonic(), []
    length, last_moment = max(1.0, min(20.0, minutes * 60 / 40)), begin + minutes * 60
    while time.monotonic() < last_moment and len(traffic.faults) < 5:
        traffic.round(length, last_moment)
        memory = session.memory()
        samples.append((resident_bytes(), memory.device_bytes - memory.free_bytes))
        if len(samples) % 6 == 0:
            counts = ", ".join(f"{n} {what}" for what, n in traffic.counts.items())
            print(f"  {time.monotonic() - begin:5.0f} s: {counts}; host {samples[-1][0] >> 20} MiB", flush=True)
    return samples


def growth(values):
    """From the second quarter to the last. The median: a round may just hold a long request."""
    quarter = max(1, len(values) // 4)
    return statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter] or values[:1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--context", type=int, default=8192, help="most tokens of prompt and answer (default 8192)")
    parser.add_argument("--model", type=pathlib.Path, default=DEMO)
    parser.add_argument("--quant", choices=("fp8",), help="weights in blocks of fp8; default: as the checkpoint has them")
    parser.add_argument("--kv-dtype", help="type of the KV cache; default: that of the activations")
    parser.add_argument(
        "--beside-others", action="store_true", help="other programs use the device: do not judge its free memory"
    )
    given = parser.parse_args()
    load = LOAD_ALL if list(given.model.glob("*.safetensors")) else LOAD_RANDOM
    verdict = Verdict("traffic_check")
    with Model(given.model, given.device, quant=given.quant, kv_dtype=given.kv_dtype, load=load) as model:
        context = min(model.info.max_positions, given.context)
        kv_tokens = 3 * context  # little, so that sequences are preempted and cached blocks evicted
        with Session(model, max_sequences=24, max_context=context, kv_tokens=kv_tokens) as session:
            print(
                f"{given.model.name} on {model.info.device.decode()}, {model.info.dtype.decode()}, "
                f"{model.info.weight_dtype.decode()} weights, {model.info.kv_dtype.decode()} cache, {given.minutes:g} minutes",
                flush=True,
            )
            traffic = Traffic(model, session, context, given.seed)
            samples = drive(traffic, session, given.minutes)
            counts = traffic.counts
            print("  " + ", ".join(f"{n} {what}" for what, n in counts.items()))
            verdict.say(not traffic.faults, f"{counts['requests']} requests, {len(traffic.faults)} faults")
            for what in ("ended early", "compared with an earlier answer", "with log-probabilities"):
                verdict.say(counts[what] > 0, f"{counts[what]} {what}")
            host, device = (growth([sample[i] for sample in samples]) for i in (0, 1))
            verdict.say(
                host <= MOST_GROWTH, f"host memory grew by {host / (1 << 20):.1f} MiB, limit {MOST_GROWTH >> 20}"
            )
            if given.device != "cpu" and not given.beside_others:
                verdict.say(
                    device <= MOST_GROWTH,
                    f"device memory grew by {device / (1 << 20):.1f} MiB, limit {MOST_GROWTH >> 20}",
                )
    verdict.end()


if __name__ == "__main__":
    main()
