"""Many clients, and clients that leave."""

import concurrent.futures
import contextlib
import random
import socket
import struct
import time

import pytest
from server_support import wait_until


def leave(client):
    """Ends a connection as a program that crashes does: with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.fixture(scope="module")
def endless(endless_model):
    """Two sequences run at a time, two requests wait: easy to fill."""
    from server_support import Server

    server = Server(endless_model, "--max-num-seqs", 2, "--max-queue", 2)
    yield server
    assert server.process.poll() is None, server.messages
    server.close()


LONG = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True}


@pytest.mark.parametrize("end", [leave, socket.socket.close, lambda client: client.shutdown(socket.SHUT_WR)], ids=["reset", "close", "half"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(endless, end, stream):
    client = endless.send("/v1/completions", {**LONG, "stream": stream})
    wait_until(lambda: endless.metric("num_requests_running") == 1, "a running request")
    generated = endless.metric("generation_tokens_total")
    end(client)
    endless.wait_until_idle()
    assert endless.metric("generation_tokens_total") < generated + 4000, "it went on without a client"
    client.close()


def test_clients_that_leave_while_they_wait_or_in_prefill(endless):
    running = [endless.send("/v1/completions", LONG) for _ in range(2)]
    wait_until(lambda: endless.metric("num_requests_running") == 2, "running requests")
    waiting = [endless.send("/v1/completions", {**LONG, "stream": bool(i)}) for i in range(2)]
    wait_until(lambda: endless.metric("num_requests_waiting") == 2, "waiting requests")
    leave(waiting[0])
    waiting[1].close()
    wait_until(lambda: endless.metric("num_requests_waiting") == 0, "an empty queue")
    assert endless.metric("num_requests_running") == 2
    for client in running:
        leave(client)
    endless.wait_until_idle()
    prefill = endless.send("/v1/completions", {"prompt": [i % 600 for i in range(12000)], "max_tokens": 1000, "ignore_eos": True})
    wait_until(lambda: endless.metric("num_requests_running") == 1, "a prefill")
    leave(prefill)
    endless.wait_until_idle()
    assert endless.get("/load").json() == {"server_load": 0}


def test_past_the_queue_requests_are_refused_at_once(endless):
    clients = [endless.send("/v1/completions", LONG) for _ in range(4)]
    wait_until(lambda: endless.get("/load").json()["server_load"] == 4, "a full queue")
    times = []
    for _ in range(20):
        began = time.monotonic()
        reply = endless.post("/v1/completions", {"prompt": "Hi"})
        times.append(time.monotonic() - began)
        assert reply.status == 503 and int(reply.headers["Retry-After"]) >= 1
        assert reply.error()["type"] == "ServiceUnavailableError"
    assert sorted(times)[0] < 0.5, times  # 50 ms on a machine of its own
    for client in clients:
        client.close()
    endless.wait_until_idle()


def test_random_disconnects_leave_nothing_behind_and_disturb_nobody(start, endless_model):
    """Clients leave at any moment, by a reset or a close, streaming or not; one honest client sees nothing of it."""
    server = start(endless_model, "--max-num-seqs", 8, "--max-queue", 64)
    honest = {"prompt": "Once upon", "max_tokens": 200, "ignore_eos": True, "seed": 1, "temperature": 1}
    wanted = server.complete(**honest)["choices"][0]["text"]
    seeds = random.Random(3)

    def visit(seed):
        chance = random.Random(seed)
        body = {"prompt": [chance.randrange(600) for _ in range(chance.choice([3, 70, 700]))], "max_tokens": chance.choice([5, 50, 500]),
                "ignore_eos": True, "stream": chance.random() < 0.5, "n": chance.choice([1, 1, 1, 3])}  # fmt: skip
        with contextlib.suppress(ConnectionError, TimeoutError):
            client = server.send("/v1/completions", body)
            client.settimeout(chance.choice([0.001, 0.005, 0.02, 0.1]))
            with contextlib.suppress(TimeoutError):
                client.recv(chance.choice([1, 300]))
            chance.choice([leave, socket.socket.close])(client)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        visits = [pool.submit(visit, seeds.random()) for _ in range(500)]
        same = [pool.submit(server.complete, **honest) for _ in range(4)]
        for visit_ in visits:
            visit_.result()
        assert all(one.result()["choices"][0]["text"] == wanted for one in same)
    server.wait_until_idle()
    assert server.get("/load").json() == {"server_load": 0}
    wait_until(lambda: server.n_files() < 40, "closed connections")


def test_clients_that_leave_before_their_request_is_whole_are_let_go(start):
    """Their connections close soon, although the server would wait an hour for the rest."""
    server = start("models/demo", "--receive-timeout", 3600)
    files = server.n_files()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    for part in (b"", b"POST /v1/", head, head + 50000 * b" ") * 25:
        with contextlib.closing(server.socket()) as client:
            client.sendall(part)
    wait_until(lambda: server.n_files() <= files, "closed connections")


def test_ten_times_the_load_leaves_memory_and_files_flat(start):
    """Each of 64 clients sends a request as soon as the one before is answered, for a few seconds and then for some more."""
    server = start("models/demo", "--max-num-seqs", 4, "--max-queue", 4, "--kv-tokens", 1024)  # its pages are touched once

    def press(seconds):
        counts = {200: 0, 503: 0}

        def client(i):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                fields = {"prompt": f"What is {i} + 8?", "max_tokens": 12, "stream": i % 2 == 0, "ignore_eos": True}
                counts[server.post("/v1/completions", fields).status] += 1

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            for job in [pool.submit(client, i) for i in range(64)]:
                job.result()
        return counts

    press(2)
    server.wait_until_idle()
    memory, files = server.memory(), server.n_files()
    counts = press(6)
    server.wait_until_idle()
    assert counts[200] > 10 and counts[503] > 10, counts
    assert server.memory() < memory + 16e6
    wait_until(lambda: server.n_files() <= files + 2, "closed connections")
