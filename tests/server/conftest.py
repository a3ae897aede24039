"""Fixtures: one server that most tests share, and servers of one's own."""

import pathlib
import shutil
import sys

import pytest
from server_support import DEMO, Server

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
from cli_support import write_checkpoint  # noqa: E402


@pytest.fixture(scope="session")
def server():
    """The demo model. Tests that use it leave it idle."""
    one = Server(DEMO, "--max-num-seqs", 16, "--served-model-name", "demo", "--served-model-name", "alias")
    yield one
    assert one.process.poll() is None, one.messages
    one.close()


@pytest.fixture
def start():
    """start(directory, options, ...) -> a server that ends with the test."""
    opened = []

    def call(*arguments, **options):
        opened.append(Server(*arguments, **options))
        return opened[-1]

    yield call
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory):
    """Random weights behind the demo's tokenizer: with ignore_eos its answers are as long as one likes."""
    directory = write_checkpoint(tmp_path_factory.mktemp("models") / "endless", 640, 100000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory)
    return directory


@pytest.fixture(scope="module")
def start_for_module():
    """As start, for servers that a module's tests share."""
    opened = []

    def call(*arguments, **options):
        opened.append(Server(*arguments, **options))
        return opened[-1]

    yield call
    for one in opened:
        one.close()
