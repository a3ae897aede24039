"""From the start to the end: options, keys, signals."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from server_support import BINARY, DEMO, LIMIT, ROOT, events_of, wait_until

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


def run(*options, environment=None):
    import os

    return subprocess.run([BINARY, "serve", DEMO, *map(str, options)], capture_output=True, cwd=ROOT, timeout=60,
                          env={**os.environ, **(environment or {})})  # fmt: skip


# ---- Keys


def test_every_path_but_health_and_the_page_needs_a_key(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\n\n  second-key  \n")
    server = start(DEMO, "--api-key-file", keys, "--api-key", "third-key")
    assert server.get("/health").status == 200
    assert server.get("/").status == 200
    for path in ("/v1/models", "/metrics", "/ready", "/version", "/load", "/ping", "/v1/nothing"):
        reply = server.get(path)
        assert reply.status == 401 and reply.headers["WWW-Authenticate"] == "Bearer", path
        assert reply.error()["type"] == "AuthenticationError"
    for value in ("Bearer", "Bearer ", "Bearer wrong", "Bearer first-ke", "Bearer first-keyy", "Basic first-key", "first-key"):
        assert server.post("/v1/chat/completions", CHAT, {"Authorization": value}).status == 401, value
    for key in ("first-key", "second-key", "third-key"):
        assert server.post("/v1/chat/completions", CHAT, {"Authorization": f"Bearer {key}"}).status == 200
        assert server.get("/v1/models", {"Authorization": f"bearer {key}"}).status == 200
        assert server.get("/v1/models", {"X-Api-Key": key}).status == 200
    server.signal()
    assert server.wait() == 0
    assert not any(key in server.messages for key in (b"first-key", b"second-key", b"third-key"))


def test_a_key_file_without_a_key_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("\n  \n")
    result = run("--api-key-file", empty)
    assert result.returncode == 1 and b"has no API key" in result.stderr
    result = run("--api-key-file", tmp_path / "missing")
    assert result.returncode == 1 and b"missing" in result.stderr
    empty.write_text("key\n", encoding="utf-8-sig")  # its first key would be one that nobody sends
    result = run("--api-key-file", empty)
    assert result.returncode == 1 and b"empty: begins with a byte order mark (BOM); save it as UTF-8" in result.stderr
    assert run("--api-key", "").returncode == 2


# ---- Options


def test_the_server_listens_on_this_machine_alone(start):
    server = start(DEMO)
    assert server.host == "127.0.0.1"
    table = (ROOT / f"/proc/{server.process.pid}/net/tcp").read_text()
    listening = [line.split()[1] for line in table.splitlines()[1:] if line.split()[3] == "0A"]
    assert f"0100007F:{server.port:04X}" in listening


def test_a_port_that_is_taken(start):
    server = start(DEMO)
    result = run("--port", server.port)
    assert result.returncode == 1 and str(server.port).encode() in result.stderr
    result = run("--host", "no.such.host.invalid")
    assert result.returncode == 1 and b"no.such.host.invalid" in result.stderr


def test_environment_variables_stand_for_options(start):
    server = start(DEMO, environment={"MOEBIUS_SERVED_MODEL_NAME": "from-env", "MOEBIUS_API_KEY": "k", "MOEBIUS_ACCESS_LOG": "1"})
    server.key = "k"
    assert server.get("/v1/models").json()["data"][0]["id"] == "from-env"
    wait_until(lambda: b'"GET /v1/models" 200' in server.messages, "the line of the access log")
    result = run(environment={"MOEBIUS_MAX_QUEUE": "many"})
    assert result.returncode == 2 and b"MOEBIUS_MAX_QUEUE" in result.stderr


def test_the_start_tells_where_the_memory_went(start):
    server = start(DEMO, "--kv-tokens", 4096)
    wait_until(lambda: b"are free" in server.messages, "the line about memory")
    line = server.messages.decode().splitlines()[0]
    number = r"[\d.]+ [kMGT]?B"
    assert re.fullmatch(rf"moebius: memory of cpu: weights {number}, KV cache {number} for 4096 tokens, buffers {number}; {number} of {number} are free", line)
    assert start(DEMO, "--quiet").messages == b""


def test_every_name_can_be_served(start):
    server = start(DEMO, "--served-model-name", "mine", "--served-model-name", "*")
    assert server.post("/v1/chat/completions", {**CHAT, "model": "whatever"}).json()["model"] == "whatever"
    assert server.post("/v1/chat/completions", CHAT).json()["model"] == "mine"


def test_the_context_can_be_cut(start):
    server = start(DEMO, "--max-model-len", 100, "--kv-tokens", 128)
    assert server.get("/v1/models").json()["data"][0]["max_model_len"] == 100
    assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 100}).error()["param"] == "max_tokens"
    assert server.complete("Once", max_tokens=90, ignore_eos=True)["usage"]["completion_tokens"] == 90


def test_random_weights_need_no_checkpoint(start, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    servers = [start(path, "--random-weights") for path in (tmp_path, tmp_path / "config.json")]
    answers = [server.complete("Once", max_tokens=8, ignore_eos=True) for server in servers]
    assert answers[0]["usage"]["completion_tokens"] == 8
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]
    assert [server.get("/v1/models").json()["data"][0]["id"] for server in servers] == 2 * [tmp_path.name]


@pytest.mark.parametrize("options", [
    ("--port", "65536"), ("--max-queue", "-1"), ("--kv-cache-dtype", "int3"), ("--enable-prefix-caching", "--no-enable-prefix-caching"),
    ("--kv-tokens", "64", "--gpu-memory-utilization", "0.5"), ("--max-decode-slowdown", "0.5"), ("--max-decode-slowdown", "1"),
])  # fmt: skip
def test_wrong_options(options):
    result = run(*options)
    assert result.returncode == 2 and b"serve" in result.stderr


def test_names_of_parsers(start):
    result = run("--tool-call-parser", "nothing")
    assert result.returncode == 1 and b"hermes" in result.stderr
    server = start(DEMO, "--reasoning-parser", "none", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    message = server.chat()["choices"][0]["message"]
    assert message["content"].startswith("<think>") and "reasoning_content" not in message


# ---- The end


def test_sigterm_lets_running_requests_end(start, endless_model):
    server = start(endless_model)
    client = server.open_stream(max_tokens=600)
    server.signal()
    wait_until(lambda: server.get("/ready").status == 503, "not ready")
    assert server.get("/health").status == 200
    refused = server.post("/v1/completions", {"prompt": "Hi"})
    assert refused.status == 503 and refused.headers["Retry-After"]
    data = b""
    while piece := client.recv(65536):
        data += piece
        if b"[DONE]" in data:
            break
    assert b'"finish_reason":"length"' in data
    client.close()
    assert server.wait() == 0


@pytest.mark.parametrize("stream", [True, False])
def test_sigterm_ends_requests_that_take_too_long(start, endless_model, stream):
    server = start(endless_model, "--shutdown-timeout", 0)
    body = {"prompt": "Once", "max_tokens": 10000, "ignore_eos": True, "stream": stream}
    client = server.open_stream(max_tokens=10000) if stream else server.send("/v1/completions", body)
    wait_until(lambda: server.metric("num_requests_running") == 1, "a running request")
    server.signal()
    data = b""
    while piece := client.recv(65536):
        data += piece
    assert server.wait() == 0
    if stream:
        assert b'"finish_reason":"abort"' in data and b"data: [DONE]\n\n" in data
    else:
        assert b" 503 " in data and b"shutting down" in data


def test_a_second_signal_ends_now(start, endless_model):
    server = start(endless_model)
    client = server.open_stream(max_tokens=10000)
    server.signal()
    wait_until(lambda: server.get("/ready").status == 503, "not ready")
    began = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.wait() == 130 and time.monotonic() - began < 20
    client.close()


def test_a_server_that_does_nothing_ends_at_once(start):
    server = start(DEMO)
    idle = server.socket()
    server.signal()
    assert server.wait() == 0
    idle.close()


def test_nan_fails_the_request_and_not_the_server(start, endless_model, tmp_path):
    """A checkpoint with a NaN in the row of the embeddings that belongs to token 5."""
    import shutil
    import struct

    broken = tmp_path / "broken"
    shutil.copytree(endless_model, broken)
    path = broken / "model.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    start_, _ = header["model.embed_tokens.weight"]["data_offsets"]
    width = 4 * header["model.embed_tokens.weight"]["shape"][1]
    at = 8 + length + start_ + 5 * width
    data[at : at + 4] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    server = start(broken)
    reply = server.post("/v1/completions", {"prompt": [7, 5, 9], "max_tokens": 4})
    assert reply.status == 500 and reply.error()["type"] == "InternalServerError" and "not numbers" in reply.error()["message"]
    reply = server.post("/v1/completions", {"prompt": [7, 5, 9], "max_tokens": 4, "stream": True})
    assert reply.status == 500, "no event was sent before"
    # An answer that draws token 5 ends with an error event.
    reply = server.post("/v1/completions", {"prompt": [7, 9], "max_tokens": 9, "stream": True, "ignore_eos": True, "logit_bias": {"5": 100}})
    events = events_of(reply.body)
    assert reply.status == 200 and events[-1] == "[DONE]" and json.loads(events[-2])["error"]["code"] == 500
    assert server.complete([7, 9], max_tokens=4, ignore_eos=True, logit_bias={"5": -100})["usage"]["completion_tokens"] == 4
    assert server.metrics()["request_success_total"]['engine="0",model_name="broken",finished_reason="error"'] == 3
    assert server.is_idle()


def test_two_colons_are_every_address(start):
    """They are IPv4's too, as in other servers."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    one = start(DEMO, "--host", "::")
    for host in ("127.0.0.1", "::1"):
        with contextlib.closing(http.client.HTTPConnection(host, one.port, timeout=LIMIT)) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200


def test_an_address_that_cannot_be_had(server):
    """The sentence says why: the port is taken, or the address is not this machine's."""
    for options, why in (
        (("--port", server.port), "another program uses the port; choose another with --port"),
        (("--port", 0, "--host", "192.0.2.1"), "this machine does not have the address; see --host"),
    ):
        result = run(*options)
        assert result.returncode == 1 and result.stderr.decode().endswith(f": {why}\n"), result.stderr
