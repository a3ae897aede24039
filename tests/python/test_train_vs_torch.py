"""bench/train_vs_torch.py: its measure of difference, of memory, and the ceiling, on the CPU."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import train_vs_torch as bench  # noqa: E402

SHAPE = (24, 16, 8, 4, 2)  # T, H, I, E, K


def layer():
    given = SimpleNamespace(device="cpu", dtype="fp32", activation="swiglu", add_bias=False, routing="topk", top_k=SHAPE[4])
    return given, *bench.make_layer(given, SHAPE)


def test_difference_is_summed_in_pieces(monkeypatch):
    got, expected = torch.randn(7, 5), torch.randn(7, 5)
    whole = bench.difference(got, expected)
    monkeypatch.setattr(bench, "CHUNK", 8)
    assert bench.difference(got, expected) == pytest.approx(whole)
    apart = (got - expected).abs()
    assert whole[:4] == pytest.approx([float(v) for v in (expected.abs().max(), expected.abs().mean(), apart.max(), apart.mean() / expected.abs().mean())])
    assert bench.difference(expected, expected)[2:] == (0, 0, pytest.approx(0))
    nothing = torch.zeros(7, 5)  # the router's gradient with one expert a token
    assert bench.difference(nothing, nothing) == (0, 0, 0, 0, 0) and bench.difference(got, nothing)[3:] == (1, 1)


@pytest.mark.parametrize(("options", "sentence"), [
    (["--thiek", "a,b"], "--thiek a,b: give five whole numbers"),
    (["--thiek", "4,8,8,2,3"], "K is 3; with 2 experts it must be at most 2"),
    (["--tile-rows", "0"], "--tile-rows is 0; it must be at least 1"),
    (["--device", "nowhere"], "--device nowhere: "),
    (["--output", "/no/such/folder/rows.jsonl"], "--output /no/such/folder/rows.jsonl: No such file or directory"),
])
def test_what_is_refused_before_it_is_measured(monkeypatch, options, sentence):
    monkeypatch.setattr(sys, "argv", ["train_vs_torch.py", "--device", "cpu", *options])
    with pytest.raises(SystemExit, match=sentence):
        bench.main()


def test_the_ceiling_computes_the_layer():
    given, x, _, parameters = layer()
    ceiling = bench.Ceiling(given, SHAPE, parameters)
    n_tokens, hidden, _, n_experts, top_k = SHAPE
    ids = torch.arange(n_tokens * top_k).view(n_tokens, top_k) % n_experts
    token = torch.arange(n_tokens).repeat_interleave(top_k)
    ceiling.rows = torch.empty(n_tokens * top_k, hidden).index_copy(0, ceiling.places.flatten(), x[token]).view(n_experts, -1, hidden)
    plain = bench.Plain(given, {**parameters, "router": torch.zeros_like(parameters["router"])})  # equal weights
    torch.testing.assert_close(ceiling(), plain(x, ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(bench.Missing):
        bench.Ceiling(given, (3, 16, 8, 4, 2), parameters)


def test_kept_bytes():
    weight, x = torch.randn(8, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    assert bench.kept_bytes(lambda: x @ weight, [weight]) == x.nbytes  # the parameter stays anyway
    assert bench.kept_bytes(lambda: (x @ weight).exp() * x, [weight]) == 2 * x.nbytes  # x once, and exp's result
