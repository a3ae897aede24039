"""moebius bench train: its page, its tables and rows, and mistakes."""

import json
import re

import pytest

SMALL = ["--thiek", "24,32,16,4,2", "--repeat", "1", "--tile-rows", "4"]
PASSES = {"inference": 1, "forward": 1, "both": 3, "backward": 2}


def rows_of(result):
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_manual_page(moebius):
    page = moebius("bench", "train", "--help").stdout.decode()
    assert "moebius bench train - " in page and moebius("help", "bench", "train").stdout.decode() == page
    options = re.findall(r"^ {7}(?:-\w, )?(--[a-z-]+)(?: (\S+))?$", page, re.M)
    assert len(options) >= 13
    for option, value in options:
        if option != "--help":
            result = moebius("bench", "train", option if value else option + "=x")
            expected = f"{option} needs a value" if value else f"{option} takes no value"
            assert result.returncode == 2 and expected in result.stderr.decode(), option
    assert "bench train" in moebius("bench", "--help").stdout.decode()


@pytest.mark.parametrize("dtype, limit", [("bf16", 3e-2), ("fp16", 4e-3), ("fp32", 0)])
def test_rows(moebius, dtype, limit):
    rows = rows_of(moebius("bench", "train", *SMALL, "--dtype", dtype, "--add-bias", "--json"))
    assert [row["pass"] for row in rows] == list(PASSES)
    for row in rows:
        assert (row["bench"], row["who"], row["dtype"], row["routing"]) == ("train", "moebius", dtype, "topk")
        assert row["shape"] == {"T": 24, "H": 32, "I": 16, "E": 4, "K": 2} and row["bias"] is True
        flops = 6 * 24 * 2 * 32 * 16 * PASSES[row["pass"]]
        assert row["tflops"] * row["us"] == pytest.approx(flops * 1e-6, rel=1e-4)
        assert row["processed"] == 48 <= row["hardware"]
        assert row["wasted_ratio"] == pytest.approx(1 - 48 / row["hardware"])
        assert list(row["checks"]) == ["o", "dx", "dw1", "dw2", "db1", "db2", "drouter"]
        for name, check in row["checks"].items():
            assert check["max_reference"] > check["mean_reference"] > 0, name
            assert check["mean_relative"] <= limit and (check["max_difference"] > 0) == (limit > 0 and name != "db2"), name


@pytest.mark.parametrize("dtype, limit", [("bf16", 3e-2), ("fp16", 4e-3)])
def test_gradients_of_the_weights_type(moebius, dtype, limit):
    narrow = rows_of(moebius("bench", "train", *SMALL, "--dtype", dtype, "--grad-dtype", "same", "--add-bias", "--json"))
    wide = rows_of(moebius("bench", "train", *SMALL, "--dtype", dtype, "--add-bias", "--json"))
    assert (narrow[0]["grad_dtype"], wide[0]["grad_dtype"]) == (dtype, "fp32")
    for name, check in narrow[0]["checks"].items():  # db2 in fp32 is the reference's own
        is_rounded = name in ("dw1", "dw2", "db1", "db2")
        assert check["mean_relative"] <= limit and (check != wide[0]["checks"][name]) == is_rounded, name


def test_token_rounding_and_an_activation_without_gate(moebius):
    rows = rows_of(moebius("bench", "train", *SMALL, "--routing", "rounding", "--activation", "relu2", "--json"))
    first = rows[0]
    assert first["wasted_ratio"] == 0 and first["processed"] == first["hardware"] and first["processed"] % 4 == 0
    assert (first["routing"], first["activation"], list(first["checks"])[-1]) == ("rounding", "relu2", "drouter")
    backward = rows[3]
    assert backward["tflops"] * backward["us"] == pytest.approx(8 * backward["processed"] * 32 * 16 * 1e-6, rel=1e-4)
    assert first["tflops"] * first["us"] == pytest.approx(4 * 48 * 32 * 16 * 1e-6, rel=1e-4)


def test_tables_and_file(moebius, tmp_path):
    path = tmp_path / "rows.jsonl"
    result = moebius("bench", "train", *SMALL, "--thiek=1,16,16,4,4", "--skip-test", "--output", path)
    assert result.returncode == 0 and result.stderr == b""
    text = result.stdout.decode()
    assert text.count("The results were not compared.") == 2 and text.count("training forward") == 2
    rows = list(map(json.loads, path.read_text().splitlines()))
    assert [row["shape"]["T"] for row in rows] == [24] * 4 + [1] * 4 and rows[0]["checks"] == {}
    table = moebius("bench", "train", *SMALL).stdout.decode()
    assert "drouter" in table and "db1" not in table and "wasted" in table and "WRONG" not in table


MISTAKES = [
    (["--thiek", "1,2,3,4"], '--thiek: "1,2,3,4" is not understood'),
    (["--dtype", "fp8_block"], '--dtype: "fp8_block" is not understood; give one of bf16|fp16|fp32'),
    (["--grad-dtype", "bf16"], '--grad-dtype: "bf16" is not understood; give one of fp32|same'),
    (["--routing", "hash"], '--routing: "hash" is not understood; give one of topk|rounding'),
    (["--tile-rows", "0"], '--tile-rows: "0" is out of range'),
    (["train"], '"train" is one operand too many'),
]


@pytest.mark.parametrize("arguments, sentence", MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistake(moebius, arguments, sentence):
    result = moebius("bench", "train", *arguments)
    assert result.returncode == 2 and result.stdout == b"" and sentence in result.stderr.decode()


def test_refused(moebius):
    result = moebius("bench", "train", "--thiek", "1,64,64,2,3")
    assert result.returncode == 1 and result.stdout == b""
    assert result.stderr.decode() == "moebius: --thiek 1,64,64,2,3: top_k is 3, more than the 2 experts\n"
