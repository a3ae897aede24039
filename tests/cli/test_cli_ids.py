"""run --print-ids, logprobs and info on checkpoints that have no tokenizer."""

import json
import os
import re
import signal
import subprocess
import time

import numpy
import pytest

from cli_support import BINARY, GOLDEN, ROOT, write_checkpoint


def expectations():
    for folder in ("plain_f32", "old_keys_bf16", "sharded_bf16", "fp8_ragged"):
        for i, case in enumerate(json.loads((GOLDEN / folder / "expect.json").read_text())["cases"][:2]):
            yield pytest.param(folder, case, id=f"{folder}-{i}")


@pytest.mark.parametrize("folder, case", list(expectations()))
def test_print_ids_is_exact_and_alone_on_stdout(moebius, folder, case):
    ids = ",".join(map(str, case["ids"]))
    result = moebius("run", GOLDEN / folder, "--ids", ids, "-n", 24, "--greedy", "--print-ids", "--ignore-eos", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == ",".join(map(str, case["greedy"][:24])) + "\n"


def test_last_line_has_the_figures(moebius, golden_model):
    arguments = ("run", golden_model, "--ids", "1,2,3", "-n", 7, "--greedy", "--print-ids", "--ignore-eos")
    line = moebius(*arguments).stderr.decode()
    assert re.fullmatch(
        r"3 prompt tokens, 7 generated tokens, \d+\.\d output tokens/s, first token \d\.\d{3} s "
        r"\(loading \d\.\d{3} s\), stopped at the limit of 7 new tokens\n",
        line,
    )
    assert moebius(*arguments, "--quiet").stderr == b""


def test_no_progress_bar_without_a_terminal(moebius, golden_model):
    assert b"loading weights" not in moebius("info", golden_model).stderr


@pytest.mark.parametrize("dtype, share, tolerance", [("fp32", 1, 1e-4), ("bf16", 0.5, 0.2), ("fp16", 0.5, 0.2 / 8)])
def test_logprobs_rows(moebius, dtype, share, tolerance):
    """Every row is a distribution over the whole vocabulary, and close to the golden's: all rows in fp32, half of
    them in the short types, whose rounding may send a token to another expert. fp16 has 3 bits more than bf16."""
    expect = json.loads((GOLDEN / "plain_f32/expect.json").read_text())
    reference = numpy.fromfile(GOLDEN / "plain_f32/logprobs.bin", "<f4").reshape(-1, expect["vocab_size"])
    first, second = (case["ids"] for case in expect["cases"][:2])
    result = moebius("logprobs", GOLDEN / "plain_f32", "--ids", ",".join(map(str, second)), "--json", "--dtype", dtype)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert list(document) == ["logprobs"]
    rows = numpy.array(document["logprobs"])
    assert rows.shape == (len(second), expect["vocab_size"])
    assert abs(numpy.exp(rows).sum(axis=1) - 1).max() < 1e-4
    errors = abs(rows - reference[len(first) : len(first) + len(second)]).max(axis=1)
    assert numpy.quantile(errors, share) < tolerance


def test_bf16_differs_from_fp32(moebius, golden_model):
    """--dtype reaches the computation."""
    rows = [moebius("logprobs", golden_model, "--ids", "5,6,7", "--json", "--dtype", dtype).stdout for dtype in ("fp32", "bf16")]
    assert rows[0] != rows[1]


def test_trace_writes_every_output(moebius, golden_model, tmp_path):
    arguments = ("run", golden_model, "--ids", "5,6,7", "-n", 2, "--greedy", "--print-ids", "-q", "--ignore-eos")
    traced = moebius(*arguments, env={**os.environ, "MOEBIUS_TRACE": str(tmp_path)})
    assert traced.returncode == 0 and traced.stderr == b"" and traced.stdout == moebius(*arguments).stdout
    first, second = sorted(tmp_path.glob("*-logits.npy"))
    ids = [int(id) for id in traced.stdout.split(b",")]
    assert [int(numpy.load(path)[-1].argmax()) for path in (first, second)] == ids
    layers = [len(list(tmp_path.glob(f"??????-{layer:02}-*.npy"))) for layer in range(2)]
    # Eight outputs in each of two steps: so few tokens have no q of their own, attention makes it for itself.
    assert layers == [16, 16]


def test_trace_that_cannot_be_written_warns_once(moebius, golden_model, tmp_path):
    arguments = ("run", golden_model, "--ids", "5,6,7", "-n", 2, "--print-ids", "-q")
    result = moebius(*arguments, env={**os.environ, "MOEBIUS_TRACE": str(tmp_path / "missing")})
    assert result.returncode == 0
    assert len(result.stderr.splitlines()) == 1 and b"MOEBIUS_TRACE" in result.stderr


def test_logprobs_have_nine_digits(moebius, golden_model):
    text = moebius("logprobs", golden_model, "--ids", "5", "--json").stdout.decode()
    numbers = re.findall(r"-[\d.e-]+", text)
    digits = [len(number.lstrip("-0.").replace(".", "")) for number in numbers]
    assert max(digits) == 9 and sum(count >= 8 for count in digits) > 0.9 * len(digits)


def test_logprobs_table_shows_the_best_five(moebius, golden_model):
    rows = json.loads(moebius("logprobs", golden_model, "--ids", "5,6", "--json").stdout)["logprobs"]
    text = moebius("logprobs", golden_model, "--ids", "5,6").stdout.decode()
    blocks = text.split("position ")[1:]
    assert len(blocks) == 2
    for position, (block, row) in enumerate(zip(blocks, rows)):
        assert block.startswith(f"{position}, after token {5 + position}\n")
        listed = [line.split() for line in block.splitlines()[2:]]
        best = sorted(range(len(row)), key=lambda token: -row[token])[:5]
        assert [int(token) for _, _, token in listed] == best
        assert all(abs(float(value) - row[token]) < 1e-4 for (value, _, _), token in zip(listed, best))


def sample(moebius, model, seed, *more):
    result = moebius("run", model, "--ids", "1,2,3", "-n", 40, "--temperature", 1.5, "--ignore-eos", "--print-ids",
                     *(["--seed", seed] if seed is not None else []), *more)  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_seed_decides(moebius, golden_model):
    assert sample(moebius, golden_model, 7) == sample(moebius, golden_model, 7)
    assert sample(moebius, golden_model, 7) == sample(moebius, golden_model, 7, "--threads", 1)
    assert sample(moebius, golden_model, 7) != sample(moebius, golden_model, 8)
    assert sample(moebius, golden_model, None) != sample(moebius, golden_model, None)


def test_the_seed_that_was_drawn_is_told(moebius, golden_model):
    arguments = ("run", golden_model, "--ids", "1", "-n", 30, "--temperature", 2, "--ignore-eos", "--print-ids")
    first = moebius(*arguments)
    seed = re.search(rb", seed (\d+)", first.stderr).group(1).decode()
    assert moebius(*arguments, "--seed", seed).stdout == first.stdout


def test_logit_bias_and_stop_ids(moebius, golden_model):
    arguments = ("run", golden_model, "--ids", "1,2,3", "-n", 6, "--greedy", "--ignore-eos", "--print-ids")
    assert moebius(*arguments, "--logit-bias", "11:100").stdout == b"11,11,11,11,11,11\n"
    plain = moebius(*arguments).stdout.decode().strip().split(",")
    stopped = moebius(*arguments, "--stop-ids", plain[2])
    assert stopped.stdout.decode().strip().split(",") == plain[: plain.index(plain[2])]
    banned = moebius(*arguments, "--logit-bias", f"{plain[0]}:-100").stdout.decode().split(",")
    assert banned[0] != plain[0]


def test_penalties_change_the_answer(moebius, golden_model):
    arguments = ("run", golden_model, "--ids", "1,2,3", "-n", 24, "--greedy", "--ignore-eos", "--print-ids")
    plain = moebius(*arguments).stdout
    ids = moebius(*arguments, "--logit-bias", "11:3", "--frequency-penalty", 2).stdout.decode().split(",")
    assert moebius(*arguments, "--logit-bias", "11:100").stdout.count(b"11") == 24 > ids.count("11")
    assert moebius(*arguments, "--repetition-penalty", 5).stdout != plain


@pytest.mark.parametrize("arguments, sentence", [
    (["run", "no/such/folder", "--ids", "1"], "no/such/folder"),
    (["info", "README.md"], "README.md"),
    (["run", "tests/golden/plain_f32", "--ids", "80", "--print-ids"], "--ids: there is no token 80; the model's vocabulary has the ids 0 to 79"),
    (["run", "tests/golden/plain_f32", "--ids", "1", "-n", "256", "--print-ids"], "do not fit the 256 positions"),
    (["run", "tests/golden/plain_f32", "--ids", "1,2,3", "--kv-tokens", "2", "--print-ids"], "--kv-tokens"),
    (["run", "tests/golden/plain_f32", "-p", "x", "--raw"], "tokenizer"),
    (["run", "tests/golden/plain_f32", "--ids", "1", "--logit-bias", "80:1", "--print-ids"], "--logit-bias: there is no token 80; the model's vocabulary has the ids 0 to 79"),
    (["chat", "tests/golden/plain_f32"], "tokenizer"),
    (["tokenize", "tests/golden/plain_f32", "-p", "x"], "tokenizer"),
    (["bench", "tests/golden/plain_f32", "--prompt-lengths", "300"], "no combination fits"),
    (["bench", "tests/golden/plain_f32", "--output", "no/such/folder/x"], "No such file"),
    (["run", "tests/golden/plain_f32", "--ids", "1", "--chat-template", "qwen9", "--print-ids"], "qwen9"),
])  # fmt: skip
def test_failures_say_why(moebius, arguments, sentence):
    result = moebius(*arguments)
    error = result.stderr.decode()
    assert result.returncode == 1
    assert result.stdout == b""
    assert error.splitlines()[-1].startswith("moebius: ") and sentence in error


@pytest.mark.parametrize("damage, sentence", [
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": '), "config.json"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "config.json"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "model.safetensors"),
    (lambda folder: os.truncate(folder / "model.safetensors", 5000), "model.safetensors"),
])  # fmt: skip
def test_damaged_folder(moebius, tmp_path, damage, sentence):
    folder = write_checkpoint(tmp_path / "model", 50, 64)
    assert moebius("info", folder).returncode == 0
    damage(folder)
    result = moebius("info", folder)
    assert result.returncode == 1 and result.stdout == b""
    assert sentence in result.stderr.decode()


def test_run_needs_the_weights(moebius, tmp_path):
    """info does not: test_cli_large.py."""
    folder = write_checkpoint(tmp_path / "model", 50, 64)
    (folder / "model.safetensors").unlink()
    result = moebius("run", folder, "--ids", "1,2")
    assert result.returncode == 1 and result.stdout == b""
    assert "safetensors" in result.stderr.decode()


def test_nan_in_weights_fails_the_answer(moebius, tmp_path):
    folder = write_checkpoint(tmp_path / "model", 50, 64)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-8:] = b"\x00\x00\xc0\x7f" * 2
    at = 8 + int.from_bytes(data[:8], "little")
    data[at : at + 4 * 64 * 50] = b"\x00\x00\xc0\x7f" * (64 * 50)
    file.write_bytes(data)
    result = moebius("run", folder, "--ids", "1,2", "-n", 4, "--greedy", "--print-ids")
    assert result.returncode == 1 and "not numbers" in result.stderr.decode()
    rows = moebius("logprobs", folder, "--ids", "1,2", "--json")
    json.loads(rows.stdout or "{}", parse_constant=pytest.fail)


