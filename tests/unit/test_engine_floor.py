"""bench/engine_floor.py: the floors of one decode step and of a prompt, counted by hand."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import engine_floor  # noqa: E402

CONFIG = engine_floor.config_of("qwen3-30b-a3b")
RATES = engine_floor.RATES["NVIDIA H100 80GB HBM3"]


def row(bench, batch, context, weights="bf16", kv="bf16"):
    return {"bench": bench, "shape": {"batch": batch, "context": context}, "weights": weights, "kv": kv, "tok_s": 100.0}


def test_one_token_reads_every_matrix_and_its_own_experts():
    expert, qkv, o, router, kv, head = 3 * 2048 * 768, 5120 * 2048, 4096 * 2048, 128 * 2048, 512 * 2 * 4 * 128, 151936 * 2048
    n_bytes = 48 * 2 * (8 * expert + qkv + o + router + kv) + 2 * head
    assert engine_floor.floor_ms(row("decode", 1, 512), CONFIG, RATES, True) == pytest.approx(n_bytes / 3.0e9)
    n_bytes = 48 * (8 * expert + qkv + o + 2 * router + kv) + kv + 2 * head  # the first layer's KV is bf16
    fp8 = row("decode", 1, 512, "fp8_e4m3 (128x128 blocks)", "fp8_e4m3")
    assert engine_floor.floor_ms(fp8, CONFIG, RATES, True) == pytest.approx(n_bytes / 3.0e9)


def test_experts_hit():
    assert engine_floor.experts_hit(CONFIG, 1) == pytest.approx(8)
    assert engine_floor.experts_hit(CONFIG, 2) == pytest.approx(8 + 8 * 120 / 128)
    assert engine_floor.experts_hit(CONFIG, 4096) == pytest.approx(128)
    assert engine_floor.experts_hit(CONFIG, 4096, uniform=False) == 8


def test_a_long_prompt_is_bound_by_flops():
    per_token = 2 * (8 * 3 * 2048 * 768 + 5120 * 2048 + 4096 * 2048 + 128 * 2048)
    flops = 48 * (8192 * per_token + 4 * 32 * 128 * 8192 * 8193 / 2)
    ms = engine_floor.floor_ms(row("prefill", 1, 8192), CONFIG, RATES, True)
    assert ms == pytest.approx(flops / 700e9 + 2 * 151936 * 2048 / 3.0e9)


def test_every_row_of_a_known_card_gets_a_line(capsys):
    engine_floor.print_rows()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and all(line.count("|") == 12 for line in lines)
    assert engine_floor.measured_ms(row("decode", 4, 512)) == pytest.approx(40)
    assert engine_floor.measured_ms(row("prefill", 4, 512)) == pytest.approx(20480)
