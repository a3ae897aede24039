"""moebius chat as a person uses it: several lines, paste, history, commands with files, resize."""

import fcntl
import json
import os
import random
import re
import signal
import struct
import termios

import pytest

from cli_support import BINARY, DEMO

BABBLE = ["--ignore-eos", "--temperature", "1", "--seed", "5"]
SUM = "What is 7 + 8?"
PASTE = "\x1b[200~{}\x1b[201~"


class Chat:
    """A chat on a terminal; ask() types a line and answers what came until the next prompt."""

    def __init__(self, terminal, *arguments, **environment):
        self.terminal = terminal("chat", *arguments, environment=environment)
        self.at = self.terminal.expect("> ")

    def ask(self, line, wanted="", end="\r"):
        begin = self.at
        self.terminal.type(line + end)
        self.at = self.terminal.expect(wanted, self.terminal.expect(r"\r\n", self.at)) if wanted else self.at
        self.at = self.terminal.expect(r"\x1b\[\?2004h.*?> ", self.at)
        return self.terminal.output[begin : self.at]

    def messages(self, path):
        self.ask(f"/save {path}", "saved")
        return json.loads(path.read_text())

    def leave(self):
        self.terminal.type("\x04")
        assert self.terminal.wait() == 0


@pytest.fixture
def chat(terminal):
    return lambda *arguments, **environment: Chat(terminal, *arguments, **environment)


@pytest.mark.parametrize("typed", [
    PASTE.format("one\ntwo\r\nthree\rfour"),  # as terminals differ in what they make of line breaks
    "one\x1b\rtwo\x1b\rthree\x1b\nfour",  # Alt-Enter
    "one\\\rtwo\\\rthree\\\rfour",  # Enter after a backslash
    PASTE.format("one\ntwo\n") + "three\x1b\r" + PASTE.format("\x1b[31mfo\x07ur\x00"),
])  # fmt: skip
def test_a_question_of_several_lines(chat, endless_model, tmp_path, typed):
    one = chat(endless_model, "-n", 2, *BABBLE)
    one.ask(typed, "2 generated")
    expected = "one\ntwo\nthree\n[31mfour" if "31m" in typed else "one\ntwo\nthree\nfour"
    assert [m["content"] for m in one.messages(tmp_path / "c.json") if m["role"] == "user"] == [expected]
    one.leave()


def test_a_long_paste_and_what_follows_it(chat, endless_model, tmp_path):
    """200 lines in one question; text typed after the paste belongs to it; the next paste is another question."""
    text = "\n".join(f"line {i} äöü" for i in range(200))
    one = chat(endless_model, "-n", 2, *BABBLE)
    one.ask(PASTE.format(text) + " end", "2 generated")
    one.ask(PASTE.format("/help\nis a question"), "2 generated")
    contents = [m["content"] for m in one.messages(tmp_path / "c.json") if m["role"] == "user"]
    assert contents == [text + " end", "/help\nis a question"]
    one.leave()


def test_ctrl_c_within_a_paste(chat, endless_model):
    """A paste that never ends: Ctrl-C drops it, and the next line is a line."""
    one = chat(endless_model, "-n", 2, *BABBLE)
    one.terminal.type("\x1b[200~half a paste")
    one.terminal.settle()
    one.terminal.send("\x03")
    one.at = one.terminal.expect(r"2004l\r\n.*> ", one.at)
    assert "Thinking is off" in one.ask("/nothink", "off")
    one.leave()


def test_history_is_kept_between_chats(chat, endless_model, tmp_path):
    arguments, state = (endless_model, "-n", 1, *BABBLE), str(tmp_path / "state")
    one = chat(*arguments, XDG_STATE_HOME=state)
    one.ask("/nothink", "off")
    one.ask(PASTE.format("first\\\nline"), "1 generated")
    one.leave()
    file = tmp_path / "state/moebius/chat_history"
    assert file.read_text() == "/nothink\nfirst\\\\\\nline\n"
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    two = chat(*arguments, XDG_STATE_HOME=state)
    two.ask("\x1b[A", "1 generated")  # up: the last line of the chat before
    assert [m["content"] for m in two.messages(tmp_path / "c.json") if m["role"] == "user"] == ["first\\\nline"]
    two.ask("\x1b[A\x1b[A\x1b[A", "off")
    two.leave()


