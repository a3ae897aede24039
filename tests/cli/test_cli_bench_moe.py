"""moebius bench moe: its page, its rows, and mistakes."""

import json
import re

import pytest

SMALL = ["--thiek", "5,64,32,8,2", "--device", "cpu", "--repeat", "1"]
DTYPES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4, "fp8_block": 1, "fp8_tensor": 1}


def rows_of(result):
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_manual_page(moebius):
    page = moebius("bench", "moe", "--help")
    assert page.returncode == 0 and page.stderr == b""
    text = page.stdout.decode()
    assert "moebius bench moe - " in text
    options = re.findall(r"^ {7}(?:-\w, )?(--[a-z-]+)(?: (\S+))?$", text, re.M)
    assert len(options) >= 9
    for option, value in options:
        if option != "--help":
            result = moebius("bench", "moe", option if value else option + "=x")
            expected = f"{option} needs a value" if value else f"{option} takes no value"
            assert result.returncode == 2 and expected in result.stderr.decode(), option
    assert "bench moe" in moebius("bench", "--help").stdout.decode()


@pytest.mark.parametrize("dtype", DTYPES)
def test_row(moebius, dtype):
    (row,) = rows_of(moebius("bench", "moe", *SMALL, "--dtype", dtype, "--json"))
    assert row["shape"] == {"T": 5, "H": 64, "I": 32, "E": 8, "K": 2}
    assert (row["bench"], row["who"], row["dtype"], row["activation"], row["bias"]) == ("moe", "moebius", dtype, "swiglu", False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and row["card"] and row["commit"]
    assert "median of 1" in row["how"] and "floor_us" not in row
    assert row["us"] > 0
    assert row["tflops"] * row["us"] == pytest.approx(6 * 5 * 2 * 64 * 32 * 1e-6, rel=1e-4)
    # Weights of 2 to 8 experts, and their scales: a block for w13's 32 gate rows, one for up, one for w2.
    scales = 4 * (2 + 1) if dtype == "fp8_block" else 0
    n_hit = row["gbps"] * row["us"] * 1e3 / (3 * 64 * 32 * DTYPES[dtype] + scales)
    assert n_hit == pytest.approx(round(n_hit), rel=1e-4) and 2 <= round(n_hit) <= 8


@pytest.mark.parametrize("activation", ["geglu", "reglu", "silu", "gelu", "relu", "relu2"])
def test_activations_and_biases(moebius, activation):
    (row,) = rows_of(moebius("bench", "moe", *SMALL, "--activation", activation, "--bias", "--json"))
    matrices = 3 if activation in ("geglu", "reglu") else 2
    assert (row["activation"], row["bias"]) == (activation, True)
    assert row["tflops"] * row["us"] == pytest.approx(2 * matrices * 5 * 2 * 64 * 32 * 1e-6, rel=1e-4)


def test_routing(moebius):
    """Skewed rows have a name of their own, so that nobody takes them for uniform ones."""
    (row,) = rows_of(moebius("bench", "moe", *SMALL, "--routing", "zipf", "--json"))
    assert row["bench"] == "moe_zipf" and row["us"] > 0
    assert "bf16, swiglu, zipf routing" in moebius("bench", "moe", *SMALL, "--routing", "zipf").stdout.decode()


def test_table_and_file(moebius, tmp_path):
    """Every mention of a shape is one line of the table and one row of the file, in order; the file is appended to."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"kept": 1}\n')
    result = moebius("bench", "moe", *SMALL, "--thiek=1,32,16,4,4", "--output", path)
    assert result.returncode == 0 and result.stderr == b""
    kept, first, second = map(json.loads, path.read_text().splitlines())
    assert kept == {"kept": 1}
    assert [first["shape"]["T"], second["shape"]["T"]] == [5, 1]
    lines = result.stdout.decode().splitlines()
    assert "bf16, swiglu" in lines[1]
    assert [line.split()[:5] for line in lines[-2:]] == [["5", "64", "32", "8", "2"], ["1", "32", "16", "4", "4"]]
    assert "% of floor" in lines[-3]


WRONG = "five whole numbers from 1 to 1048576, separated by commas"
MISTAKES = [
    (["--thiek", "1,2,3,4"], f'--thiek: "1,2,3,4" is not understood; give {WRONG}'),
    (["--thiek", "1,2,3,4,5,6"], f'--thiek: "1,2,3,4,5,6" is not understood; give {WRONG}'),
    (["--thiek", "1,2,3,4,x"], f'--thiek: "1,2,3,4,x" is not understood; give {WRONG}'),
    (["--thiek", ""], '--thiek: "" is not understood'),
    (["--thiek", "1,0,3,4,5"], f'--thiek: "1,0,3,4,5" is out of range; give {WRONG}'),
    (["--thiek", "1,-2,3,4,5"], "is out of range"),
    (["--thiek", "1,2,3,4,1048577"], "is out of range"),
    (["--dtype", "int4"], '--dtype: "int4" is not understood; give one of bf16|fp16|tf32|fp32|fp8_block|fp8_tensor'),
    (["--activation", "tanh"], '--activation: "tanh" is not understood'),
    (["--repeat", "0"], '--repeat: "0" is out of range'),
    (["--device", "tpu"], '--device: "tpu" is not understood'),
    (["moe"], '"moe" is one operand too many: there are only options; a file for the results is given with --output'),
    (["--json", "rows.jsonl"], '"rows.jsonl" is one operand too many: there are only options; a file for the results is given with --output'),
    (["--prompt-lengths", "1"], "there is no option --prompt-lengths"),
]


@pytest.mark.parametrize("arguments, sentence", MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistake(moebius, arguments, sentence):
    result = moebius("bench", "moe", *arguments)
    assert result.returncode == 2 and result.stdout == b""
    assert sentence in result.stderr.decode()
    assert result.stderr.decode().endswith("\nTry 'moebius bench moe --help'.\n")


REFUSED = [
    (["--thiek", "1,64,64,2,3"], "--thiek 1,64,64,2,3: top_k is 3, more than the 2 experts"),
    (["--thiek", "1,64,64,2000,1"], "n_experts is 2000, not in 1 .. 1024"),
    (["--thiek", "1,64,64,100,33"], "top_k is 33, not in 1 .. 32"),
    (["--thiek", "1,64,64,4,1", "--output", "no-such-folder/rows"], "--output: no-such-folder/rows: No such file or directory"),
]


@pytest.mark.parametrize("arguments, sentence", REFUSED)
def test_refused(moebius, arguments, sentence):
    """What only the operator knows to be wrong: a failure with one sentence."""
    result = moebius("bench", "moe", "--device", "cpu", *arguments)
    error = result.stderr.decode()
    assert result.returncode == 1 and result.stdout == b""
    assert sentence in error and error.startswith("moebius: ") and error.count("\n") == 1
