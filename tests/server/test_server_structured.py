"""Answers in a wanted form, asked for as OpenAI's and vLLM's clients do."""
import json
import re

import jsonschema
import pytest

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                                           "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
          "required": ["name", "age"]}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2, 3]}}, "required": ["city", "days"]}}}]  # fmt: skip


def chat(server, **fields):
    request = {"messages": [{"role": "user", "content": "Tell me of Ann."}], "max_tokens": 120, "temperature": 1.5, "seed": 3,
               "chat_template_kwargs": {"enable_thinking": False}, **fields}  # fmt: skip
    reply = server.post("/v1/chat/completions", request)
    assert reply.status == 200, reply.body
    return reply.json()["choices"][0]


def is_valid(text):
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))
    return True


@pytest.mark.parametrize("fields, check", [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}}, is_valid),
    ({"guided_json": SCHEMA}, is_valid),
    ({"guided_json": json.dumps(SCHEMA)}, is_valid),
    ({"structured_outputs": {"json": SCHEMA}}, is_valid),
    ({"guided_regex": r"[a-z]{2,5}-\d{3}"}, lambda text: re.fullmatch(r"[a-z]{2,5}-\d{3}", text)),
    ({"structured_outputs": {"regex": r"(ha){1,3}"}}, lambda text: re.fullmatch(r"(ha){1,3}", text)),
    ({"guided_choice": ["north", "south"]}, lambda text: text in ("north", "south")),
    ({"guided_grammar": 'root ::= "(" root ")" | [a-c]+ # nested'}, lambda text: re.fullmatch(r"\(*[a-c]+\)*", text)),
    ({"structured_outputs": {"grammar": 'root ::= "<" [0-9]{2} ">"'}}, lambda text: re.fullmatch("<[0-9]{2}>", text)),
    ({"structured_outputs": {"choice": ["x", "x y", "né"]}}, lambda text: text in ("x", "x y", "né")),
])  # fmt: skip
def test_forms(server, fields, check):
    choice = chat(server, **fields)
    assert choice["finish_reason"] == "stop" and check(choice["message"]["content"]), choice


def test_any_object(server):
    choice = chat(server, response_format={"type": "json_object"}, temperature=0)
    text = choice["message"]["content"]
    assert text.lstrip().startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_completions_and_logprobs(server):
    request = {"prompt": "Once", "max_tokens": 40, "guided_choice": ["upon a time", "more"], "logprobs": 1, "temperature": 0}
    choice = server.post("/v1/completions", request).json()["choices"][0]
    assert choice["text"] in ("upon a time", "more") and choice["finish_reason"] == "stop"
    assert all(p <= 0 for p in choice["logprobs"]["token_logprobs"])


def test_tool_choice_forces_a_call(server):
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        message = chat(server, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)["message"]
        (call,) = message["tool_calls"]
        assert call["function"]["name"] == "get_weather" and not message.get("content")
        jsonschema.validate(json.loads(call["function"]["arguments"]), TOOLS[0]["function"]["parameters"])


def test_one_form_only_and_the_path_to_what_is_refused(server):
    request = {"messages": [{"role": "user", "content": "x"}], "guided_regex": "a", "guided_choice": ["b"]}
    assert server.post("/v1/chat/completions", request).status == 400
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    request = {"messages": [{"role": "user", "content": "x"}], "guided_json": schema}
    reply = server.post("/v1/chat/completions", request)
    assert reply.status == 400 and "#/properties/a/uniqueItems" in reply.error()["message"], reply.body
