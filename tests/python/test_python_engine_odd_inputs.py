"""What moebius.Engine says to odd inputs: one exception in one sentence, and the engine goes on."""

import gc
import math
import os
import threading
import types

import numpy as np
import pytest
from engine_program import DEMO, STORY, run_program
from moebius import Engine, Error, Sampling


@pytest.fixture(scope="module")
def engine():
    with Engine(DEMO, device="cpu") as opened:
        yield opened
        assert opened._session.room == 1024  # no refusal kept room


class Unspeakable:
    def __repr__(self):
        raise OSError("no repr")


def user(content):
    return [{"role": "user", "content": content}]


CIRCLE = {"role": "user"}
CIRCLE["content"] = CIRCLE
DEEP = {"role": "user"}
for _ in range(10_000):
    DEEP = {"content": DEEP}

NO_PROMPTS = (None, 5, 5.5, True, {}, {"role": "user", "content": "x"}, set(), {1, 2}, b"x", bytearray(b"x"), object())


@pytest.mark.parametrize(
    "prompts", [*NO_PROMPTS, Unspeakable(), np.array(5)], ids=lambda prompts: type(prompts).__name__
)
def test_what_is_no_prompt(engine, prompts):
    with pytest.raises(TypeError, match="^prompts is .*; it must be a text, a list of messages"):
        engine.generate(prompts)
    with pytest.raises(TypeError, match="^a prompt is .*; it must be a text, a list of messages"):
        engine.stream(prompts)


@pytest.mark.parametrize("prompt, kind, text", [
    ([], ValueError, "a prompt is empty"),
    ("", ValueError, "a prompt is empty"),
    ("ab\ud800", ValueError, "a prompt: character 2 is .*ud800.*surrogate"),
    (user("\udc80"), ValueError, r"messages\[0\].*surrogate"),
    (user(b"x"), TypeError, r"messages\[0\] cannot be written as JSON: b'x' is of type bytes"),
    ([*user("x"), {"content": math.nan}], ValueError, r"messages\[1\] cannot be written as JSON"),
    ([CIRCLE], ValueError, r"messages\[0\] cannot be written as JSON: Circular"),
    ([DEEP], ValueError, r"messages\[0\] cannot be written as JSON: it is nested too deeply"),
    (user(5), Error, r"messages\[0\].content is 5"),
    ([{"role": "wizard", "content": "x"}], Error, 'messages.0..role is "wizard"'),
    ([*user("x"), 5], Error, r"messages\[1\] is 5"),
    ([1, True], TypeError, "a token id is True"),
    ([1, None], TypeError, "a token id is None"),
    ([2**70], ValueError, "a token id is"),
])  # fmt: skip
def test_what_is_wrong_in_a_prompt(engine, prompt, kind, text):
    with pytest.raises(kind, match=text):
        engine.stream(prompt)
    with pytest.raises(kind, match=text):
        engine.generate([STORY, prompt])


def test_kinds_of_lists_and_mappings(engine):
    """What looks like a list or a dict is as good as one."""
    chat = (types.MappingProxyType({"role": "user", "content": "x"}),)
    assert engine.render(chat) == engine.render(user("x"))
    expected = engine.generate([5, 6], max_new_tokens=2, temperature=0)
    for ids in ((5, 6), np.array([5, 6]), range(5, 7)):
        assert engine.generate(ids, max_new_tokens=2, temperature=0).ids == expected.ids
    assert len(engine.generate((text for text in "ab"), max_new_tokens=1)) == 2


def test_a_prompt_that_fills_the_context():
    with Engine(DEMO, max_context=96) as engine:
        for n in (96, 97):
            for call in (engine.generate, engine.stream):
                with pytest.raises(
                    Error, match=f"a prompt of {n} tokens leaves no room for an answer in a context of 96"
                ):
                    call([5] * n)
        assert engine.generate([5] * 96, max_new_tokens=0).ids == []  # as asked for
        assert len(engine.generate([5] * 95, ignore_eos=True).ids) == 1


