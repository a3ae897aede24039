"""Prompts as text: run, tokenize, logprobs -p."""

import json
import re
import shutil
import subprocess

import pytest
from tokenizers import Tokenizer

from cli_support import BINARY, DEMO

TEXTS = ["Hello, world!", "  spaces   and\ttabs\n\n", "naïve café ☕ 日本語 👩‍👩‍👧", "1 + 22 = 23", "", "x" * 3000, "a\u0301 e\u0301"]


@pytest.fixture(scope="module")
def reference():
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_tokenize_and_decode(moebius, reference, text):
    result = moebius("tokenize", DEMO, "--json", input=text)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["ids"] == reference.encode(text, add_special_tokens=False).ids
    assert len(document["pieces"]) == len(document["ids"])
    if text:
        ids = ",".join(map(str, document["ids"]))
        expected = reference.decode(document["ids"], skip_special_tokens=False)
        assert moebius("tokenize", DEMO, "--decode", ids).stdout.decode() == expected + "\n"
        assert json.loads(moebius("tokenize", DEMO, "--decode", ids, "--json").stdout) == {"text": expected}
        assert moebius("tokenize", DEMO, "-p", text).stdout == moebius("tokenize", DEMO, input=text).stdout


def test_tokenize_table(moebius, reference):
    lines = moebius("tokenize", DEMO, "-p", 'say "hi"\n').stdout.decode().splitlines()
    rows = [line.split(None, 1) for line in lines]
    assert [int(id) for id, _ in rows] == reference.encode('say "hi"\n').ids
    assert "".join(json.loads(piece) for _, piece in rows) == 'say "hi"\n'


def test_special_tokens_in_text(moebius, reference):
    text = "<|im_start|>user"
    special = json.loads(moebius("tokenize", DEMO, "-p", text, "--json").stdout)
    plain = json.loads(moebius("tokenize", DEMO, "-p", text, "--json", "--no-special").stdout)
    assert special["ids"][0] == reference.token_to_id("<|im_start|>") and special["pieces"][0] == "<|im_start|>"
    assert special["ids"][0] not in plain["ids"] and "".join(plain["pieces"]) == text
    ids = ",".join(map(str, special["ids"]))
    assert moebius("tokenize", DEMO, "--decode", ids).stdout.decode() == text + "\n"
    assert moebius("tokenize", DEMO, "--decode", ids, "--no-special").stdout.decode() == "user\n"


@pytest.mark.parametrize("arguments, input", [
    (["run", DEMO, "-p", b"caf\xe9"], None),
    (["run", DEMO, "-p", b"caf\xe9", "--raw"], None),
    (["run", DEMO, "-p", "-"], b"\xff\xfe"),
    (["run", DEMO, "-p", "x", "--system", b"caf\xe9"], None),
    (["tokenize", DEMO], b"abc\xc3"),
    (["tokenize", DEMO], b"\xed\xa0\x80"),
    (["logprobs", DEMO, "-p", b"caf\xe9"], None),
])  # fmt: skip
def test_text_that_is_not_utf8(moebius, arguments, input):
    result = subprocess.run([BINARY, *arguments], input=input, capture_output=True, timeout=60)
    assert result.returncode == 1 and result.stdout == b""
    assert re.search("UTF-8", result.stderr.decode())


@pytest.mark.parametrize("arguments, sentence", [
    (["run", DEMO, "-p", "", "--raw"], "the prompt is empty"),
    (["logprobs", DEMO, "-p", ""], "the prompt is empty"),
    (["tokenize", DEMO, "--decode", "2000000000"], "2000000000"),
    (["run", DEMO, "-p", "x", "--chat-template", "qwen9"], "qwen9"),
])  # fmt: skip
def test_failures_say_why(moebius, arguments, sentence):
    result = moebius(*arguments)
    assert result.returncode == 1 and result.stdout == b""
    assert result.stderr.decode().startswith("moebius: ") and sentence in result.stderr.decode()


