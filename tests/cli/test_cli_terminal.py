"""What a person sees: run and chat on a pseudo-terminal."""

import os
import re
import signal
import time

import pytest

from cli_support import token_id

BABBLE = ["--ignore-eos", "--temperature", "1", "--seed", "5"]


def test_ctrl_c_ends_run(terminal, endless_model):
    run = terminal("run", endless_model, "-p", "Tell a story", "-n", 100000, *BABBLE)
    run.expect(r"\S.{60}")
    run.send("\x03")
    assert run.wait() == 130
    assert re.search(r"\r\n\033\[2m\d+ prompt tokens, \d+ generated tokens, .*, interrupted\033\[0m\r\n$", run.output)


def test_chat_conversation(terminal, endless_model):
    """History is sent along, /reset forgets it, Ctrl-D leaves."""
    chat = terminal("chat", endless_model, "-n", 8, *BABBLE)
    figures = r"(\d+) prompt tokens, 8 generated tokens"
    counts, at = [], chat.expect("> ")
    for line in ("one two three", "one two three", "/reset", "one two three"):
        chat.type(line + "\r")
        if line.startswith("/"):
            at = chat.expect("A new conversation", at)
        else:
            end = chat.expect(figures, at)
            counts.append(int(re.search(figures, chat.output[at:end]).group(1)))
            at = end
        at = chat.expect("> ", at)
    assert counts[1] > counts[0] == counts[2]
    chat.type("\x04")
    assert chat.wait() == 0


def test_chat_commands(terminal, endless_model):
    chat = terminal("chat", endless_model, "-n", 4, *BABBLE)
    at = chat.expect("/help lists the commands")
    for command, answer in [
        ("/help", r"/system +set the system message"),
        ("/think", "Thinking is on"),
        ("/nothink", "Thinking is off"),
        ("/system Be brief.", "system message is set"),
        ("/system", "no system message now"),
        ("/reset", "A new conversation"),
        ("/rset", r"/rset is no command and goes to the model\. Did you mean /reset\?"),
        ("", "> "),
    ]:
        at = chat.expect("> ", at)
        chat.type(command + "\r")
        at = chat.expect(answer, at)
    chat.type("/exit\r")
    assert chat.wait() == 0


def test_system_message_and_thinking_change_the_prompt(terminal, endless_model):
    chat = terminal("chat", endless_model, "-n", 1, *BABBLE)
    counts, at = [], chat.expect("> ")
    for line in ("hello", "/reset", "/nothink", "hello", "/reset", "/system Be brief.", "hello"):
        chat.type(line + "\r")
        if line == "hello":
            end = chat.expect(r"\d+ prompt tokens", at)
            counts.append(int(re.search(r"(\d+) prompt tokens", chat.output[at:end]).group(1)))
            at = end
        at = chat.expect("> ", at)
    assert counts[0] < counts[1] < counts[2]


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, endless_model):
    chat = terminal("chat", endless_model, "-n", 100000, *BABBLE)
    at = chat.expect("> ")
    for _ in range(2):
        chat.type("Tell a story\r")
        at = chat.expect(r"\S.{60}", chat.expect("story\r\n", at))
        chat.send("\x03")
        at = chat.expect("interrupted", at)
        at = chat.expect("> ", at)
    chat.type("/help\r")
    at = chat.expect("Ctrl-C +stops an answer", at)
    chat.type("\x04")
    assert chat.wait() == 0


def test_ctrl_c_at_the_prompt_drops_the_line(terminal, endless_model):
    chat = terminal("chat", endless_model, "-n", 3, *BABBLE)
    at = chat.expect("> ")
    for _ in range(3):
        chat.type("half a que")
        at = chat.expect("que", at)
        chat.type("\x03")
        at = chat.expect("> ", at)
    chat.type("/think\r")
    chat.expect("Thinking is on", at)
    chat.type("\x04")
    assert chat.wait() == 0


def test_no_ctrl_c_between_two_reads_is_lost(terminal, endless_model):
    """Signals at any moment, also between the look at the mark and the wait for a key. One that was noticed too late
    would drop the question that is typed next."""
    chat = terminal("chat", endless_model, "-n", 3, *BABBLE)
    at = chat.expect("> ")
    for i in range(60):
        os.kill(chat.pid, signal.SIGINT)
        end = time.perf_counter() + 10e-6 * i
        while time.perf_counter() < end:
            pass
        os.kill(chat.pid, signal.SIGINT)
        chat.settle()
        chat.type("Tell a story\r")
        at = chat.expect("> ", chat.expect("3 generated tokens", at, timeout=5))
    chat.type("\x04")
    assert chat.wait() == 0