NO_NUMBERS = (True, "1", b"1", [], object(), 1j, Unspeakable())
REALS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
INTEGERS = ("max_new_tokens", "min_new_tokens", "top_k", "seed", "priority")


def refused(engine, kind, text, **options):
    with pytest.raises(kind, match=text) as caught:
        engine.generate(STORY, **options)
    assert len(str(caught.value)) < 300


def test_wrong_types_and_values_of_every_option(engine):
    for name in REALS:
        for value in NO_NUMBERS:
            refused(engine, TypeError, f"^{name} is .*; it must be a number", **{name: value})
        for value in (math.nan, math.inf, -math.inf, 10**5000, 1e39):
            refused(engine, ValueError, f"^{name} is .*; it must be a finite number", **{name: value})
    for name in INTEGERS:
        for value in (*NO_NUMBERS, 1.5, math.nan):
            refused(engine, TypeError, f"^{name} is .*; it must be a whole number", **{name: value})
        for value in (2**70, -(2**70), 10**5000):
            refused(engine, ValueError, f"^{name} is .*; it must be from", **{name: value})
    for name in ("ignore_eos", "skip_special", "thinking"):
        for value in (None, "no", 2, 0.0, [], Unspeakable()):
            refused(engine, TypeError, f"^{name} is .*; it must be True or False", **{name: value})
    for name in ("stop", "stop_ids", "tools"):
        for value in (5, b"x", {"x": 1}, iter("x"), Unspeakable(), *(["x"] if name != "stop" else [])):
            refused(engine, TypeError, f"^{name} is .*; it must be a list of", **{name: value})
    for value in ("x", [(1, 2)], 5):
        refused(engine, TypeError, "^logit_bias is", logit_bias=value)
    refused(engine, TypeError, "^a token id of logit_bias is 'x'", logit_bias={"x": 1})
    refused(engine, ValueError, r"^logit_bias\[7\] is nan", logit_bias={7: math.nan})
    refused(engine, TypeError, "^a token id of stop_ids is 'x'", stop_ids=["x"])
    refused(engine, ValueError, "^a text of stop: character 0 is", stop=["\ud800"])
    refused(engine, ValueError, "^a text of stop: 'a.x00' has a zero character", stop="a\0")
    refused(engine, ValueError, "^tools: only a prompt of messages has tools", tools=[{}])
    for value in ({}, 5, Sampling, ""):
        refused(engine, TypeError, "^sampling is .*; it must be a moebius.Sampling", sampling=value)
    assert engine.generate(STORY, stop=None, stop_ids=None, logit_bias=None, tools=None, max_new_tokens=1).ids


def test_wrong_types_of_the_other_methods(engine):
    for value in (None, 5, b"x", ["x"]):
        with pytest.raises(TypeError, match="^text is .*; it must be a text"):
            engine.tokenize(value)
        with pytest.raises(TypeError, match="^special is"):
            engine.tokenize("x", special=value)
    with pytest.raises(ValueError, match="surrogate"):
        engine.tokenize("\ud800")
    for value in (None, 5, "12", b"12", {1: 2}):
        with pytest.raises(TypeError, match="^ids is .*; it must be a list of token ids"):
            engine.detokenize(value)
    for value in (None, 5, "x", {"role": "user"}):
        with pytest.raises(TypeError, match="^messages is .*; it must be a list of messages"):
            engine.render(value)
    with pytest.raises(TypeError, match=r"^tools\[0\] cannot be written as JSON"):
        engine.render(user("x"), tools=[{"x": {1}}])