def test_unknown_chat_template_is_refused(moebius, tmp_path):
    """A prompt must never reach a chat model without the frame that it was trained with, unasked."""
    directory = shutil.copytree(DEMO, tmp_path / "model")
    (directory / "chat_template.jinja").write_text("a\n {{ messages | frobnicate }}")
    for arguments in (["run", directory, "-p", "Hi", "-n", 1], ["chat", directory]):
        result = moebius(*arguments, input="Hi\n")
        assert result.returncode == 1 and result.stdout == b""
        assert "chat_template.jinja, line 2, column 16: the filter \"frobnicate\" is not supported; choose" in result.stderr.decode() and "--chat-template" in result.stderr.decode()
        named = moebius(*arguments, "--chat-template", "qwen3", "--greedy", input="Hi\n")
        assert named.returncode == 0 and named.stdout != b""
    assert moebius("run", directory, "-p", "Hi", "-n", 1, "--raw").returncode == 0
    assert "chat_template.jinja, line 2, column 16" in moebius("info", directory).stdout.decode()


def test_prompt_that_leaves_no_room_for_an_answer(moebius, golden_model):
    positions = json.loads((golden_model / "config.json").read_text())["max_position_embeddings"]
    ids = ",".join(["5"] * positions)
    result = moebius("run", golden_model, "--ids", ids, "--print-ids")
    assert result.returncode == 1 and result.stdout == b""
    assert "leaves no room" in result.stderr.decode()
    assert moebius("run", golden_model, "--ids", ids, "--print-ids", "-n", 0).stdout == b"\n"  # asked for


def test_zero_bytes_in_a_prompt(moebius):
    result = moebius("run", DEMO, "-p", "-", input=b"What is\0 7?")
    assert result.returncode == 1
    assert result.stderr == b"moebius: the prompt has a zero byte at offset 7; is it text?\n"


def test_demo_answers_at_once(moebius):
    """The answer is right, ends by itself, and its first token comes within a second."""
    result = moebius("run", DEMO, "-p", "What is 7 + 8?", "--greedy")
    assert result.returncode == 0, result.stderr
    assert "15" in result.stdout.decode()
    assert float(re.search(r"first token ([\d.]+) s", result.stderr.decode()).group(1)) < 1
    assert "limit" not in result.stderr.decode()


def test_prompt_from_standard_input(moebius):
    typed = moebius("run", DEMO, "-p", "What is 7 + 8?", "--greedy").stdout
    assert moebius("run", DEMO, "-p", "-", "--greedy", input="What is 7 + 8?").stdout == typed
    assert moebius("run", DEMO, "-p", "-", "--greedy", input="What is 7 + 8?\n").stdout == typed


def prompt_tokens(result):
    assert result.returncode == 0, result.stderr
    return int(re.match(r"(\d+) prompt tokens", result.stderr.decode()).group(1))


def test_prompt_is_rendered(moebius, reference):
    raw = prompt_tokens(moebius("run", DEMO, "-p", "Hello there", "--raw", "-n", 1, "--greedy"))
    assert raw == len(reference.encode("Hello there").ids)
    chat = prompt_tokens(moebius("run", DEMO, "-p", "Hello there", "-n", 1, "--greedy"))
    rendered = "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"
    assert chat == len(reference.encode(rendered).ids)
    system = prompt_tokens(moebius("run", DEMO, "-p", "Hello there", "--system", "Be brief.", "-n", 1, "--greedy"))
    assert system == chat + len(reference.encode("<|im_start|>system\nBe brief.<|im_end|>\n").ids)
    no_think = prompt_tokens(moebius("run", DEMO, "-p", "Hello there", "--no-think", "-n", 1, "--greedy"))
    assert no_think == chat + len(reference.encode("<think>\n\n</think>\n\n").ids)


def test_text_agrees_with_ids(moebius, reference, endless_model):
    ids = reference.encode("Once upon a time").ids
    arguments = ["-n", 30, "--seed", 3, "--temperature", 1, "--ignore-eos"]
    text = moebius("run", endless_model, "-p", "Once upon a time", "--raw", *arguments).stdout.decode()
    new = moebius("run", endless_model, "--ids", ",".join(map(str, ids)), *arguments, "--print-ids").stdout.decode()
    assert text == reference.decode(list(map(int, new.split(","))), skip_special_tokens=True) + "\n"
    assert text == moebius("run", endless_model, "-p", "Once upon a time", "--raw", *arguments).stdout.decode()


def test_logprobs_of_text(moebius, reference):
    ids = ",".join(map(str, reference.encode("2 + 2 =").ids))
    assert moebius("logprobs", DEMO, "-p", "2 + 2 =", "--json").stdout == moebius("logprobs", DEMO, "--ids", ids, "--json").stdout
    table = moebius("logprobs", DEMO, "-p", "2 + 2 =").stdout.decode()
    assert table.count("position ") == len(ids.split(","))
