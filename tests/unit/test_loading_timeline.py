"""bench/loading_timeline.py: intervals and how they are drawn. The rest needs a GPU."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import loading_timeline as timeline


def test_intervals_are_merged():
    assert timeline.merged([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert timeline.merged([]) == []


def test_share_of_copies_beside_computation():
    assert timeline.beside([(0, 4)], [(1, 2), (3, 5)]) == 0.5
    assert timeline.beside([(0, 4)], []) == 0 and timeline.beside([], [(0, 1)]) == 0


def test_a_lane():
    assert timeline.lane([(0, 2), (3, 3.25)], 0, 5, 5) == "##.-."
    assert timeline.lane([], 0, 5, 5) == "....."
