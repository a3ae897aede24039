"""tool_choice that forces calls: the demo model knows no tools and draws at temperature 2, and yet every answer is calls that follow
the tools' schemas."""

import json
import pathlib
import sys

import openai
import pytest
from server_support import DEMO, LIMIT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from parrot import CODER_TEMPLATE, write_parrot  # noqa: E402

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {
        "type": "object", "required": ["city", "unit"], "properties": {
            "city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 7}, "maxItems": 3}}}}},
    {"type": "function", "function": {"name": "set_light", "description": "d", "parameters": {
        "type": "object", "required": ["on"], "properties": {"on": {"type": "boolean"}}}}},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


def client_of(server):
    return openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", timeout=LIMIT, max_retries=0)


def check_call(name, arguments):
    values = json.loads(arguments)
    if name == "get_weather":
        assert isinstance(values.pop("city"), str)
        assert values.pop("unit") in ("C", "F")
        days = values.pop("days", [])
        assert len(days) <= 3 and all(isinstance(day, int) and 1 <= day <= 7 for day in days)
    elif name == "set_light":
        assert values.pop("on") in (True, False)
    else:
        assert name == "now"
    assert values == {}


def ask(server, content="What is 7 + 8?", stream=False, **fields):
    """For each answer (content, reasoning, [(name, arguments)], finish_reason)."""
    fields = {"model": "m", "messages": [{"role": "user", "content": content}], "tools": TOOLS, "max_tokens": 600, **fields}
    completions = client_of(server).chat.completions
    if not stream:
        answers = []
        for choice in completions.create(**fields).choices:
            calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
            reasoning = getattr(choice.message, "reasoning", "")
            answers.append((choice.message.content or "", reasoning, calls, choice.finish_reason))
        return answers
    answers = [["", "", [], None] for _ in range(fields.get("n", 1))]
    for chunk in completions.create(stream=True, **fields):
        for choice in chunk.choices:
            answer = answers[choice.index]
            answer[0] += choice.delta.content or ""
            answer[1] += getattr(choice.delta, "reasoning", "")
            answer[3] = choice.finish_reason
            for call in choice.delta.tool_calls or []:
                if call.index == len(answer[2]):
                    answer[2].append((call.function.name, ""))
                name, arguments = answer[2][call.index]
                answer[2][call.index] = (name, arguments + call.function.arguments)
    return [tuple(answer) for answer in answers]


@pytest.fixture(scope="module", params=["hermes", "qwen3_coder"])
def demo(request, start_for_module):
    return start_for_module(DEMO, "--served-model-name", "m", "--tool-call-parser", request.param)


@pytest.mark.parametrize("stream", [False, True])
def test_required(demo, stream):
    answers = ask(demo, stream=stream, n=4, tool_choice="required", temperature=2, seed=int(stream), extra_body=NO_THINKING)
    answers = [answer for answer in answers if answer[3] != "length"]  # chance may call and call
    assert answers
    for content, reasoning, calls, finish in answers:
        assert (content, reasoning, finish) == ("", "", "tool_calls")
        assert calls
        for name, arguments in calls:
            check_call(name, arguments)


def test_named(demo):
    choice = {"type": "function", "function": {"name": "set_light"}}
    for content, _, calls, finish in ask(demo, n=4, tool_choice=choice, temperature=2, seed=1, extra_body=NO_THINKING):
        assert (content, finish, len(calls)) == ("", "stop", 1)  # OpenAI's finish_reason when the request named the tool
        assert calls[0][0] == "set_light"
        check_call(*calls[0])


def test_one_call_is_forced(demo):
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "tools": TOOLS[1:]}
    for _, _, calls, _ in ask(demo, n=4, temperature=2, seed=1, extra_body=NO_THINKING, **fields):
        assert len(calls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_calls_come_after_the_reasoning(start, tmp_path, stream):
    script = "<think>\nI had rather not call.\n</think>\n\nNo call from me."
    server = start(write_parrot(tmp_path / "parrot", {"think": script}), "--served-model-name", "m")
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "tools": TOOLS[1:]}
    [(content, reasoning, calls, finish)] = ask(server, "<say think>", stream, temperature=0, **fields)
    assert (content, reasoning, finish) == ("", "I had rather not call.", "tool_calls")
    assert len(calls) == 1
    check_call(*calls[0])


def test_the_form_follows_the_template(start, tmp_path):
    """A template that shows calls as Qwen3-Coder's gets them in this form."""
    server = start(write_parrot(tmp_path / "parrot", {"hello": "Hello."}, CODER_TEMPLATE), "--served-model-name", "m")
    reply = client_of(server).chat.completions.create(
        model="m", messages=[{"role": "user", "content": "<say hello>"}], tools=TOOLS[1:2], tool_choice="required", logprobs=True,
        temperature=0, parallel_tool_calls=False)  # fmt: skip
    text = "".join(token.token for token in reply.choices[0].logprobs.content)
    assert text.startswith("<tool_call>\n<function=set_light>\n<parameter=on>\n")
    call = reply.choices[0].message.tool_calls[0].function
    check_call(call.name, call.arguments)


def test_a_schema_that_cannot_be_enforced_is_refused(demo):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}}}]  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(demo, tools=tools, tool_choice="required")
