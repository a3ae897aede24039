"""POST /v1/messages, as Anthropic's own client sees it. The parrot writes what the message names."""

import json
import pathlib
import sys

import anthropic
import pytest
from server_support import DEMO, LIMIT, Server

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from parrot import write_parrot  # noqa: E402

CALL = '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>'
SCRIPTS = {
    "plain": "Just text, with a stop here.\n",
    "think": "<think>\nHm, 91 = 7 · 13.\n\nSo no.\n</think>\n\nNo, it is not.\n",
    "all": "<think>\nI ask twice.\n</think>\n\nLet me see.\n" + CALL % '{"city": "Zürich 😀", "days": [1, 2]}' + "\n" + CALL % "{}" + "\nWait.",
    "nothing": "",
}  # fmt: skip
TOOLS = [{"name": "get_weather", "description": "d", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]
both = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    one = Server(write_parrot(tmp_path_factory.mktemp("models") / "parrot", SCRIPTS), "--served-model-name", "parrot")
    yield one
    one.wait_until_idle()
    one.close()


def client_of(server, key="none"):
    return anthropic.Anthropic(base_url=f"http://{server.host}:{server.port}", api_key=key, timeout=LIMIT, max_retries=0)


def ask(server, script, stream, **fields):
    messages = [{"role": "user", "content": f"<say {script}>"}]
    fields = {"messages": messages, "model": "parrot", "max_tokens": 500, **fields}
    fields["extra_body"] = {"temperature": 0, **fields.get("extra_body", {})}  # the client has no argument for it
    client = client_of(server)
    if not stream:
        return client.messages.create(**fields)
    with client.messages.stream(**fields) as events:
        return events.get_final_message()


@both
def test_text(parrot, stream):
    message = ask(parrot, "plain", stream)
    assert [(block.type, block.text) for block in message.content] == [("text", SCRIPTS["plain"])]
    assert (message.role, message.type, message.model) == ("assistant", "message", "parrot")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_") and message.usage.output_tokens > 0
    again = ask(parrot, "plain", stream, system="Long. " * 40)
    once_more = ask(parrot, "plain", stream, system=[{"type": "text", "text": "Long. " * 40}])
    total = [m.usage.input_tokens + m.usage.cache_read_input_tokens for m in (message, again, once_more)]
    assert total[0] < total[1] == total[2] and once_more.usage.cache_read_input_tokens >= 64


@both
def test_how_answers_end(parrot, stream):
    message = ask(parrot, "plain", stream, stop_sequences=["never", " stop"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " stop")
    assert message.content[0].text == "Just text, with a"
    assert ask(parrot, "plain", stream, max_tokens=2).stop_reason == "max_tokens"
    message = ask(parrot, "nothing", stream)
    assert (message.content, message.stop_reason) == ([], "end_turn")


@both
def test_thinking(parrot, stream):
    message = ask(parrot, "think", stream, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == "Hm, 91 = 7 · 13.\n\nSo no." and message.content[1].text == "No, it is not.\n"


def test_thinking_is_off_unless_asked_for(server):
    """The demo model thinks when its template lets it."""
    messages = [{"role": "user", "content": "What is 7 + 8?"}]
    client = client_of(server)
    for thinking, types in (({}, ["text"]), ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, ["thinking", "text"])):
        message = client.messages.create(model="demo", messages=messages, max_tokens=500, extra_body={"temperature": 0}, **thinking)
        assert [block.type for block in message.content] == types and "15" in message.content[-1].text


@both
def test_calls(parrot, stream):
    message = ask(parrot, "all", stream, tools=TOOLS)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use", "text"]
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [use.name for use in uses] == ["get_weather"] * 2 and uses[0].id != uses[1].id
    assert [use.input for use in uses] == [{"city": "Zürich 😀", "days": [1, 2]}, {}]
    assert message.stop_reason == "tool_use"
    one = ask(parrot, "all", stream, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in one.content] == ["thinking", "text", "tool_use"]
    none = ask(parrot, "all", stream, tools=TOOLS, tool_choice={"type": "none"})
    assert none.stop_reason == "end_turn" and {block.type for block in none.content} == {"thinking", "text"}


@both
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "set_days"}])
def test_forced_calls(server, stream, choice):
    schema = {"type": "object", "properties": {"days": {"enum": [1, 2, 3]}}, "required": ["days"]}
    message = ask(server, "", stream, model="demo", tools=[{"name": "set_days", "input_schema": schema}],
                  tool_choice={**choice, "disable_parallel_tool_use": True}, extra_body={"temperature": 1.5})  # fmt: skip
    assert [block.type for block in message.content] == ["tool_use"] and message.stop_reason == "tool_use"
    assert message.content[0].name == "set_days" and message.content[0].input["days"] in (1, 2, 3)


