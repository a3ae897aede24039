"""The demo model at temperature 2 under 500 random schemas: every answer that was not cut off is valid."""
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
import random_schemas  # noqa: E402

BINARY = os.environ.get("MOEBIUS_GRAMMAR_ANSWERS", "build/cpu/tests/grammar_answers")


def test_answers_are_valid():
    schemas = [random_schemas.schema(seed, depth=2) for seed in range(500)]
    done = subprocess.run([BINARY, "models/demo"], input="".join(json.dumps(s) + "\n" for s in schemas), text=True,
                          capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(schemas)
    for schema, answer in zip(schemas, answers):
        if answer["state"] == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(answer["text"]))
    states = Counter(answer["state"] for answer in answers)
    assert set(states) <= {"stop", "length"} and states["stop"] >= 300, states
