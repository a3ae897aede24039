"""tools/performance.py and the stale check of bench/plot.py, on result files of their own."""

import json
import pathlib
import struct
import sys
import zlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "bench")]

import performance  # noqa: E402
import plot  # noqa: E402

CARD = "NVIDIA H100 80GB HBM3"


def row(us, who="moebius", dtype="bf16", n_tokens=16, floor_us=200.0, **extra):
    shape = {"T": n_tokens, "H": 2048, "I": 768, "E": 128, "K": 8}
    facts = {"bench": "moe", "who": who, "commit": "abc", "card": CARD, "date": "2026-11-23", "dtype": dtype}
    return {**facts, "shape": shape, "us": us, "tflops": 1.0, "gbps": 1, "floor_us": floor_us, "how": "graph", **extra}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Writes rows, and makes both scripts look at them."""
    (tmp_path / "docs/img").mkdir(parents=True)
    path = tmp_path / "bench/results/card/moe.jsonl"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(performance, "ROOT", tmp_path)
    monkeypatch.setattr(performance, "PAGE", tmp_path / "docs/performance.md")
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    return lambda *rows: path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def table_lines(page):
    return [line for line in page.splitlines() if line.startswith("| 1")]


def test_newest_row_stands_and_peers_are_beside_us(results):
    results(row(300.0), row(400.0, "torch._grouped_mm", floor_us=100.0), row(250.0), row(500.0, n_tokens=1))
    page = performance.page()
    assert "| commit |" in page and " torch._grouped_mm |" in page
    assert table_lines(page) == [
        "| 1, 2048, 768, 128, 8 | 200.0 | 500.0 | 40 | 1.0 | | abc |",
        "| 16, 2048, 768, 128, 8 | 200.0 | 250.0 | 80 | 1.0 | 400.0 (25 %) | abc |",
    ]


def test_skewed_routing_beside_uniform(results):
    """The quotient of the shares of the floor is of one commit alone."""
    results(row(250.0), row(400.0, floor_us=100.0, bench="moe_zipf"), row(300.0, dtype="fp8_block", commit="old"),
            row(500.0, dtype="fp8_block", bench="moe_zipf"), row(7.0, "HF eager"))
    page = performance.page()
    shape = "16, 2048, 768, 128, 8"
    assert f"| bf16 | {shape} | 100.0 | 400.0 | 25 | 250.0 | 80 | 0.31 | abc |" in page
    assert f"| fp8_block | {shape} | 200.0 | 500.0 | 40 | | |  | abc |" in page


def serve_row(**extra):
    spread = {"mean": 1.0, "p50": 1.0, "p90": 2.0, "p99": 3.0, "max": 4.0}
    facts = {"bench": "serve", "who": "moebius", "commit": "abc", "card": CARD, "date": "2026-11-27", "dtype": "bf16", "model": "m"}
    facts |= {"how": "x", "ttft_ms": spread, "itl_ms": {**spread, "p99": 2.5}, "tpot_ms": spread}
    return {**facts, "requests": 7, "tok_s": 99.4, "requests_s": 2, **extra}


def test_serving(results):
    rate = {"prompts": "shared-prefix", "endpoint": "chat", "rate": 4.0, "in": 5, "out": 6, "prefix": 70, "prefixes": 8}
    closed = {"prompts": "sharegpt", "endpoint": "chat", "concurrency": 64, "longest": 1024}
    results(serve_row(who="vllm", shape=closed), serve_row(shape=rate, goodput_s=1.5))
    page = performance.page()
    times = "7 | 1.0, 3.0 | 1.00, 2.50 | 1.00, 3.00 | 99"
    assert [line for line in page.splitlines() if line.startswith(("| moebius", "| vllm"))] == [
        f"| moebius | m |  | 4 arrive in a second | one of 8 prefixes of 70, then 5 in, 6 out | {times} |  | 2.00 | 1.50 | abc |",
        f"| vllm | m |  | 64 at once | sharegpt, up to 1024 | {times} |  | 2.00 |  | abc |",
    ]
    assert "Measured 2026-11-27.\n" in page


def test_serving_beside_the_engine(results):
    """Rows of bench/serve_vs_engine.py: of each weights; with the engine's speed; and of two loads at the same time."""
    alone = {"prompts": "fixed", "endpoint": "completions", "concurrency": 1, "in": 50, "out": 2}
    shared = {**alone, "prompts": "shared-prefix", "in": 10, "prefix": 40, "prefixes": 1}
    many, beside = {**alone, "concurrency": 32}, {"rate": 2, "in": 4096, "out": 4}
    rows = [serve_row(shape=many, weights="fp8"), serve_row(shape=many, weights="fp8", beside=beside)]
    rows += [serve_row(shape=shared, weights="fp8"), serve_row(shape=alone, weights="fp8")]
    rows += [serve_row(shape=alone, weights="fp8", kv="fp8", beside={"concurrency": 8, "in": 9, "out": 7})]
    results(*rows, serve_row(shape=many, weights="bf16", engine_tok_s=100.0))
    cells = [[cell.strip() for cell in line.split("|")] for line in performance.page().splitlines() if line.startswith("| moebius")]
    assert [[row[i] for i in (3, 4, 5, 11)] for row in cells] == [
        ["bf16", "32 at once", "50 in, 2 out", "99.4 %"],
        ["fp8", "1 at once", "50 in, 2 out", ""],
        ["fp8, KV fp8", "1 at once, beside 8 of 9 in, 7 out", "50 in, 2 out", ""],
        ["fp8", "1 at once", "a prefix of 40, then 10 in, 2 out", ""],
        ["fp8", "32 at once", "50 in, 2 out", ""],
        ["fp8", "32 at once, beside 2 a second of 4096 in, 4 out", "50 in, 2 out", ""],
    ]