@both
def test_a_conversation_with_results_goes_back(parrot, stream):
    first = ask(parrot, "all", False, tools=TOOLS)
    uses = [block for block in first.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": uses[0].id, "content": "It rains."},
        {"type": "tool_result", "tool_use_id": uses[1].id, "content": [{"type": "text", "text": "No city."}], "is_error": True},
        {"type": "text", "text": "And now <say plain>"},
    ]
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [block.model_dump() for block in first.content[:-1]]},
        {"role": "user", "content": results},
    ]
    message = ask(parrot, "", stream, messages=messages, tools=TOOLS)
    assert message.content[0].text == SCRIPTS["plain"]
    # The same as a chat has the same prompt.
    calls = [{"id": u.id, "type": "function", "function": {"name": u.name, "arguments": u.input}} for u in uses]
    tools = [{"type": "function", "function": {"name": t["name"], "description": "d", "parameters": t["input_schema"]}} for t in TOOLS]
    chat = {
        "messages": [
            messages[0],
            {"role": "assistant", "content": "Let me see.", "reasoning_content": "I ask twice.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": uses[0].id, "content": "It rains."},
            {"role": "tool", "tool_call_id": uses[1].id, "content": "No city."},
            {"role": "user", "content": "And now <say plain>"},
        ],
        "tools": tools,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    counted = client_of(parrot).messages.count_tokens(model="parrot", messages=messages, tools=TOOLS).input_tokens
    assert counted == parrot.post("/tokenize", chat).json()["count"]
    assert counted == message.usage.input_tokens + message.usage.cache_read_input_tokens


def test_events_of_a_stream(parrot):
    body = {"model": "parrot", "max_tokens": 500, "messages": [{"role": "user", "content": "<say all>"}], "tools": TOOLS, "stream": True}
    reply = parrot.post("/v1/messages", body)
    assert reply.headers["Content-Type"] == "text/event-stream"
    events = []
    for event in reply.body.decode().strip().split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    names = [event["type"] for event in events]
    assert names[:2] == ["message_start", "ping"] and names[-2:] == ["message_delta", "message_stop"]
    open_block, n_blocks = None, 0
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert open_block is None and event["index"] == n_blocks
            open_block = n_blocks
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_block
            open_block, n_blocks = None, n_blocks + 1
        else:
            assert event["type"] == "content_block_delta" and event["index"] == open_block
    assert open_block is None and n_blocks == 5


def test_a_form(server):
    schema = {"type": "object", "properties": {"age": {"enum": [7, 8]}}, "required": ["age"]}
    message = ask(server, "", False, model="demo", extra_body={"output_config": {"format": {"type": "json_schema", "schema": schema}}})
    assert json.loads(message.content[0].text)["age"] in (7, 8)


USER = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"messages": []}, "messages is missing or empty"),
        ({"messages": "x"}, "messages is a string"),
        ({"messages": [1]}, "messages[0].role is missing"),
        ({"messages": [{"role": "system", "content": "x"}]}, "must be user or assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 'messages[0].content[0] has the type "image"'),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id is missing"),
        ({"messages": [*USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}]}, "input must be an object"),
        ({"messages": [*USER, {"role": "assistant", "content": "y"}]}, "the last message is the assistant's"),
        ({"messages": USER, "system": 1}, "system is an integer"),
        ({"messages": USER, "system": [{"type": "image"}]}, "system[0] is no text block"),
        ({"messages": USER, "stop_sequences": [""]}, "stop_sequences[0]"),
        ({"messages": USER, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0] has no input_schema"),
        ({"messages": USER, "tools": [{"input_schema": {}}]}, "tools[0].name is missing"),
        ({"messages": USER, "tools": [1]}, "tools[0].name is missing"),
        ({"messages": USER, "tool_choice": {"type": "x"}}, "tool_choice.type"),
        ({"messages": USER, "tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"messages": USER, "thinking": {"type": "x"}}, "thinking.type"),
        ({"messages": USER, "temperature": -1}, "temperature is -1"),
        ({"messages": USER, "max_tokens": 0}, "max_tokens"),
        ({"messages": USER, "stop_sequences": ["a"] * 10000}, "stop_sequences has 10000"),
        ({"messages": USER, "output_config": {"format": {"type": "yaml"}}}, "output_config.format has the type"),
        ({"messages": USER, "output_format": {"type": "yaml"}}, "output_format has the type"),
        ({"messages": USER, "tools": [{"name": "", "input_schema": {}}]}, "tools[0].name is not a text"),
    ],
)  # fmt: skip
def test_what_is_refused(server, fields, sentence):
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        reply = server.post(path, {"model": "demo", "max_tokens": 5, **fields})
        body = reply.json()
        assert reply.status == 400 and sorted(body) == ["error", "type"] and body["type"] == "error"
        assert body["error"]["type"] == "invalid_request_error" and sentence in body["error"]["message"], body


def test_errors_have_anthropics_shape(server, start):
    client = client_of(server)
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="other", max_tokens=5, messages=USER)
    assert caught.value.body["error"]["type"] == "not_found_error"
    reply = server.request("GET", "/v1/messages")
    assert reply.status == 405 and reply.json()["type"] == "error"
    closed = start(DEMO, "--api-key", "secret", "--served-model-name", "m")
    with pytest.raises(anthropic.AuthenticationError):
        client_of(closed).messages.create(model="m", max_tokens=5, messages=USER)
    assert client_of(closed, "secret").messages.count_tokens(model="m", messages=USER).input_tokens > 0
