"""Requests that nobody means well."""

import contextlib
import json
import re
import socket
import time

import pytest
from server_support import wait_until

SMALL = {"prompt": "Hi", "max_tokens": 1}


def status_of(answer):
    match = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    return int(match[1]) if match else None


def request(body=b"{}", *headers, path="/v1/completions"):
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def healthy(server):
    assert server.complete(max_tokens=1)["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("headers, status", [
    ([f"X-Long: {'a' * 33000}"], 431),
    ([f"X-{i}: {'a' * 400}" for i in range(90)], 431),
    ([f"X-{i}: a" for i in range(101)], 431),
    ([f"X-Long: {'a' * 200000}"], 431),
    (["Content-Length: 2", "Content-Length: 2"], 400),
    (["Content-Length: 2", "Content-Length: 40"], 400),
    (["Content-Length: 2", "Transfer-Encoding: chunked"], 400),
    (["Content-Length: -1"], 400),
    (["Content-Length: 2x"], 400),
    (["Content-Length: 99999999999999999999999"], 413),
    (["Content-Length: 99999999999"], 413),
])  # fmt: skip
def test_headers_that_are_refused(server, headers, status):
    answer = server.raw(request(b"{}", *headers))
    assert status_of(answer) == status, answer[:200]
    healthy(server)


def test_headers_up_to_the_limit_are_taken(server):
    body = json.dumps(SMALL).encode()
    headers = [f"Content-Length: {len(body)}", "Connection: close", *(f"X-{i}: {'a' * 320}" for i in range(90))]
    assert status_of(server.raw(request(body, *headers))) == 200


@pytest.mark.parametrize("start", [
    b"GET\r\n\r\n", b"\x00\x01\x02\r\n\r\n", b"GET /health HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n: x\r\n\r\n",
    b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /%00%ff HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\nConnection: close\r\n\r\n{}",
])  # fmt: skip
def test_what_is_no_request(server, start):
    with contextlib.closing(server.socket()) as client:
        client.sendall(start)
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            assert not re.match(rb"HTTP/1.1 2", client.recv(65536)) or b"http://x/health" in start
    healthy(server)


