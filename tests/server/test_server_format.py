"""Answers that must have a form: response_format, vLLM's fields for it, and calls that tool_choice forces."""

import json
import re

import pytest

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}, "good": {"type": "boolean"}},
    "required": ["name", "age", "good"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": [7, 8]}}, "required": ["a", "b"]}}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip
QUICK = {"chat_template_kwargs": {"enable_thinking": False}}


def check(text):
    value = json.loads(text)
    assert set(value) == {"name", "age", "good"} and isinstance(value["name"], str) and len(value["name"]) <= 8
    assert isinstance(value["age"], int) and isinstance(value["good"], bool)


@pytest.mark.parametrize("fields", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}},
    {"structured_outputs": {"json": SCHEMA}},
    {"guided_json": json.dumps(SCHEMA)},
])  # fmt: skip
def test_a_schema(server, fields):
    for seed in range(4):
        choice = server.chat("Who?", temperature=2, seed=seed, max_tokens=400, **QUICK, **fields)["choices"][0]
        if choice["finish_reason"] == "stop":
            check(choice["message"]["content"])
    assert server.chat("Who?", max_tokens=400, **QUICK, **fields)["choices"][0]["finish_reason"] == "stop"


def test_a_schema_comes_after_the_reasoning(server):
    fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}}
    message = server.chat("What is 7 + 8?", max_tokens=600, **fields)["choices"][0]["message"]
    assert message["reasoning_content"]
    check(message["content"])


def test_any_json_object(server):
    for seed in range(6):
        fields = {"temperature": 2, "seed": seed, "max_tokens": 60, "response_format": {"type": "json_object"}}
        choice = server.complete("Once", **fields)["choices"][0]
        assert choice["text"].startswith("{")
        assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["text"]), dict)


def test_text_is_no_form(server):
    assert server.chat(response_format={"type": "text"})["choices"] == server.chat()["choices"]


def test_choices_and_expressions(server):
    for seed in range(3):
        fields = {"temperature": 2, "seed": seed, "max_tokens": 60}
        assert server.complete("Is it?", structured_outputs={"choice": ["yes", "no", "perhaps"]}, **fields)["choices"][0]["text"] in (
            "yes", "no", "perhaps")  # fmt: skip
        assert re.fullmatch("[a-c]{3}-[0-9]+x", server.complete("Is it?", guided_regex="[a-c]{3}-[0-9]{1,5}x", **fields)["choices"][0]["text"])


def test_a_form_is_streamed_the_same(server):
    body = {"prompt": "Who?", "temperature": 0, "max_tokens": 400, "guided_json": SCHEMA}
    whole = server.post("/v1/completions", body).json()["choices"][0]
    pieces = [c["text"] for chunk in server.stream("/v1/completions", body) for c in chunk["choices"]]
    assert "".join(pieces) == whole["text"] and len(pieces) > 3


@pytest.mark.parametrize("choice, names, finish", [
    ("required", {"add", "stop"}, "tool_calls"),
    ({"type": "function", "function": {"name": "add"}}, {"add"}, "stop"),
])  # fmt: skip
def test_calls_that_are_forced(server, choice, names, finish):
    for seed in range(3):
        fields = {"temperature": 1.5, "seed": seed, "max_tokens": 500, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
        answer = server.chat("What is 7 + 8?", **QUICK, **fields)["choices"][0]
        if answer["finish_reason"] == "length":
            continue  # an integer may have many digits
        (call,) = answer["message"]["tool_calls"]
        assert call["function"]["name"] in names and answer["finish_reason"] == finish
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "add":
            assert isinstance(arguments["a"], int) and arguments["b"] in (7, 8)
        assert not answer["message"]["content"]


def test_two_forms_are_one_too_many(server):
    reply = server.post("/v1/completions", {"prompt": "Hi", "guided_json": {}, "guided_regex": "a"})
    assert reply.status == 400 and reply.error()["param"] == "guided_regex"
