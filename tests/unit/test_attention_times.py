"""bench/attention_times.py: what it reads from the checks' output, and that a check that fails leaves no rows."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import attention_times  # noqa: E402

# As printf of tests/gpu/attention_check.cu and decode_check.cu makes them.
PREFILL = f"""chain bf16 x 4 of 4 sums have other bits than wgmma's
time   {1} x {2048:5d} of {'bf16/bf16 Hq=32 Hkv=4 D=128 L=2048':<44s}  {81.23:8.1f} us {423:4.0f} TFLOP/s
time   {4} x {512:5d} of {'bf16/fp8_e4m3 Hq=64 Hkv=4 D=64 L=4096':<44s}  {1234.5:8.1f} us {98:4.0f} TFLOP/s
all right
"""
DECODE = f"""{256:4d} x {4096:5d}{'':7s} cache {'bf16':<8s}  {746.1:8.2f} us  {2.88:5.2f} TB/s   the two operators: {1000.0:8.2f} us
{1:4d} x {65536:5d}{'':7s} cache {'fp8_e4m3':<8s}  {45.67:8.2f} us  {1.47:5.2f} TB/s   the two operators: {50.0:8.2f} us
all right
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs it with programs that print these texts -> the rows."""

    def program(name, text, status=0):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {status}\n")
        (tmp_path / name).chmod(0o755)

    def call(prefill, decode, decode_status=0):
        program("nvidia-smi", "NVIDIA H200\n")
        program("attention_check", prefill)
        program("decode_check", decode, decode_status)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        rows = tmp_path / "rows.jsonl"
        monkeypatch.setattr(sys, "argv", ["attention_times.py", "--programs", str(tmp_path), "--output", str(rows), "--commit", "abc"])
        attention_times.main()
        return [json.loads(line) for line in rows.read_text().splitlines()]

    return call


def test_rows(run):
    rows = run(PREFILL, DECODE)
    sizes = {"heads": 32, "kv_heads": 4, "D": 128}
    assert [(r["pass"], r["shape"], r["kv"], r["us"], r.get("tflops", r.get("tbps"))) for r in rows] == [
        ("prefill", {"sequences": 1, "queries": 2048, "context": 2048, **sizes}, "bf16", 81.2, 423.0),
        ("prefill", {"sequences": 4, "queries": 512, "context": 4096, "heads": 64, "kv_heads": 4, "D": 64}, "fp8_e4m3", 1234.5, 98.0),
        ("decode", {"sequences": 256, "queries": 1, "context": 4096, **sizes}, "bf16", 746.1, 2.88),
        ("decode", {"sequences": 1, "queries": 1, "context": 65536, **sizes}, "fp8_e4m3", 45.67, 1.47),
    ]
    assert {(r["bench"], r["who"], r["commit"], r["card"], r["dtype"]) for r in rows} == {("attention", "moebius", "abc", "NVIDIA H200", "bf16")}


def test_faults(run, tmp_path):
    with pytest.raises(SystemExit, match="decode_check: exit status 1:\n.*WRONG"):
        run(PREFILL, "1 WRONG\n", 1)
    assert all(json.loads(line)["pass"] == "prefill" for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    with pytest.raises(SystemExit, match="attention_check printed no times"):
        run("all right\n", DECODE)
