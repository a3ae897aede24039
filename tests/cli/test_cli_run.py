"""run --json and --stop."""

import json
import os
import subprocess

import pytest

from cli_support import BINARY, DEMO, token_id

SUM = "What is 7 + 8?"


def run_json(moebius, *arguments, status=0):
    result = moebius("run", *arguments, "--json")
    assert result.returncode == status and result.stderr == b"", result.stderr
    assert result.stdout.count(b"\n") == 1
    return json.loads(result.stdout)


def test_json_says_what_the_plain_answer_says(moebius, golden_model):
    plain = moebius("run", DEMO, "-p", SUM, "--greedy").stdout.decode()
    ids = moebius("run", DEMO, "-p", SUM, "--greedy", "--print-ids").stdout.decode()
    answer = run_json(moebius, DEMO, "-p", SUM, "--greedy")
    assert answer["text"] + "\n" == plain and answer["ids"] == list(map(int, ids.split(",")))
    assert (answer["finish_reason"], answer["stop"], answer["seed"], answer["model"]) == ("stop", None, None, str(DEMO))
    usage, timings = answer["usage"], answer["timings"]
    assert usage["completion_tokens"] == len(answer["ids"]) and usage["total_tokens"] == usage["prompt_tokens"] + len(answer["ids"])
    assert 0 < timings["loading"] < timings["first_token"] < timings["total"] and timings["output_tokens_per_second"] > 0

    bare = run_json(moebius, golden_model, "--ids", "5,17", "--print-ids", "-n", 3, "--greedy")  # no tokenizer
    assert bare["text"] is None and len(bare["ids"]) == 3 and bare["finish_reason"] == "length"
    none = run_json(moebius, DEMO, "-p", SUM, "-n", 0)
    assert (none["text"], none["ids"], none["timings"]["first_token"]) == ("", [], None)


def test_json_names_the_seed_that_gives_the_answer_again(moebius, endless_model):
    arguments = (endless_model, "-p", "x", "-n", 20, "--temperature", 1, "--ignore-eos")
    first = run_json(moebius, *arguments)
    assert run_json(moebius, *arguments, "--seed", first["seed"])["text"] == first["text"]


def test_json_when_interrupted(terminal, endless_model):
    """Ctrl-C ends the answer, and the object holds what came until then."""
    run = terminal("run", endless_model, "-p", "x", "--ignore-eos", "-n", 100000, "--greedy", "--json")
    run.wait_for_catch()
    run.send("\x03")
    assert run.wait() == 130
    answer = json.loads(run.output.replace("^C", "").strip())
    assert answer["finish_reason"] == "interrupted" and answer["usage"]["completion_tokens"] == len(answer["ids"]) < 100000


def test_stop_texts_across_token_borders(moebius):
    full = run_json(moebius, DEMO, "-p", SUM, "--greedy")
    text = full["text"]
    for stop in (text[3:9], text[20:22], text[-4:], text[9:40], ".", "\n</think>"):
        answer = run_json(moebius, DEMO, "-p", SUM, "--greedy", "--stop", stop)
        assert answer["text"] == text[: text.index(stop)] and answer["stop"] == stop and answer["finish_reason"] == "stop"
        assert answer["ids"] == full["ids"][: len(answer["ids"])]  # the tokens of the stop text are counted
        plain = moebius("run", DEMO, "-p", SUM, "--greedy", "--stop", "never so", "--stop", stop)
        assert plain.stdout.decode() == answer["text"] + "\n"
    never = run_json(moebius, DEMO, "-p", SUM, "--greedy", "--stop", text[-1] + "!", "--stop", "zz")
    assert never["text"] == text and never["stop"] is None  # what was withheld comes at the end


def test_the_first_stop_text_counts(moebius):
    text = run_json(moebius, DEMO, "-p", SUM, "--greedy")["text"]
    answer = run_json(moebius, DEMO, "-p", SUM, "--greedy", "--stop", "Tens", "--stop", "= 15", "--stop", "15. Tens")
    assert answer["stop"] == "= 15" and answer["text"] == text[: text.index("= 15")]


def test_stop_texts_in_chat(moebius):
    """The answer in the conversation is the one that was shown."""
    result = moebius("chat", DEMO, "--greedy", "--no-think", "--stop", "15", input=SUM + "\nAgain?\n")
    first = moebius("run", DEMO, "--greedy", "--no-think", "--stop", "15", "-p", SUM).stdout
    assert result.returncode == 0 and result.stdout.startswith(first)


@pytest.mark.parametrize("arguments, sentence", [
    (["--stop", ""], b'--stop: "" is not understood; give a text that is not empty'),
    (["--stop", "x", "--print-ids"], b"--stop needs the answer's text, which --print-ids leaves out"),
    (["--json=x"], b"--json takes no value"),
])  # fmt: skip
def test_mistakes(moebius, arguments, sentence):
    result = moebius("run", DEMO, "-p", "x", *arguments)
    assert result.returncode == 2 and result.stdout == b"" and sentence in result.stderr


def test_zero_bytes_stay_in_json(moebius):
    zero = token_id("\u0100")
    assert run_json(moebius, DEMO, "-p", "x", "--greedy", "-n", 2, "--logit-bias", f"{zero}:100")["text"] == "\0\0"


def test_names_and_texts_that_are_no_utf8(moebius, tmp_path):
    """JSON cannot hold them: told before the answer is computed, not after."""
    link = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.symlink(DEMO, link)
    refused = moebius("run", link, "-p", SUM, "--json", "-n", 100000)
    assert refused.returncode == 1 and b"is not UTF-8; rename it" in refused.stderr and refused.stdout == b""
    assert moebius("run", link, "-p", SUM, "-n", 1).returncode == 0
    refused = moebius("run", DEMO, "-p", SUM, "--stop", os.fsdecode(b"\xff"))
    assert refused.returncode == 2 and b"--stop: the text is not valid UTF-8" in refused.stderr


def test_ids_without_tokenizer_have_no_text(moebius, golden_model):
    for option in ((), ("--json",), ("--stop", "x")):
        refused = moebius("run", golden_model, "--ids", "5", "-n", 1, *option)
        assert refused.returncode == 1 and b"no tokenizer.json, so the answer has no text; give --print-ids" in refused.stderr


def test_input_without_end():
    """An endless pipe is refused, and does not fill the memory."""
    endless = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    try:
        refused = subprocess.run([BINARY, "run", DEMO, "-p", "-"], stdin=endless.stdout, capture_output=True, timeout=60)
    finally:
        endless.kill()
        endless.wait()
        endless.stdout.close()
    assert refused.returncode == 1 and b"standard input: more than 268435456 bytes" in refused.stderr


def test_a_template_that_is_no_utf8(moebius, tmp_path):
    (tmp_path / "own.jinja").write_bytes(b"{{ messages[0].content }}\xff")
    refused = moebius("run", DEMO, "-p", SUM, "--chat-template", tmp_path / "own.jinja")
    assert refused.returncode == 1 and b"own.jinja: not UTF-8: byte 0xFF at offset 25" in refused.stderr
