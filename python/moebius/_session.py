"""
An open model with a session, and the thread that steps the session while it has work.

Any thread may call any method. `using` keeps the model and the session open for the length of a call: the stepping
thread frees them once close was called and no call is left. That thread knows the Session and not the Engine, so an
Engine that nobody holds any more is closed.

A child that os.fork made has neither that thread nor the library's, and the locks as they were at that moment. It is
told so, before any lock is taken.
"""

import contextlib
import ctypes
import itertools
import os
import threading
from collections.abc import Iterator
from ctypes import byref, c_int, c_int32, c_size_t, c_uint64, c_void_p

from . import _engine_library as c
from ._library import LIBRARY, Error, failure


class Session:
    def __init__(self, name: bytes, model_options: c.ModelOptions, session_options: c.SessionOptions) -> None:
        directory, self.model, self._session = c_void_p(), c_void_p(), c_void_p()
        c.check(LIBRARY.mb_find_model(name, byref(directory)))
        try:
            path = ctypes.string_at(directory.value)
        finally:
            LIBRARY.mb_free_text(directory)
        c.check(LIBRARY.mb_model_open(path, byref(model_options), byref(self.model)))
        try:
            c.check(LIBRARY.mb_session_open(self.model, byref(session_options), byref(self._session)))
        except Error:
            LIBRARY.mb_model_close(self.model)
            raise
        self.info, stats = c.ModelInfo(), c.SessionStats()
        LIBRARY.mb_model_get_info(self.model, byref(self.info))
        LIBRARY.mb_session_get_stats(self._session, byref(stats))
        self.context = min(self.info.max_positions, 64 * stats.kv_blocks_total)
        if session_options.max_context > 0:
            self.context = min(self.context, session_options.max_context)
        self._process = os.getpid()
        # Guards all that follows. A thread may take it again: the garbage collector, which closes streams, runs anywhere.
        self._changed = threading.Condition(threading.RLock())
        self.room = session_options.max_queued  # for sequences: what is open in all threads together fits the queue
        self._closing = self._has_work = False
        self._n_users = 0
        self.n_steps = 0
        self._answer_formats: c.AnswerFormats | None = None
        self._thread = threading.Thread(target=self._step, name="moebius-step", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        self.refuse_fork()
        with self._changed:
            if self._closing:
                raise Error("MB_ERR_STATE", "the engine is closed")
            self._n_users += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_users -= 1
                self._changed.notify_all()

    def is_forked(self) -> bool:
        return os.getpid() != self._process

    def refuse_fork(self) -> None:
        if self.is_forked():
            raise Error("MB_ERR_STATE", "the engine belongs to the process that forked this one; open one here")

    def take_room(self, wait: bool) -> bool:
        """Room for one more sequence. When the engine is being closed, too: submitting then fails."""
        self.refuse_fork()
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self.room > 0 or self._closing)
            elif self.room == 0:
                return False
            self.room -= 1
            return True

    def give_room(self) -> None:
        with self._changed:
            self.room += 1
            self._changed.notify_all()

    def close(self) -> None:
        if self.is_forked():
            return  # the memory goes with the process
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # where the garbage collector may run, too
            self._thread.join()

    def _step(self) -> None:
        n_unfinished = c_int()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_work or self._closing)
                if self._closing:
                    break
                self._has_work = False  # what is submitted from here on sets the mark again
            LIBRARY.mb_step(self._session, byref(n_unfinished))  # a failure is told by the sequences that it ended
            with self._changed:
                self._has_work |= n_unfinished.value > 0
                self.n_steps += 1
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: self._n_users == 0)
        LIBRARY.mb_session_close(self._session)
        LIBRARY.mb_model_close(self.model)

    def wait_for_step(self, n_steps: int) -> None:
        """Until there were more than n_steps steps, or the engine is being closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.n_steps != n_steps or self._closing)

    # ---- Calls: within `using` -------------------------------------------------------------------------------------

    def submit(self, request: c.Request) -> int:
        id = c_uint64()
        c.check(LIBRARY.mb_submit(self._session, byref(request), byref(id)))
        with self._changed:
            self._has_work = True
            self._changed.notify_all()
        return id.value

    def read(self, id: int) -> tuple[list[tuple[int, float]], str]:
        """The new tokens of a sequence as (id, logprob), and its state."""
        tokens, n_tokens, state = (c.Token * 64)(), c_size_t(), c_int()
        found: list[tuple[int, float]] = []
        while True:
            c.check(LIBRARY.mb_read(self._session, id, tokens, len(tokens), byref(n_tokens), byref(state)))
            found += ((token.id, token.logprob) for token in itertools.islice(tokens, n_tokens.value))
            if n_tokens.value < len(tokens):
                return found, c.STATES[state.value]

    def answer_formats(self) -> c.AnswerFormats:
        """How the model reasons; asking takes some renderings, so it is done once."""
        if self._answer_formats is None:
            formats = c.AnswerFormats()
            c.check(LIBRARY.mb_answer_formats_of(self.model, byref(formats)))
            self._answer_formats = formats
        return self._answer_formats

    def failure_of(self, id: int) -> Error:
        """Why a sequence is in the state "failed"."""
        return failure(LIBRARY.mb_get_failure(self._session, id))

    def count_cached(self, id: int) -> int:
        """The tokens of a sequence's prompt that the prefix cache had."""
        usage = c.Usage()
        c.check(LIBRARY.mb_get_usage(self._session, id, byref(usage)))
        return usage.n_cached_tokens

    def release(self, id: int) -> None:
        LIBRARY.mb_release(self._session, id)

    def tokenize(self, data: bytes, special: bool) -> list[int]:
        n_ids = c_size_t()
        capacity = len(data) + 1  # rarely more tokens than bytes
        while True:
            ids = (c_int32 * capacity)()
            status = LIBRARY.mb_tokenize(self.model, data, len(data), special, ids, capacity, byref(n_ids))
            if status != c.ERR_CAPACITY or n_ids.value <= capacity:
                c.check(status)
                return ids[: n_ids.value]
            capacity = n_ids.value

    def render(self, messages_json: bytes, thinking: bool, tools_json: bytes | None) -> str:
        options, text = c.ChatOptions(), c_void_p()
        LIBRARY.mb_chat_options_init(byref(options))
        options.enable_thinking = thinking
        options.tools_json = tools_json
        c.check(LIBRARY.mb_chat_render(self.model, messages_json, byref(options), byref(text)))
        return c.take_text(text)