def test_dtypes_activations_and_biases_do_not_replace_each_other(results):
    others = [row(2.0, activation="relu2"), row(3.0, bias=True), row(4.0, dtype="fp8_block"), row(5.0, dtype="tf32")]
    results(row(1.0), *others, row(6.0, "torch._scaled_grouped_mm", "fp8_row"))
    page = performance.page()
    assert [line.split("|")[3].strip() for line in table_lines(page)] == ["1.0", "3.0", "2.0", "4.0", "5.0"]
    assert "torch._scaled_grouped_mm, fp8_row" in page and "8, relu2 |" in page and "8, biases |" in page


def test_block_table_compares_with_hugging_face_of_its_pass(results):
    rows = [row(900.0, "HF eager", **{"pass": "decode"}), row(100.0, dtype="fp8_block", **{"pass": "decode"})]
    rows += [row(200.0, "HF eager", **{"pass": "prefill"})]
    results(*[{**r, "bench": "moe_block", "tok_s": 7} for r in rows])
    page = performance.page()
    assert "| decode | 16 | 2048, 768, 128, 8 | moebius | fp8_block | 100.0 | 7 | 9.0x | abc |" in page
    assert "| prefill | 16 | 2048, 768, 128, 8 | HF eager | bf16 | 200.0 | 7 | 1.0x | abc |" in page


def train_row(us, bench="train", who="moebius", **extra):
    shape = {"T": 16384, "H": 4096, "I": 1024, "E": 256, "K": 8}
    facts = {"bench": bench, "who": who, "commit": "abc", "card": CARD, "date": "2026-11-28", "dtype": "bf16", "grad_dtype": "bf16"}
    facts |= {"shape": shape, "pass": "both", "routing": "topk", "activation": "swiglu", "bias": False, "wasted_ratio": 0.125}
    return {**facts, "us": us, "tflops": 9e6 / us, "how": "graph", **extra}


