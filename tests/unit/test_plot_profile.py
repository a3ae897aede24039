"""bench/plot_profile.py: which rows it takes, what stands beside a bar, and, where matplotlib is, a picture."""
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import plot_profile  # noqa: E402

GEMM = {"op": "gemm", "weight": [5120, 2048], "calls": 48, "us": 900.0, "share": 0.45, "bytes": 1, "flops": 1, "gbps": 2100.4,
        "tflops": 2.0, "floor_us": 630.0}  # fmt: skip
ATTENTION = {"op": "attention", "calls": 48, "us": 600.0, "share": 0.3, "bytes": 1, "flops": 1, "gbps": 300, "tflops": 512.3,
             "floor_us": 300.0}  # fmt: skip
ROW = {"bench": "profile", "model": "a-model", "card": "NVIDIA H100", "dtype": "bf16", "weights": "bf16", "kv": "bf16",
       "pass": "decode", "shape": {"batch": 1, "context": 512}, "device_us": 2000.0, "between_us": 500.0, "host_us": 20.0,
       "step_us": 1900.0, "operators": [GEMM, ATTENTION]}  # fmt: skip


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_newest_profile_of_a_kind_counts(tmp_path):
    newer, other = dict(ROW, device_us=1.0), dict(ROW, shape={"batch": 2, "context": 512})
    path = write(tmp_path / "rows.jsonl", ROW, {"bench": "decode"}, other, newer)
    assert plot_profile.read_rows([path]) == [newer, other]


def test_bars():
    assert plot_profile.bars(ROW) == [
        ("gemm 5120×2048", 900.0, 630.0, "45.0 %, 2,100 GB/s, 70 % of the floor", True),
        ("attention", 600.0, 300.0, "30.0 %, 512 TFLOP/s, 50 % of the floor", True),
        ("between operators", 500.0, None, "25.0 %", False),
    ]
    on_cpu = dict(ATTENTION, gbps=0.5, tflops=0.001)
    del on_cpu["floor_us"]
    assert plot_profile.bars(dict(ROW, operators=[on_cpu]))[0] == ("attention", 600.0, None, "30.0 %", True)


def test_files_that_cannot_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(plot_profile, "need_matplotlib", lambda: None)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"bench": "profile"\n')
    for path, message in ((bad, "bad.jsonl:1: not JSON"), (write(tmp_path / "none.jsonl", {"bench": "serve"}), "no rows")):
        monkeypatch.setattr(sys, "argv", ["plot_profile.py", str(path), "-o", str(tmp_path / "x.png")])
        with pytest.raises(SystemExit, match=message):
            plot_profile.main()


def test_some_panels(tmp_path, monkeypatch):
    drawn, prefill, large = [], {**ROW, "pass": "prefill"}, {**ROW, "shape": {"batch": 64, "context": 1024}}
    monkeypatch.setattr(plot_profile, "need_matplotlib", lambda: None)
    monkeypatch.setattr(plot_profile, "draw", lambda rows, _path: drawn.append(rows))
    path = str(write(tmp_path / "rows.jsonl", ROW, prefill, large))
    for options in ([], ["--pass", "prefill"], ["--pass", "decode", "--shapes", "64x1024"]):
        monkeypatch.setattr(sys, "argv", ["plot_profile.py", path, "-o", "x.png", *options])
        plot_profile.main()
    assert drawn == [[ROW, prefill, large], [prefill], [large]]
    monkeypatch.setattr(sys, "argv", ["plot_profile.py", path, "-o", "x.png", "--pass", "prefill", "--shapes", "1x512,64x1024"])
    with pytest.raises(SystemExit, match="in these files of prefill of 64x1024"):
        plot_profile.main()


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("step.png", "step.svg"):
        plot_profile.draw([ROW, ROW], tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