class Decoder:
    """Tokens become text, cut before the first of the stop texts. `stop` is the one that came, or None."""

    def __init__(self, session: Session, stops: tuple[str, ...], skip_special: bool) -> None:
        self._decoder, self._matcher = c_void_p(), c_void_p()
        self._stops = stops
        self._text, self._n_bytes = c_void_p(), c_size_t()
        self._out = (byref(self._text), byref(self._n_bytes))
        texts = (ctypes.c_char_p * len(stops))(*(stop.encode() for stop in stops))
        c.check(LIBRARY.mb_decoder_open(session.model, skip_special, byref(self._decoder)))
        status = LIBRARY.mb_stop_text_open(texts, len(stops), byref(self._matcher))
        if status != c.OK:
            refused = failure(status)
            self.close()
            raise refused
        self.stop: str | None = None

    def _taken(self) -> bytes:
        return ctypes.string_at(self._text.value, self._n_bytes.value) if self._n_bytes.value else b""

    def _search(self, piece: bytes) -> str:
        c.check(LIBRARY.mb_stop_text_push(self._matcher, piece, len(piece), *self._out))
        found = LIBRARY.mb_stop_text_found(self._matcher)
        self.stop = self._stops[found] if found >= 0 else None
        return self._taken().decode()

    def push(self, id: int) -> str:
        c.check(LIBRARY.mb_decoder_push(self._decoder, id, *self._out))
        return self._search(self._taken())

    def finish(self) -> str:
        c.check(LIBRARY.mb_decoder_finish(self._decoder, *self._out))
        text = self._search(self._taken())
        if self.stop is None:
            LIBRARY.mb_stop_text_finish(self._matcher, *self._out)
            text += self._taken().decode()
        return text

    def close(self) -> None:
        LIBRARY.mb_decoder_close(self._decoder)
        LIBRARY.mb_stop_text_close(self._matcher)
        self._decoder, self._matcher = c_void_p(), c_void_p()
