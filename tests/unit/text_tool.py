"""Talks to text_tool (tests/tools/text_tool.c): the tokenizer and the chat templates, without the engine."""
import json
import os
import subprocess

BINARY = os.environ.get("MOEBIUS_TEXT_TOOL", "build/cpu/tests/text_tool")


class TextTool:
    def __init__(self):
        self.process = subprocess.Popen([BINARY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0

    def ask(self, words, payload):
        if isinstance(payload, str):
            payload = payload.encode("utf-8")
        self.process.stdin.write(f"{words} {len(payload)}\n".encode() + payload)
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def open(self, tokenizer_json, vocab=1 << 20):
        assert self.ask(f"open {vocab}", tokenizer_json) == {}

    def encode(self, text, parse_special=True):
        answer = self.ask(f"encode {int(parse_special)}", text)
        assert "ids" in answer, answer
        return answer["ids"]

    def decode(self, ids, skip_special=False, one_by_one=True):
        return self.ask(f"decode {int(skip_special)} {int(one_by_one)}", " ".join(map(str, ids)))["text"]

    def render(self, name, messages, tools=None, prompt=True, thinking=True):
        tools = b"" if tools is None else json.dumps(tools).encode()
        n_tools = len(tools) if tools else -1
        return self.ask(f"render {name} {int(prompt)} {int(thinking)} {n_tools}", tools + json.dumps(messages).encode())