def test_training(results):
    power = {"sm_mhz": 1410.0, "watts": 699.6, "power": "instant"}
    rows = [train_row(30000.0, **power), train_row(12500.0, sustained_us=15000.0, **{"pass": "forward"}),
            train_row(20000.0, sustained_us=22500.0, **{"pass": "backward"})]
    rows += [train_row(25000.0, routing="rounding", wasted_ratio=0.0)]
    rows += [train_row(10000.0, routing="rounding", **{"pass": "forward"}),
             train_row(10000.0, routing="rounding", sustained_us=15000.0, **{"pass": "backward"})]
    rows += [train_row(40000.0, grad_dtype="fp32", activation="geglu", bias=True), train_row(2.0, activation="geglu", bias=True)]
    rows += [train_row(15000.0, shape={"T": 32768, "H": 4096, "I": 1024, "E": 128, "K": 8})]
    results(*rows)
    lines = [line for line in performance.page().splitlines() if ", 1024, " in line]
    shape = "16384, 4096, 1024, 256, 8"
    assert lines == [
        "| 32768, 4096, 1024, 128, 8 | top-k | 610 / 600 |  |  | 600 |  |  | 15.00 |  | 12.5 % | abc |",
        f"| {shape} | top-k | 560 / 520 | 720 | 450 | 300 |  | 600 / 400 | 30.00 | 1410, 700 | 12.5 % | abc |",
        f"| {shape} | rounding (1.25 / 1.50 of top-k) | 560 / 520 | 900 | 900 | 360 |  | 600 | 25.00 |  | 0.0 % | abc |",
        f"| {shape}, gradients fp32, geglu, biases | top-k |  |  |  | 225 |  |  | 40.00 |  | 12.5 % | abc |",
        f"| {shape}, geglu, biases | top-k |  |  |  | 4500000 |  |  | 0.00 |  | 12.5 % | abc |",
    ]


def test_training_beside_others(results):
    mean = {"sm_mhz": 1700.0, "watts": 360.2}
    rows = [train_row(30000.0, "train_block", peak_bytes=3 << 20, **mean), train_row(15000.0, "train_block", kept_bytes=2 << 20, **{"pass": "forward"})]
    results(*rows, train_row(10000.0, "train_block", "cuBLAS batched GEMMs", **{"pass": "forward"}))
    shape = "| 16384, 4096, 1024, 256, 8 |"
    assert [line for line in performance.page().splitlines() if line.startswith(shape)] == [
        f"{shape} moebius | 600 |  | 300 |  | 2 | 3 | 1700, 360 (mean) | abc |",
        f"{shape} cuBLAS batched GEMMs | 900 |  |  |  |  |  |  | abc |",
    ]


def engine_row(bench, tok_s, who="moebius", **extra):
    facts = {"bench": bench, "who": who, "commit": "abc", "card": CARD, "date": "2026-11-28", "dtype": "bf16", "model": "m"}
    facts |= {"weights": "bf16", "kv": "bf16", "shape": {"batch": 1, "context": 512}, "how": "random prompts"}
    return {**facts, "tok_s": tok_s, **extra}


def test_engine(results):
    """The step's graphs are not named, in old rows neither; other graphs are, and do not replace them."""
    results(engine_row("decode", 300.0), engine_row("decode", 310.0, graphs="step", step_us=3200.0, floor_us=1600.0))
    page = performance.page()
    assert "| moebius | m | 1 | 512 | bf16 | bf16 | bf16 | 310 | 3.20 | 50 | abc |" in page and "| graphs |" not in page
    results(engine_row("decode", 310.0), engine_row("decode", 280.0, graphs="none"))
    page = performance.page()
    assert "| KV | graphs | tokens/s |" in page
    assert [line.split("|")[8:10] for line in page.splitlines() if line.startswith("| moebius")] == [[" step ", " 310 "], [" none ", " 280 "]]


