"""Wrong requests: the status, and the field that the error names."""

import pytest

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"prompt": "Hi"}

WRONG = [
    # path, fields, field of the error
    ("chat", {"messages": None}, "messages"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": "Hi"}, "messages"),
    ("chat", {"messages": ["Hi"]}, "messages"),
    ("chat", {"messages": [{"role": "nobody", "content": "Hi"}]}, "messages"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content"),
    ("chat", {"messages": [{"role": "user", "content": [7]}]}, "messages[0].content"),
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("chat", {"max_tokens": 100000}, "max_tokens"),
    ("chat", {"max_completion_tokens": "5"}, "max_completion_tokens"),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("chat", {"logprobs": 1}, "logprobs"),
    ("chat", {"chat_template_kwargs": {"enable_thinking": "no"}}, "enable_thinking"),
    ("chat", {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ("chat", {"continue_final_message": True}, "continue_final_message"),
    ("chat", {"tools": {}}, "tools"),
    ("text", {"prompt": None}, "prompt"),
    ("text", {"prompt": []}, "prompt"),
    ("text", {"prompt": ""}, "prompt"),
    ("text", {"prompt": [640]}, "prompt"),
    ("text", {"prompt": [-1]}, "prompt"),
    ("text", {"prompt": [1, "a"]}, "prompt"),
    ("text", {"prompt": [[]]}, "prompt"),
    ("text", {"prompt": [1.5]}, "prompt"),
    ("text", {"prompt": [[1], [640]]}, "prompt[1]"),
    ("text", {"prompt": ["a"] * 129}, "prompt"),
    ("text", {"prompt": ["a"] * 65, "n": 2}, "prompt"),
    ("text", {"prompt": "word " * 5000}, "prompt"),
    ("text", {"prompt": "word " * 100000}, "prompt"),
    ("text", {"suffix": "x"}, "suffix"),
    ("text", {"logprobs": 21}, "logprobs"),
    ("text", {"logprobs": True}, "logprobs"),
    ("text", {"temperature": -1}, "temperature"),
    ("text", {"temperature": "hot"}, "temperature"),
    ("text", {"top_p": 1.5}, "top_p"),
    ("text", {"top_k": -2}, "top_k"),
    ("text", {"top_k": 1.5}, "top_k"),
    ("text", {"min_p": -0.1}, "min_p"),
    ("text", {"repetition_penalty": 0}, "repetition_penalty"),
    ("text", {"presence_penalty": 3}, "presence_penalty"),
    ("text", {"frequency_penalty": -3}, "frequency_penalty"),
    ("text", {"seed": 1.5}, "seed"),
    ("text", {"n": 0}, "n"),
    ("text", {"n": 129}, "n"),
    ("text", {"best_of": 3}, "best_of"),
    ("text", {"use_beam_search": True}, "use_beam_search"),
    ("text", {"stop": 5}, "stop"),
    ("text", {"stop": [""]}, "stop"),
    ("text", {"stop": ["a", 5]}, "stop"),
    ("text", {"stop": ["a"] * 65}, "stop"),
    ("text", {"stop": ["a" * 4097]}, "stop"),
    ("text", {"stop": ["a" * 4096] * 5}, "stop"),
    ("text", {"stop_token_ids": [640]}, "stop_token_ids"),
    ("text", {"stop_token_ids": 5}, "stop_token_ids"),
    ("text", {"min_tokens": 17}, "min_tokens"),
    ("text", {"min_tokens": -1}, "min_tokens"),
    ("text", {"ignore_eos": "yes"}, "ignore_eos"),
    ("text", {"logit_bias": {"640": 1}}, "logit_bias"),
    ("text", {"logit_bias": {"x": 1}}, "logit_bias"),
    ("text", {"logit_bias": {"1": 101}}, "logit_bias"),
    ("text", {"logit_bias": [1]}, "logit_bias"),
    ("text", {"stream": "yes"}, "stream"),
    ("text", {"stream_options": {}}, "stream_options"),
    ("text", {"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
    ("text", {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ("text", {"prompt_logprobs": 21}, "prompt_logprobs"),
    ("text", {"priority": "high"}, "priority"),
    ("text", {"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    ("text", {"user": 5}, "user"),
    ("text", {"model": 5}, "model"),
]
PATHS = {"chat": ("/v1/chat/completions", CHAT), "text": ("/v1/completions", TEXT)}


@pytest.mark.parametrize("kind, fields, field", WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(server, kind, fields, field):
    path, body = PATHS[kind]
    for stream in (False, True):
        reply = server.post(path, {**body, **({"stream": True} if stream and "stream_options" not in fields else {}), **fields})
        error = reply.error()
        assert reply.status == 400 and error["code"] == 400 and error["type"] == "BadRequestError", error
        assert error["param"] == field and len(error["message"]) > 10, error


def test_null_is_no_value(server):
    fields = ("temperature", "top_p", "stop", "seed", "n", "logit_bias", "stream", "stream_options", "user", "logprobs", "max_tokens")
    assert server.post("/v1/completions", {**TEXT, "max_tokens": 1, **{name: None for name in fields if name != "max_tokens"}}).status == 200


def test_a_model_that_is_not_served(server):
    reply = server.post("/v1/chat/completions", {**CHAT, "model": "gpt-9"})
    assert reply.status == 404 and reply.error()["type"] == "NotFoundError" and reply.error()["param"] == "model"
    assert "gpt-9" in reply.error()["message"]
    assert server.post("/v1/completions", {**TEXT, "model": "alias", "max_tokens": 1}).json()["model"] == "alias"


def test_paths_and_methods(server):
    assert server.get("/v1/nothing").status == 404 and server.get("/v1/nothing").error()["code"] == 404
    reply = server.get("/v1/completions")
    assert reply.status == 405 and reply.headers["Allow"] == "POST"
    reply = server.post("/v1/models", {})
    assert reply.status == 405 and reply.headers["Allow"] == "GET, HEAD"
    assert server.request("DELETE", "/v1/chat/completions").status == 405


def test_a_body_that_is_no_json_object(server):
    for body in (b"", b"{", b"[]", b"7", b'"x"', b"\xff\xfe", b"{} {}", b"{'a': 1}", b'{"prompt": NaN}'):
        reply = server.post("/v1/completions", body)
        assert reply.status == 400 and reply.error()["param"] is None, body
    assert b"line 1" in server.post("/v1/completions", b"{,}").body


def test_the_prompt_that_is_wrong_is_named(server):
    for prompt, message in (
        ([[1], [2, 640]], "prompt[1][1] is 640;"),
        (["a", 1], "prompt[1] is an integer;"),
        ([1, "a"], "prompt[1] is a string;"),
        (5, "prompt is an integer;"),
    ):
        assert server.post("/v1/completions", {"prompt": prompt}).error()["message"].startswith(message), prompt


def test_the_character_zero(server):
    """The error says what is wrong with the text, and nothing of the JSON library's options."""
    for body in (b'{"prompt": "a\\u0000b"}', b'{"a\\u0000b": 1}'):
        message = server.post("/v1/completions", body).error()["message"]
        assert "\\u0000" in message and "take it out" in message and "JSON_ALLOW_NUL" not in message


def test_a_byte_order_mark_is_named(server):
    for encoding in ("utf-8-sig", "utf-16"):
        reply = server.post("/v1/completions", '{"prompt": "a"}'.encode(encoding))
        assert reply.status == 400 and "begins with a byte order mark (BOM); send it" in reply.error()["message"]


def test_without_max_tokens_the_context_ends_an_answer(server):
    """The usual 16 tokens are no demand: with less room than that, the answer is shorter."""
    reply = server.complete([5] * 2045, ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == 3 and reply["choices"][0]["finish_reason"] == "length"
    assert server.complete([5] * 40, ignore_eos=True)["usage"]["completion_tokens"] == 16
