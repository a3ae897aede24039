"""Help pages and mistakes on the command line."""

import json
import os
import re
import shutil
import subprocess

import pytest

from cli_support import BINARY, DEMO, ROOT

COMMANDS = ["run", "chat", "batch", "info", "bench", "tokenize", "logprobs"]
MODEL = "tests/golden/plain_f32"


@pytest.mark.parametrize("command", COMMANDS)
def test_manual_page(moebius, command):
    page = moebius(command, "--help")
    assert page.returncode == 0 and page.stderr == b""
    text = page.stdout.decode()
    headings = re.findall(r"^[A-Z][A-Z ]+$", text, re.M)
    assert headings == ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS"]
    assert f"moebius {command} - " in text
    described = text.split("DESCRIPTION", 1)[1].split("EXAMPLES")[0]
    assert max(map(len, described.splitlines())) <= 80
    assert moebius("help", command).stdout == page.stdout
    assert moebius(command, "no-such-folder", "-h").stdout == page.stdout
    assert "mb_" not in text  # the C interface has a manual of its own


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_the_page_is_parsed(moebius, command):
    """An option with a value complains about its absence, a flag about a value: neither is unknown."""
    page = moebius(command, "--help").stdout.decode()
    options = re.findall(r"^ {7}(?:-\w, )?(?:(--[a-z-]+), )?(--[a-z-]+)(?: (\S+))?$", page, re.M)
    assert len(options) >= 6
    for option, value in [(name, value) for *names, value in options for name in names if name]:
        if option == "--help":
            continue
        result = moebius(command, MODEL, option if value else option + "=x")
        assert result.returncode == 2, option
        expected = f"{option} needs a value" if value else f"{option} takes no value"
        assert expected in result.stderr.decode(), option


def test_overview(moebius):
    overview = moebius("--help")
    assert overview.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", overview.stdout.decode(), re.M)
    assert moebius("help").stdout == overview.stdout
    alone = moebius()
    assert alone.returncode == 2 and alone.stdout == b"" and alone.stderr == overview.stdout


def test_version(moebius):
    version = moebius("--version")
    assert version.returncode == 0
    assert re.fullmatch(rb"moebius \d+\.\d+\.\d+\n", version.stdout)


RUN = ["run", MODEL, "--ids", "1"]

