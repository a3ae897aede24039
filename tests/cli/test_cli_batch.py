"""moebius batch: OpenAI's batch files. BATCH_LINES=10000 makes the test of kills and resumptions as long as a real one."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import time

import pytest

from cli_support import BINARY, DEMO, ROOT

N_LINES = int(os.environ.get("BATCH_LINES", 300))


def line(custom_id, body, url="/v1/chat/completions", **other):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **other}


def requests(n):
    """Chats and completions of a few tokens, each with a seed of its own."""
    for i in range(n):
        if i % 2:
            yield line(f"request {i}", {"model": "gpt-4", "messages": [{"role": "user", "content": f"What is {i % 9} + {i % 7}?"}],
                                        "max_tokens": 4, "temperature": 1, "seed": i})  # fmt: skip
        else:
            yield line(f"request {i}", {"prompt": f"Once {i}", "max_tokens": 1 + i % 4, "seed": i}, "/v1/completions")


def write(path, lines):
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in lines))
    return path


def answers(path):
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(one) for one in text.splitlines()]


def meaning(answer):
    """What must be the same in every run: the bodies' ids and times are not."""
    body = answer["response"]["body"]
    return answer["custom_id"], body["choices"], body["usage"]["completion_tokens"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A batch and its answers, from one run."""
    folder = tmp_path_factory.mktemp("batch")
    given = write(folder / "in.jsonl", requests(N_LINES))
    result = subprocess.run([BINARY, "batch", DEMO, given, folder / "out.jsonl"], capture_output=True, timeout=1800)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(rf"{N_LINES} of {N_LINES} lines are answered; \d+ prompt tokens, \d+ generated tokens, .*\n", result.stderr.decode())
    return given, answers(folder / "out.jsonl")


def test_every_line_has_its_answer(undisturbed, moebius):
    found = {answer["custom_id"]: answer for answer in undisturbed[1]}
    assert set(found) == {f"request {i}" for i in range(N_LINES)} and len(undisturbed[1]) == N_LINES
    for answer in found.values():
        assert answer["error"] is None and answer["response"]["status_code"] == 200 and answer["id"].startswith("batch_req_")
    chat, text = found["request 3"]["response"]["body"], found["request 2"]["response"]["body"]
    assert chat["object"] == "chat.completion" and chat["model"] == "gpt-4" and text["object"] == "text_completion" and text["model"] == "demo"
    alone = json.loads(moebius("run", DEMO, "--raw", "-p", "Once 2", "-n", 3, "--seed", 2, "--json").stdout)
    assert text["choices"][0]["text"] == alone["text"] and text["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]


def test_killed_and_resumed(undisturbed, tmp_path):
    """Killed three times in the middle, then resumed: each line is answered once, as in the run that nobody disturbed."""
    given, expected = undisturbed
    out = tmp_path / "out.jsonl"
    order = random.Random(7)
    for i in range(3):
        before = out.read_bytes().count(b"\n") if out.exists() else 0
        wanted = before + max(1, (N_LINES - before) * order.randrange(5, 30) // 100)
        running = subprocess.Popen([BINARY, "batch", DEMO, given, out, "--max-num-seqs", "16"], stderr=subprocess.PIPE)
        end = time.monotonic() + 600
        while (not out.exists() or out.read_bytes().count(b"\n") < wanted) and running.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        running.kill()
        running.communicate()
        if i == 1:  # a machine that fails may leave a part of a line
            with out.open("ab") as file:
                file.write(b'{"id": "batch_req_12", "custom_id": "requ')
    assert 0 < len(out.read_bytes().splitlines()) < N_LINES
    last = subprocess.run([BINARY, "batch", DEMO, given, out], capture_output=True, timeout=1800)
    assert last.returncode == 0 and b"of them before this run" in last.stderr, last.stderr
    assert sorted(map(meaning, answers(out)), key=str) == sorted(map(meaning, expected), key=str)
    again = subprocess.run([BINARY, "batch", DEMO, given, out], capture_output=True, timeout=60)
    assert again.returncode == 0 and again.stderr.decode() == f"all {N_LINES} lines are answered already\n"
    assert len(answers(out)) == N_LINES


BAD = [
    ('{"broken\n', None, "invalid_json_line", "line {} is no JSON object: "),
    ("[]\n", None, "invalid_json_line", "line {} is no JSON object"),
    ('{"custom_id": "\\u0000"}\n', None, "invalid_json_line", "a text in line {} has the character \\u0000,"),
    ({"method": "POST", "url": "x", "body": {}}, None, "missing_required_parameter", "custom_id is missing"),
    (line(5, {}), None, "invalid_type", "custom_id must be a string"),
    (line("good", {"prompt": "again"}, "/v1/completions"), "good", "duplicate_custom_id", "an earlier line has this custom_id"),
    (line("get", {}, method="GET"), "get", "invalid_method", 'method is "GET"; it must be POST'),
    # A long text is cut between characters: half of one is no JSON, and would end the batch.
    (line("cut", {}, method="a" + "é" * 100), "cut", "invalid_method", 'method is "aéé'),
    ({"custom_id": "half", "method": "POST", "url": "/v1/completions"}, "half", "missing_required_parameter", "body must be"),
    (line("list", []), "list", "invalid_type", "body must be"),
    # The bounds of the server's requests: jansson recurses, and takes a hundred bytes for a value of two.
    ('{"custom_id": "deep", "body": ' + "[" * 100 + "]" * 100 + "}\n", None, "invalid_json_line", "line {} is no JSON object: the JSON is nested deeper than 100"),
    ('{"custom_id": "many", "body": [' + "{}," * 500000 + "1]}\n", None, "invalid_json_line", "line {} is no JSON object: the JSON has too many values"),
    ("x" * (65 << 20) + "\n", None, "invalid_json_line", "line {} is no JSON object: the line is too long"),
]
REFUSED = [
    (line("embed", {}, "/v1/embeddings"), 404, "url", "/v1/embeddings"),
    (line("stream", {"prompt": "x", "stream": True}, "/v1/completions"), 400, "stream", "leave stream out"),
    (line("prompt", {"prompt": {}}, "/v1/completions"), 400, "prompt", "prompt is"),
    (line("hot", {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}), 400, "temperature", "temperature"),
    (line("long", {"prompt": "x " * 5000}, "/v1/completions"), 400, "prompt", "context"),
]


def test_errors_of_single_lines(moebius, tmp_path):
    """Each is told as OpenAI's batches tell it; the others are answered, and nothing is answered a second time."""
    good = line("good", {"prompt": "x", "max_tokens": 2}, "/v1/completions")
    given = write(tmp_path / "in.jsonl", [good, "\n", *(bad for bad, *_ in BAD), "  \n", *(bad for bad, *_ in REFUSED), json.dumps({**good, "custom_id": "last"})])
    given.write_bytes(b"\xef\xbb\xbf" + given.read_bytes())  # a byte order mark is no fault
    out = tmp_path / "out.jsonl"
    result = moebius("batch", DEMO, given, out)
    assert result.returncode == 1 and f"{len(BAD) + len(REFUSED)} with an error".encode() in result.stderr
    found = answers(out)
    n_lines = len(BAD) + len(REFUSED) + 2
    assert len(found) == n_lines
    by_number = {answer["error"]["line"]: answer for answer in found if answer["error"] and "line" in answer["error"]}
    by_id = {answer["custom_id"]: answer for answer in found if not answer["error"] or "line" not in answer["error"]}
    for number, (_, custom_id, code, message) in enumerate(BAD, 3):
        answer = by_number.get(number) or by_id[custom_id]
        assert answer["custom_id"] == custom_id and answer["response"] is None
        assert answer["error"]["code"] == code and message.format(number) in answer["error"]["message"]
        assert (number in by_number) == (custom_id is None or code == "duplicate_custom_id")
    for bad, status, field, message in REFUSED:
        answer = by_id[bad["custom_id"]]
        assert answer["error"] is None and answer["response"]["status_code"] == status
        error = answer["response"]["body"]["error"]
        assert error["param"] == field and message in error["message"]
    assert by_id["good"]["response"]["status_code"] == by_id["last"]["response"]["status_code"] == 200
    again = moebius("batch", DEMO, given, out)
    assert again.returncode == 0 and f"all {n_lines} lines are answered already".encode() in again.stderr
    assert len(answers(out)) == n_lines


def test_ctrl_c_and_progress(terminal, undisturbed, tmp_path):
    out = tmp_path / "out.jsonl"
    run = terminal("batch", DEMO, undisturbed[0], out, "--max-num-seqs", 4)
    run.expect(rf"\[[#.]{{30}}\] [1-9]\d* of {N_LINES} lines, \d+ output tokens/s, .* left")
    run.send("\x03")
    assert run.wait() == 130
    assert re.search(rf"\d+ of {N_LINES} lines are answered; .*; interrupted, the same command goes on\033\[0m\r\n$", run.output)
    n = len(answers(out))
    assert 0 < n < N_LINES
    quiet = terminal("batch", DEMO, undisturbed[0], out, "-q")
    assert quiet.wait(600) == 0 and quiet.output == "" and len(answers(out)) == N_LINES


@pytest.mark.parametrize("content, sentence", [
    (json.dumps(line("a", {})) + "\n", "line 1 is no answer of a batch"),
    ("some notes\n", "line 1 is no answer of a batch"),
    ("notes without a line break", "does not end with an answer of moebius batch"),
    ('{"id": "batch_req_1", "custom_id": "a", "response": {}, "error": null}\nnotes', "does not end with an answer"),
])  # fmt: skip
def test_another_file_is_not_touched(moebius, tmp_path, content, sentence):
    given, out = write(tmp_path / "in.jsonl", requests(2)), tmp_path / "out.jsonl"
    out.write_text(content)
    result = moebius("batch", DEMO, given, out)
    assert result.returncode == 1 and sentence in result.stderr.decode() and out.read_text() == content


def test_files_that_cannot_be_used(moebius, tmp_path):
    given, out = write(tmp_path / "in.jsonl", requests(2)), tmp_path / "out.jsonl"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.jsonl").symlink_to(given)
    for arguments, sentence in [
        ((tmp_path / "nothing", out), "No such file"),
        ((tmp_path, out), "not a regular file"),
        ((tmp_path / "pipe", out), "not a regular file"),
        ((given, tmp_path / "pipe"), "No such device|not a regular file"),
        ((given, "/dev/full"), "not a regular file"),
        ((given, tmp_path / "no/out"), "No such file"),
        ((given, tmp_path / "link.jsonl"), "are one file"),
        ((given, given), "are one file"),
    ]:
        result = moebius("batch", DEMO, *arguments)
        assert result.returncode == 1 and re.search(sentence, result.stderr.decode()), result.stderr
    assert len(given.read_text().splitlines()) == 2
    for arguments, sentence in [([], "DIR is missing"), ([DEMO], "IN is missing: the file of requests"),
                                ([DEMO, given], "OUT is missing: the file that gets"), ([DEMO, given, out, "x"], "OUT is")]:  # fmt: skip
        result = moebius("batch", *arguments)
        assert result.returncode == 2 and sentence in result.stderr.decode()
    assert moebius("batch", tmp_path / "nothing", given, out).returncode == 1


def test_two_at_once_and_a_full_disk(moebius, undisturbed, tmp_path):
    given, out = undisturbed[0], tmp_path / "out.jsonl"
    first = subprocess.Popen([BINARY, "batch", DEMO, given, out, "--max-num-seqs", "1"], stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not out.exists() or not out.read_bytes():
        assert time.monotonic() < end
        time.sleep(0.002)
    second = moebius("batch", DEMO, given, out)
    assert second.returncode == 1 and b"another moebius batch writes to it" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130

    size = len(out.read_bytes()) + 3000  # a limit stands for a full disk: the last line does not fit
    limited = subprocess.run([BINARY, "batch", DEMO, given, out], stderr=subprocess.PIPE, timeout=120, restore_signals=False, cwd=ROOT,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))  # fmt: skip
    assert limited.returncode == 1 and b"File too large" in limited.stderr, limited.stderr
    assert size - 3000 < len(out.read_bytes()) <= size and len(answers(out)) > 0
    assert moebius("batch", DEMO, given, out).returncode == 0 and len(answers(out)) == N_LINES


def test_an_empty_batch(moebius, tmp_path):
    given = write(tmp_path / "in.jsonl", ["\n"])
    result = moebius("batch", DEMO, given, tmp_path / "out.jsonl")
    assert result.returncode == 0 and (tmp_path / "out.jsonl").read_bytes() == b""
