"""moebius.Engine on the demo model."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from engine_program import DEMO, ROOT, STORY, run_program
from moebius import Engine, Error, Sampling

SUM = [{"role": "user", "content": "What is 7 + 8?"}]


@pytest.fixture(scope="module")
def engine():
    with Engine(DEMO, device="cpu") as opened:
        yield opened


def test_the_three_kinds_of_prompts(engine):
    """A chat, its rendered text and its ids are the same prompt; and a list of them gives a list."""
    text = engine.render(SUM)
    ids = engine.tokenize(text)
    answer = engine.generate(SUM, temperature=0)
    assert answer.text.endswith("7 + 8 = 15.") and answer.finish_reason == "stop" and answer.n_prompt == len(ids)
    assert len(answer.ids) == len(answer.logprobs) and max(answer.logprobs) <= 0
    assert engine.detokenize(answer.ids) == answer.text
    for again in (*engine.generate([SUM, text, ids], temperature=0), engine.generate(text, temperature=0),
                  engine.generate(ids, Sampling(temperature=0))):  # fmt: skip
        assert (again.text, again.logprobs, again.n_prompt) == (answer.text, answer.logprobs, answer.n_prompt)
    assert engine.generate([]) == []
    brief = engine.generate(SUM, thinking=False, temperature=0)
    assert "<think>" in answer.text and "<think>" not in brief.text


def test_bits_do_not_depend_on_company(engine):
    prompts = [f"{STORY} number {i}" for i in range(12)]
    together = engine.generate(prompts, max_new_tokens=16, temperature=1, seed=5)
    alone = [engine.generate(prompt, max_new_tokens=16, temperature=1, seed=5 + i) for i, prompt in enumerate(prompts)]
    assert together == alone and len({answer.text for answer in alone}) > 1


def test_a_stream_gives_the_same_answer(engine):
    with engine.stream(STORY, temperature=1, seed=3, max_new_tokens=40) as stream:
        pieces = list(stream)
    expected = engine.generate(STORY, temperature=1, seed=3, max_new_tokens=40)
    assert stream.answer == expected and "".join(map(str, pieces)) == expected.text
    assert [id for piece in pieces for id in piece.ids] == expected.ids and len(pieces) > 1
    assert list(stream) == []


def test_stop_texts(engine):
    full = engine.generate(SUM, temperature=0)
    stopped = engine.generate(SUM, temperature=0, stop=["nothing", "= 1"])
    assert (
        stopped.text == full.text[: full.text.index("= 1")]
        and stopped.stop == "= 1"
        and stopped.finish_reason == "stop"
    )
    assert stopped.ids == full.ids[: len(stopped.ids)]
    streamed = engine.stream(SUM, temperature=0, stop="= 1")
    assert "".join(map(str, streamed)) == stopped.text and streamed.answer == stopped
    by_id = engine.generate(SUM, temperature=0, stop_ids=[full.ids[5]])
    assert by_id.ids == full.ids[:5] and by_id.stop is None


def test_options(engine):
    assert len(engine.generate(STORY, max_new_tokens=7, ignore_eos=True).ids) == 7
    ends = engine.generate(STORY, max_new_tokens=9, stop_ids=list(range(640)))
    longer = engine.generate(STORY, max_new_tokens=9, stop_ids=list(range(300)), min_new_tokens=6)
    assert ends.ids == [] and len(longer.ids) >= 6
    assert engine.generate(STORY, max_new_tokens=0).finish_reason == "length"
    assert set(engine.generate(STORY, max_new_tokens=5, logit_bias={11: 100}).ids) == {11}
    assert engine.generate(STORY, Sampling(max_new_tokens=5, ignore_eos=True), max_new_tokens=3).ids[3:] == []
    assert engine.info["vocab"] == 640 and engine.info["device"] == "cpu" and engine.context == 2048
    tools = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]
    assert "lookup" in engine.render(SUM, tools=tools)


def test_prompts_that_begin_alike_are_computed_once(engine):
    prompt = [7, 8, 9] * 60
    first = engine.generate([*prompt, 1], max_new_tokens=4, temperature=0)
    second = engine.generate([*prompt, 1], max_new_tokens=4, temperature=0)
    assert (first.n_cached, second.n_cached) == (0, 128) and second.logprobs == first.logprobs
    with Engine(DEMO, prefix_caching=False) as plain:
        answers = plain.generate([[*prompt, 1]] * 2, max_new_tokens=4, temperature=0)
        assert [answer.n_cached for answer in answers] == [0, 0] and answers[1].logprobs == first.logprobs


@pytest.mark.parametrize("prompt, options, kind, text", [
    (STORY, {"tempratur": 1}, TypeError, "there is no option 'tempratur'"),
    (STORY, {"temperature": "1"}, TypeError, "temperature is '1'; it must be a number"),
    (STORY, {"temperature": -1}, Error, "temperature"),
    (STORY, {"top_k": 1.5}, TypeError, "top_k is 1.5"),
    (STORY, {"seed": -1}, ValueError, "seed is -1"),
    (STORY, {"stop": [""]}, ValueError, "stop: a text is empty"),
    (STORY, {"stop": [5]}, TypeError, "a text of stop is 5; it must be a text"),
    (STORY, {"max_new_tokens": 5000}, Error, "5000"),
    (STORY, {"logit_bias": {640: 1}}, Error, "640"),
    ("", {}, ValueError, "a prompt is empty"),
    ([640], {}, ValueError, "a token id is 640"),
    ([1, "x"], {}, TypeError, "a token id is 'x'"),
    ([STORY, b"bytes"], {}, TypeError, "a prompt is b'bytes'"),
    ([STORY, []], {}, ValueError, "a prompt is empty"),
    ("x " * 3000, {"max_new_tokens": 1}, Error, "positions"),
    ([{"content": "x"}], {}, Error, "role"),
])  # fmt: skip
def test_what_is_wrong_is_told(engine, prompt, options, kind, text):
    with pytest.raises(kind, match=text):
        engine.generate(prompt, **options)
    if not isinstance(prompt, list):
        with pytest.raises(kind, match=text):
            engine.stream(prompt, **options)


def test_a_failure_among_others_ends_the_others(engine):
    with pytest.raises(Error, match="5000"):
        engine.generate([[5], [5] * 5000])
    assert engine.generate([5], max_new_tokens=1, ignore_eos=True).ids  # and leaves room


def test_an_answer_that_may_have_no_token_says_so(engine):
    with pytest.raises(Error, match="the request forbids every token: all are banned"):
        engine.generate("Hi", max_new_tokens=3, min_new_tokens=1, stop_ids=list(range(640)))
    assert engine.generate("Hi", max_new_tokens=1).ids


def test_a_model_that_cannot_be_opened(tmp_path):
    with pytest.raises(Error, match="no such directory") as caught:
        Engine(tmp_path / "nothing" / "here")
    assert caught.value.status == "MB_ERR_NOT_FOUND"
    with pytest.raises(Error, match="hf download Qwen/None"):
        Engine("Qwen/None")
    with pytest.raises(Error, match="kv|KV"):
        Engine(DEMO, kv_tokens=2**50)
    with pytest.raises(ValueError, match="threads is -1"):
        Engine(DEMO, threads=-1)


def test_a_model_by_name(tmp_path, monkeypatch):
    repository = tmp_path / "models--Qwen--Demo"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc123")
    (repository / "snapshots").mkdir()
    (repository / "snapshots/abc123").symlink_to(DEMO)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with Engine("Qwen/Demo") as engine:
        assert engine.info["vocab"] == 640


def test_a_model_without_tokenizer():
    with Engine(ROOT / "tests/golden/plain_f32") as engine:
        answer = engine.generate([5, 17, 42], max_new_tokens=4, temperature=0)
        assert answer.text == "" and len(answer.ids) == 4
        with pytest.raises(Error, match="no tokenizer.json"):
            engine.generate(STORY)
        with pytest.raises(ValueError, match="stop: the model has no tokenizer.json"):
            engine.generate([5], stop="x")


def test_many_threads_at_once(engine):
    def work(i):
        if i % 3 == 0:
            stream = engine.stream([5 + i, 7], max_new_tokens=12, temperature=1, seed=i)
            list(stream)
            return stream.answer
        return engine.generate([5 + i, 7], max_new_tokens=12, temperature=1, seed=i)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(24)))
    assert answers == [engine.generate([5 + i, 7], max_new_tokens=12, temperature=1, seed=i) for i in range(24)]


def test_more_prompts_than_the_queue_holds():
    with Engine(DEMO, max_sequences=2, max_queued=3) as engine:
        with ThreadPoolExecutor(3) as pool:
            results = list(
                pool.map(lambda k: engine.generate([[k + i + 1] for i in range(9)], max_new_tokens=2), range(3))
            )
        assert [len(result) for result in results] == [9] * 3
        with pytest.raises(ValueError):
            engine.generate([5], stop="")
        assert engine._session.room == 3


def test_a_stream_that_is_dropped_makes_room():
    """Each of these streams needs the whole KV cache: the next one runs only when the one before is gone."""
    with Engine(DEMO, kv_tokens=1024, max_queued=1) as engine:
        options = {"max_new_tokens": 1000, "ignore_eos": True}
        stream = engine.stream([5], **options)
        next(stream)
        stream.close()
        with engine.stream([5], **options) as stream:
            next(stream)
        stream = engine.stream([5], **options)
        next(stream)
        del stream
        for piece in engine.stream([5], **options):
            break
        del piece
        gc.collect()
        assert len(engine.generate([5], max_new_tokens=3, ignore_eos=True).ids) == 3


def test_close_ends_what_runs():
    engine = Engine(DEMO)
    failures = []

    def work():
        try:
            engine.generate([[i + 1] for i in range(20)], max_new_tokens=1500, ignore_eos=True)
        except Error as error:
            failures.append(error)

    stream = engine.stream([5], max_new_tokens=1000, ignore_eos=True)
    next(stream)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine.close()
    engine.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert [failure.status for failure in failures] == ["MB_ERR_STATE"] * 3
    for use in (lambda: next(stream), lambda: engine.generate([5]), lambda: engine.stream([5]), lambda: engine.info,
                lambda: engine.tokenize("x")):  # fmt: skip
        with pytest.raises(Error, match="the engine is closed"):
            use()


def test_an_engine_that_nobody_holds_is_closed():
    engine = Engine(DEMO)
    thread, gone = engine._session._thread, weakref.ref(engine)
    pieces = engine.stream([5], max_new_tokens=3, ignore_eos=True)
    del engine
    assert sum(len(piece.ids) for piece in pieces) == 3  # a stream holds its engine
    del pieces
    gc.collect()
    assert gone() is None
    thread.join(60)
    assert not thread.is_alive()


def test_a_program_ends_with_an_engine_that_works():
    """Nothing was closed, and an answer is in progress: the program ends as if it had been."""
    out = run_program(
        "stream = engine.stream([5], max_new_tokens=2000, ignore_eos=True)\nprint(len(next(stream).ids) > 0)"
    )
    assert out == "True\n"


def test_ctrl_c_ends_generate():
    out = run_program("""
import _thread, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program that was started in the background ignores it
try:
    threading.Timer(0.2, _thread.interrupt_main).start()
    while True:
        engine.generate([5], max_new_tokens=2000, ignore_eos=True)
except KeyboardInterrupt:
    print("interrupted", len(engine.generate([5], max_new_tokens=3, ignore_eos=True).ids))
""")  # fmt: skip
    assert out == "interrupted 3\n"


def test_steps_run_without_the_gil(engine):
    """Python code of another thread goes on while the model computes. On a busy machine that thread may get no time:
    then once more."""

    def count_turns(i):
        count, done = 0, threading.Event()

        def work():
            engine.generate([i + 1, *[7] * 900], max_new_tokens=1)  # a prompt that the cache does not have
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        n_before = engine._session.n_steps
        while not done.is_set():
            count += engine._session.n_steps == n_before
            time.sleep(0.001)
        thread.join()
        return count

    assert any(count_turns(i) > 3 for i in range(20))
