"""moebius bench text: its page, its rows, and the made-up vocabulary."""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "models" / "demo")
GRAMMARS = 8


def rows_of(result):
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_manual_page(moebius):
    text = moebius("bench", "text", "--help").stdout.decode()
    assert "moebius bench text - " in text and "--repeat N" in text
    assert moebius("help", "bench", "text").stdout.decode() == text
    assert "bench text" in moebius("bench", "--help").stdout.decode()


def test_rows(moebius, tmp_path):
    output = tmp_path / "rows.jsonl"
    *grammars, template = rows = rows_of(moebius("bench", "text", DEMO, "--repeat", "2", "--json", "--output", str(output)))
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
    assert len(grammars) == GRAMMARS and len({row["grammar"] for row in grammars}) == GRAMMARS
    for row in rows:
        assert (row["bench"], row["who"], row["model"]) == ("text", "moebius", "demo")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and row["card"] and row["commit"] and row["vocab"] > 600
    for row in grammars:
        assert row["compile_us"] > 0 and row["bytes"] > 0
        for times in row["first_mask_us"], row["mask_us"]:
            assert 0 < times["median"] <= times["p99"] <= times["max"]
    assert next(row["bytes"] for row in grammars if row["grammar"] == "schema of 10 kB") > 10000
    assert template["messages"] == 20 and 0 < template["template_us"]["median"] <= template["template_us"]["max"]


def test_table(moebius):
    text = moebius("bench", "text", DEMO, "--repeat", "1").stdout.decode()
    assert text.startswith("demo, ") and len(re.findall(r"^.{21} +\d+  ( +\d+\.\d){3}  ( +\d+\.\d){3}$", text, re.M)) == GRAMMARS
    assert re.search(r"^chat template, 20 messages of 800 bytes: \d+ us", text, re.M)


def test_made_up_vocabulary(moebius, tmp_path):
    script = [sys.executable, str(ROOT / "tools" / "made_up_vocabulary.py")]
    subprocess.run([*script, tmp_path / "words", "--tokens", "2000"], check=True)
    rows = rows_of(moebius("bench", "text", str(tmp_path / "words"), "--repeat", "1", "--json"))
    assert len(rows) == GRAMMARS + 1 and {row["vocab"] for row in rows} == {2000}
    few = subprocess.run([*script, tmp_path / "few", "--tokens", "100"], capture_output=True)
    assert few.returncode == 2 and b"--tokens must be from" in few.stderr


def test_mistakes(moebius, tmp_path):
    assert b"--repeat" in moebius("bench", "text", DEMO, "--repeat", "0").stderr
    assert moebius("bench", "text", str(tmp_path)).returncode == 1
    assert moebius("bench", "text").returncode == 2
