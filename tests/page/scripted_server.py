"""A server whose answers a test writes beforehand: what no small model says on demand (tool calls, hostile markdown,
errors, pauses)."""

import http.server
import json
import os
import pathlib
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("MOEBIUS_BIN", ROOT / "build/cpu/moebius")).resolve()


class ScriptedServer:
    """`answer` has the next answers. Each is (status, body), or a list of deltas, texts, raw bytes, pauses in seconds,
    threading.Events (waited for) and RuntimeError (the connection ends). `requests` has the bodies that came, `gone` counts
    the clients that left early."""

    def __init__(self):
        folder = BINARY.parent / "page"
        self.html, self.policy = (folder / "page.html").read_bytes(), (folder / "page.csp").read_text()
        self.answer, self.requests, self.gone, self.key = [], [], 0, None
        self.models, self.closed = ["demo"], False
        self.models_known = threading.Event()  # until then the list of models does not come
        self.models_known.set()
        self.counters = {"generation_tokens_total": 0, "prompt_tokens_total": 0, "prefix_cache_queries_total": 0,
                         "prefix_cache_hits_total": 0, "time_to_first_token_seconds_sum": 0,
                         "time_to_first_token_seconds_count": 0, "inter_token_latency_seconds_sum": 0,
                         "inter_token_latency_seconds_count": 0, "num_requests_running": 0, "num_requests_waiting": 0,
                         "kv_cache_usage_perc": 0}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.get(self)

            def do_POST(self):
                outer.post(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        if not self.closed:
            self.closed = True
            self.server.shutdown()
            self.server.server_close()

    def wait(self, condition):
        """Waits until something holds for the server."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    def reply(self, handler, status, body, kind="application/json", **headers):
        data = body if isinstance(body, bytes) else (json.dumps(body) if not isinstance(body, str) else body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    def refused(self, handler):
        if self.key is None or handler.headers.get("Authorization") == f"Bearer {self.key}":
            return False
        self.reply(handler, 401, {"error": {"message": "Unauthorized", "type": "authentication_error"}})
        return True

    def get(self, handler):
        if self.closed:
            handler.close_connection = True
        elif handler.path == "/":
            self.reply(handler, 200, self.html, "text/html; charset=utf-8", Content_Security_Policy=self.policy)
        elif self.refused(handler):
            return
        elif handler.path == "/v1/models":
            self.models_known.wait(60)
            self.reply(handler, 200, {"object": "list", "data": [{"id": m, "object": "model"} for m in self.models]})
        elif handler.path == "/metrics" and self.counters:
            text = "".join(f'vllm:{k}{{model_name="demo",engine="0"}} {v}\n' for k, v in self.counters.items())
            self.reply(handler, 200, "# a comment\n" + text, "text/plain; version=0.0.4")
        else:
            self.reply(handler, 404, {"error": {"message": f"no {handler.path}"}})

    def post(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        if self.closed or self.refused(handler):
            handler.close_connection = self.closed
            return
        self.requests.append(body)
        script = self.answer.pop(0) if self.answer else ["I have nothing to say."]
        if isinstance(script, tuple):
            self.reply(handler, *script)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            self.stream(handler.wfile, script)
        except OSError:
            self.gone += 1

    def stream(self, out, script):
        n = 0
        reason = "stop"
        for part in script:
            if isinstance(part, float):
                time.sleep(part)
            elif isinstance(part, threading.Event):
                while not part.wait(0.02):
                    out.write(b": still here\n\n")
                    out.flush()
            elif isinstance(part, bytes):  # raw, to cut events and characters anywhere
                out.write(part)
                out.flush()
            elif part is RuntimeError:
                return
            else:
                delta = {"content": part} if isinstance(part, str) else part
                reason = "tool_calls" if "tool_calls" in delta else reason
                n += 1
                self.event(out, {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        self.event(out, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {"prompt_tokens": 80, "completion_tokens": n, "prompt_tokens_details": {"cached_tokens": 64}}
        self.event(out, {"choices": [], "usage": usage})
        out.write(b"data: [DONE]\n\n")

    def event(self, out, chunk):
        out.write(b"data: " + json.dumps({"object": "chat.completion.chunk", **chunk}).encode() + b"\n\n")
        out.flush()
