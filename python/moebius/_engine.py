"""Engine: a model that answers. Many answers run as one batch, from any number of threads."""

import dataclasses
import numbers
import os
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from ctypes import byref
from typing import Any, NamedTuple, overload

from . import _engine_library as c
from ._checks import c_text, collection, flag, integer, json_array, number, shown, utf8
from ._grammar import grammar_of
from ._library import LIBRARY, Error
from ._sampling import Sampling, fill_request
from ._session import Decoder, Session

Message = Mapping[str, Any]  # {"role": "user", "content": "..."} and so on, as in OpenAI's API
Prompt = str | Sequence[Message] | Sequence[int]  # a text to be continued, a chat to be answered, or token ids


class Piece(NamedTuple):
    """A part of an answer, as it streams. str(piece) is its text."""

    text: str
    ids: list[int]
    logprobs: list[float]

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str  # without the stop text; "" where the model has no tokenizer
    ids: list[int]  # all new tokens, those of a stop text too
    logprobs: list[float]  # of each token: natural log of its probability at temperature 1
    finish_reason: str  # "stop": an end-of-text token, a stop token or a stop text came; "length": max_new_tokens
    stop: str | None  # the stop text that came
    n_prompt: int  # tokens of the prompt
    n_cached: int  # of these, found in the prefix cache


class _Encoded(NamedTuple):
    """A prompt's token ids, and its text where the chat template made it."""

    ids: list[int]
    rendered: bytes | None = None


class _Run:
    """One sequence, from its submission to its Answer."""

    def __init__(self, session: Session, prompt: _Encoded, sampling: Sampling, index: int) -> None:
        ids = prompt.ids
        self._session, self._n_prompt, self._n_cached = session, len(ids), 0
        self._pieces: list[Piece] = []
        self._id: int | None = None
        self._decoder: Decoder | None = None
        self.finish_reason: str | None = None
        stops, skip_special = sampling.stops(), flag("skip_special", sampling.skip_special)
        with session.using(), grammar_of(session, sampling, prompt.rendered) as grammar:
            request = c.Request()
            LIBRARY.mb_request_init(session.model, byref(request))
            fill_request(request, ids, sampling, index, session.context)
            request.grammar, request.grammar_after_think = grammar
            if session.info.has_tokenizer:
                self._decoder = Decoder(session, stops, skip_special)
            elif stops:
                raise ValueError("stop: the model has no tokenizer.json, so answers have no text; use stop_ids")
            try:
                self._id = session.submit(request)
            except BaseException:
                self.close()
                raise

    def advance(self) -> Piece | None:
        """What is new, or None. After the last piece finish_reason is set."""
        with self._session.using():
            tokens, state = self._session.read(self._id)
            if state == "failed":
                raise self._session.failure_of(self._id)
            if state not in ("waiting", "running"):
                self.finish_reason = state
            if tokens:
                self._n_cached = self._session.count_cached(self._id)
            piece = self._take(tokens)
        if self.finish_reason is None and not piece.ids:
            return None
        self._pieces.append(piece)
        return piece

    def _take(self, tokens: list[tuple[int, float]]) -> Piece:
        if self._decoder is None:
            return Piece("", [id for id, _ in tokens], [logprob for _, logprob in tokens])
        text = ""
        for n_taken, (id, _) in enumerate(tokens, 1):
            text += self._decoder.push(id)
            if self._decoder.stop is not None:
                tokens = tokens[:n_taken]
                self.finish_reason = "stop"
                break
        if self.finish_reason is not None:
            text += self._decoder.finish()
        return Piece(text, [id for id, _ in tokens], [logprob for _, logprob in tokens])

    def answer(self) -> Answer:
        assert self.finish_reason is not None
        return Answer(
            text="".join(piece.text for piece in self._pieces),
            ids=[id for piece in self._pieces for id in piece.ids],
            logprobs=[logprob for piece in self._pieces for logprob in piece.logprobs],
            finish_reason=self.finish_reason,
            stop=self._decoder.stop if self._decoder is not None else None,
            n_prompt=self._n_prompt,
            n_cached=self._n_cached,
        )

    def close(self) -> None:
        """Ends the sequence, if it still runs, and frees its memory."""
        if self._decoder is not None:
            self._decoder.close()
        if self._id is not None:
            try:
                with self._session.using():
                    self._session.release(self._id)
            except Error:
                pass  # the engine is closed, and the sequence with it
            self._id = None


