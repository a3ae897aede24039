"""POST /tokenize and /detokenize."""

import pytest


def tokenize(server, **fields):
    reply = server.post("/tokenize", fields)
    assert reply.status == 200, reply.body
    return reply.json()


@pytest.mark.parametrize("text", ["Once upon a time", "Zürich 😀\n", "<|im_start|>user\nHello<|im_end|>", ""])
def test_there_and_back(server, text):
    reply = tokenize(server, prompt=text, return_token_strs=True)
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"]) and reply["max_model_len"] == 2048
    if text.isascii():
        assert "".join(reply["token_strs"]) == text
    back = server.post("/detokenize", {"model": "demo", "tokens": reply["tokens"]})
    assert back.status == 200 and back.json() == {"prompt": text}


def test_a_chat_has_the_tokens_of_its_prompt(server):
    messages = [{"role": "user", "content": "What is 7 + 8?"}]
    reply = tokenize(server, messages=messages, add_special_tokens=False)
    assert reply["token_strs"] is None
    chat = server.chat(return_token_ids=True, max_tokens=1)
    assert chat["prompt_token_ids"] == reply["tokens"] and chat["usage"]["prompt_tokens"] == reply["count"]
    bare = tokenize(server, messages=messages, add_generation_prompt=False)
    assert bare["tokens"] == reply["tokens"][: bare["count"]] and bare["count"] < reply["count"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert tokenize(server, messages=messages, tools=tools)["count"] > reply["count"]
    quick = tokenize(server, messages=messages, chat_template_kwargs={"enable_thinking": False})
    assert quick["count"] > reply["count"]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "return_token_strs": "x"}, 400, "return_token_strs"),
        ("/tokenize", {"prompt": "a " * 4000}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**12]}, 400, "tokens"),
    ],
)
def test_what_is_refused(server, path, body, status, field):
    reply = server.post(path, body)
    assert reply.status == status and reply.error()["param"] == field, reply.body
