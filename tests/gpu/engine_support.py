"""The engine driven step by step from Python, for the checks of this folder: models, sessions and sequences of
moebius.h.

Unlike moebius.Engine nothing runs by itself: a check decides when a step is made. MOEBIUS_LIBRARY names the
library; without it, that of build/cuda is used, or else that of build/cpu.
"""

import ctypes
import os
import pathlib
import re
import sys
import time
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "models/demo"
BUILDS = [ROOT / "build" / name / "libmoebius.so" for name in ("cuda", "cpu")]
sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("MOEBIUS_LIBRARY", str(next((path for path in BUILDS if path.exists()), BUILDS[0])))

import numpy  # noqa: E402
from moebius import _engine_library as c  # noqa: E402
from moebius._library import LIBRARY  # noqa: E402

LOAD_ALL, LOAD_RANDOM = 0, 3  # mb_load
GRAMMAR_JSON_SCHEMA, GRAMMAR_REGEX = 0, 2  # mb_grammar_kind
_ON_LOGPROBS = ctypes.CFUNCTYPE(None, c_void_p, c_int64, POINTER(c_float), c_int32)


class SessionMemory(ctypes.Structure):
    """mb_session_memory"""

    _fields_ = [
        *((name, c_uint64) for name in ("weight_bytes", "buffer_bytes", "kv_bytes")),
        *((name, c_int64) for name in ("kv_tokens", "step_tokens")),
        *((name, c_uint64) for name in ("device_bytes", "free_bytes")),
    ]


def _declare():
    for name, arguments in {
        "mb_cancel": [c_void_p, c_uint64],
        "mb_grammar_open": [c_void_p, c_int, c_char_p, c_size_t, POINTER(c_void_p)],
    }.items():
        getattr(LIBRARY, name).restype, getattr(LIBRARY, name).argtypes = c_int32, arguments
    LIBRARY.mb_grammar_close.restype, LIBRARY.mb_grammar_close.argtypes = None, [c_void_p]
    LIBRARY.mb_session_get_memory.restype = None
    LIBRARY.mb_session_get_memory.argtypes = [c_void_p, POINTER(SessionMemory)]


_declare()


class Model:
    def __init__(self, directory, device, dtype=None, quant=None, kv_dtype=None, load=LOAD_ALL, n_threads=0):
        self.options, self.handle, self.info = c.ModelOptions(), c_void_p(), c.ModelInfo()
        LIBRARY.mb_model_options_init(byref(self.options))
        for name, value in (("device", device), ("dtype", dtype), ("quant", quant), ("kv_dtype", kv_dtype)):
            setattr(self.options, name, value.encode() if value else None)
        self.options.load, self.options.n_threads = load, n_threads
        c.check(LIBRARY.mb_model_open(str(directory).encode(), byref(self.options), byref(self.handle)))
        LIBRARY.mb_model_get_info(self.handle, byref(self.info))

    def grammar(self, kind, text):
        handle, data = c_void_p(), text.encode()
        c.check(LIBRARY.mb_grammar_open(self.handle, kind, data, len(data), byref(handle)))
        return handle

    def text(self, ids):
        """Without special tokens."""
        decoder, text, n_bytes, found = c_void_p(), c_void_p(), c_size_t(), b""
        c.check(LIBRARY.mb_decoder_open(self.handle, 1, byref(decoder)))
        for id in [*ids, None]:
            if id is None:
                c.check(LIBRARY.mb_decoder_finish(decoder, byref(text), byref(n_bytes)))
            else:
                c.check(LIBRARY.mb_decoder_push(decoder, id, byref(text), byref(n_bytes)))
            found += ctypes.string_at(text.value, n_bytes.value) if n_bytes.value else b""
        LIBRARY.mb_decoder_close(decoder)
        return found.decode()

    def close(self):
        LIBRARY.mb_model_close(self.handle)
        self.handle = c_void_p()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Sequence:
    """A submitted sequence: its tokens as (id, log-probability), its state, and the rows that were kept."""

    def __init__(self, ids):
        self.ids, self.tokens, self.state, self.id = ids, [], "waiting", 0
        self.n_preemptions = self.n_cached = 0

    @property
    def is_done(self):
        return self.state not in ("waiting", "running")


