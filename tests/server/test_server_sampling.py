"""The fields that decide how an answer goes on and where it ends."""

import json
import math
import subprocess

import pytest
from server_support import BINARY, DEMO, ROOT


def test_the_same_seed_gives_the_same_answer_and_n_different_ones(server):
    fields = {"temperature": 1.2, "max_tokens": 20, "n": 3, "ignore_eos": True}
    first = [c["text"] for c in server.complete(seed=7, **fields)["choices"]]
    assert first == [c["text"] for c in server.complete(seed=7, **fields)["choices"]]
    assert len(set(first)) == 3
    assert first != [c["text"] for c in server.complete(seed=8, **fields)["choices"]]
    assert first[1] == server.complete(seed=8, **{**fields, "n": 1})["choices"][0]["text"]


def test_stop_strings_end_the_answer_across_tokens(server):
    text = server.chat(chat_template_kwargs={"enable_thinking": False})["choices"][0]["message"]["content"]
    assert len(text) > 6
    stop = text[3:6]
    for fields in ({"stop": stop}, {"stop": ["never", stop]}):
        choice = server.chat(chat_template_kwargs={"enable_thinking": False}, **fields)["choices"][0]
        assert choice["message"]["content"] == text[: text.index(stop)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    kept = server.chat(chat_template_kwargs={"enable_thinking": False}, stop=stop, include_stop_str_in_output=True)
    assert kept["choices"][0]["message"]["content"] == text[: text.index(stop)] + stop


def test_what_may_become_a_stop_string_is_withheld_and_then_comes(server):
    body = {"messages": [{"role": "user", "content": "What is 7 + 8?"}], "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    text = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    chunks = server.stream("/v1/chat/completions", {**body, "stop": text + "!"})
    contents = [c["delta"]["content"] for chunk in chunks for c in chunk["choices"] if c["delta"].get("content")]
    assert contents == [text], "all of it could have become the stop string until the end"


def test_stop_token_ids_and_min_tokens(server):
    ids = server.complete("What", max_tokens=10, return_token_ids=True, ignore_eos=True)["choices"][0]["token_ids"]
    stop = ids[4]
    first = ids.index(stop)
    choice = server.complete("What", max_tokens=10, ignore_eos=True, stop_token_ids=[stop], return_token_ids=True)["choices"][0]
    assert choice["token_ids"] == ids[:first] and choice["finish_reason"] == "stop"
    longer = server.complete("What", max_tokens=10, ignore_eos=True, stop_token_ids=[stop], min_tokens=first + 1)
    assert longer["usage"]["completion_tokens"] > first


def test_min_tokens_keeps_the_end_and_stop_strings_away(server):
    short = server.chat("What is 7 + 8?", chat_template_kwargs={"enable_thinking": False})["usage"]["completion_tokens"]
    longer = server.chat("What is 7 + 8?", chat_template_kwargs={"enable_thinking": False}, min_tokens=short + 3)
    assert longer["usage"]["completion_tokens"] >= short + 3
    assert server.complete("What", max_tokens=8, ignore_eos=True, stop=["a", "e", "i", " ", ".", "1", "2"], min_tokens=5)[
        "usage"]["completion_tokens"] > 5  # fmt: skip


def test_logit_bias_forces_a_token(server):
    choice = server.complete("What", max_tokens=3, logit_bias={"17": 100}, return_token_ids=True)["choices"][0]
    assert choice["token_ids"] == [17, 17, 17]


def test_a_request_that_forbids_every_token_is_told_so(server):
    n_tokens = 640
    reply = server.post("/v1/completions", {"prompt": "What", "max_tokens": 3, "min_tokens": 2, "ignore_eos": True,
                                            "stop_token_ids": list(range(n_tokens))})  # fmt: skip
    assert reply.status == 400 and "forbids every token" in reply.error()["message"], reply.body


def close(a, b):
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5)


def test_log_probabilities_of_a_chat(server):
    choice = server.chat(max_tokens=6, logprobs=True, top_logprobs=3)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 6
    for entry in content:
        assert len(entry["top_logprobs"]) == 3 and entry["logprob"] <= 0
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert entry["top_logprobs"][0]["token"] == entry["token"] and values[0] == entry["logprob"], "greedy"
        assert bytes(entry["bytes"]).decode() == entry["token"]
    assert server.chat(max_tokens=2, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert server.chat(max_tokens=2)["choices"][0]["logprobs"] is None


def test_streamed_log_probabilities_are_the_whole_ones(server):
    body = {"messages": [{"role": "user", "content": "What is 7 + 8?"}], "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    chunks = server.stream("/v1/chat/completions", body)
    parts = [c["logprobs"]["content"] for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
    assert [entry for part in parts for entry in part] == whole


def test_log_probabilities_of_a_completion_with_its_prompt(server):
    prompt = "What is 7 + 8?"
    choice = server.complete(prompt, max_tokens=4, logprobs=2, echo=True)["choices"][0]
    lists = choice["logprobs"]
    assert "".join(lists["tokens"]) == choice["text"] and choice["text"].startswith(prompt)
    assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
    assert lists["text_offset"] == [len("".join(lists["tokens"][:i])) for i in range(len(lists["tokens"]))]
    assert all(2 <= len(tops) <= 3 for tops in lists["top_logprobs"][1:])
    # The command computes the same: row p is about the prompt's token p + 1.
    command = [BINARY, "logprobs", DEMO, "-p", prompt, "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60, check=True).stdout)["logprobs"]
    ids = server.complete(prompt, max_tokens=1, return_token_ids=True)["choices"][0]["prompt_token_ids"]
    for row, token, value in zip(rows, ids[1:], lists["token_logprobs"][1:]):
        assert close(row[token], value)
    body = {"prompt": prompt, "max_tokens": 4, "logprobs": 2, "echo": True, "temperature": 0}
    streamed = [c for chunk in server.stream("/v1/completions", body) for c in chunk["choices"]]
    assert "".join(c["text"] for c in streamed) == choice["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for c in streamed for value in c["logprobs"][name]] == lists[name]


def test_every_answer_echoes_the_log_probabilities_of_a_long_prompt(server):
    """The first answer computes them, in several steps; another may have its first token sooner."""
    body = {"prompt": [5 + 7 * i % 200 for i in range(300)], "n": 3, "echo": True, "logprobs": 1, "max_tokens": 2,
            "ignore_eos": True, "temperature": 0}  # fmt: skip
    whole = server.post("/v1/completions", body).json()["choices"]
    streamed = [c for chunk in server.stream("/v1/completions", body) for c in chunk["choices"]]
    for choice in whole:
        pieces = [c["logprobs"] for c in streamed if c["index"] == choice["index"] and c["logprobs"]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [value for piece in pieces for value in piece[name]] == choice["logprobs"][name]


def test_a_prompt_can_be_scored_without_an_answer(server):
    reply = server.complete("What is 7 + 8?", max_tokens=0, logprobs=0, echo=True)
    choice = reply["choices"][0]
    assert choice["text"] == "What is 7 + 8?" and reply["usage"]["completion_tokens"] == 0
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"][1:])


def test_prompt_log_probabilities_have_ranks(server):
    choice = server.complete("What is", max_tokens=1, prompt_logprobs=2, return_token_ids=True)["choices"][0]
    rows = choice["prompt_logprobs"]
    assert rows[0] is None and len(rows) == len(choice["prompt_token_ids"])
    for token, row in zip(choice["prompt_token_ids"][1:], rows[1:]):
        mine = row[str(token)]
        better = [entry for entry in row.values() if entry["logprob"] > mine["logprob"]]
        assert mine["rank"] > len(better) and 2 <= len(row) <= 3
        assert sorted(entry["rank"] for entry in row.values())[:2] == [1, 2]
    chat = server.chat(max_tokens=1, prompt_logprobs=0)
    assert chat["prompt_logprobs"][0] is None and len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize("field, value", [("top_k", 1), ("top_p", 0), ("min_p", 1)])
def test_cutting_all_but_the_best_is_greedy(server, field, value):
    greedy = server.complete("What", max_tokens=8)["choices"][0]["text"]
    assert server.complete("What", max_tokens=8, temperature=2, **{field: value})["choices"][0]["text"] == greedy


def test_penalties_change_the_answer(server):
    plain = server.complete("aa aa aa aa aa", max_tokens=24, ignore_eos=True)["choices"][0]["text"]
    for fields in ({"repetition_penalty": 5}, {"frequency_penalty": 2}, {"presence_penalty": 2}):
        assert server.complete("aa aa aa aa aa", max_tokens=24, ignore_eos=True, **fields)["choices"][0]["text"] != plain


def test_an_answer_does_not_depend_on_company(server):
    import concurrent.futures

    alone = server.complete("What is 7 + 8?", max_tokens=30, ignore_eos=True, logprobs=1)["choices"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(server.complete, "What is 7 + 8?" if i % 2 else f"Once {i}", max_tokens=30, ignore_eos=True, logprobs=1)
                for i in range(16)]  # fmt: skip
        assert all(job.result()["choices"] == alone for job in jobs[1::2])
