"""bench/engine_vs_hf.py: how many runs of a slow contender fit the seconds that a shape may take."""

import pathlib
import sys
import types

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import engine_vs_hf  # noqa: E402


@pytest.mark.parametrize(
    "prefill, step, runs",
    [
        (0.01, 0.005, (64, 3)),  # all of them
        (0.5, 0.05, (30, 3)),  # 2 s a run
        (0.5, 0.5, (4, 2)),  # as few steps as count, 2.5 s a run
        (9.0, 2.0, (4, 1)),  # longer than it may take, but once
    ],
)
def test_runs_that_fit(prefill, step, runs):
    given = types.SimpleNamespace(seconds=6, repeat=3, new=64)
    assert engine_vs_hf.runs_that_fit(prefill, step, given) == runs


def test_short_runs_stay_short():
    assert engine_vs_hf.runs_that_fit(9.0, 2.0, types.SimpleNamespace(seconds=6, repeat=3, new=2)) == (2, 1)
