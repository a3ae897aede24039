"""Reasoning and calls of tools through the API, with a model that answers what a script says (tests/support/parrot.py)."""

import json
import pathlib
import sys

import pytest
from server_support import Server

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from parrot import write_parrot  # noqa: E402

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
SCRIPTS = {
    "plain": "It rains in Oslo today.",
    "call": CALL,
    "think": f"<think>\nI should look.\n</think>\n\nLet me look.\n{CALL}",
    "two": f"{CALL}\n{OTHER}",
    "broken": 'Look: <tool_call>\n{"name": "get_weather", "argu',
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    one = Server(write_parrot(tmp_path_factory.mktemp("models") / "parrot", SCRIPTS))
    yield one
    one.close()


def body(script, **fields):
    return {"messages": [{"role": "user", "content": f"<say {script}>"}], "temperature": 0, "max_tokens": 300, "tools": TOOLS, **fields}


def ask(server, script, **fields):
    """The message and finish_reason; a stream must give the same."""
    reply = server.post("/v1/chat/completions", body(script, **fields))
    assert reply.status == 200, reply.body
    choice = reply.json()["choices"][0]
    message = choice["message"]
    content, reasoning, calls, finish = "", "", [], None
    for chunk in server.stream("/v1/chat/completions", body(script, **fields)):
        delta = chunk["choices"][0]["delta"]
        content += delta.get("content") or ""
        reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", []):
            if call["index"] == len(calls):
                assert call["id"].startswith("call_") and call["type"] == "function"
                calls.append({"name": call["function"]["name"], "arguments": ""})
            else:
                assert call["index"] == len(calls) - 1 and "id" not in call and "name" not in call["function"]
            calls[-1]["arguments"] += call["function"]["arguments"]
        finish = chunk["choices"][0]["finish_reason"] or finish
    assert content == (message["content"] or "") and reasoning == message.get("reasoning_content", "")
    assert calls == [call["function"] for call in message.get("tool_calls", [])]
    assert finish == choice["finish_reason"]
    return message, finish


def test_an_answer_without_a_call(parrot):
    message, finish = ask(parrot, "plain")
    assert message == {"role": "assistant", "content": SCRIPTS["plain"]} and finish == "stop"


def test_a_call(parrot):
    message, finish = ask(parrot, "call")
    assert message["content"] is None and finish == "tool_calls"
    (call,) = message["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_") and call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo", "days": 3}


def test_reasoning_content_and_a_call(parrot):
    message, finish = ask(parrot, "think")
    assert message["reasoning_content"] == "I should look." and message["content"].strip() == "Let me look."
    assert len(message["tool_calls"]) == 1 and finish == "tool_calls"
    hidden, _ = ask(parrot, "think", include_reasoning=False)
    assert "reasoning_content" not in hidden


def test_several_calls_or_only_one(parrot):
    message, _ = ask(parrot, "two")
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather", "get_time"]
    message, finish = ask(parrot, "two", parallel_tool_calls=False)
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather"] and finish == "tool_calls"
    parrot.wait_until_idle()


def test_a_call_that_is_not_one_is_text(parrot):
    message, finish = ask(parrot, "broken")
    assert message["content"] == SCRIPTS["broken"] and "tool_calls" not in message and finish == "stop"


def test_without_tools_all_is_content(parrot):
    for fields in ({"tools": None}, {"tools": []}, {"tool_choice": "none"}):
        message, finish = ask(parrot, "call", **fields)
        assert message["content"] == CALL and "tool_calls" not in message and finish == "stop"


@pytest.mark.parametrize("fields, field", [
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [5]}, "tools"),
    ({"tool_choice": "maybe"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "get_money"}}}, "tool_choice"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"response_format": {"type": "yaml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "response_format"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_regex": 5}, "guided_regex"),
    ({"guided_grammar": "root ::= x"}, "guided_grammar"),
    ({"guided_grammar": ["root"]}, "guided_grammar"),
    ({"structured_outputs": {"structural_tag": {}}}, "structural_tag"),
    ({"structured_outputs": {"choice": []}}, "choice"),
])  # fmt: skip
def test_what_is_wrong_is_named(parrot, fields, field):
    reply = parrot.post("/v1/chat/completions", body("plain", **fields))
    assert reply.status == 400 and reply.error()["param"] == field, reply.body


def test_a_conversation_with_results_of_tools(parrot):
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "<say plain>"},
    ]  # fmt: skip
    reply = parrot.post("/v1/chat/completions", {"messages": messages, "tools": TOOLS, "temperature": 0})
    assert reply.json()["choices"][0]["message"]["content"] == SCRIPTS["plain"]
