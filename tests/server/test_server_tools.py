"""Reasoning and calls of tools over the chat API, as OpenAI's own client sees them. The model is a parrot: it writes what the
message names."""

import json
import pathlib
import sys

import openai
import pytest
from server_support import DEMO, LIMIT, Server

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from parrot import CODER_TEMPLATE, write_parrot  # noqa: E402

MEANT = {"city": "Zürich 😀", "days": [1, 2], "note": 'a "}" </tool_call> in a string\n', "deep": {"x": None, "y": -1.5e3}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>'
SCRIPTS = {
    "plain": "Just text, with a <tag>.\n",
    "think": "<think>\nHm, 91 = 7 · 13.\n\nSo no.\n</think>\n\nNo, it is not.\n",
    "call": CALL % json.dumps(MEANT, ensure_ascii=False),
    "all": "<think>\nI ask twice.\n</think>\n\nLet me see.\n" + CALL % '{"city": "Oslo"}' + "\n" + CALL % "{}" + "\nWait.",
    "coder": "<tool_call>\n<function=set_days>\n<parameter=days>\n3\n</parameter>\n<parameter=name>\n17\n</parameter>\n"
    "<parameter=text>\nline 1\n</parameter> {line 2}\n</parameter>\n</function>\n</tool_call>",
    "broken": "Look:\n" + CALL % '{"city": Oslo}' + "\nDone.",
    "nothing": "",
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "set_days", "description": "d", "parameters": {
        "type": "object", "properties": {"days": {"type": "integer"}, "name": {"type": "string"}}}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    one = Server(write_parrot(tmp_path_factory.mktemp("models") / "parrot", SCRIPTS), "--served-model-name", "parrot")
    yield one
    one.wait_until_idle()
    one.close()


def client_of(server):
    return openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", timeout=LIMIT, max_retries=0)


class Answer:
    """A message, streamed or not."""

    def __init__(self):
        self.content, self.reasoning, self.calls, self.finish = "", "", [], None

    def arguments(self):
        return [json.loads(arguments) for _, _, arguments in self.calls]

    def names(self):
        return [name for _, name, _ in self.calls]


def ask(server, script, stream, **fields):
    client = client_of(server)
    fields = {"messages": [{"role": "user", "content": f"<say {script}>"}], "model": "parrot", "temperature": 0, **fields}
    answer = Answer()
    if not stream:
        choice = client.chat.completions.create(**fields).choices[0]
        message = choice.message
        answer.content, answer.finish = message.content, choice.finish_reason
        answer.reasoning = getattr(message, "reasoning_content", "")
        assert answer.reasoning == getattr(message, "reasoning", "")
        for call in message.tool_calls or []:
            assert call.type == "function"
            answer.calls.append((call.id, call.function.name, call.function.arguments))
        return answer
    for chunk in client.chat.completions.create(stream=True, **fields):
        choice = chunk.choices[0]
        delta = choice.delta
        answer.content += delta.content or ""
        reasoning = getattr(delta, "reasoning_content", "")
        assert reasoning == getattr(delta, "reasoning", "")
        answer.reasoning += reasoning
        assert answer.finish is None  # it comes last
        answer.finish = choice.finish_reason
        for call in delta.tool_calls or []:
            if call.index == len(answer.calls):  # the first delta of a call says all but its arguments
                assert call.type == "function" and call.id.startswith("call_")
                answer.calls.append((call.id, call.function.name, ""))
            assert call.index == len(answer.calls) - 1
            id_, name, arguments = answer.calls[-1]
            answer.calls[-1] = (id_, name, arguments + call.function.arguments)
    if answer.content == "" and (answer.calls or answer.reasoning):
        answer.content = None  # as a whole reply has it
    return answer


both = pytest.mark.parametrize("stream", [False, True])


@both
def test_reasoning(parrot, stream):
    answer = ask(parrot, "think", stream)
    assert answer.reasoning == "Hm, 91 = 7 · 13.\n\nSo no."
    assert answer.content == "No, it is not.\n"
    assert (answer.finish, answer.calls) == ("stop", [])
    answer = ask(parrot, "plain", stream)
    assert (answer.reasoning, answer.content, answer.finish) == ("", SCRIPTS["plain"], "stop")
    answer = ask(parrot, "nothing", stream)
    assert (answer.reasoning, answer.content, answer.finish) == ("", "", "stop")


@both
def test_reasoning_that_is_cut_off_or_not_wanted(parrot, stream):
    answer = ask(parrot, "think", stream, max_tokens=8)
    assert answer.finish == "length" and answer.content is None
    assert answer.reasoning and "Hm, 91 = 7 · 13.\n\nSo no.".startswith(answer.reasoning)
    answer = ask(parrot, "think", stream, extra_body={"include_reasoning": False})
    assert (answer.reasoning, answer.content) == ("", "No, it is not.\n")


@both
def test_a_call(parrot, stream):
    answer = ask(parrot, "call", stream, tools=TOOLS)
    assert answer.names() == ["get_weather"]
    assert answer.arguments() == [MEANT]
    assert (answer.content, answer.finish) == (None, "tool_calls")


@both
def test_reasoning_content_and_calls(parrot, stream):
    answer = ask(parrot, "all", stream, tools=TOOLS, tool_choice="auto", temperature=1.5)
    assert answer.reasoning == "I ask twice."
    assert answer.content == "Let me see.\nWait."
    assert answer.names() == ["get_weather"] * 2
    assert answer.arguments() == [{"city": "Oslo"}, {}]
    assert answer.finish == "tool_calls"
    assert answer.calls[0][0] != answer.calls[1][0]


@both
def test_several_answers_have_calls_of_their_own(parrot, stream):
    if stream:
        chunks = client_of(parrot).chat.completions.create(
            model="parrot", messages=[{"role": "user", "content": "<say call>"}], tools=TOOLS, n=3, stream=True)  # fmt: skip
        ids, arguments = [None] * 3, [""] * 3
        for chunk in chunks:
            for choice in chunk.choices:
                for call in choice.delta.tool_calls or []:
                    ids[choice.index] = ids[choice.index] or call.id
                    arguments[choice.index] += call.function.arguments
    else:
        choices = client_of(parrot).chat.completions.create(
            model="parrot", messages=[{"role": "user", "content": "<say call>"}], tools=TOOLS, n=3).choices  # fmt: skip
        ids = [choice.message.tool_calls[0].id for choice in choices]
        arguments = [choice.message.tool_calls[0].function.arguments for choice in choices]
    assert len(set(ids)) == 3
    assert [json.loads(text) for text in arguments] == [MEANT] * 3


@both
def test_the_form_of_qwen3_coder(parrot, stream):
    answer = ask(parrot, "coder", stream, tools=TOOLS)
    assert answer.names() == ["set_days"]
    assert answer.arguments() == [{"days": 3, "name": "17", "text": "line 1\n</parameter> {line 2}"}]


@both
def test_parallel_tool_calls(parrot, stream):
    answer = ask(parrot, "all", stream, tools=TOOLS, parallel_tool_calls=False)
    assert answer.arguments() == [{"city": "Oslo"}]
    assert (answer.content, answer.finish) == ("Let me see.", "tool_calls")


def test_a_broken_call_is_content(parrot):
    answer = ask(parrot, "broken", False, tools=TOOLS)
    assert (answer.content, answer.calls, answer.finish) == (SCRIPTS["broken"], [], "stop")
    answer = ask(parrot, "broken", True, tools=TOOLS)
    assert (answer.content, answer.finish) == (SCRIPTS["broken"], "stop")
    # The beginning is sent before the call breaks, unless the break comes in the same step of the stream.
    assert [arguments for _, _, arguments in answer.calls] in (['{"city": '], [])


@both
def test_without_tools_there_are_no_calls(parrot, stream):
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = ask(parrot, "call", stream, **fields)
        assert (answer.content, answer.calls, answer.finish) == (SCRIPTS["call"], [], "stop")


def test_calls_and_their_results_go_back_into_the_prompt(start, tmp_path):
    """Arguments come back as text. A template that takes an object apart gets one."""
    server = start(write_parrot(tmp_path / "parrot", {"plain": SCRIPTS["plain"]}, CODER_TEMPLATE))

    def prompt_tokens(arguments):
        call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "It rains. <say plain>"},
        ]
        reply = server.post("/v1/chat/completions", {"messages": messages, "tools": TOOLS, "temperature": 0})
        assert reply.status == 200, reply.body
        assert reply.json()["choices"][0]["message"]["content"] == SCRIPTS["plain"]
        return reply.json()["usage"]["prompt_tokens"]

    assert prompt_tokens('{ "city":\n"Bergen"}') == prompt_tokens({"city": "Bergen"})