def test_a_large_body_is_refused_and_the_reply_is_heard(server):
    reply = server.post("/v1/completions", b"x" * (64 * 1024 * 1024 + 1))
    assert reply.status == 413 and "67108864" in reply.error()["message"]
    chunk = b"x" * (1 << 20)
    connection = server.connect()
    connection.request("POST", "/v1/completions", (chunk for _ in range(65)), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().status == 413
    connection.close()
    reply = server.post("/v1/completions", b'{"prompt": "' + b"a" * (16 * 1024 * 1024) + b'"}')
    assert reply.status == 400 and reply.error()["param"] == "prompt"
    healthy(server)


def test_a_client_that_expects_to_be_asked_hears_at_once(server):
    answer = server.raw(request(b"", "Content-Length: 99999999", "Expect: 100-continue"))
    assert status_of(answer) == 413 and b"100 Continue" not in answer


@pytest.mark.parametrize("depth", [101, 1000, 250000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_json(server, depth, opening):
    reply = server.post("/v1/completions", b'{"prompt":' + opening * depth)
    assert reply.status == 400 and "deeper than 100" in reply.error()["message"]
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    reply = server.post("/v1/completions", b'{"a":' + opening * 99 + b"0" + closing * 99 + b',"prompt":"Hi","max_tokens":1}')
    assert reply.status == 200, reply.body


@pytest.mark.parametrize("prompt", [
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"a\\u0000b"', b'"\x01"', b'"\\x"', b'"',
    b"1e999", b"[1e999]", b"[12345678901234567890123]", b"-", b"tru",
])  # fmt: skip
def test_text_that_is_no_text(server, prompt):
    for path, start in (("/v1/completions", b'{"prompt":'), ("/v1/chat/completions", b'{"messages":[{"role":"user","content":')):
        reply = server.post(path, start + prompt + (b"}]}" if b"chat" in path.encode() else b"}"))
        assert reply.status == 400 and reply.error()["message"], reply.body


def test_json_of_too_many_values(server):
    """A few bytes of JSON take a hundred times as many of memory: {},{},{} would fill it."""
    before = server.memory()
    for value, n in ((b"{}", 600000), (b"[]", 600000), (b"0", 5000000)):
        reply = server.post("/v1/completions", b'{"prompt":"Hi","max_tokens":1,"x":[' + value + (b"," + value) * n + b"]}")
        assert reply.status == 413 and "too many values" in reply.error()["message"], reply.body
    assert server.memory() - before < 100 << 20
    in_text = b'{"prompt":"Hi","max_tokens":1,"x":"' + b"{}," * 2000000 + b'"}'
    assert server.post("/v1/completions", in_text).status == 200
    ids = b'{"max_tokens":1,"prompt":[' + b"1," * 1000000 + b"1]}"
    assert "context" in server.post("/v1/completions", ids).error()["message"]


def test_odd_text_is_answered(server):
    for prompt in ("\U0001f600", "\u0301" * 30, "\u202e", "\ufffe", "<|im_end|>", "a\r\nb", "\x7f"):
        assert json.dumps(server.complete(prompt, max_tokens=2))


def test_odd_names_of_fields_are_ignored(server):
    for name in ("", " ", "max_tokens ", "a" * 100000, "\u0001", "prompt suffix"):
        assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1, name: 1}).status == 200


def test_a_key_twice_and_large_numbers(server):
    assert server.post("/v1/completions", b'{"prompt":"a","prompt":"Hi","max_tokens":1,"seed":9223372036854775807}').status == 200
    assert server.post("/v1/completions", b'{"prompt":"Hi","max_tokens":1,"seed":9223372036854775808}').status == 400


def test_slow_clients_are_cut_off_and_do_not_disturb(start):
    server = start("models/demo", "--receive-timeout", 1)
    slow = [server.socket() for _ in range(3)]
    slow[0].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: ")
    slow[1].sendall(request(b"{", "Content-Length: 1000"))
    began, ended = time.monotonic(), set()
    while len(ended) < 3:
        assert time.monotonic() - began < 60
        for i, client in enumerate(slow[:2]):
            with contextlib.suppress(ConnectionError):
                client.sendall(b" ")  # a byte now and then keeps no connection
        for i, client in enumerate(slow):
            client.settimeout(0.05)
            with contextlib.suppress(TimeoutError, ConnectionError):
                if client.recv(1000):
                    continue
                ended.add(i)
                continue
            with contextlib.suppress(TimeoutError):
                try:
                    client.sendall(b"")
                    client.recv(1)
                except ConnectionError:
                    ended.add(i)
        healthy(server)
    for client in slow:
        client.close()


def test_a_client_that_reads_nothing_costs_no_memory_and_is_cut_off(start, endless_model):
    server = start(endless_model, "--receive-timeout", 2)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((server.host, server.port))
    body = json.dumps({"prompt": "Once", "stream": True, "ignore_eos": True, "max_tokens": 10000, "logprobs": 20}).encode()
    client.sendall(request(body, f"Content-Length: {len(body)}"))
    wait_until(lambda: server.metric("num_requests_running") == 1, "the request")
    server.wait_until_idle()
    assert server.metric("generation_tokens_total") < 10000, "it was cut off"
    assert server.memory() < 200e6
    client.close()


def test_a_thousand_slow_connections_leave_others_alone(server):
    slow = [server.socket() for _ in range(1000)]
    for i, client in enumerate(slow):
        client.sendall(request(b"{", "Content-Length: 1000") if i % 2 else b"POST /v1/completions HTTP/1.1\r\nHo")
    times = []
    for _ in range(20):
        began = time.monotonic()
        healthy(server)
        times.append(time.monotonic() - began)
    for client in slow:
        client.close()
    assert sorted(times)[-2] < 5, times
    wait_until(lambda: server.n_files() < 100, "closed connections")


def test_nothing_was_left_behind(server):
    server.wait_until_idle()
    assert server.get("/load").json() == {"server_load": 0}