class Stream:
    """
    An answer as it comes: an iterator of Pieces. Each piece goes to one of the threads that ask. `answer` is the whole
    of it once the iteration is over. close(), the end of a `with`, or dropping the stream ends the answer early.
    """

    answer: Answer | None = None
    _run: _Run | None = None

    def __init__(self, engine: "Engine", prompt: _Encoded, sampling: Sampling) -> None:
        self._engine = engine  # stays open as long as somebody listens
        self._session = engine._session
        self._lock = threading.Lock()  # nobody closes the run while another thread takes a piece
        self._session.take_room(wait=True)
        try:
            self._run = _Run(self._session, prompt, sampling, 0)
        except BaseException:
            self._session.give_room()
            raise

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        self._session.refuse_fork()
        while True:
            n_steps = self._session.n_steps
            with self._lock:
                if self._run is None:
                    raise StopIteration
                try:
                    piece = self._run.advance()
                except BaseException:
                    self._end()
                    raise
                if self._run.finish_reason is not None:
                    self.answer = self._run.answer()
                    self._end()
            if piece is not None:
                return piece
            self._session.wait_for_step(n_steps)

    def _end(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None
            self._session.give_room()

    def close(self) -> None:
        if not self._session.is_forked():
            with self._lock:
                self._end()

    def __del__(self) -> None:  # nobody else holds the stream
        if self._run is not None and not self._session.is_forked():
            self._end()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Engine:
    """
    A Qwen3-MoE model, open for answers:

        with moebius.Engine("Qwen/Qwen3-30B-A3B") as engine:
            answer = engine.generate([{"role": "user", "content": "What is 7 + 8?"}], temperature=0)
            print(answer.text)

    All methods may be called from any thread; what runs at the same time runs as one batch. A sequence's tokens do not
    depend on the others. In a child that os.fork made, the parent's Engine raises an Error: open one there.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        device: str | None = None,
        dtype: str | None = None,
        quant: str | None = None,
        kv_dtype: str | None = None,
        threads: int = 0,
        chat_template: str | os.PathLike[str] | None = None,
        max_sequences: int | None = None,
        max_step_tokens: int | None = None,
        prefill_chunk: int | None = None,
        max_queued: int | None = None,
        kv_tokens: int = 0,
        memory_fraction: float | None = None,
        max_context: int = 0,
        prefix_caching: bool = True,
    ) -> None:
        """
        directory: a Hugging Face checkpoint, or the name of one in Hugging Face's cache.
        device: "cpu", "cuda" or "cuda:N"; None: the GPU when there is one, else the CPU.
        dtype: "fp32", "bf16" or "fp16", the type that activations are computed in; None: fp32 on the CPU, else bf16.
        quant: "fp8": the matrices of attention and experts become fp8 while they load; None: weights stay as they are.
        kv_dtype: "fp8": all layers of the KV cache but the first are kept in fp8; None: all in dtype.
        threads: CPU threads; 0: one for each core that the process may use.
        chat_template: a template's file, or the name of a known one, in place of the checkpoint's.
        max_sequences, max_step_tokens, prefill_chunk: most sequences and tokens in a step, most tokens of a prompt in a
        step (64, 2048, 512; on a GPU 64, 8192, 8192).
        max_queued: most answers that are open at once; generate and stream wait beyond (1024).
        kv_tokens: tokens that the KV cache holds; 0: on the CPU 16384, on a GPU what its free memory allows.
        memory_fraction: the part of a GPU's memory that may be in use, by all programs together (0.92).
        max_context: most tokens of a prompt and its answer; 0: the model's.
        prefix_caching: prompts that begin alike are computed once, as long as the KV cache has the space.
        """
        model_options, session_options = c.ModelOptions(), c.SessionOptions()
        LIBRARY.mb_model_options_init(byref(model_options))
        LIBRARY.mb_session_options_init(byref(session_options))
        texts = {"device": device, "dtype": dtype, "quant": quant, "kv_dtype": kv_dtype}
        texts["chat_template"] = os.fspath(chat_template) if isinstance(chat_template, os.PathLike) else chat_template
        for name, value in texts.items():
            setattr(model_options, name, c_text(name, value) if value is not None else None)
        model_options.n_threads = integer("threads", threads, 0, 1024)
        sizes = {"max_sequences": max_sequences, "max_step_tokens": max_step_tokens, "prefill_chunk": prefill_chunk}
        for name, size in (sizes | {"max_queued": max_queued}).items():
            if size is not None:
                setattr(session_options, name, integer(name, size, 1, 2**31 - 1))
        session_options.kv_tokens = integer("kv_tokens", kv_tokens, 0, 2**62)
        session_options.max_context = integer("max_context", max_context, 0, 2**62)
        if memory_fraction is not None:
            session_options.memory_fraction = number("memory_fraction", memory_fraction)
        session_options.prefix_caching = flag("prefix_caching", prefix_caching)
        self._session = Session(_path(directory), model_options, session_options)
        # Runs at the end of the program too, before daemon threads are stopped wherever they are.
        self._finalizer = weakref.finalize(self, self._session.close)

    def close(self) -> None:
        """Ends everything that runs, and frees the model. generate and stream in other threads raise an Error."""
        self._finalizer()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self._session.context

    @property
    def info(self) -> dict[str, Any]:
        """What is known of the model: its sizes, dtypes and device, as mb_model_info in moebius.h."""
        info = c.ModelInfo()
        with self._session.using():
            LIBRARY.mb_model_get_info(self._session.model, byref(info))
            values = {name: getattr(info, name) for name, _ in info._fields_ if name != "n_eos_ids"}
            values["eos_ids"] = info.eos_ids[: info.n_eos_ids]
        return {
            name: value.decode(errors="replace") if isinstance(value, bytes) else value
            for name, value in values.items()
        }

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text. special: special tokens in it ("<|im_end|>") count as such."""
        data, special = utf8("text", text), flag("special", special)
        with self._session.using():
            return self._session.tokenize(data, special)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of token ids. Bytes that are no UTF-8 become U+FFFD."""
        ids = [integer("a token id", id, 0, 2**31 - 1) for id in collection("ids", ids, "token ids")]
        skip_special = flag("skip_special", skip_special)
        with self._session.using():
            decoder = Decoder(self._session, (), skip_special)
            try:
                pieces = [decoder.push(id) for id in ids]
                return "".join([*pieces, decoder.finish()])
            finally:
                decoder.close()

    def render(self, messages: Sequence[Message], *, thinking: bool = True, tools: Sequence[Any] | None = None) -> str:
        """The prompt that the model's chat template makes of messages, ready for an answer."""
        messages_json = json_array("messages", collection("messages", messages, "messages"))
        thinking, tools = flag("thinking", thinking), _tools(tools)
        tools_json = json_array("tools", tools) if len(tools) > 0 else None
        with self._session.using():
            return self._session.render(messages_json, thinking, tools_json)

    @overload
    def generate(self, prompts: Prompt, sampling: Sampling | None = None, **options: Any) -> Answer: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | None = None, **options: Any) -> list[Answer]: ...
    def generate(self, prompts, sampling=None, *, thinking=True, tools=None, **options):
        """
        Answers one prompt (an Answer) or several (a list of Answers in their order, computed as one batch).

        A prompt is a text to be continued, a chat (a list of messages, which the model's chat template renders) or a
        list of token ids. `options` are fields of Sampling and replace those of `sampling`. thinking, tools: as in
        render. With json_schema, regex, choice or grammar the answer follows a grammar (docs/text.md).
        """
        sampling = _sampling_of(sampling, options)
        if _kind(prompts) is not None:
            return self._generate([self._encode(prompts, thinking, tools)], sampling)[0]
        try:
            each = None if isinstance(prompts, _NO_LIST) else iter(prompts)
        except TypeError:
            each = None
        if each is None:
            raise TypeError(f"prompts is {shown(prompts)}; it must be {_PROMPT}, or a list of such prompts")
        return self._generate([self._encode(prompt, thinking, tools) for prompt in each], sampling)

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        thinking: bool = True,
        tools: Sequence[Any] | None = None,
        **options: Any,
    ) -> Stream:
        """
        Answers one prompt, piece by piece:

            for piece in engine.stream("Once upon a time"):
                print(piece, end="", flush=True)
        """
        return Stream(self, self._encode(prompt, thinking, tools), _sampling_of(sampling, options))

    def _encode(self, prompt: Prompt, thinking: bool, tools: Sequence[Any] | None) -> _Encoded:
        kind = _kind(prompt)
        if kind is None:
            if isinstance(prompt, Sequence) and len(prompt) == 0:
                raise ValueError("a prompt is empty; it must have at least one token or message")
            raise TypeError(f"a prompt is {shown(prompt)}; it must be {_PROMPT}")
        thinking, tools = flag("thinking", thinking), _tools(tools)
        if kind != "chat" and len(tools) > 0:
            raise ValueError("tools: only a prompt of messages has tools; this one is a text or token ids")
        if kind == "ids":
            return _Encoded([integer("a token id", id, 0, self._session.info.vocab - 1) for id in prompt])
        data = utf8("a prompt", self.render(prompt, thinking=thinking, tools=tools) if kind == "chat" else prompt)
        with self._session.using():
            ids = self._session.tokenize(data, True)
        if not ids:
            raise ValueError("a prompt is empty; it must have at least one token")
        return _Encoded(ids, data if kind == "chat" else None)

    def _generate(self, prompts: list[_Encoded], sampling: Sampling) -> list[Answer]:
        session = self._session
        answers: list[Answer | None] = [None] * len(prompts)
        runs: dict[int, _Run] = {}
        n_begun = 0
        try:
            while n_begun < len(prompts) or runs:
                n_steps = session.n_steps
                # Who holds no room waits for it; who holds some goes on with what runs, so nobody waits for ever.
                while n_begun < len(prompts) and session.take_room(wait=not runs):
                    try:
                        runs[n_begun] = _Run(session, prompts[n_begun], sampling, n_begun)
                    except BaseException:
                        session.give_room()
                        raise
                    n_begun += 1
                n_running = len(runs)
                for index, run in list(runs.items()):
                    run.advance()
                    if run.finish_reason is not None:
                        answers[index] = run.answer()
                        del runs[index]
                        run.close()
                        session.give_room()
                if len(runs) == n_running:
                    session.wait_for_step(n_steps)
        finally:
            for run in runs.values():
                run.close()
                session.give_room()
        return answers


