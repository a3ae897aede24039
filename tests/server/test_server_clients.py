"""Programs that people have drive the server: PyPI's openai, and curl with the commands of docs/serving.md."""

import json
import re
import shutil
import subprocess

import jsonschema
import openai
import pytest
from server_support import LIMIT, ROOT

QUESTION = [{"role": "user", "content": "What is 7 + 8?"}]
QUICK = {"chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "good": {"type": "boolean"}},
          "required": ["name", "good"], "additionalProperties": False}  # fmt: skip


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="-", timeout=LIMIT, max_retries=0) as one:
        yield one


def test_openai_chats(client):
    fields = {"model": "demo", "messages": QUESTION, "temperature": 0, "extra_body": QUICK}
    whole = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    (choice,) = whole.choices
    assert choice.message.content == "7 + 8 = 15." and choice.finish_reason == "stop"
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.logprobs.content)
    assert "".join(token.token for token in choice.logprobs.content).startswith("7 + 8 = 15.")
    *chunks, last = client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    (choice,) = client.chat.completions.create(**fields, response_format=form, max_tokens=200).choices
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_openai_completes(client):
    fields = {"model": "demo", "prompt": "Once upon", "temperature": 0, "max_tokens": 8, "logprobs": 2}
    (choice,) = client.completions.create(**fields).choices
    assert len(choice.logprobs.tokens) == 8 and "".join(choice.logprobs.tokens) == choice.text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**fields, stream=True)) == choice.text
    assert {model.id for model in client.models.list()} == {"demo", "alias"}


def test_openai_is_told_what_is_wrong(client):
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="Hi")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=QUESTION, top_p=1.5)
    assert caught.value.param == "top_p"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_with_the_commands_of_the_docs(server):
    """Each command succeeds; among them is every path."""
    text = (ROOT / "docs/serving.md").read_text()
    commands = re.findall(r"\bcurl (localhost:8000(/[\w/]*).*?)(?:;|$)", text, re.M)
    paths = set(json.loads((ROOT / "docs/openapi.json").read_text())["paths"])
    assert paths - {"/"} == {path for _, path in commands}
    for command, path in commands:
        command = f"curl -sS --fail-with-body --max-time {LIMIT} {command.replace('localhost:8000', f'{server.host}:{server.port}')}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=2 * LIMIT)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if path not in ("/metrics", "/health", "/ready", "/ping"):
            assert json.loads(done.stdout), command
