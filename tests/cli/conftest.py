"""Fixtures: the moebius binary as a plain process and on a terminal, and models for it."""

import json
import shutil
import subprocess

import pytest
from cli_support import BINARY, DEMO, GOLDEN, ROOT, TIMEOUT, Terminal, write_checkpoint


@pytest.fixture
def moebius():
    """moebius("run", DIR, ...) -> the finished process; input may be str or bytes, output is bytes."""

    def call(*arguments, input=None, **options):
        if isinstance(input, str):
            input = input.encode()
        if input is None:
            options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("cwd", ROOT)
        return subprocess.run(
            [BINARY, *map(str, arguments)], input=input, stderr=subprocess.PIPE, timeout=TIMEOUT, **options
        )

    return call


@pytest.fixture
def terminal():
    opened = []

    def start(*arguments, **options):
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory):
    """Random weights behind the demo's tokenizer: it babbles for as long as one likes, with --ignore-eos."""
    vocab = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    directory = write_checkpoint(tmp_path_factory.mktemp("models") / "endless", vocab, 200000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory)
    if (DEMO / "chat_template.jinja").exists():
        shutil.copy(DEMO / "chat_template.jinja", directory)
    return directory


@pytest.fixture(scope="session")
def golden_model():
    return GOLDEN / "plain_f32"