_PROMPT = "a text, a list of messages, or a list of token ids"
_NO_LIST = (bytes, bytearray, memoryview, Mapping, AbstractSet)


def _kind(prompt: Any) -> str | None:
    """What a prompt is: "text", "chat" or "ids"; None: no prompt. The first element decides."""
    if isinstance(prompt, str):
        return "text"
    if isinstance(prompt, _NO_LIST) or not hasattr(prompt, "__getitem__"):
        return None
    try:
        first = next(iter(prompt))
    except (TypeError, StopIteration):  # an array without dimensions; an empty list
        return None
    return "chat" if isinstance(first, Mapping) else "ids" if isinstance(first, numbers.Integral) else None


def _tools(tools: Any) -> Collection[Any]:
    return () if tools is None else collection("tools", tools, "tools")


def _path(directory: Any) -> bytes:
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"directory is {shown(directory)}; it must be a path or the name of a model")
    try:
        path = os.fsencode(directory)  # a name on disk may be no UTF-8
    except UnicodeEncodeError:
        raise ValueError(f"directory is {shown(directory)}, which can be no file's name") from None
    if not path or b"\0" in path:
        raise ValueError(f"directory is {shown(directory)}, which can be no file's name")
    return path


def _sampling_of(sampling: Sampling | None, options: dict[str, Any]) -> Sampling:
    if sampling is not None and not isinstance(sampling, Sampling):
        raise TypeError(f"sampling is {shown(sampling)}; it must be a moebius.Sampling")
    known = {field.name for field in dataclasses.fields(Sampling)}
    for name in options:
        if name not in known:
            raise TypeError(f"there is no option {name!r}; Sampling has {', '.join(sorted(known))}")
    return dataclasses.replace(sampling or Sampling(), **options)