def test_ctrl_c_before_the_first_token(terminal, endless_model):
    """The question stays in the conversation, with an empty answer; nothing is reported as wrong."""
    chat = terminal("chat", endless_model, "-n", 10, *BABBLE)
    figures = r"(\d+) prompt tokens, (\d+) generated tokens"

    def ask(question, at):
        chat.type(question + "\r")
        at = chat.expect("\r\n", at)
        if len(question) > 100:
            chat.send("\x03")
        end = chat.expect("> ", chat.expect(figures, at))
        return end, *map(int, re.search(figures, chat.output[at:end]).groups())

    at = chat.expect("> ")
    for _ in range(20):  # a busy machine may bring Ctrl-C after the first token
        at, n_prompt, n_new = ask("a question of so many words " * 150, at)
        if n_new == 0:
            break
        chat.type("/reset\r")
        at = chat.expect("> ", chat.expect("A new conversation", at))
    assert n_new == 0
    at, n_next, n_new = ask("again", at)
    assert n_next > n_prompt and n_new == 10
    assert "UTF-8" not in chat.output


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}])
def test_no_faint_letters_where_nobody_wants_them(terminal, endless_model, environment):
    run = terminal("run", endless_model, "-p", "x", "-n", 20, *BABBLE, "--logit-bias", f"{token_id('<think>')}:100", environment=environment)
    assert run.wait() == 0
    assert "\033" not in run.output and "20 generated tokens" in run.output
    chat = terminal("chat", endless_model, "-n", 3, *BABBLE, environment=environment)
    at = chat.expect("> ")
    chat.send("/think\r")
    at = chat.expect(r"\[Thinking is on\.\]", at)
    assert "\033[2m" not in chat.output


def test_dumb_terminal(terminal, endless_model):
    """Plain lines with a prompt, and not one escape sequence; Ctrl-C and Ctrl-D do what they do elsewhere."""
    chat = terminal("chat", endless_model, "-n", 3, *BABBLE, environment={"TERM": "dumb"})
    at = chat.expect("> ")
    for line, answer in [("Tell a story\r", "3 generated tokens"), ("/nothink\r", "Thinking is off"), ("half\x03", r"\^C")]:
        chat.send(line)
        at = chat.expect("> ", chat.expect(answer, at))
    chat.send("/think\r")
    at = chat.expect("> ", chat.expect("Thinking is on", at))
    chat.send("\x04")
    assert chat.wait() == 0
    assert "\033" not in chat.output


def test_lines_can_be_edited_and_recalled(terminal, endless_model):
    chat = terminal("chat", endless_model, "-n", 3, *BABBLE)
    at = chat.expect("> ")
    chat.type("/nothinkx\x7f\r")  # backspace
    at = chat.expect("Thinking is off", at)
    at = chat.expect("> ", at)
    chat.type("/think\r")
    at = chat.expect("Thinking is on", at)
    at = chat.expect("> ", at)
    chat.type("\x1b[A\x1b[A\r")  # up, up: the line before the last
    at = chat.expect("Thinking is off", at)
    at = chat.expect("> ", at)
    chat.type("\x1b[A\x01x\x05y\x01\x04\x05\x7f\r")  # both ends changed and changed back
    chat.expect("Thinking is off", at)


def test_umlauts_can_be_typed(terminal, endless_model):
    chat = terminal("chat", endless_model, "-n", 1, *BABBLE)
    at = chat.expect("> ")
    chat.type("schön ☕ 日本\r")
    at = chat.expect("1 generated", at)
    assert "schön ☕ 日本" in chat.output
    assert "UTF-8" not in chat.output


def test_full_context_is_explained(terminal, endless_model):
    chat = terminal("chat", endless_model, "--kv-tokens", 128, *BABBLE)
    at = chat.expect("> ")
    chat.type("Tell a story\r")
    at = chat.expect(r"the context is full\. /reset starts a new conversation", at)
    at = chat.expect("> ", at)
    chat.type("Go on\r")
    at = chat.expect(r"no longer fits the context of 128; /reset starts a new one", at)
    at = chat.expect("> ", at)
    chat.type("/reset\r")
    at = chat.expect("> ", at)
    chat.type("Tell a story\r")
    chat.expect("the context is full", at)


def test_thinking_is_dimmed_on_a_terminal_only(terminal, moebius, endless_model):
    think = token_id("<think>")
    arguments = ["run", endless_model, "-p", "x", "-n", 2, "--greedy", "--ignore-eos", "--logit-bias", f"{think}:100"]
    run = terminal(*arguments)
    assert run.wait() == 0
    assert "\033[2m<think><think>\033[0m\r\n" in run.output
    assert moebius(*arguments).stdout == b"<think><think>\n"
    close = token_id("</think>")
    run = terminal("run", endless_model, "-p", "x", "-n", 20, *BABBLE, "--temperature", 20, "--top-k", 2,
                   "--logit-bias", f"{think}:100,{close}:100")  # fmt: skip
    assert run.wait() == 0
    assert re.search(r"\033\[2m<think>(<think>)*</think>\033\[0m", run.output)
    assert run.output.count("\033[2m") == run.output.count("\033[0m")


@pytest.mark.parametrize("byte, token", [(b"\x1b", "\u011b"), (b"\x07", "\u0107"), (b"\x7f", "\u0121")])
def test_control_characters_do_not_reach_a_terminal(terminal, moebius, endless_model, byte, token):
    id = token_id(token)
    arguments = ["run", endless_model, "-p", "x", "--raw", "-n", 5, "--greedy", "--ignore-eos", "--logit-bias", f"{id}:100"]
    assert moebius(*arguments).stdout == 5 * byte + b"\n"
    run = terminal(*arguments)
    assert run.wait() == 0
    assert run.bytes.startswith(b"\r\n\033[2m1 prompt tokens, 5 generated tokens")