def test_history_is_bounded_and_may_be_absent(chat, endless_model, tmp_path):
    file, arguments = tmp_path / "history", (endless_model, "-n", 1, *BABBLE)
    file.write_text("".join(f"line {i}\n" for i in range(3000)) + "/think\ntorn")
    file.chmod(0o644)
    one = chat(*arguments, MOEBIUS_HISTORY=str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    one.ask("\x1b[A", "Thinking is on")
    one.ask("/system " + PASTE.format("x" * 20000), "message is set")  # too long to be kept
    one.leave()
    lines = file.read_text().splitlines()
    assert len(lines) == 1001 and lines[0] == "line 2001" and max(map(len, lines)) < 100
    for name in ("", "/dev/null", "/proc/nothing/here", str(tmp_path)):
        quiet = chat(*arguments, MOEBIUS_HISTORY=name)
        assert "moebius:" not in quiet.ask("/think", "on")
        quiet.leave()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["history"]


def test_tab_completes(chat, endless_model, tmp_path):
    (tmp_path / "some notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / ".hidden").write_text("x")
    one = chat(endless_model, "-n", 1, *BABBLE)
    one.ask("/noth\t", "Thinking is off")
    listed = one.ask("/re\t\tset", "A new conversation")
    assert re.search(r"/regen  /reset  /read", listed)
    one.ask(f"/read {tmp_path}/so\t", r"some notes\.txt: 1 bytes go in front")
    assert re.search(r"folder/  some notes\.txt\r\n", one.ask(f"/read {tmp_path}/\t\x7f", "moebius: "))
    assert "1 generated" in one.ask("no command\t at all", "1 generated")  # nothing to complete
    one.leave()


def test_read_puts_a_file_in_front(chat, endless_model, tmp_path):
    (tmp_path / "a.txt").write_text("alpha\nbeta\n\n")
    (tmp_path / "b.txt").write_text("gamma")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "zero.txt").write_bytes(b"a\0b")
    one = chat(endless_model, "-n", 2, *BABBLE, HOME=str(tmp_path))
    for path, sentence in [("nothing.txt", "No such file"), (tmp_path, "not a regular file"), (tmp_path / "bad.txt", "not valid UTF-8"),
                           (tmp_path / "zero.txt", "zero byte"), ("", "/read needs the name of a file")]:  # fmt: skip
        one.ask(f"/read {path}", sentence)
    one.ask("/read ~/a.txt", "a.txt: 10 bytes go in front of the next question")
    one.ask(f"/read {tmp_path}/b.txt", "5 bytes")
    assert "19 bytes, in front of" in one.ask("/status", "attached")
    one.ask("What is this?", "2 generated")
    one.ask("And this?", "2 generated")
    contents = [m["content"] for m in one.messages(tmp_path / "c.json") if m["role"] == "user"]
    assert contents == ["alpha\nbeta\n\ngamma\n\nWhat is this?", "And this?"]
    one.leave()


def test_regen(chat, endless_model, tmp_path):
    """Another answer takes the place of the last one, with --seed too; the questions stay."""
    one = chat(endless_model, "-n", 6, *BABBLE)
    assert "There is no question yet" in one.ask("/regen", "no question")
    one.ask("one", "6 generated")
    one.ask("two", "6 generated")
    before = one.messages(tmp_path / "before.json")
    one.ask("/regen", "6 generated")
    after = one.messages(tmp_path / "after.json")
    assert before[:3] == after[:3] and before[3]["content"] != after[3]["content"] and len(after) == 4
    one.ask("/regen", "6 generated")
    again = one.messages(tmp_path / "again.json")
    assert again[3]["content"] not in (before[3]["content"], after[3]["content"])
    one.leave()


def test_a_failed_regen_keeps_the_answer(chat, endless_model, tmp_path):
    one = chat(endless_model, "--kv-tokens", 128, "--ignore-eos", "--greedy")
    one.ask("Tell me a story", "the context is full")
    before = one.messages(tmp_path / "c.json")
    one.ask("/system " + "word " * 300, "is set")
    one.ask("/regen", "no longer fits the context")
    assert one.messages(tmp_path / "c.json")[1:] == before
    one.leave()


def test_save_and_load(chat, tmp_path):
    file = tmp_path / "talk.json"
    one = chat(DEMO, "--greedy", "--system", "Be brief.")
    one.ask(SUM, "generated tokens")
    saved = one.messages(file)
    assert [m["role"] for m in saved] == ["system", "user", "assistant"] and saved[1]["content"] == SUM
    one.ask("And 1 + 2?", "generated tokens")
    longer = one.messages(file)  # a conversation may be replaced
    assert longer[:3] == saved and len(longer) == 5
    one.leave()

    two = chat(DEMO, "--greedy")
    two.ask(f"/load {file}", "A conversation of 5 messages is loaded")
    assert two.messages(tmp_path / "again.json") == longer
    (tmp_path / "request.json").write_text(json.dumps({"model": "x", "messages": saved[:2]}))
    two.ask(f"/load {tmp_path}/request.json", "of 2 messages")
    two.ask("/regen", "generated tokens")  # the question that had no answer yet
    assert two.messages(tmp_path / "again.json") == saved
    for text, sentence in [("[1, 2", "line 1"), ("{}", "there are no messages"), ('[{"role": 5}]', "role"), ("\xff", "UTF-8|line 1"),
                           ("\xef\xbb\xbf[]", "begins with a byte order mark")]:
        (tmp_path / "bad.json").write_bytes(text.encode("latin-1"))
        two.ask(f"/load {tmp_path}/bad.json", sentence)
    two.ask(f"/load {tmp_path}/nothing.json", "No such file")
    assert two.messages(tmp_path / "again.json") == saved
    (tmp_path / "other.txt").write_text("precious")
    two.ask(f"/save {tmp_path}/other.txt", "holds no conversation; give another name")
    two.ask(f"/save {tmp_path}/no/such.json", "No such file")
    assert (tmp_path / "other.txt").read_text() == "precious"
    two.leave()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.json", "bad.json", "other.txt", "request.json", "talk.json"]


def test_status(chat):
    one = chat(DEMO, "--greedy", "--no-think")
    begin = one.ask("/status", "context")
    assert "0 messages, no system message, thinking off" in begin and "0 of 2048 tokens" in begin and "last answer" not in begin
    figures = re.search(r"(\d+) prompt tokens, (\d+) generated", one.ask(SUM, "generated tokens"))
    text = one.ask("/status", "last answer.*output tokens/s")
    assert "2 messages" in text and f"{int(figures[1]) + int(figures[2])} of 2048 tokens" in text
    assert f"{figures[1]} prompt tokens (0 from the cache), {figures[2]} generated" in text and f"{DEMO} on cpu, fp32" in text
    one.leave()


def test_a_turn_uses_the_kv_of_the_turns_before(chat, endless_model):
    """The second question computes its own tokens alone, but for those of a block that is not full."""
    one = chat(endless_model, "-n", 40, *BABBLE)
    first = one.ask("word " * 100, "40 generated")
    second = one.ask("and now?", "from the cache")
    n_first, n_second = (int(re.search(r"(\d+) prompt tokens", text)[1]) for text in (first, second))
    n_cached = int(re.search(r"(\d+) from the cache", second)[1])
    assert "from the cache" not in first and n_cached % 64 == 0 and n_first - 64 < n_cached < n_second
    assert f"{n_second} prompt tokens ({n_cached} from the cache)" in one.ask("/status", "last answer")
    assert "from the cache" in one.ask("/regen", "40 generated")
    one.leave()


def test_files_are_for_persons(moebius, tmp_path):
    """From a pipe such lines are questions: whoever's questions a program passes on, they name no files."""
    file = tmp_path / "c.json"
    result = moebius("chat", DEMO, "--greedy", "-n", 3, input=f"/save {file}\n/load /etc/passwd\n/help\n")
    assert result.returncode == 0 and not file.exists() and b"/save" not in result.stdout
    assert result.stdout.count(b"the limit of -n") == 2


def resize(chat, rows, columns):
    fcntl.ioctl(chat.terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def test_the_window_changes_its_size(chat, endless_model, tmp_path):
    """While a line is typed, and while an answer comes: the line is drawn again, and nothing of it is lost."""
    one = chat(endless_model, "-n", 400, *BABBLE)
    one.terminal.type("one two three four five six seven eight")
    one.terminal.settle()
    mark = len(one.terminal.output)
    resize(one, 24, 30)
    one.at = one.terminal.expect("> one two three four", mark)
    one.terminal.type(" nine\r")
    one.terminal.expect(r"\S.{20}", one.terminal.expect("nine", one.at))
    for columns in (10, 200, 40):
        resize(one, 10, columns)
    one.at = one.terminal.expect(r"2004h.*?> ", one.terminal.expect("400 generated", one.at))
    resize(one, 24, 200)
    one.terminal.settle()
    assert one.messages(tmp_path / "c.json")[0]["content"] == "one two three four five six seven eight nine"
    one.leave()


def test_ctrl_c_at_any_moment(chat, endless_model, tmp_path):
    """At the prompt, in a half-typed line, while the prompt is computed, while the answer comes, while files are read
    and written: the chat goes on, and the conversation is whole."""
    (tmp_path / "a.txt").write_text("word " * 300)
    one = chat(endless_model, "-n", 40, *BABBLE)
    order = random.Random(3)
    for line in ["Tell a story\r", "/status\r", "half", f"/read {tmp_path}/a.txt\r", "x " * 200 + "\r", f"/save {tmp_path}/c.json\r", "\x1b[A\r"] * 2:
        one.terminal.type(line)
        one.terminal._read(order.random() * 0.03)
        os.kill(one.terminal.pid, signal.SIGINT)
        one.terminal.settle()
        assert one.terminal.status is None
    one.terminal.type("\x15/status\r")  # whatever is still in the line goes first
    one.at = one.terminal.expect("> ", one.terminal.expect("last answer", len(one.terminal.output)))
    one.ask("/reset", "A new conversation")
    one.ask("one two three", "40 generated")
    assert [m["content"] for m in one.messages(tmp_path / "d.json")][:1] == ["one two three"]
    one.leave()


def test_keys_of_vi(terminal, endless_model, tmp_path):
    """Our keys work with a user's own editrc."""
    (tmp_path / ".editrc").write_text("bind -v\n")
    one = Chat(terminal, endless_model, "-n", 1, *BABBLE, HOME=str(tmp_path))
    one.ask(PASTE.format("one\ntwo"), "1 generated")
    assert one.messages(tmp_path / "c.json")[0]["content"] == "one\ntwo"
    one.leave()


def test_an_answer_cannot_write_to_the_terminal_through_status(terminal, endless_model, tmp_path):
    """Names with control characters in them are shown without."""
    (tmp_path / "\x1b]0;title\x07").write_text("x")
    one = Chat(terminal, endless_model, "-n", 1, *BABBLE)
    listed = one.ask(f"/read {tmp_path}/\t", "1 bytes|moebius:")
    assert "\x1b]0;" not in listed
    one.leave()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_program_leaves_the_terminal_as_it_was(chat, number):
    """In the middle of a line, where the editor has switched echo and line mode off and bracketed paste on."""
    talk = chat(DEMO, "-q")
    talk.terminal.type("half a question")
    talk.terminal.expect("half a question", talk.at)
    os.kill(talk.terminal.pid, number)
    assert talk.terminal.wait() == -number
    flags = termios.tcgetattr(talk.terminal.master)[3]
    assert flags & termios.ICANON and flags & termios.ECHO
    assert talk.terminal.output.endswith("\x1b[?2004l\r\n") or number == signal.SIGHUP


def test_ctrl_z_and_back(terminal):
    """The shell gets the terminal as it was; after fg the line is there again, and the editor goes on."""
    shell = terminal("--norc", "-i", program="/bin/bash", environment={"PS1": "SHELL: ", "MOEBIUS_HISTORY": ""})
    at = shell.expect("SHELL: ")
    shell.send(f"{BINARY} chat {DEMO} -q --greedy\r")
    at = shell.expect("2004h> ", at)
    shell.type("What is 7 ")
    at = shell.expect("What is 7 ", at)
    shell.send("\x1a")
    at = shell.expect(r"2004l\r\n(?s:.*)Stopped(?s:.*)SHELL: ", at)
    shell.send("fg\r")
    at = shell.expect("2004h\r> What is 7 ", at)
    shell.send("+ 9\x7f8?\r")  # with editing: ^? takes a letter back
    at = shell.expect("7 [+] 8 = 15[.](?s:.*)2004h> ", at)
    shell.type("\x04")
    at = shell.expect("SHELL: ", at)
    shell.send("exit\r")
    assert shell.wait() == 0