class Session:
    def __init__(self, model, **options):
        self.model, self.handle, self.n_unfinished = model, c_void_p(), c_int()
        chosen = c.SessionOptions()
        LIBRARY.mb_session_options_init(byref(chosen))
        for name, value in options.items():
            setattr(chosen, name, value)
        c.check(LIBRARY.mb_session_open(model.handle, byref(chosen), byref(self.handle)))

    def submit(
        self,
        ids,
        max_new,
        on_row=None,
        prompt_rows=False,
        grammar=None,
        priority=0,
        salt=0,
        ignore_eos=True,
        **sampling,
    ):
        """on_row(position, row): called for each log-probability row, which is valid during the call only."""
        sequence, request, id = Sequence(list(ids)), c.Request(), c_uint64()
        LIBRARY.mb_request_init(self.model.handle, byref(request))
        request.ids, request.n_ids = (c_int32 * len(sequence.ids))(*sequence.ids), len(sequence.ids)
        request.max_new_tokens, request.ignore_eos, request.priority = max_new, ignore_eos, priority
        request.grammar, request.cache_salt = grammar, salt
        chosen = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, **sampling}
        for name, value in chosen.items():
            setattr(request.sampling, name, value)
        if on_row:
            sequence.callback = _ON_LOGPROBS(
                lambda _user, position, row, vocab: on_row(position, numpy.ctypeslib.as_array(row, (vocab,)))
            )
            request.on_logprobs = ctypes.cast(sequence.callback, c_void_p)
            request.prompt_logprobs = prompt_rows
        c.check(LIBRARY.mb_submit(self.handle, byref(request), byref(id)))
        sequence.id = id.value
        return sequence

    def step(self):
        c.check(LIBRARY.mb_step(self.handle, byref(self.n_unfinished)))
        return self.n_unfinished.value

    def read(self, sequence):
        tokens, n_tokens, state = (c.Token * 64)(), c_size_t(), c_int()
        n_tokens.value = len(tokens)
        while n_tokens.value == len(tokens):
            c.check(LIBRARY.mb_read(self.handle, sequence.id, tokens, len(tokens), byref(n_tokens), byref(state)))
            sequence.tokens += [(token.id, token.logprob) for token in tokens[: n_tokens.value]]
        sequence.state = c.STATES[state.value]
        return sequence

    def finish(self, sequences):
        """Steps until all have ended, and forgets them."""
        while self.step():
            pass
        for sequence in sequences:
            self.read(sequence)
            self.release(sequence)
        return sequences

    def cancel(self, sequence):
        c.check(LIBRARY.mb_cancel(self.handle, sequence.id))

    def release(self, sequence):
        usage = c.Usage()
        c.check(LIBRARY.mb_get_usage(self.handle, sequence.id, byref(usage)))
        sequence.n_preemptions, sequence.n_cached = usage.n_preemptions, usage.n_cached_tokens
        c.check(LIBRARY.mb_release(self.handle, sequence.id))

    def stats(self):
        stats = c.SessionStats()
        LIBRARY.mb_session_get_stats(self.handle, byref(stats))
        return stats

    def memory(self):
        memory = SessionMemory()
        LIBRARY.mb_session_get_memory(self.handle, byref(memory))
        return memory

    def close(self):
        LIBRARY.mb_session_close(self.handle)
        self.handle = c_void_p()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def resident_bytes():
    """The memory of this process."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) << 10


class Verdict:
    """Counts what was checked, prints each line with the seconds since the line before, and gives the exit status.
    A check without a line has failed, too."""

    def __init__(self, name):
        self.name, self.n_checks, self.failed, self.last = name, 0, [], time.monotonic()

    def say(self, good, text):
        self.n_checks += 1
        if not good:
            self.failed.append(text)
        now = time.monotonic()
        print(f"  {'good ' if good else 'WRONG'}  {text}  ({now - self.last:.1f} s)", flush=True)
        self.last = now

    def end(self):
        if not self.n_checks:
            self.failed.append("nothing was checked")
        if self.failed:
            print(f"{self.name}: WRONG: {len(self.failed)} of {self.n_checks} checks; the first: {self.failed[0]}")
        else:
            print(f"{self.name}: all right, {self.n_checks} checks")
        sys.exit(1 if self.failed else 0)


def demo_conversations(every=1):
    """Ids of prompt and answer of the demo model's held-out rows."""
    import json

    with open(DEMO / "heldout.jsonl") as file:
        rows = [json.loads(line) for i, line in enumerate(file) if i % every == 0]
    return [row["prompt_ids"] + row["hf_ids"] for row in rows]
