"""Talks to text_tool (tests/tools/text_tool.c): the tokenizer and the chat templates, without the engine."""
import itertools
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

    def try_open(self, tokenizer_json, vocab=1 << 20, config=None, added=None):
        """The answer to opening; config and added are the other two files, or None."""
        parts = [None if part is None else json.dumps(part).encode() for part in (config, added)]
        sizes = " ".join(str(-1 if part is None else len(part)) for part in parts)
        if isinstance(tokenizer_json, str):
            tokenizer_json = tokenizer_json.encode("utf-8")
        return self.ask(f"open {vocab} {sizes}", b"".join(part or b"" for part in parts) + tokenizer_json)

    def open(self, tokenizer_json, **more):
        answer = self.try_open(tokenizer_json, **more)
        assert answer == {}, answer

    def encode(self, text, parse_special=True):
        answer = self.ask(f"encode {int(parse_special)}", text)
        assert "ids" in answer, answer
        return answer["ids"]

    def pieces(self, pattern, text):
        """The pieces that the pattern cuts the text into; a dictionary with the error when the pattern is refused."""
        pattern, text = pattern.encode(), text.encode()
        answer = self.ask(f"pieces {len(pattern)}", pattern + text)
        if "pieces" not in answer:
            return answer
        ends = list(itertools.accumulate(answer["pieces"]))
        return [text[start:end].decode() for start, end in zip([0] + ends, ends)]

    def decode(self, ids, skip_special=False, one_by_one=True):
        return self.ask(f"decode {int(skip_special)} {int(one_by_one)}", " ".join(map(str, ids)))["text"]

    def builtin(self, name):
        """The text of a template that is compiled in."""
        return self.ask(f"builtin {name}", "")["text"]

    def template(self, source, config=None):
        """Opens a template (None: the one in the tokenizer_config.json `config`); the answer."""
        config = b"" if config is None else json.dumps(config).encode()
        return self.ask(f"template {len(config) or -1}", config + (source or "").encode())

    def render(self, messages, tools=None, prompt=True, thinking=True, kwargs=None):
        """With the template opened last. thinking None: not given."""
        parts = [b"" if part is None else json.dumps(part).encode() for part in (tools, kwargs)]
        sizes = " ".join(str(len(part) or -1) for part in parts)
        thinking = -1 if thinking is None else int(thinking)
        return self.ask(f"render {int(prompt)} {thinking} {sizes}", b"".join(parts) + json.dumps(messages).encode())

    def jinja(self, source, variables):
        variables = json.dumps(variables).encode()
        return self.ask(f"jinja {len(variables)}", variables + source.encode("utf-8", "surrogatepass"))
