"""Talks to grammar_tool (tests/tools/grammar_tool.c): grammars without the engine."""
import json
import os
import subprocess

BINARY = os.environ.get("MOEBIUS_GRAMMAR_TOOL", "build/cpu/tests/grammar_tool")


class GrammarTool:
    def __init__(self):
        self.process = subprocess.Popen([BINARY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0

    def ask(self, kind, text, check=(), samples=0, seed=0):
        request = {"kind": kind, "text": text, "check": list(check), "samples": samples, "seed": seed}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def schema(self, schema, **more):
        return self.ask("json_schema", json.dumps(schema), **more)
