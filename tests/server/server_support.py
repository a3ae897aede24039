"""A moebius server as a process, and clients for it: plain sockets and http.client, so that every byte is ours."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("MOEBIUS_BIN", ROOT / "build/cpu/moebius")).resolve()
DEMO = ROOT / "models/demo"
LIMIT = 60  # seconds; no wait is longer


def wait_until(holds, what="the condition"):
    """Until holds() is true; answers its value."""
    end = time.monotonic() + LIMIT
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come true"
        time.sleep(0.01)


class Reply:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    def error(self):
        return self.json()["error"]


def events_of(body):
    """The data of each server-sent event."""
    return [line[6:] for line in body.decode().split("\n\n") if line.startswith("data: ")]


class Server:
    def __init__(self, directory=DEMO, *options, environment=None):
        self.key = None
        command = [str(BINARY), "serve", str(directory), "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, **(environment or {})}
        )
        self.messages = b""
        self._reader = threading.Thread(target=self._read_messages, daemon=True)
        self._reader.start()
        ready, _, _ = select.select([self.process.stdout], [], [], LIMIT)
        line = self.process.stdout.readline().decode() if ready else ""
        match = re.search(r"on http://(\S+):(\d+)", line)
        assert match, (line, self.messages)
        self.host, self.port = match[1].strip("[]"), int(match[2])

    def _read_messages(self):
        for line in self.process.stderr:
            self.messages += line

    # -- Requests

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=LIMIT)

    def _headers(self, headers):
        return {**({"Authorization": f"Bearer {self.key}"} if self.key else {}), **(headers or {})}

    def request(self, method, path, body=None, headers=None):
        with contextlib.closing(self.connect()) as connection:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(method, path, body, self._headers(headers))
            return Reply(connection.getresponse())

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, body, headers=None):
        return self.request("POST", path, body, headers)

    def chat(self, text="What is 7 + 8?", **fields):
        """The answer to one message, which must succeed."""
        reply = self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields})
        assert reply.status == 200, reply.body
        return reply.json()

    def complete(self, prompt="Once", **fields):
        reply = self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})
        assert reply.status == 200, reply.body
        return reply.json()

    def stream(self, path, body):
        """The chunks of a stream that ends with [DONE]."""
        reply = self.post(path, {**body, "stream": True})
        assert reply.status == 200, reply.body
        assert reply.headers["Content-Type"] == "text/event-stream"
        events = events_of(reply.body)
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    def open_stream(self, path="/v1/completions", **fields):
        """A connection on which an answer streams, read up to its first bytes of body."""
        client = self.send(path, {"prompt": "Once", "stream": True, "ignore_eos": True, **fields})
        data = b""
        while b"data: " not in data:
            piece = client.recv(65536)
            assert piece, data
            data += piece
        return client

    def send(self, path, body, method="POST"):
        """A socket on which a request was sent; nothing is read."""
        payload = json.dumps(body).encode()
        client = self.socket()
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{key}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        return client

    def socket(self):
        return socket.create_connection((self.host, self.port), timeout=LIMIT)

    def raw(self, data):
        """Sends bytes and reads to the end of the connection, or as long as the server keeps it open and silent."""
        with contextlib.closing(self.socket()) as client:
            answer = b""
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
            client.settimeout(5)
            with contextlib.suppress(ConnectionError, TimeoutError):
                while piece := client.recv(65536):
                    answer += piece
                    if re.search(rb"^HTTP/1.1 \d+ .*?Content-Length: (\d+)\r\n.*?\r\n\r\n", answer, re.S | re.I):
                        head, _, body = answer.partition(b"\r\n\r\n")
                        length = int(re.search(rb"Content-Length: (\d+)", head, re.I)[1])
                        if len(body) >= length:
                            break
            return answer

    # -- State

    def metrics(self):
        text = self.get("/metrics").body.decode()
        values = {}
        for line in text.splitlines():
            match = re.match(r"vllm:(\w+)\{(.*)\} (\S+)$", line)
            if match:
                values.setdefault(match[1], {})[match[2]] = float(match[3])
        return values

    def metric(self, name):
        return sum(self.metrics()[name].values())

    def is_idle(self):
        values = self.metrics()
        single = {name: sum(values[name].values()) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")}
        return not any(single.values())

    def wait_until_idle(self):
        wait_until(self.is_idle, "idle server")

    def memory(self):
        """Bytes of memory that belong to the process alone."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"RssAnon:\s*(\d+)", status)[1])

    def n_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def files(self):
        """What each open file is, as far as the system tells: a file may be closed while this reads."""
        found = {}
        for number in os.listdir(f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(OSError):
                found[number] = os.readlink(f"/proc/{self.process.pid}/fd/{number}")
        return found

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        status = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self._reader.join(LIMIT)
        self.process.stderr.close()
        assert b"Sanitizer" not in self.messages and b"runtime error" not in self.messages, self.messages.decode()
