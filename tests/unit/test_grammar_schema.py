"""JSON schemas as grammars, against the jsonschema package and the public JSON-Schema-Test-Suite that its source
distribution carries: whatever a grammar lets through is valid, and what is valid and written as we write is let
through."""
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import jsonschema
import pytest
import random_schemas
from grammar_tool import GrammarTool

VERSION = "4.25.1"
SUITE = f"jsonschema-{VERSION}/json/tests/draft2020-12/"


@pytest.fixture(scope="module")
def tool():
    tool = GrammarTool()
    yield tool
    tool.close()


@pytest.fixture(scope="module")
def suite():
    """The suite's groups, from PyPI; kept in the user's cache directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moebius-tests"
    archive = cache / f"jsonschema-{VERSION}.tar.gz"
    if not archive.exists():
        done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps",
                               "--no-binary", "jsonschema", "-d", cache, f"jsonschema=={VERSION}"], capture_output=True)
        if not archive.exists():
            pytest.skip(f"jsonschema's source distribution cannot be fetched: {done.stderr.decode()[-200:]}")
    groups = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = member.name.removeprefix(SUITE)
            if member.isfile() and member.name.startswith(SUITE) and name.endswith(".json") and "/" not in name:
                groups += [(name, group) for group in json.load(tar.extractfile(member))]
    assert len(groups) > 250
    return groups


def check_samples(schema, samples):
    validator = jsonschema.Draft202012Validator(schema)
    for sample in samples:
        error = jsonschema.exceptions.best_match(validator.iter_errors(json.loads(sample)))
        assert error is None, f"{json.dumps(schema)}\nmakes {sample}\n{error.message}"


def test_public_suite(tool, suite):
    n_refused = n_checked = n_valid = n_let_through = 0
    for name, group in suite:
        schema, tests = group["schema"], group["tests"]
        texts = [json.dumps(test["data"], ensure_ascii=False, separators=(",", ":")) for test in tests]
        answer = tool.schema(schema, check=texts, samples=3, seed=n_checked)
        if "error" in answer:
            assert answer["status"] in ("MB_ERR_UNSUPPORTED", "MB_ERR_FORMAT"), (name, answer)
            n_refused += 1
            continue
        for test, text, accepted in zip(tests, texts, answer["accepts"]):
            assert test["valid"] or not accepted, f"{name}: {json.dumps(schema)}\nlets {text} through"
            n_valid += test["valid"]
            n_let_through += test["valid"] and accepted
            n_checked += 1
        if name != "ref.json" or "$id" not in json.dumps(schema):
            check_samples(schema, answer["samples"])
    print(n_refused, n_checked, n_valid, n_let_through)


def test_random_schemas(tool):
    n_samples = n_cut = 0
    for seed in range(500):
        schema = random_schemas.schema(seed)
        answer = tool.schema(schema, samples=4, seed=seed)
        assert "error" not in answer, (schema, answer)
        check_samples(schema, answer["samples"])
        n_samples += len(answer["samples"])
        n_cut += answer["cut"]
    assert n_samples > 1500, (n_samples, n_cut)
