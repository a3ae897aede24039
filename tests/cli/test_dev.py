"""./dev, the script that a person runs: what it prints, and where it takes its tools from."""

import os
import pty
import re
import subprocess

import pytest

from cli_support import ROOT

TEXT = (ROOT / "dev").read_text()


def test_usage():
    """Every command of the script is in its help; an unknown one is refused with the help."""
    usage = subprocess.run([ROOT / "dev", "help"], capture_output=True, text=True)
    assert usage.returncode == 0 and usage.stderr == ""
    commands = set(re.findall(r"^([a-z-]+)\)$", TEXT, re.M))
    assert len(commands) > 8 and commands == set(re.findall(r"^  ([a-z-]+) ", usage.stdout, re.M))
    wrong = subprocess.run([ROOT / "dev", "frobnicate"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", usage.stdout)


def said(environment, on_terminal):
    """What say() writes to stderr, which is a terminal or a pipe."""
    script = TEXT[TEXT.index("bold=") : TEXT.index("\n", TEXT.index("say()"))] + "\nsay hello"
    reader, writer = pty.openpty() if on_terminal else os.pipe()
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run(["bash", "-c", script], stderr=writer, env={**clean, **environment}, check=True)
    os.close(writer)
    output = os.read(reader, 1000)
    os.close(reader)
    return output.decode().strip()


@pytest.mark.parametrize("environment, on_terminal, colours", [
    ({"TERM": "xterm"}, True, True), ({"TERM": "xterm"}, False, False), ({"TERM": "dumb"}, True, False),
    ({"TERM": "xterm", "NO_COLOR": "1"}, True, False), ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
])  # fmt: skip
def test_colours_on_a_terminal_only(environment, on_terminal, colours):
    assert said(environment, on_terminal) == ("\033[1m== hello\033[0m" if colours else "== hello")


def test_clang_format_is_pinned():
    """The same version on every system, so not the distribution's."""
    assert re.fullmatch(r"clang-format==\d+\.\d+\.\d+\n", (ROOT / "tools/requirements.txt").read_text())
    assert "clang-format-" not in TEXT
