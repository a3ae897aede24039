"""moebius chat fed from a pipe: every line is a question or a command."""

import re
import signal
import subprocess
import time

import pytest

from cli_support import BINARY, DEMO, token_id, wait_until_it_waits

SUM = "What is 7 + 8?"


def test_chat_from_a_pipe(moebius):
    questions = f"{SUM}\n/nothink\n/help\n\nWhat is 1 + 2?\r\n/exit\r\nnever read\n"
    result = moebius("chat", DEMO, "--greedy", input=questions)
    assert result.returncode == 0 and result.stderr == b""
    text = result.stdout.decode()
    assert "15" in text and "[Thinking is off.]" in text and "/system" in text and text.endswith("1 + 2 = 3.\n")
    assert "\033" not in text and "> " not in text
    assert moebius("chat", DEMO, input="").stdout == b""


def answer(moebius, line, *options):
    result = moebius("chat", DEMO, "--greedy", *options, input=line)
    assert result.returncode == 0 and result.stderr == b"", result.stderr
    return result.stdout.decode()


@pytest.mark.parametrize("line", ["/no_think " + SUM, "/etc/hosts - what is it?", "/", "//", "/help me with 7 + 8", "/exit 7 + 8",
                                  "/thinking of 7 + 8", "/THINK"])  # fmt: skip
def test_a_slash_that_begins_no_command_begins_a_question(moebius, line):
    """It reaches the model as it was typed."""
    expected = moebius("run", DEMO, "--greedy", "-p", line)
    assert expected.returncode == 0
    assert answer(moebius, line + "\n").encode() == expected.stdout


@pytest.mark.parametrize("command, remark", [("/think", "Thinking is on."), ("/nothink", "Thinking is off."),
                                             ("/reset", "A new conversation; the system message stays.")])  # fmt: skip
def test_text_behind_a_command_is_asked(moebius, command, remark):
    apart = answer(moebius, f"{command}\n{SUM}\n")
    assert f"[{remark}]" in apart and "15" in apart
    for line in (f"{command} {SUM}", f"  {command}\t {SUM}"):
        assert answer(moebius, line + "\n") == apart


def test_reset_with_a_question(moebius):
    """The question behind it is the first one of the new conversation."""
    assert answer(moebius, f"Tell me a story.\n/reset {SUM}\n").endswith(answer(moebius, f"{SUM}\n"))


def test_empty_answers_keep_the_conversation(moebius):
    """An answer of no tokens is an answer: the next question finds both."""
    end = token_id("<|im_end|>")
    empty = moebius("chat", DEMO, "--greedy", "-q", "--logit-bias", f"{end}:100", input="hi\nagain\n")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, b"\n\n", b"")
    none = moebius("chat", DEMO, "--greedy", "-n", 0, input="hi\nagain\n")
    assert none.returncode == 0 and none.stderr == b""
    assert none.stdout == b"\n[The answer ends here: the limit of -n is reached.]\n" * 2
    # -n 63 and a context of 128: the second question fits only if the first was forgotten
    one = moebius("chat", DEMO, "--greedy", "-n", 63, "--kv-tokens", 128, "--logit-bias", f"{end}:100", input="x " * 20 + "\n")
    two = moebius("chat", DEMO, "--greedy", "-n", 63, "--kv-tokens", 128, "--logit-bias", f"{end}:100", input=("x " * 20 + "\n") * 3)
    assert one.returncode == 0 and two.returncode == 1 and b"do not fit the context of 128" in two.stderr


def test_zero_bytes_in_an_answer_keep_the_conversation(moebius):
    zero = token_id("\u0100")  # how byte-level tokenizers spell it
    result = moebius("chat", DEMO, "--greedy", "-n", 2, "--logit-bias", f"{zero}:100", input="hi\nagain\n")
    assert result.returncode == 0 and result.stderr == b"" and result.stdout.count(b"\0\0") == 2


@pytest.mark.parametrize("bad, sentence", [(b"caf\xe9", "the question is not valid UTF-8"), (b"a\0b", "the question has a zero byte at offset 1"),
                                           (b"/think caf\xe9", "the question is not valid UTF-8"),
                                           (b"\xef\xbb\xbfHi", "the question begins with a byte order mark (BOM); save it"),
                                           (b"/system caf\xe9", "the system message is not valid UTF-8")])  # fmt: skip
def test_a_failed_question_is_taken_back_and_told(moebius, bad, sentence):
    """The sentence names it, the next question is answered as if it had not been asked, and the exit status says it."""
    result = moebius("chat", DEMO, "--greedy", input=bad + b"\n" + SUM.encode())
    assert result.returncode == 1 and sentence in result.stderr.decode()
    assert result.stdout.decode().removeprefix("[Thinking is on.]\n") == answer(moebius, SUM + "\n")


def test_a_question_that_does_not_fit_fails_the_chat(moebius):
    result = moebius("chat", DEMO, "--greedy", "--kv-tokens", 64, input="word " * 200 + "\n/reset\nHi\n")
    assert result.returncode == 1 and "no longer fits the context of 64" in result.stderr.decode()


def test_answer_limit_beyond_the_context(moebius):
    """run and chat refuse alike: the prompt and -n tokens must fit."""
    for n, fits in ((64, True), (128, False)):
        arguments = (DEMO, "--greedy", "-n", n, "--kv-tokens", 128)
        results = [moebius("run", *arguments, "-p", SUM), moebius("chat", *arguments, input=SUM)]
        assert [result.returncode for result in results] == [0 if fits else 1] * 2
        if not fits:
            assert all(b"(-n)" in result.stderr and b"128" in result.stderr for result in results)


def test_input_that_cannot_be_read(moebius):
    with open("/proc/self/mem", "rb") as unreadable:
        result = moebius("chat", DEMO, stdin=unreadable)
    assert result.returncode == 1 and result.stderr.startswith(b"moebius: standard input: ")


def start_chat(*options):
    return subprocess.Popen([BINARY, "chat", DEMO, "--greedy", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def test_interrupt_between_questions_drops_none():
    """SIGINT while a program's chat waits for the next question, or for the rest of one: both are answered."""
    chat = start_chat("--no-think")
    chat.stdin.write(b"/reset\n")  # from its answer on, SIGINT is caught
    chat.stdin.flush()
    assert b"new conversation" in chat.stdout.readline()
    for i in range(30):
        chat.send_signal(signal.SIGINT)
        time.sleep(i % 7 * 1e-4)
        chat.stdin.write(b"What is 7 ")
        chat.stdin.flush()
        time.sleep(i % 5 * 1e-4)
        chat.send_signal(signal.SIGINT)
        wait_until_it_waits(chat.pid)
        chat.stdin.write(b"+ 8?\n/reset\n")
        chat.stdin.flush()
        assert b"15" in chat.stdout.readline()
        assert b"new conversation" in chat.stdout.readline()
    out, error = chat.communicate(timeout=60)
    assert (chat.returncode, out, error) == (0, b"", b"")


def test_interrupt_before_a_question_that_is_there_already(endless_model):
    """The answer in progress ends; the question behind it, already in the pipe, is answered."""
    chat = subprocess.Popen([BINARY, "chat", endless_model, "--ignore-eos", "--seed", "1", "--temperature", "1", "-n", "10000"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    chat.stdin.write(b"Tell a story\n/nothink\n/think\n")
    chat.stdin.flush()
    chat.stdout.read(50)
    chat.send_signal(signal.SIGINT)
    out, error = chat.communicate(timeout=60)
    assert chat.returncode == 0 and error == b""
    assert re.search(rb"\[Thinking is off\.\]\n\[Thinking is on\.\]\n$", out)