def test_wrong_types_of_every_setting():
    for name in ("device", "dtype", "quant", "kv_dtype", "chat_template"):
        for value in (5, b"x", []):
            with pytest.raises(TypeError, match=f"^{name} is .*; it must be a text"):
                Engine(DEMO, **{name: value})
        for value in ("a\0", "\ud800"):
            with pytest.raises(ValueError, match=f"^{name}: "):
                Engine(DEMO, **{name: value})
    for name in (
        "threads",
        "max_sequences",
        "max_step_tokens",
        "prefill_chunk",
        "max_queued",
        "kv_tokens",
        "max_context",
    ):
        for value in (True, "1", 1.5):
            with pytest.raises(TypeError, match=f"^{name} is .*; it must be a whole number"):
                Engine(DEMO, **{name: value})
        with pytest.raises(ValueError, match=f"^{name} is"):
            Engine(DEMO, **{name: -1})
    with pytest.raises(ValueError, match="^memory_fraction is nan"):
        Engine(DEMO, memory_fraction=math.nan)
    with pytest.raises(TypeError, match="^prefix_caching is 'no'; it must be True or False"):
        Engine(DEMO, prefix_caching="no")
    for value in (None, 5, ["x"], b"x"):
        with pytest.raises(TypeError, match="^directory is"):
            Engine(value)
    for value in ("", "a\0b", "\ud800"):
        with pytest.raises(ValueError, match="^directory is"):
            Engine(value)


def test_names_of_files_that_are_no_utf8(tmp_path):
    link = os.fsencode(tmp_path) + b"/\xff"
    os.symlink(DEMO, link)
    with Engine(os.fsdecode(link)) as engine:
        assert engine.info["vocab"] == 640
    os.remove(link)
    with pytest.raises(Error, match="no such directory"):
        Engine(os.fsdecode(link))
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!")
    with Engine(DEMO, chat_template=tmp_path / "own.jinja") as engine:
        assert engine.render(user("x")) == "x!"


def test_an_exception_in_the_middle_of_a_stream(engine):
    with pytest.raises(KeyError, match="mine"), engine.stream([5], max_new_tokens=1500, ignore_eos=True) as stream:
        for piece in stream:
            raise KeyError("mine")
    assert engine._session.room == 1024 and stream.answer is None and list(stream) == []
    for _ in engine.stream([5], max_new_tokens=1500, ignore_eos=True):
        break
    gc.collect()
    assert engine._session.room == 1024


def test_one_stream_in_many_threads(engine):
    """Each piece goes to one of them; who closes the stream ends it for all."""

    def work(stream, pieces, failures):
        try:
            pieces.extend(stream)
        except Exception as error:
            failures.append(error)

    for closes_early in (False, True):
        stream, pieces, failures = engine.stream([5], max_new_tokens=300, ignore_eos=True), [], []
        threads = [threading.Thread(target=work, args=(stream, pieces, failures)) for _ in range(4)]
        for thread in threads:
            thread.start()
        if closes_early:
            stream.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert failures == [] and engine._session.room == 1024
        assert closes_early or sum(len(piece.ids) for piece in pieces) == len(stream.answer.ids) == 300


def test_a_child_that_was_forked():
    """Each use of the parent's engine is an exception there; the child can open its own, and the parent goes on."""
    out = run_program("""
import os, warnings
warnings.simplefilter("ignore")  # newer Pythons warn of fork in a program with threads
stream = engine.stream([5], max_new_tokens=300, ignore_eos=True)
next(stream)
engine._session._changed.acquire()  # the locks as they may be at a fork
stream._lock.acquire()
child = os.fork()
if child == 0:
    uses = [lambda: next(stream), lambda: engine.generate([5]), lambda: engine.stream([5]), lambda: engine.info,
            lambda: engine.generate("x")]
    for use in uses:
        try:
            use()
            print("no exception")
        except RuntimeError as error:
            assert "belongs to the process that forked this one" in str(error), error
    stream.close()
    engine.close()
    with Engine(DEMO) as own:
        print(len(own.generate([5], max_new_tokens=3, ignore_eos=True).ids), flush=True)
    sys.exit()
stream._lock.release()
engine._session._changed.release()
assert os.waitpid(child, 0)[1] == 0
print(sum(len(piece.ids) for piece in stream) > 0, len(stream.answer.ids))
""")  # fmt: skip
    assert out == "3\nTrue 300\n"