KWARGS = "{{ '<say ' ~ who ~ '>' }}{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '\\n' }}{% endif %}"


def test_chat_template_kwargs(start, tmp_path):
    server = start(write_parrot(tmp_path / "parrot", {"a": "I am a.", "b": "I am b."}, KWARGS), "--served-model-name", "parrot")
    messages = [{"role": "user", "content": "Who?"}]
    for who in ("a", "b"):
        answer = ask(server, "none", False, messages=messages, extra_body={"chat_template_kwargs": {"who": who}})
        assert answer.content == f"I am {who}."


@pytest.mark.parametrize(
    ("fields", "field", "sentence"),
    [
        ({"tools": {}}, "tools", "tools is an object"),
        ({"tools": [{}]}, "tools", "tools[0].function is not an object"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools", "tools[0].function.name is not a text"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice needs tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "tool_choice is neither"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", 'names the tool "f"'),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls", "parallel_tool_calls is an integer"),
    ],
)
def test_what_is_refused(parrot, fields, field, sentence):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(parrot, "plain", False, extra_body=fields)
    assert sentence in caught.value.message
    assert caught.value.param == field


OPENED = """{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""


@both
def test_a_template_that_opens_the_reasoning(start, tmp_path, stream):
    scripts = {"all": "Hm.\n</think>\n\nNo.", "cut": "Hm, and so on."}
    server = start(write_parrot(tmp_path / "parrot", scripts, OPENED), "--served-model-name", "parrot")
    answer = ask(server, "all", stream)
    assert (answer.reasoning, answer.content) == ("Hm.", "No.")
    answer = ask(server, "cut", stream)
    assert (answer.reasoning, answer.content) == ("Hm, and so on.", None)


@both
def test_parsers_by_name(start, tmp_path, stream):
    """--reasoning-parser none leaves the tags in the text."""
    directory = write_parrot(tmp_path / "parrot", {"think": SCRIPTS["think"]})
    server = start(directory, "--reasoning-parser", "none", "--tool-call-parser", "qwen3_coder", "--served-model-name", "parrot")
    assert ask(server, "think", stream).content == SCRIPTS["think"]


def test_unknown_parser(start):
    with pytest.raises(AssertionError, match="tool-call parser .*mistral.* is not known; choose hermes, qwen3_coder"):
        start(DEMO, "--tool-call-parser", "mistral")
