"""POST /v1/responses, as OpenAI's own client sees it. The parrot writes what the message names."""

import json
import pathlib
import re
import sys

import openai
import pytest
from server_support import LIMIT, Server

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from parrot import write_parrot  # noqa: E402

CALL = '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>'
MEANT = {"city": "Zürich 😀", "days": [1, 2]}
SCRIPTS = {
    "plain": "Just text.\n",
    "all": "<think>\nI ask twice.\n</think>\n\nLet me see.\n" + CALL % json.dumps(MEANT, ensure_ascii=False) + "\n" + CALL % "{}" + "\nWait.",
    "nothing": "",
}  # fmt: skip
TOOLS = [{"type": "function", "name": "get_weather", "strict": True, "description": "d",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]  # fmt: skip
both = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    one = Server(write_parrot(tmp_path_factory.mktemp("models") / "parrot", SCRIPTS), "--served-model-name", "parrot")
    yield one
    one.wait_until_idle()
    one.close()


def client_of(server):
    return openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", timeout=LIMIT, max_retries=0)


def ask(server, question, stream, **fields):
    fields = {"input": question, "model": "parrot", "temperature": 0, **fields}
    client = client_of(server)
    if not stream:
        return client.responses.create(**fields)
    *events, last = client.responses.create(stream=True, **fields)
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event.sequence_number for event in [*events, last]] == list(range(len(events) + 1))
    check_events(events[2:], last.response)
    assert last.type == f"response.{last.response.status}"
    return last.response


def check_events(events, response):
    """Deltas joined are what the last event says; each item begins and ends."""
    texts, done = {}, []
    for event in events:
        if event.type.endswith(".delta"):
            texts[event.output_index] = texts.get(event.output_index, "") + event.delta
            assert event.item_id == response.output[event.output_index].id
        elif event.type == "response.output_item.added":
            assert event.output_index == len(done) and event.item.status == "in_progress"
        elif event.type == "response.output_item.done":
            done.append(event.item)
    assert [item.to_dict() for item in done] == [item.to_dict() for item in response.output]
    for i, item in enumerate(response.output):
        assert texts.get(i, "") == (item.arguments if item.type == "function_call" else item.content[0].text)


@both
def test_text(parrot, stream):
    response = ask(parrot, "<say plain>", stream, instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=100)
    assert (response.output_text, response.status, response.error) == (SCRIPTS["plain"], "completed", None)
    assert response.object == "response" and response.id.startswith("resp_") and response.model == "parrot"
    assert (response.instructions, response.metadata, response.max_output_tokens) == ("Be brief.", {"a": "b"}, 100)
    assert (response.store, response.tools, response.tool_choice, response.parallel_tool_calls) == (False, [], "auto", True)
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and usage.input_tokens > 0
    assert usage.input_tokens_details.cached_tokens >= 0 and usage.output_tokens_details.reasoning_tokens == 0
    cut = ask(parrot, "<say plain>", stream, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert ask(parrot, "<say nothing>", stream).output == []


@both
def test_reasoning_and_calls_go_there_and_back(parrot, stream):
    question = {"role": "user", "content": [{"type": "input_text", "text": "<say all>"}]}
    response = ask(parrot, [question], stream, tools=TOOLS)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call", "message"]
    reasoning, message, first, second, _ = response.output
    assert reasoning.content[0].text == "I ask twice." and message.content[0].text == "Let me see."
    assert json.loads(first.arguments) == MEANT and json.loads(second.arguments) == {} and first.call_id != second.call_id
    assert response.tools[0].name == "get_weather"
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "It rains."} for call in (first, second)]
    items = [question, *(item.to_dict() for item in response.output[:-1]), *results, {"role": "developer", "content": "<say plain>"}]
    answer = ask(parrot, items, stream, tools=TOOLS)
    assert answer.output_text == SCRIPTS["plain"]
    # The same as a chat has the same prompt.
    calls = [{"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in (first, second)]
    chat = {
        "messages": [
            {"role": "user", "content": "<say all>"},
            {"role": "assistant", "content": "Let me see.", "reasoning_content": "I ask twice.", "tool_calls": calls},
            *({"role": "tool", "tool_call_id": call.call_id, "content": "It rains."} for call in (first, second)),
            {"role": "system", "content": "<say plain>"},
        ],
        "tools": [{"type": "function", "function": {k: TOOLS[0][k] for k in ("name", "description", "parameters")}}],
    }
    assert parrot.post("/tokenize", chat).json()["count"] == answer.usage.input_tokens


@both
def test_forced_calls(server, stream):
    schema = {"type": "object", "properties": {"days": {"enum": [1, 2, 3]}}, "required": ["days"]}
    tools = [{"type": "function", "name": name, "parameters": schema} for name in ("set_days", "set_hours")]
    named = {"type": "function", "name": "set_hours"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    for choice in (named, allowed):
        response = ask(server, "x", stream, model="demo", tools=tools, tool_choice=choice, temperature=1.5,
                       parallel_tool_calls=False, reasoning={"effort": "none"})  # fmt: skip
        (call,) = response.output
        assert call.name == "set_hours" and json.loads(call.arguments)["days"] in (1, 2, 3)


@both
def test_a_form(server, stream):
    schema = {"type": "object", "properties": {"age": {"enum": [7, 8]}}, "required": ["age"], "additionalProperties": False}
    text = {"format": {"type": "json_schema", "name": "person", "schema": schema, "strict": True}}
    response = ask(server, "x", stream, model="demo", text=text, temperature=1.5, reasoning={"effort": "none"})
    assert json.loads(response.output_text)["age"] in (7, 8) and response.text.format.name == "person"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "input"),
        ({"input": 1}, "input"),
        ({"input": []}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0]"),
        ({"input": [{"type": "reasoning", "content": [{}]}]}, "input[0]"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "top_logprobs": 2}, "top_logprobs"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "text": {"format": {"type": "yaml"}}}, "text.format"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}], "instructions": "x"}, "input[0].content"),
        ({"input": "word " * 3000}, "input"),
        ({"input": "x", "tools": [{"type": "function", "name": ""}]}, "tools"),
    ],
)
def test_what_is_refused(server, fields, field):
    reply = server.post("/v1/responses", {"model": "demo", **fields})
    assert reply.status == 400 and reply.error()["param"] == field, reply.body
    sentence = reply.error()["message"]  # in the words of this API, not of the chat's
    assert not re.search(r"\b(messages|max_tokens|response_format|tools\[\d+\]\.function)\b", sentence), sentence