def test_engine_beside_hugging_face(results):
    large = {"batch": 16, "context": 512}
    speeds = [("moebius", "prefill", 2000.0), ("moebius", "decode", 300.0), ("HF grouped_mm", "prefill", 1000.0), ("HF grouped_mm", "decode", 20.0)]
    rows = [engine_row("engine_vs_hf", tok_s, who, **{"pass": name}) for who, name, tok_s in speeds]
    rows += [engine_row("engine_vs_hf", 1000.0, shape=large, **{"pass": "decode"})]
    rows += [engine_row("engine_vs_hf", 4.0, "HF eager", shape=large, **{"pass": "decode"})]
    results(*rows)
    lines = performance.page().splitlines()
    assert "| model | pass | batch | prompt | moebius | HF grouped_mm | HF eager | commit |" in lines
    assert [line for line in lines if line.startswith("| m ")] == [
        "| m | decode | 1 | 512 | 300.0 | 20.0 (15.0x) | | abc |",
        "| m | decode | 16 | 512 | 1000.0 | | 4.0 (250.0x) | abc |",
        "| m | prefill | 1 | 512 | 2000.0 | 1000.0 (2.0x) | | abc |",
    ]


def test_attention_and_dense_layers(results):
    facts = {"commit": "abc", "card": CARD, "date": "2026-11-28", "dtype": "bf16", "kv": "bf16", "how": "graph", "us": 100.0}
    shape = {"sequences": 1, "queries": 2048, "context": 2048, "heads": 32, "kv_heads": 4, "D": 128}
    attention = {**facts, "bench": "attention", "who": "moebius", "shape": shape}
    gemm = {**facts, "bench": "gemm", "shape": {"T": 8192, "N": 5120, "K": 2048}, "tflops": 700}
    results({**attention, "pass": "prefill", "tflops": 430.0}, {**attention, "pass": "decode", "tbps": 2.876, "shape": {**shape, "queries": 1}},
            {**gemm, "who": "cuBLAS", "us": 95.0}, {**gemm, "who": "moebius"})
    page = performance.page()
    assert "| prefill | 1 x 2048 | 2048 | 32, 4, 128 | bf16 | 100.0 | 430 TFLOP/s | abc |" in page
    assert "| decode | 1 x 1 | 2048 | 32, 4, 128 | bf16 | 100.0 | 2.88 TB/s | abc |" in page
    assert "| 8192, 5120, 2048 | bf16 | 95.0 | 100.0 | 700 | 95 % | abc |" in page


def test_the_demo_model_trains(results):
    facts = {"bench": "trains", "commit": "abc", "card": CARD, "date": "2026-11-28", "dtype": "bf16", "experts": "eager", "seed": 1}
    results({**facts, "who": "transformers", "shape": {"steps": 2000, "rows": 32}, "seconds": 9.0, "loss": 0.5, "right": 1990, "prompts": 2000})
    page = performance.page()
    assert "| transformers | 1 | 2000 | 16384 | 0.5000 | 1990 of 2000 | abc |" in page and "Measured 2026-11-28.\n" in page


def png(text):
    chunks = [(b"IHDR", bytes(13)), (b"tEXt", b"Rows\0" + text.encode()), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_picture_of_other_rows_is_stale(results):
    rows = [row(100.0 * t, n_tokens=t) for t in (1, 2, 4, 8)]
    results(*rows)
    ((path, drawn),) = plot.pictures().items()
    assert path.name == "moe-h100-80gb-hbm3-bf16-h2048-i768-e128-k8.png" and len(drawn) == 4
    with pytest.raises(SystemExit, match="other rows than the newest: docs/img/moe-h100"):
        plot.check()
    path.write_bytes(png(plot.rows_text(drawn)))
    plot.check()
    assert f"(img/{path.name})" in performance.page()
    results(*rows, row(1.0, n_tokens=2))
    with pytest.raises(SystemExit, match="run python bench/plot.py"):
        plot.check()


def test_few_points_make_no_picture(results):
    results(*[row(100.0, n_tokens=t) for t in (1, 2, 4)], row(1.0, n_tokens=8, bias=True))
    assert plot.pictures() == {}
    plot.check()