def test_info_counts_parameters(moebius, tmp_path):
    folder = write_checkpoint(tmp_path / "model", 50, 64, hidden=32, layers=2, experts=4, intermediate=16)
    document = json.loads(moebius("info", folder, "--json").stdout)
    expert, attention, norms = 3 * 16 * 32, 32 * 64 + 2 * 32 * 32 + 64 * 32, 2 * 32 + 2 * 16
    everything = 2 * 50 * 32 + 32 + 2 * (attention + norms + 4 * 32 + 4 * expert)
    assert document["parameters"] == everything
    assert document["active_parameters"] == everything - 2 * 2 * expert - 49 * 32
    assert document["bytes_in"] == {"fp32": 4 * everything, "bf16": 2 * everything, "fp8": everything}
    assert document["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert document["experts"] == 4 and document["experts_per_token"] == 2 and document["max_positions"] == 64
    assert document["kv_tokens_that_fit"]["h100_80gb"] == (80 * 10**9 - document["weight_bytes"]) // (2 * 2 * 2 * 16 * 2)
    assert not document["has_tokenizer"]
    fp8 = json.loads(moebius("info", folder, "--json", "--kv-dtype=fp8").stdout)  # the first layer: fp32 here, bf16 there
    assert fp8["kv_bytes_per_token"] == 12 * 2 * 16  # K and V of 4 bytes, then of 1, rounded up to whole floats
    assert fp8["kv_tokens_that_fit"]["h100_80gb"] == (80 * 10**9 - fp8["weight_bytes"]) // (2 * (2 + 1) * 2 * 16)
    text = moebius("info", folder).stdout.decode()
    for fact in ("Qwen3MoeForCausalLM", "4 of size 16, 2 for each token", "H100 80 GB", "H200 141 GB", "fp32"):
        assert fact in text
    assert "for each token, in fp32\n" in text and "(these weights, KV cache in bf16)" in text
    text = moebius("info", folder, "--kv-dtype=fp8").stdout.decode()
    assert "for each token, first layer in fp32, others in fp8\n" in text
    assert "(these weights, KV cache first layer in bf16, others in fp8)" in text
    one_layer = write_checkpoint(tmp_path / "one layer", 50, 64, hidden=32, layers=1, experts=4, intermediate=16)
    text = moebius("info", one_layer, "--kv-dtype=fp8").stdout.decode()
    assert "for each token, in fp32\n" in text and "(these weights, KV cache in bf16)" in text and "in fp8)" not in text


def test_bench_rows(moebius, tmp_path, golden_model):
    file = tmp_path / "rows.jsonl"
    arguments = ("bench", golden_model, "--prompt-lengths", "16,40", "--batches", "1,3", "-n", 8, "--repeat", 2)
    result = moebius(*arguments, "--output", file)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["bench"], row["shape"]["context"], row["shape"]["batch"]) for row in rows] == [
        (bench, length, batch) for length in (16, 40) for batch in (1, 3) for bench in ("prefill", "decode")
    ]
    for row in rows:
        assert row["who"] == "moebius" and row["tok_s"] > 0 and row["model"] == "plain_f32"
        assert row["weights"] == "fp32" and row["kv"] == "fp32" and row["dtype"] == "fp32"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and row["card"] and "median of 2" in row["how"]
        # The CPU has no floor.
        assert row["step_us"] > 0 and row["bytes"] > 0 and row["flops"] > 0 and "floor_us" not in row
    assert all(row["step_us"] == pytest.approx(1e6 * row["shape"]["batch"] / row["tok_s"], rel=1e-4) for row in rows[1::2])
    assert rows[1]["bytes"] < rows[3]["bytes"] and rows[1]["flops"] < rows[3]["flops"]
    assert "prompt" in result.stdout.decode() and "output" in result.stdout.decode()
    assert len(result.stdout.decode().splitlines()) == 5 + 8
    moebius(*arguments, "--output", file)
    assert len(file.read_text().splitlines()) == 16
    only = moebius(*arguments, "--json")
    assert len([json.loads(line) for line in only.stdout.splitlines()]) == 8


