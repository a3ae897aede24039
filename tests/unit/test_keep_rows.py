"""tools/keep_rows.py: where rows go, and which are refused."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import keep_rows  # noqa: E402


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Keeps rows, or lines as they are."""
    monkeypatch.setattr(keep_rows, "ROOT", tmp_path)

    def run(*rows, options=()):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        monkeypatch.setattr(sys, "argv", ["keep_rows.py", str(path), *options])
        keep_rows.main()

    return run


def row(bench, n, card="NVIDIA H100 80GB HBM3", commit="abc1234"):
    return {"bench": bench, "card": card, "commit": commit, "us": n}


def kept(folder, card, bench):
    return [json.loads(line)["us"] for line in (folder / "bench/results" / card / f"{bench}.jsonl").read_text().splitlines()]


def test_rows_go_to_the_file_of_card_and_bench_once(keep, tmp_path):
    keep(row("decode", 1), row("prefill", 2), row("decode", 3, "NVIDIA H200"), row("decode", 1))
    keep(row("decode", 1), row("decode", 4), row("profile", 5))
    assert kept(tmp_path, "h100-80gb-hbm3", "decode") == [1, 4] and kept(tmp_path, "h100-80gb-hbm3", "prefill") == [2]
    assert kept(tmp_path, "h200", "decode") == [3]


def test_only_some_benches(keep, tmp_path):
    keep(row("decode", 1), row("profile", 2), options=["--only", "profile"])
    assert kept(tmp_path, "h100-80gb-hbm3", "profile") == [2] and not (tmp_path / "bench/results/h100-80gb-hbm3/decode.jsonl").exists()


@pytest.mark.parametrize(
    "bad, sentence",
    [
        ("{", "rows.jsonl:2: not JSON"),
        ("[]", "rows.jsonl:2: not a row of a benchmark"),
        ({"bench": "decode", "card": "NVIDIA H200"}, "it lacks 'commit'"),
        (row("decode", 1, "AMD EPYC"), "the decode row is of AMD EPYC, which is no GPU"),
        (row("decode", 1, commit="unknown"), "commit is 'unknown': build from a commit"),
        (row("decode", 1, commit="abc1234-dirty"), "commit is 'abc1234-dirty'"),
    ],
)
def test_what_is_refused_keeps_nothing(keep, tmp_path, bad, sentence):
    with pytest.raises(SystemExit, match=sentence):
        keep(row("decode", 1), bad)
    assert not (tmp_path / "bench").exists()
