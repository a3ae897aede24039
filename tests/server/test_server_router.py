"""vLLM's router (PyPI's vllm-router) in front of two servers: what it asks of the servers behind it, they answer."""

import http.client
import importlib.util
import json
import pathlib
import socket
import subprocess
import sys

import pytest
from server_support import DEMO, LIMIT, Reply, Server, events_of, wait_until

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm_router") is None, reason="vllm-router is not installed")

NAME = ("--served-model-name", "demo")
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "What is 7 + 8?"}], "temperature": 0}


def free_ports(n):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Router:
    def __init__(self, servers, log):
        self.port, metrics_port = free_ports(2)
        self.log = log
        program = pathlib.Path(sys.executable).with_name("vllm-router")
        urls = [f"http://{server.host}:{server.port}" for server in servers]
        options = ["--host", "127.0.0.1", "--port", self.port, "--prometheus-port", metrics_port, "--policy", "round_robin",
                   "--worker-startup-check-interval", 1, "--health-check-interval-secs", 1, "--health-success-threshold", 1,
                   "--cb-timeout-duration-secs", 1, "--worker-urls", *urls]  # fmt: skip
        with log.open("wb") as out:
            self.process = subprocess.Popen([str(program), *map(str, options)], stdout=out, stderr=subprocess.STDOUT)
        wait_until(lambda: self.process.poll() is not None or self.health() == 200, "the router")
        assert self.process.poll() is None, log.read_text()

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        connection.request(method, path, body and json.dumps(body).encode(), {"Content-Type": "application/json"})
        reply = Reply(connection.getresponse())
        connection.close()
        return reply

    def health(self):
        """Status of the router's health, which is that of all servers together; None: it does not listen yet."""
        try:
            return self.request("GET", "/health").status
        except ConnectionError:
            return None

    def answer(self):
        reply = self.request("POST", "/v1/chat/completions", CHAT)
        assert reply.status == 200, (reply.status, reply.body, self.log.read_text())
        return reply.json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """[two servers], the router. A test may end and replace a server if it leaves two."""
    servers = [Server(DEMO, *NAME) for _ in range(2)]
    router = Router(servers, tmp_path_factory.mktemp("router") / "log")
    yield servers, router
    router.process.terminate()
    router.process.wait(LIMIT)
    for server in servers:
        server.close()


def test_chat_streaming_and_errors(routed):
    servers, router = routed
    before = [server.metric("request_success_total") for server in servers]
    assert {router.answer() for _ in range(4)} == {"7 + 8 = 15."}
    assert all(server.metric("request_success_total") > n for server, n in zip(servers, before)), "a server got no request"
    reply = router.request("POST", "/v1/chat/completions", {**CHAT, "stream": True})
    events = events_of(reply.body)
    assert reply.headers["Content-Type"] == "text/event-stream" and events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == "7 + 8 = 15."
    reply = router.request("POST", "/v1/completions", {"model": "demo", "prompt": "Once", "max_tokens": 5, "temperature": 0})
    assert reply.json()["usage"]["completion_tokens"] == 5
    assert router.request("GET", "/v1/models").json()["data"][0]["id"] == "demo"
    reply = router.request("POST", "/v1/chat/completions", {**CHAT, "temperature": -1})
    assert reply.status == 400 and reply.error()["param"] == "temperature"


def test_a_server_that_dies_and_comes_back(routed):
    """Its requests go to the other one; on the same port it gets requests again."""
    servers, router = routed
    port = servers[1].port
    servers[1].close()
    for _ in range(6):
        assert router.answer() == "7 + 8 = 15."
    wait_until(lambda: router.health() == 503, "the router's notice")
    servers[1] = Server(DEMO, *NAME, "--port", port)
    assert servers[1].port == port
    wait_until(lambda: router.health() == 200, "the router's notice")

    def is_back():
        assert router.answer() == "7 + 8 = 15."
        return servers[1].metric("request_success_total") > 0

    wait_until(is_back, "a request for the server that came back")