def test_bench_leaves_out_what_does_not_fit(moebius, golden_model):
    result = moebius("bench", golden_model, "--prompt-lengths", "16,250", "--batches", 1, "-n", 8, "--repeat", 1)
    assert result.returncode == 0 and b"left out: prompts of 250 tokens" in result.stderr
    assert len(result.stdout.decode().splitlines()) == 5 + 2


def test_bench_profile(moebius, golden_model):
    arguments = ("bench", golden_model, "--prompt-lengths", 16, "--batches", 3, "-n", 8, "--repeat", 1, "--profile")
    result = moebius(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["bench"], row.get("pass")) for row in rows] == [
        ("prefill", None), ("profile", "prefill"), ("decode", None), ("profile", "decode")]
    for plain, profile in (rows[:2], rows[2:]):
        assert all(profile[key] == plain[key] for key in plain if key != "bench")
        operators = profile["operators"]
        names = {o["op"] for o in operators}
        assert names >= {"embed", "rms_norm", "gemm", "moe_router_gemm", "moe_forward", "sample"}
        assert ("attention" in names) == ("qk_norm_rope_store" in names) == (profile["pass"] == "prefill")
        assert ("decode_attention" in names) == (profile["pass"] == "decode")
        assert [o["us"] for o in operators] == sorted((o["us"] for o in operators), reverse=True)
        assert sum(o["us"] for o in operators) + profile["between_us"] <= profile["device_us"] * 1.001
        assert sum(o["bytes"] for o in operators) == pytest.approx(profile["bytes"], rel=1e-4)
        assert sum(o["flops"] for o in operators) == pytest.approx(profile["flops"], rel=1e-4)
        assert all("weight" in o for o in operators if o["op"] == "gemm") and profile["host_us"] > 0
    assert rows[3]["steps"] == 9 and next(o for o in rows[3]["operators"] if o["op"] == "decode_attention")["calls"] == 2
    table = moebius(*arguments).stdout.decode()
    assert "moe_forward" in table and "####" in table and "between operators" in table


