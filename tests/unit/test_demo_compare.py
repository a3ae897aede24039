"""tools/demo/compare.py: what its runs read, how many steps they take, and when two trainings count as the same.

The runs themselves need PyTorch and minutes.
"""

import sys
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools/demo"))
import compare

PILOT = 40


def curve(n_steps, seconds_a_step, start=3.0):
    """A run's points: the first step takes `start` seconds more."""
    return [(step, 1.0, start + step * seconds_a_step) for step in range(10, n_steps + 1, 10)]


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(compare, "CHUNK", 2)
    n_steps = types.SimpleNamespace(value=6)
    for n_workers in (1, 3):
        folder = tmp_path / str(n_workers)
        folder.mkdir()
        for first in range(n_workers):
            compare.write_batches(folder, first, n_workers, 1, n_steps)
    one, three = (compare.read_batches(tmp_path / name) for name in ("1", "3"))
    seen = [next(one)["ids"].tobytes() for _ in range(6)]
    assert seen == [next(three)["ids"].tobytes() for _ in range(6)] and len(set(seen)) == 6


def test_the_slowest_run_decides_how_many_steps():
    fast, slow = curve(3 * PILOT, 0.01), curve(PILOT, 0.05)
    assert compare.decide([fast, slow, curve(PILOT - 10, 0.05)], PILOT, 65) is None  # one is in its pilot
    assert compare.decide([fast, [], fast], PILOT, 65) is None
    assert compare.decide([fast, slow, fast], PILOT, 65.03) == 1240  # 62 s beside 3 s to start
    assert compare.decide([fast, slow, fast], PILOT, 4) == compare.hold(PILOT) + 10  # the fast one may be there by now


def test_the_rate_rises_stays_and_falls_to_zero():
    rates = [compare.rate_at(step, 400, PILOT, 2.0) for step in range(401)]
    assert rates[0] == 2.0 / 80 and rates[79:161] == [2.0] * 82 and rates[160] > rates[161] and rates[400] == 0
    assert rates[:160] == [compare.rate_at(step, None, PILOT, 2.0) for step in range(160)]  # not yet decided


@pytest.mark.parametrize(
    "ours, right, is_same",
    [(2.1, (900, 900, 900), True), (2.24, (900, 900, 900), True), (2.26, (900, 900, 900), False), (2.1, (900, 880, 900), True), (2.1, (900, 850, 900), False),
     (2.1, (900, 850, 960), True)],
)
def test_verdict(ours, right, is_same):
    lines, verdict = compare.verdict([[2.0, 1.0], [ours, 1.0], [2.2, 1.0]], right, 1000)
    assert verdict is is_same and f"moebius {(ours - 2) / 2:.4f}, other seed 0.1000" in lines[0]
    assert lines[1].endswith("(chance: ± 27)")


@pytest.mark.parametrize("option", ["--rows", "--per-family", "--workers", "--threads"])
def test_none_of_what_it_needs(option, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--out", str(tmp_path / "out"), option, "0"])
    with pytest.raises(SystemExit, match=f"compare: {option} is 0; give 1 at least"):
        compare.main()
    assert not (tmp_path / "out").exists()