# The arguments, and what the sentence must say: option, value, allowed range.
MISTAKES = [
    (["frobnicate"], 'no command "frobnicate"\n'),
    (["rnu"], 'no command "rnu"; did you mean run?'),
    (["tokenise"], "did you mean tokenize?"),
    (["benchmark"], "did you mean bench?"),
    (["--hepl"], "did you mean --help?"),
    ([MODEL], f'a model\'s folder follows the command: moebius run {MODEL} -p "..."'),
    (["help", "infp"], "did you mean info?"),
    (["help", "--completion"], "give a command, --man, or --completion and bash, zsh or fish"),
    (["help", "--completion", "csh"], "bash, zsh or fish"),
    (["help", "frobnicate"], 'no command "frobnicate"'),
    (["--frobnicate"], 'no command "--frobnicate"'),
    (["run"], "DIR is missing"),
    (["info"], "DIR is missing"),
    (["run", ""], "DIR is missing"),
    (["run", "-p", "x"], "DIR is missing"),
    (["run", MODEL], "the prompt is missing"),
    (["run", MODEL, "-p", "x", "--ids", "1"], "two prompts"),
    (["run", MODEL, "other", "-p", "x"], '"other" is one operand too many'),
    (["run", MODEL, "hello"], f'"hello" is one operand too many: DIR is "{MODEL}" already; the prompt is given with -p TEXT'),
    (["logprobs", MODEL, "hello"], "the prompt is given with -p TEXT"),
    (["tokenize", MODEL, "hello"], "the prompt is given with -p TEXT"),
    (["chat", MODEL, "hello"], "moebius run takes one with -p"),
    (["bench", MODEL, "--json", "rows.jsonl"], "a file for the results is given with --output FILE"),
    (["run", MODEL, "--", "--greedy"], '"--greedy" is one operand too many'),
    (RUN + ["--frobnicate"], "no option --frobnicate"),
    (RUN + ["--frobnicate=3"], "no option --frobnicate\n"),
    (RUN + ["--gree"], "no option --gree; did you mean --greedy?"),
    (RUN + ["--tempreture", "1"], "no option --tempreture; did you mean --temperature?"),
    (RUN + ["--max-tokens=5"], "no option --max-tokens; did you mean --max-new-tokens?"),
    (RUN + ["--topk", "5"], "no option --topk; did you mean --top-k?"),
    (RUN + ["-greedy"], "no option -greedy; did you mean --greedy?"),
    (RUN + ["--hlep"], "did you mean --help?"),
    (RUN + ["--" + "x" * 1000], "no option --xxx"),
    (RUN + ["-x"], "no option -x\n"),
    (RUN + ["--raw"], "--raw, --system, --tools and --no-think go with -p"),
    (RUN + ["--system", "be brief"], "--raw, --system, --tools and --no-think go with -p"),
    (["run", MODEL, "-p", "x", "--raw", "--no-think"], "need the chat template"),
    (RUN + ["-n"], "-n needs a value: a whole number from 0 to 16777216"),
    (RUN + ["-n", ""], '-n: "" is not understood'),
    (RUN + ["-n", "x"], '-n: "x" is not understood; give a whole number from 0 to 16777216'),
    (RUN + ["-n", "3x"], '-n: "3x" is not understood'),
    (RUN + ["-n3.5"], '-n: "3.5" is not understood'),
    (RUN + ["-n", " 3"], '-n: " 3" is not understood'),
    (RUN + ["-n", "+3"], '-n: "+3" is not understood'),
    (RUN + ["-n", "0x10"], '-n: "0x10" is not understood'),
    (RUN + ["-n", "-1"], '-n: "-1" is out of range'),
    (RUN + ["-n", "16777217"], '-n: "16777217" is out of range'),
    (RUN + ["-n", "9223372036854775808"], "is out of range"),
    (RUN + ["-n", "1" * 100], "is out of range"),
    (RUN + ["--max-new-tokens=many"], '--max-new-tokens: "many" is not understood'),
    (RUN + ["--greedy=yes"], '--greedy takes no value, but "=yes" follows it'),
    (RUN + ["--greedy", "--temperature", "0.5"], "--greedy and --temperature 0.5 contradict each other"),
    (RUN + ["--temperature", "hot"], '--temperature: "hot" is not understood; give a number from 0 to 100'),
    (RUN + ["--temperature", "nan"], '--temperature: "nan" is not understood'),
    (RUN + ["--temperature", "inf"], '--temperature: "inf" is not understood'),
    (RUN + ["--temperature", "1e999"], '--temperature: "1e999" is out of range'),
    (RUN + ["--temperature", "-0.1"], '--temperature: "-0.1" is out of range'),
    (RUN + ["--temperature", "1.2.3"], '--temperature: "1.2.3" is not understood'),
    (RUN + ["--temperature", "0x1p3"], '--temperature: "0x1p3" is not understood'),
    (RUN + ["--top-k", "-1"], '--top-k: "-1" is out of range; give a whole number from 0 to 1000000'),
    (RUN + ["--top-p", "-0.1"], '--top-p: "-0.1" is out of range; give a number from 0 to 1'),
    (RUN + ["--repetition-penalty", "0"], '"0" is out of range; give a number above 0, at most 100'),
    (RUN + ["--top-p", "1.01"], '--top-p: "1.01" is out of range'),
    (RUN + ["--min-p", "1.01"], '--min-p: "1.01" is out of range; give a number from 0 to 1'),
    (RUN + ["--repetition-penalty", "0"], '--repetition-penalty: "0" is out of range'),
    (RUN + ["--presence-penalty", "2.5"], '--presence-penalty: "2.5" is out of range; give a number from -2 to 2'),
    (RUN + ["--frequency-penalty", "-3"], '--frequency-penalty: "-3" is out of range'),
    (RUN + ["--logit-bias", "5"], '--logit-bias: "5" is not understood; give ID:BIAS pairs'),
    (RUN + ["--logit-bias", "5:1,"], '--logit-bias: "5:1," is not understood'),
    (RUN + ["--logit-bias", "5:1,x:2"], '"5:1,x:2" is not understood'),
    (RUN + ["--logit-bias", "5:"], '--logit-bias: "5:" is not understood'),
    (RUN + ["--logit-bias", "5:101"], '--logit-bias: "5:101" is out of range'),
    (RUN + ["--logit-bias", "-5:1"], '--logit-bias: "-5:1" is out of range'),
    (RUN + ["--seed", "-1"], '--seed: "-1" is out of range'),
    (RUN + ["--stop-ids", "1,,2"], '--stop-ids: "1,,2" is not understood'),
    (RUN + ["--device", "tpu"], '--device: "tpu" is not understood; give one of cpu|cuda|cuda:N'),
    (RUN + ["--device", "cuda:"], '--device: "cuda:" is not understood'),
    (RUN + ["--device", "cuda:N"], '--device: "cuda:N" is not understood'),
    (RUN + ["--quant", "fp4"], '--quant: "fp4" is not understood; give fp8'),
    (["batch", MODEL, "in", "out", "--gpu-memory", "2"], '--gpu-memory: "2" is out of range; give a number above 0, at most 1'),
    (["batch", MODEL, "in", "out", "--max-batch", "0"], '--max-batch: "0" is out of range; give a whole number from 1 to 4096'),
    (["batch", MODEL, "in", "out", "--max-context", "-1"], '--max-context: "-1" is out of range'),
    (["batch", MODEL, "in", "out", "--max-bacth", "1"], "no option --max-bacth; did you mean --max-batch?"),
    (["serve", MODEL, "--max-contxt", "1"], "no option --max-contxt; did you mean --max-context?"),
    (["serve", MODEL, "--gpu-memory", "0.5", "--kv-tokens", "64"], "--kv-tokens and --gpu-memory-utilization (--gpu-memory) both give"),
    (RUN + ["--dtype", "fp8"], '--dtype: "fp8" is not understood; give one of fp32|bf16|fp16'),
    (RUN + ["--dtype", ""], '--dtype: "" is not understood'),
    (RUN + ["--threads", "0"], '--threads: "0" is out of range; give a whole number from 1 to 1024'),
    (RUN + ["--kv-tokens", "0"], '--kv-tokens: "0" is out of range'),
    (["run", MODEL, "--ids", ""], '--ids: "" is not understood; give whole numbers from 0 to 2147483647'),
    (["run", MODEL, "--ids", "1,2,"], '--ids: "1,2," is not understood'),
    (["run", MODEL, "--ids", "1 2"], '--ids: "1 2" is not understood'),
    (["run", MODEL, "--ids", "1,-2"], '--ids: "1,-2" is out of range'),
    (["run", MODEL, "--ids", "2147483648"], '--ids: "2147483648" is out of range'),
    (["chat", MODEL, "-p", "x"], "no option -p"),
    (["chat", MODEL, "--greedy", "--temperature", "1"], "contradict"),
    (["logprobs", MODEL], "give the prompt either as --ids or as -p TEXT"),
    (["logprobs", MODEL, "--ids", "1", "-p", "x"], "give the prompt either as --ids or as -p TEXT"),
    (["logprobs", MODEL, "--ids", "1", "--temperature", "1"], "no option --temperature"),
    (["tokenize", MODEL, "-p", "x", "--decode", "1"], "-p and --decode exclude each other"),
    (["tokenize", MODEL, "--decode", "one"], '--decode: "one" is not understood'),
    (["bench", MODEL, "--batches", "0"], '--batches: "0" is out of range; give whole numbers from 1 to 1024'),
    (["bench", MODEL, "--prompt-lengths", "1,0"], '--prompt-lengths: "1,0" is out of range'),
    (["bench", MODEL, "--repeat", "0"], '--repeat: "0" is out of range'),
    (["bench", MODEL, "-n", "0"], '-n: "0" is out of range; give a whole number from 1 to 65536'),
]