def test_full_disk_is_reported(moebius, golden_model):
    for arguments in (["info", golden_model], ["run", golden_model, "--ids", "1", "-n", 3, "--print-ids"],
                      ["run", "--help"], ["logprobs", golden_model, "--ids", "1,2,3", "--json"]):  # fmt: skip
        with open("/dev/full", "w") as full:
            result = moebius(*arguments, stdout=full)
        assert result.returncode == 1
        assert result.stderr.decode().splitlines()[-1] == "moebius: standard output: No space left on device"


def test_reader_that_leaves_ends_the_answer_quietly(tmp_path):
    folder = write_checkpoint(tmp_path / "model", 50, 200000)
    process = subprocess.Popen(
        [BINARY, "run", folder, "--ids", "1", "-n", "100000", "--ignore-eos", "--print-ids", "-q"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout.read(4)
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_ctrl_c_ends_the_ids_with_a_newline(tmp_path):
    folder = write_checkpoint(tmp_path / "model", 50, 200000)
    process = subprocess.Popen(
        [BINARY, "run", folder, "--ids", "1", "-n", "100000", "--ignore-eos", "--print-ids"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    start = process.stdout.read(6)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    rest, error = process.communicate(timeout=60)
    assert time.monotonic() - begin < 10
    assert process.returncode == 130
    assert re.fullmatch(rb"\d+(,\d+)*\n", start + rest)
    assert b", interrupted" in error