@pytest.mark.parametrize("arguments, sentence", MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistake(moebius, arguments, sentence):
    result = moebius(*arguments)
    error = result.stderr.decode()
    assert result.returncode == 2
    assert result.stdout == b""
    assert sentence in error
    assert re.search(r"\nTry 'moebius( \w+)? --help'\.\n$", error)


# What only an opened model can tell to be wrong. No name of the C interface stands in it.
REFUSED = [
    (RUN + ["--stop-ids", "3,80"], "--stop-ids: there is no token 80; the model's vocabulary has the ids 0 to 79"),
    (RUN + ["--logit-bias", "80:1"], "--logit-bias: there is no token 80"),
    (RUN + ["--logit-bias", ",".join(["5:1"] * 1025)], "--logit-bias has 1025 pairs; give at most 1024"),
    (["run", MODEL, "--ids", "2000000000"], "--ids: there is no token 2000000000"),
    (["logprobs", MODEL, "--ids", "80"], "--ids: there is no token 80"),
    (["logprobs", MODEL, "--ids", ",".join(["1"] * 257)], "the prompt of 257 tokens does not fit the model's 256 positions"),
    (RUN + ["-n", "256"], "the prompt of 1 tokens and an answer of up to 256 (-n) do not fit the 256 positions"),
    (["chat", "models/demo", "-n", "2048"], "an answer of up to 2048 tokens (-n) can never fit the context of 2048 tokens"),
    (["chat", "models/demo", "-n", "64", "--kv-tokens", "64"], "give a smaller -n, or a larger --kv-tokens"),
    (["chat", "models/demo", "--stop-ids", "640"], "--stop-ids: there is no token 640"),
    (["serve", MODEL, "--gpu-memory", "0.5", "--device", "cpu"], "--gpu-memory-utilization (--gpu-memory) goes with a GPU"),
    (["bench", "moe", "--thiek", "1,64,64,2,3", "--device", "cpu"], "--thiek 1,64,64,2,3: top_k is 3"),
]


@pytest.mark.parametrize("arguments, sentence", REFUSED, ids=range(len(REFUSED)))
def test_refused(moebius, arguments, sentence):
    result = moebius(*arguments)
    error = result.stderr.decode()
    assert result.returncode == 1 and result.stdout == b""
    assert error.startswith("moebius: ") and error.count("\n") == 1 and sentence in error
    assert "mb_" not in error and "request." not in error


@pytest.mark.parametrize("setting, option", [('"temperature": -1', "--temperature"), ('"top_k": "x"', "--top-k"), ('"top_p": 3', "--top-p"),
                                             ('"repetition_penalty": -3', "--repetition-penalty")])  # fmt: skip
def test_wrong_defaults_of_the_checkpoint(moebius, tmp_path, setting, option):
    """The sentence names the option that replaces the setting, and with the option the model answers."""
    model = shutil.copytree(ROOT / "models/demo", tmp_path / "model")
    (model / "generation_config.json").write_text('{"do_sample": true, %s}' % setting)
    for command, input in ((["run", model, "-p", "Hi"], None), (["chat", model], "Hi\n")):
        refused = moebius(*command, input=input)
        assert refused.returncode == 1 and f"; give {option}\n" in refused.stderr.decode()
        assert "request." not in refused.stderr.decode()
        assert moebius(*command, option, 1, input=input).returncode == 0


@pytest.mark.parametrize("setting", ['"temperature": -1', '"top_k": -5', '"top_p": 3', '"min_p": "x"', '"do_sample": 1'])
def test_a_greedy_answer_needs_no_settings_of_the_draw(moebius, tmp_path, setting):
    model = shutil.copytree(ROOT / "models/demo", tmp_path / "model")
    (model / "generation_config.json").write_text('{"do_sample": true, %s}' % setting)
    for greedy in (["--greedy"], ["--temperature", 0]):
        result = moebius("run", model, "-p", "Hi", "-n", 1, *greedy)
        assert result.returncode == 0, result.stderr
    assert moebius("chat", model, "-n", 1, "--greedy", input="Hi\n").returncode == 0


def test_range_ends_are_allowed(moebius):
    ends = ["-n", "0", "--top-p", "0", "--min-p", "1", "--presence-penalty", "-2", "--frequency-penalty=2"]
    ends += ["--top-k", "1000000", "--temperature", "100", "--logit-bias", "5:-100,6:1e2", "--device", "cpu"]
    result = moebius(*RUN, "--print-ids", *ends)
    assert (result.returncode, result.stdout) == (0, b"\n"), result.stderr


def test_the_last_mention_counts(moebius):
    result = moebius("run", MODEL, "--ids", "1,2", "--ids", "3", "-n", "5", "-n", "2", "--greedy", "--print-ids", "--ignore-eos")
    once = moebius("run", MODEL, "--ids=3", "-n2", "--greedy", "--print-ids", "--ignore-eos")
    assert result.returncode == 0 and result.stdout == once.stdout and result.stdout.count(b",") == 1


def test_names_that_json_cannot_have(moebius, tmp_path):
    """Every reply of serve and every line of batch would be no JSON."""
    link = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.symlink(DEMO, link)
    (tmp_path / "in").write_text("")
    refused = moebius("serve", link, "--port", 0)
    assert refused.returncode == 1 and b"is not UTF-8" in refused.stderr and b"give --served-model-name" in refused.stderr
    refused = moebius("serve", DEMO, "--port", 0, "--served-model-name", os.fsdecode(b"\xff"))
    assert refused.returncode == 2 and b"--served-model-name: the name is not valid UTF-8" in refused.stderr
    refused = moebius("batch", link, tmp_path / "in", tmp_path / "out")
    assert refused.returncode == 1 and b"is not UTF-8" in refused.stderr and not (tmp_path / "out").exists()


def test_a_model_in_the_current_folder_has_its_name(tmp_path):
    (tmp_path / "in").write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 1}}))
    done = subprocess.run([BINARY, "batch", "./", tmp_path / "in", tmp_path / "out"], cwd=DEMO, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out").read_text())["response"]["body"]["model"] == "demo"
