"""
The Python package on a Hopper GPU, with PyTorch: python tests/python/gpu_check.py [NAME ...] (not collected by pytest).

Values against definitions in PyTorch, every operator against the CPU's, CUDA graphs, streams, torch.compile,
transformers. MOEBIUS_LIBRARY: the library of a CUDA build, default build/cuda/libmoebius.so.
"""

import os
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("MOEBIUS_LIBRARY", str(ROOT / "build/cuda/libmoebius.so"))

import host_time  # noqa: E402
import moebius  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

DEVICE = torch.device("cuda", 0)
FP8 = torch.float8_e4m3fn
T, H, I, E, K = 77, 512, 256, 16, 4  # noqa: E741


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def close(name, got, expected, limit):
    """Fails unless calc_diff = 1 - 2xy / (x^2 + y^2) is at most `limit`."""
    got, expected = got.double().cpu(), expected.double().cpu()
    expect(got.shape == expected.shape, f"{name}: shapes {tuple(got.shape)}, {tuple(expected.shape)}")
    expect(bool(torch.isfinite(got).all()), f"{name}: not finite")
    squares = (got * got + expected * expected).sum()
    diff = 0.0 if squares == 0 else float(1 - 2 * (got * expected).sum() / squares)
    print(f"   {name}: calc_diff {diff:.1e}, limit {limit:.0e}")
    expect(diff <= limit, f"{name}: calc_diff {diff:.3e} > {limit:.0e}")


def same_bits(name, got, expected):
    expect(
        torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), f"{name}: bits differ"
    )


def normal(*shape):
    return torch.randn(shape, device=DEVICE)


def routing(n_tokens=T, n_experts=E, top_k=K):
    return moebius.route(normal(n_tokens, n_experts), top_k)


def layer(dtype, n_tokens=T):
    x = normal(n_tokens, H).to(dtype)
    return x, (normal(E, 2 * I, H) / H**0.5).to(dtype), (normal(E, H, I) / I**0.5).to(dtype), *routing(n_tokens)


def reference(x, w13, w2, weights, ids, prepare_x=lambda v: v, prepare_h=lambda v: v, residual=None):
    """SwiGLU experts in float64, w13 and w2 float64; `prepare` quantises what goes into a GEMM."""
    dtype = x.dtype

    def rounded(values):
        return values.to(dtype).double()

    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    entering = prepare_x(x.double())
    for e in range(w13.shape[0]):
        t, k = torch.where(ids == e)
        gate, up = (entering[t] @ w13[e].T).chunk(2, dim=-1)  # the kernels keep both in fp32
        hidden = prepare_h(rounded(functional.silu(gate) * up))
        out.index_add_(0, t, weights[t, k, None].double() * rounded(hidden @ w2[e].T))
    return out if residual is None else out + residual.double()


def check_moe_of_16_and_32_bits():
    for dtype, f32, limit in (
        (torch.bfloat16, "tf32", 1e-5),
        (torch.float16, "tf32", 1e-5),
        (torch.float32, "tf32", 1e-5),
        (torch.float32, "exact", 1e-11),
    ):
        for n_tokens in (1, T, 700):
            x, w13, w2, weights, ids = layer(dtype, n_tokens)
            residual = normal(n_tokens, H).to(dtype)
            got = moebius.moe(x, w13, w2, weights, ids, residual=residual, f32=f32)
            expected = reference(x, w13.double(), w2.double(), weights, ids, residual=residual)
            close(f"{dtype} {f32} T={n_tokens}", got, expected, limit)


def quantised_by_block(values):
    blocks = values.view(values.shape[0], -1, 128)
    scale = (blocks.abs().amax(-1, keepdim=True) / 448).float()
    scale = torch.where(scale == 0, 1.0, scale).double()
    return ((blocks / scale).float().to(FP8).double() * scale).view_as(values)


def quantised_by_tensor(scale):
    return lambda values: (values / scale).float().clamp(-448, 448).to(FP8).double() * scale


def check_moe_of_float8():
    for dtype in (torch.bfloat16, torch.float16):
        for kind in ("block", "tensor"):
            x, w13, w2, weights, ids = layer(dtype)
            w13, w2 = (w13.float() * 200).to(FP8), (w2.float() * 100).to(FP8)
            shapes = ((E, 2 * I // 128, H // 128), (E, H // 128, I // 128)) if kind == "block" else ((E,), (E,))
            scales = [(torch.rand(shape, device=DEVICE) + 0.5) / 150 for shape in shapes]
            if kind == "block":
                options, prepare = {}, (quantised_by_block, quantised_by_block)
            else:
                options = {
                    "x_scale": torch.tensor([0.011], device=DEVICE),
                    "h_scale": torch.tensor([0.017], device=DEVICE),
                }
                prepare = tuple(quantised_by_tensor(float(scale)) for scale in options.values())
            got = moebius.moe(x, w13, w2, weights, ids, w13_scale=scales[0], w2_scale=scales[1], **options)
            wide = []
            for w, scale in zip((w13, w2), scales, strict=True):
                full = (
                    scale.repeat_interleave(128, 1).repeat_interleave(128, 2)
                    if kind == "block"
                    else scale[:, None, None]
                )
                wide.append(w.double() * full.double())
            close(f"{dtype} float8 {kind}", got, reference(x, *wide, weights, ids, *prepare), 1e-4)


def check_operators_against_the_cpu():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x, w13, w2, weights, ids = layer(dtype)
        cpu = [tensor.cpu() for tensor in (x, w13, w2, weights, ids)]
        logits = moebius.router_gemm(x, w13[0])
        close(f"router_gemm {dtype}", logits, moebius.router_gemm(cpu[0], cpu[1][0]), 1e-9)
        for order in ("softmax_topk", "topk_softmax"):
            pair = moebius.route(logits, 6, order=order), moebius.route(logits.cpu(), 6, order=order)
            expect(torch.equal(pair[0][1].cpu(), pair[1][1]), f"route {order}: ids differ")
            close(f"route {order}", pair[0][0], pair[1][0], 1e-12)
        for first, n_local in ((0, E), (3, 7)):
            plans = [moebius.plan(i, E, first_expert=first, n_local_experts=n_local) for i in (ids, cpu[4])]
            n_rows = int(plans[1].offsets[-1])
            for name, one, other in zip(plans[0]._fields, *plans, strict=True):
                end = n_rows if name == "row_token" else None
                expect(torch.equal(one.cpu()[:end], other[:end]), f"plan: {name} differs")
        results = []
        for a, b13, b2, w, i in ((x, w13, w2, weights, ids), cpu):
            plan = moebius.plan(i, E)
            bias = torch.linspace(-1, 1, E * 2 * I).view(E, 2 * I).to(a.device)
            hidden = moebius.grouped_gemm(a, b13, plan.offsets, row_index=plan.row_token, bias=bias, activation="geglu")
            y = moebius.grouped_gemm(hidden, b2, plan.offsets, out_dtype=torch.float32)
            out = moebius.reduce(y, w, plan.token_row, shared=a.float())
            results.append((hidden, y, out))
        for name, one, other in zip(("gated", "float32 out", "reduce"), *results, strict=True):
            close(f"grouped_gemm {dtype} {name}", one, other, 1e-5)
        if dtype is not torch.float32:
            pair = [moebius.grouped_gemm(a, b[:1], out_dtype=FP8) for a, b in ((x, w13), cpu[:2])]
            wide = [out.double() * scale.repeat_interleave(128, 1).double() for out, scale in pair]
            close(f"grouped_gemm {dtype} float8 out", wide[0], wide[1], 1e-4)


def check_moe_experts():
    """plan, moe_experts and reduce give the bits of moe; rows outside of the offsets are left alone."""
    for n_tokens in (1, T, 700):
        for dtype, f32 in ((torch.bfloat16, "tf32"), (torch.float16, "tf32"), (torch.float32, "tf32"),
                           (torch.float32, "exact")):  # fmt: skip
            for activation in ("swiglu", "relu2"):
                x, w13, w2, weights, ids = layer(dtype, n_tokens)
                w13 = w13 if activation == "swiglu" else w13[:, :I].contiguous()
                options = {"activation": activation, "f32": f32}
                options |= {"bias13": normal(*w13.shape[:2]).to(dtype), "bias2": normal(E, H).to(dtype)}
                plan = moebius.plan(ids, E)
                y = moebius.moe_experts(x, w13, w2, plan.offsets, row_index=plan.row_token, **options)
                expected = moebius.moe(x, w13, w2, weights, ids, **options)
                got = moebius.reduce(y, weights, plan.token_row)
                same_bits(f"moe_experts {dtype} {f32} {activation} T={n_tokens}", got, expected)
                # The same rows in order, between a few of no expert.
                rows = torch.cat((normal(3, H).to(dtype), x[plan.row_token.long()], normal(2, H).to(dtype)))
                out = torch.full_like(rows, 7)
                moebius.moe_experts(rows, w13, w2, plan.offsets + 3, out=out, **options)
                same_bits("rows in order", out[3:-2], y)
                expect(bool((out[:3] == 7).all() and (out[-2:] == 7).all()), "rows of no expert were written")
        for kind in ("block", "tensor"):
            x, w13, w2, weights, ids = layer(torch.bfloat16, n_tokens)
            w13, w2 = (w13.float() * 200).to(FP8), (w2.float() * 100).to(FP8)
            shapes = ((E, 2 * I // 128, H // 128), (E, H // 128, I // 128)) if kind == "block" else ((E,), (E,))
            names = ("w13_scale", "w2_scale")
            scales = {name: torch.rand(s, device=DEVICE) / 150 for name, s in zip(names, shapes, strict=True)}
            if kind == "tensor":
                scales |= {name: torch.tensor([0.01], device=DEVICE) for name in ("x_scale", "h_scale")}
            plan = moebius.plan(ids, E)
            y = moebius.moe_experts(x, w13, w2, plan.offsets, row_index=plan.row_token, **scales)
            expected = moebius.moe(x, w13, w2, weights, ids, **scales)
            same_bits(f"float8 {kind} T={n_tokens}", moebius.reduce(y, weights, plan.token_row), expected)


def check_norm_and_linear():
    for dtype, limit in ((torch.bfloat16, 1e-5), (torch.float16, 1e-5), (torch.float32, 1e-9)):
        for n_tokens in (1, T, 700):
            x, weight, residual = normal(n_tokens, H).to(dtype), normal(H).to(dtype), normal(n_tokens, I).to(dtype)
            normed = moebius.rms_norm(x, weight)
            close(f"rms_norm {dtype} T={n_tokens}", normed, moebius.rms_norm(x.cpu(), weight.cpu()), limit)
            other = normal(n_tokens, H).to(dtype)
            added, total = moebius.rms_norm(x, weight, residual=other)
            same_bits("x + residual", total, x + other)
            same_bits("the norm of x + residual", added, moebius.rms_norm(total, weight))
            if dtype is not torch.float32:
                in_float8 = moebius.rms_norm(x, weight, residual=other, out_dtype=FP8)
                for got, wanted in zip(
                    in_float8, (*moebius.rms_norm(total, weight, out_dtype=FP8), total), strict=True
                ):
                    same_bits("x + residual in float8", got, wanted)
            matrix, bias = (normal(I, H) / H**0.5).to(dtype), normal(I)
            got = moebius.linear(x, matrix, bias=bias, residual=residual)
            expected = x.double() @ matrix.double().T + bias.double() + residual.double()
            close(f"linear {dtype} T={n_tokens}", got, expected, limit)
            same_bits("a row alone", moebius.linear(x[:1], matrix, bias=bias, residual=residual[:1]), got[:1])
            if dtype is torch.float32:
                continue
            out, scale = moebius.rms_norm(x, weight, out_dtype=FP8)
            wide = out.double() * scale.repeat_interleave(128, 1).double()
            close(f"rms_norm {dtype} float8", wide, quantised_by_block(normed.double()), 1e-8)
            matrix, scale = (
                (matrix.float() * 200).to(FP8),
                (torch.rand((I // 128, H // 128), device=DEVICE) + 0.5) / 200,
            )
            wide = matrix.double() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1).double()
            got = moebius.linear(x, matrix, weight_scale=scale, out_dtype=torch.float32)
            close(f"linear {dtype} float8", got, quantised_by_block(x.double()) @ wide.T, 1e-6)
            one = torch.tensor([0.004], device=DEVICE)
            got = moebius.linear(x, matrix, weight_scale=one, out_dtype=torch.float32)
            wide = matrix.double() * one.double()
            close(f"linear {dtype} float8 per tensor", got, quantised_by_block(x.double()) @ wide.T, 1e-6)


def batch_of_sequences(query_lengths, kv_lengths, n_blocks=24):
    """Block table, lengths, query starts, positions and slots of sequences whose blocks lie anywhere."""
    ints = {"dtype": torch.int32, "device": DEVICE}
    max_blocks = max(-(-length // 64) for length in kv_lengths)
    table = torch.full((len(kv_lengths), max_blocks), -1, dtype=torch.int32)
    free = torch.randperm(n_blocks, dtype=torch.int32).tolist()
    positions, slots = [], []
    for s, (n_queries, length) in enumerate(zip(query_lengths, kv_lengths, strict=True)):
        for block in range(-(-length // 64)):
            table[s, block] = free.pop()
        for position in range(length - n_queries, length):
            positions.append(position)
            slots.append(int(table[s, position // 64]) * 64 + position % 64)
    starts = [sum(query_lengths[:s]) for s in range(len(query_lengths) + 1)]
    return table.to(DEVICE), *(torch.tensor(values, **ints) for values in (kv_lengths, starts, positions, slots))


def check_attention():
    """Head norms, rotary embedding, store and attention over a paged cache against the CPU's, bits, a CUDA graph."""
    query_lengths, kv_lengths = (5, 1, 70, 8, 1, 0, 3), (5, 300, 200, 72, 1, 30, 130)
    table, lengths, starts, positions, slots = batch_of_sequences(query_lengths, kv_lengths)
    n_tokens, n_blocks, heads, kv_heads = sum(query_lengths), 24, 8, 2
    for dtype, limit in ((torch.bfloat16, 1e-5), (torch.float16, 1e-5), (torch.float32, 1e-8)):
        for dim in (64, 96, 128):
            for cache_dtype in (dtype, FP8):
                name = f"{dtype} D={dim} cache {cache_dtype}"
                cache = [normal(n_blocks, kv_heads, 64, dim).to(cache_dtype) for _ in range(2)]
                on_cpu = [c.cpu() for c in cache]
                scales = {}
                if cache_dtype is FP8:
                    scales = {n: torch.rand(kv_heads, device=DEVICE) / 50 + 0.01 for n in ("k_scale", "v_scale")}
                cpu_scales = {n: scale.cpu() for n, scale in scales.items()}
                qkv = normal(n_tokens, (heads + 2 * kv_heads) * dim).to(dtype)
                norms = {n: (1 + 0.1 * normal(dim)).to(dtype) for n in ("q_norm", "k_norm")}
                n_pairs = dim // 4 if cache_dtype is FP8 else dim // 2  # with FP8 half of a head is rotated
                inv_freq = 1e6 ** (-torch.arange(n_pairs, device=DEVICE) / (dim / 2))
                q = moebius.qk_norm_rope_store(qkv, *cache, positions, slots, inv_freq, **norms, **scales)
                q_cpu = moebius.qk_norm_rope_store(
                    qkv.cpu(), *on_cpu, positions.cpu(), slots.cpu(), inv_freq.cpu(),
                    **{n: weight.cpu() for n, weight in norms.items()}, **cpu_scales,
                )  # fmt: skip
                close(f"q {name}", q, q_cpu, limit)
                for which, got, expected in zip("kv", cache, on_cpu, strict=True):
                    close(f"{which} {name}", got, expected, 1e-4 if cache_dtype is FP8 else limit)
                got = moebius.attention(q, *cache, table, lengths, starts, **scales)
                arguments = [t.cpu() for t in (q, *cache, table, lengths, starts)]
                close(f"attention {name}", got, moebius.attention(*arguments, **cpu_scales), limit)
                longest = {"max_query_length": 70, "max_kv_length": 300}
                same_bits(
                    "lengths given", moebius.attention(q, *cache, table, lengths, starts, **longest, **scales), got
                )
                for s, n_queries in enumerate(query_lengths):
                    begin = int(starts[s])
                    alone = [
                        t.contiguous() for t in (q[begin : begin + n_queries], table[s : s + 1], lengths[s : s + 1])
                    ]
                    one = torch.tensor([0, n_queries], dtype=torch.int32, device=DEVICE)
                    if n_queries:
                        single = moebius.attention(alone[0], *cache, *alone[1:], one, **scales)
                        same_bits(f"sequence {s} alone", single, got[begin : begin + n_queries])
                out, graph = torch.empty_like(got), torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    moebius.attention(q, *cache, table, lengths, starts, **longest, **scales, out=out)
                out.zero_()
                graph.replay()
                same_bits("a graph's replay", out, got)


def check_decode_attention():
    """One call with the bits of qk_norm_rope_store and attention, also in a CUDA graph, whose schedule is reused."""
    query_lengths, kv_lengths = (1, 8, 0, 2, 1), (700, 30, 9, 65, 1)
    table, lengths, starts, positions, slots = batch_of_sequences(query_lengths, kv_lengths)
    arguments = (positions, slots, 1e6 ** (-torch.arange(64, device=DEVICE) / 64), table, lengths, starts)
    schedule = moebius.decode_schedule(lengths, starts, 8, 2)
    expect(schedule[:6].tolist() == [0, 3, 4, 4, 5, 6], f"schedule {schedule.tolist()}")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for cache_dtype in (dtype, FP8):
            name = f"decode_attention {dtype} cache {cache_dtype}"
            caches = [normal(24, 2, 64, 128).to(cache_dtype) for _ in range(2)]
            again = [cache.clone() for cache in caches]
            qkv = normal(sum(query_lengths), 12 * 128).to(dtype)
            norms = {n: (1 + 0.1 * normal(128)).to(dtype) for n in ("q_norm", "k_norm")}
            q = moebius.qk_norm_rope_store(qkv, *caches, *arguments[:3], **norms)
            expected = moebius.attention(q, *caches, *arguments[3:])
            for longest in ({}, {"max_query_length": 8, "max_kv_length": 700}):
                same_bits(
                    name, moebius.decode_attention(qkv, *again, *arguments, schedule, **norms, **longest), expected
                )
            same_bits(f"{name}, k", again[0], caches[0])
            same_bits(f"{name}, v", again[1], caches[1])
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = moebius.decode_attention(qkv, *again, *arguments, schedule, **norms)
            for _ in range(2):
                graph.replay()
                same_bits(f"{name}, a graph's replay", out, expected)
            expect(not schedule[6:].any(), "the counters are not zero")


def check_attention_of_pytorch():
    """One prompt, and one token more, against scaled_dot_product_attention in float64."""
    heads, kv_heads, dim, length = 8, 2, 128, 150
    table, lengths, starts, _, slots = batch_of_sequences((length,), (length,))
    q, k, v = (normal(length, n, dim).to(torch.bfloat16) for n in (heads, kv_heads, kv_heads))
    k_cache, v_cache = (torch.zeros(24, kv_heads, 64, dim, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    blocks, offsets = slots.long() // 64, slots.long() % 64
    k_cache[blocks, :, offsets], v_cache[blocks, :, offsets] = k, v
    parts = [t.double().transpose(0, 1)[None] for t in (q, k, v)]
    expected = functional.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
    close("a prompt", moebius.attention(q, k_cache, v_cache, table, lengths, starts), expected, 1e-5)
    last = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    got = moebius.attention(q[-1:].contiguous(), k_cache, v_cache, table, lengths, last)
    close("one token", got, expected[-1:], 1e-5)
    compiled = torch.compile(moebius.attention, fullgraph=True)
    same_bits("compiled", compiled(q[-1:].contiguous(), k_cache, v_cache, table, lengths, last), got)
    for bad, text in ((misaligned(q), "q is at 0x"), (q.cpu(), "k_cache is on cuda:0")):
        try:
            moebius.attention(bad, k_cache, v_cache, table, lengths, starts)
        except ValueError as error:
            expect(text in str(error), f"{error!r} does not say {text!r}")
            continue
        raise AssertionError(f"no error about {text}")


def check_sample():
    """The tokens of the CPU, with every filter and penalty; counts go on in a CUDA graph."""
    n_rows, vocab = 64, 5003
    logits = 4 * normal(n_rows, vocab)
    longs = {"dtype": torch.int64, "device": DEVICE}
    seeds, positions = torch.full((n_rows,), 7, **longs), torch.arange(n_rows, **longs)
    options = {"temperature": torch.linspace(0, 2, n_rows), "top_p": torch.linspace(0.5, 1, n_rows)}
    options |= {"min_p": torch.linspace(0, 0.1, n_rows), "top_k": torch.arange(n_rows, dtype=torch.int32)}
    options |= {name: torch.full((n_rows,), 0.3) for name in ("presence_penalty", "frequency_penalty")}
    options |= {"repetition_penalty": torch.full((n_rows,), 1.2)}
    options |= {"allowed": torch.randint(-(2**31), 2**31, (n_rows, -(-vocab // 32)), dtype=torch.int32)}
    options |= {"seen": torch.randint(0, 5, (n_rows, vocab), dtype=torch.int32)}
    on_gpu = {name: value.to(DEVICE, copy=True) for name, value in options.items()}
    for _ in range(3):
        got = moebius.sample(logits, seeds, positions, **on_gpu)
        expected = moebius.sample(logits.cpu(), seeds.cpu(), positions.cpu(), **options)
        expect(torch.equal(got[0].cpu(), expected[0]), f"ids {got[0].tolist()}, {expected[0].tolist()}")
        expect(bool((got[1].cpu() - expected[1]).abs().max() < 1e-4), "log-probabilities differ")
        expect(torch.equal(on_gpu["seen"].cpu(), options["seen"]), "seen differs")
        positions += 1
    plain = moebius.sample(logits, seeds, positions, temperature=on_gpu["temperature"])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = moebius.sample(logits, seeds, positions, temperature=on_gpu["temperature"])
    graph.replay()
    same_bits("a graph's replay", captured[0], plain[0])


def check_moe_from_logits():
    x, w13, w2, _, _ = layer(torch.bfloat16)
    logits = normal(T, E)
    got = moebius.moe_from_logits(x, logits, w13, w2, K)
    close("moe_from_logits", got, moebius.moe(x, w13, w2, *moebius.route(logits, K)), 1e-6)


def misaligned(tensor):
    """The same values, starting one element after an aligned address."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    memory[1:] = tensor.flatten()
    return memory[1:].view(tensor.shape)


def check_vectors_need_their_elements_alignment_only():
    """Ids, weights of choices, logits, biases, scales and offsets may start at any element and give the same bits."""
    for n_tokens in (1, 5, T, 700):
        logits = normal(n_tokens, E)
        bias = normal(E)
        for dtype in (torch.bfloat16, torch.float32):
            x, w13, w2, weights, ids = layer(dtype, n_tokens)
            router = w13[0, :E].contiguous()
            same_bits(
                "router_gemm", moebius.router_gemm(x, router, misaligned(bias)), moebius.router_gemm(x, router, bias)
            )
            for kind in (torch.float32, torch.bfloat16):
                expected = moebius.route(logits.to(kind), K)
                for got, wanted in zip(moebius.route(misaligned(logits.to(kind)), K), expected, strict=True):
                    same_bits("route", got, wanted)
            for f32 in ("tf32", "exact") if dtype is torch.float32 else ("tf32",):
                biases = {"bias13": normal(E, 2 * I).to(dtype), "bias2": normal(E, H).to(dtype)}
                expected = moebius.moe(x, w13, w2, weights, ids, f32=f32, **biases)
                biases = {name: misaligned(bias) for name, bias in biases.items()}
                got = moebius.moe(x, w13, w2, misaligned(weights), misaligned(ids), f32=f32, **biases)
                same_bits(f"moe {dtype} {f32} T={n_tokens}", got, expected)
                expected = moebius.moe_from_logits(x, logits, w13, w2, K, f32=f32)
                got = moebius.moe_from_logits(x, misaligned(logits), w13, w2, K, f32=f32)
                same_bits(f"moe_from_logits {dtype} {f32} T={n_tokens}", got, expected)
                plans = [moebius.plan(i, E) for i in (ids, misaligned(ids))]
                for one, other in zip(*plans, strict=True):
                    same_bits("plan", one, other)
                plan, moved = plans[0], [misaligned(part) for part in plans[0]]
                row_weight, bias13 = normal(n_tokens * K), normal(E, 2 * I)
                results = []
                for move, (offsets, row_token, token_row) in ((lambda t: t, plan), (misaligned, moved)):
                    hidden = moebius.grouped_gemm(
                        x, w13, offsets, row_index=row_token, bias=move(bias13), activation="swiglu",
                        row_weight=move(row_weight), f32=f32,
                    )  # fmt: skip
                    y = moebius.grouped_gemm(hidden, w2, offsets, f32=f32)
                    results.append((hidden, y, moebius.reduce(y, move(weights), token_row)))
                for name, one, other in zip(("gated", "plain", "reduce"), *results, strict=True):
                    same_bits(f"{name} {dtype} {f32} T={n_tokens}", one, other)
        x, w13, w2, weights, ids = layer(torch.bfloat16, n_tokens)
        w13, w2 = (w13.float() * 200).to(FP8), (w2.float() * 100).to(FP8)
        for shapes in (((E, 2 * I // 128, H // 128), (E, H // 128, I // 128)), ((E,), (E,))):
            names = ("w13_scale", "w2_scale")
            scales = {name: torch.rand(s, device=DEVICE) / 150 for name, s in zip(names, shapes, strict=True)}
            if len(shapes[0]) == 1:
                scales |= {name: torch.tensor([0.01], device=DEVICE) for name in ("x_scale", "h_scale")}
            expected = moebius.moe(x, w13, w2, weights, ids, **scales)
            got = moebius.moe(x, w13, w2, weights, ids, **{name: misaligned(scale) for name, scale in scales.items()})
            same_bits(f"float8 scales {tuple(shapes[0])} T={n_tokens}", got, expected)
        a, a_scale = x.float().clamp(-2, 2).to(FP8), torch.rand((n_tokens, H // 128), device=DEVICE)
        b_scale = torch.rand((1, 2 * I // 128, H // 128), device=DEVICE)
        pair = [
            moebius.grouped_gemm(a, w13[:1], a_scale=move(a_scale), b_scale=move(b_scale), out_dtype=torch.float32)
            for move in (lambda t: t, misaligned)
        ]
        same_bits(f"grouped_gemm of float8 T={n_tokens}", *pair)


def check_ids_that_are_no_experts():
    """They add nothing, in every way of planning; fused_experts maps and drops them on the device."""
    from moebius.integrations.fused_moe import fused_experts

    for n_tokens in (1, T, 700, 300_000):
        ids = torch.randint(0, E, (n_tokens, K), dtype=torch.int32, device=DEVICE)
        outside = torch.rand((n_tokens, K), device=DEVICE) < 0.3
        strange = torch.tensor([-1, E, E + 7, 2**31 - 1, -(2**31)], dtype=torch.int32, device=DEVICE)
        some = torch.where(outside, strange[torch.randint(0, 5, ids.shape, device=DEVICE)], ids)
        pair = [moebius.plan(i, E) for i in (some, some.cpu())]
        n_rows = int(pair[1].offsets[-1])
        for name, one, other in zip(pair[0]._fields, *pair, strict=True):
            end = n_rows if name == "row_token" else None
            expect(torch.equal(one.cpu()[:end], other[:end]), f"plan: {name} differs")
        if n_tokens > 700:
            continue
        x, w13, w2, weights, _ = layer(torch.bfloat16, n_tokens)
        expected = reference(x, w13.double(), w2.double(), weights, torch.where(outside, -1, ids))
        close(f"moe T={n_tokens}", moebius.moe(x, w13, w2, weights, some), expected, 1e-5)
        identity = torch.arange(E, dtype=torch.int32, device=DEVICE)
        for options in ({}, {"expert_map": identity, "global_num_experts": E}):
            far = some.long() + torch.where(outside, 2**32, 0)
            close(f"fused_experts T={n_tokens}", fused_experts(x, w13, w2, weights, far, **options), expected, 1e-5)


def check_nan_flag():
    flag = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    logits = normal(5, 128)
    moebius.route(logits, 8, nan_flag=flag)
    expect(int(flag) == 0, "flag raised without NaN")
    logits[3, 7] = float("nan")
    _, ids = moebius.route(logits, 8, nan_flag=flag)
    expect(int(flag) == 1 and int(ids.max()) < 128 and int(ids.min()) >= 0, "flag or ids")


def check_no_tokens():
    x, w13, w2, weights, ids = layer(torch.bfloat16, 0)
    expect(moebius.moe(x, w13, w2, weights, ids).shape == (0, H), "shape")
    expect(int(moebius.plan(ids, E).offsets.abs().sum()) == 0, "offsets")


def check_expert_parallel_parts():
    x, w13, w2, weights, ids = layer(torch.bfloat16)
    total = torch.zeros(T, H, device=DEVICE)
    for first, n in ((0, 5), (5, 10), (15, 1)):
        part = slice(first, first + n)
        total += moebius.moe(x, w13[part], w2[part], weights, ids, first_expert=first, n_experts=E)
    close("sum of three ranks", total, moebius.moe(x, w13, w2, weights, ids), 2e-5)


def check_cuda_graph():
    for dtype in (torch.bfloat16, torch.float32):
        x, w13, w2, weights, ids = layer(dtype)
        logits, out = normal(T, E), torch.zeros(T, H, dtype=dtype, device=DEVICE)

        def step(x, w13, w2, weights, ids, logits, out):
            y = moebius.moe(x, w13, w2, weights, ids)
            moebius.moe_from_logits(y, logits, w13, w2, K, residual=x, out=out)

        step(x, w13, w2, weights, ids, logits, out)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(x, w13, w2, weights, ids, logits, out)
        for _ in range(3):
            x.copy_(normal(T, H))
            logits.copy_(normal(T, E))
            for held, fresh in zip((weights, ids), routing(), strict=True):
                held.copy_(fresh)
            expected = torch.zeros_like(out)
            step(x, w13, w2, weights, ids, logits, expected)
            out.fill_(float("nan"))
            graph.replay()
            same_bits(f"{dtype} graph", out, expected)


def check_current_stream():
    """On a side stream, after a long sleep: work on another stream would read x before it is written."""
    x, w13, w2, weights, ids = layer(torch.bfloat16)
    expected = moebius.moe(x, w13, w2, weights, ids)
    late = torch.full_like(x, float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        started = time.perf_counter()
        got = moebius.moe(late, w13, w2, weights, ids)
        waited = time.perf_counter() - started
        expect(not stream.query(), "the call waited for the stream, or the sleep was too short to tell")
    stream.synchronize()
    print(f"   the call returned after {waited * 1e6:.0f} us")
    same_bits("side stream", got, expected)


def training_layer(dtype, activation, bias):
    """x, w13, w2 and biases on the GPU as leaves, and routing; rows of w13 as the activation has them."""
    rows = 2 * I if activation.endswith("glu") else I
    shapes = [(T, H), (E, rows, H), (E, H, I)] + ([(E, rows), (E, H)] if bias else [])
    leaves = [(normal(*shape) / (H**0.5 if len(shape) == 3 else 1)).to(dtype).requires_grad_() for shape in shapes]
    weights, ids = routing()
    return leaves, weights.requires_grad_(), ids


def moe_step(leaves, weights, ids, d_out, activation):
    """moe's result and the gradients of the leaves and of the weights."""
    x, w13, w2, *biases = leaves
    terms = dict(zip(("bias13", "bias2"), biases, strict=False))
    out = moebius.moe(x, w13, w2, weights, ids, activation=activation, **terms)
    return [out.detach(), *torch.autograd.grad(out, [*leaves, weights], d_out)]


def check_gradients_of_moe():
    """Against the CPU's in float32 of the same values, and the same bits again."""
    names = ("out", "x", "w13", "w2", "bias13", "bias2")
    for dtype in (torch.bfloat16, torch.float16):
        for activation in ("swiglu", "geglu", "reglu", "silu", "gelu", "relu", "relu2"):
            leaves, weights, ids = training_layer(dtype, activation, bias=activation != "swiglu")
            d_out = normal(T, H).to(dtype)
            got = moe_step(leaves, weights, ids, d_out, activation)
            again = moe_step(leaves, weights, ids, d_out, activation)
            on_cpu = [leaf.detach().cpu().float().requires_grad_() for leaf in leaves]
            wide = weights.detach().cpu().requires_grad_()
            expected = moe_step(on_cpu, wide, ids.cpu(), d_out.cpu().float(), activation)
            labels = [*names[: len(leaves) + 1], "weights"]
            for name, one, two, right in zip(labels, got, again, expected, strict=True):
                close(f"{dtype} {activation} {name}", one, right, 1e-4)
                same_bits(f"{dtype} {activation} {name}", one, two)


def check_no_backward_in_float32():
    leaves, weights, ids = training_layer(torch.float32, "swiglu", bias=False)
    try:
        moe_step(leaves, weights, ids, normal(T, H), "swiglu")
    except NotImplementedError as error:
        expect("there is no backward pass" in str(error), str(error))
        return
    raise AssertionError("a backward in float32")


def check_training_layer():
    """moebius.nn.MoE: top-k and token rounding, checkpoints, main_grad, a side stream, torch.compile."""
    from moebius.nn import MoE
    from torch.utils.checkpoint import checkpoint

    x = normal(256, H).to(torch.bfloat16)

    def gradients(module, forward=None):
        leaf = x.clone().requires_grad_()
        module.zero_grad()
        out, routed = (module if forward is None else forward)(leaf, return_routing=True)
        (out.float().square().mean() + 0.01 * routed.load_balance + 0.001 * routed.z).backward()
        found = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
        return {"x": leaf.grad, **found}

    for options in ({}, {"routing": "rounding", "tile_rows": 16}, {"activation": "relu2", "order": "topk_softmax"}):
        module = MoE(H, I, E, K, bias=True, device=DEVICE, dtype=torch.bfloat16, **options)
        expected = gradients(module)
        on_cpu = MoE(H, I, E, K, bias=True, **options)
        on_cpu.load_state_dict({name: value.cpu().float() for name, value in module.state_dict().items()})
        leaf = x.cpu().float().requires_grad_()
        with torch.no_grad():  # the choices of the GPU: of nearly equal logits either may be the larger
            ids = module(x, return_routing=True)[1].ids.cpu()
        if not options.get("routing"):
            out, routed = on_cpu(leaf, ids=ids, return_routing=True)
            (out.square().mean() + 0.01 * routed.load_balance + 0.001 * routed.z).backward()
            wanted = {"x": leaf.grad, **{name: value.grad for name, value in on_cpu.named_parameters()}}
            for name, value in expected.items():
                close(f"{options} {name}", value, wanted[name], 1e-3)

        def all_same(what, found, expected=expected):
            for name, value in expected.items():
                same_bits(f"{what} {name}", found[name], value)

        all_same("again", gradients(module))
        all_same("checkpoint", gradients(module, lambda v, **o: checkpoint(module, v, use_reentrant=False, **o)))
        module.recompute = True
        all_same("recompute", gradients(module))
        module.recompute = False
        all_same("compiled", gradients(module, torch.compile(module, fullgraph=True)))
        torch._dynamo.reset()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            found = gradients(module)
        stream.synchronize()
        all_same("side stream", found)
        module.keep_main_grads()
        for _ in range(2):
            gradients(module)
        for name in ("w13", "w2", "bias13", "bias2"):
            close(f"main_grad of {name}", getattr(module, name).main_grad, 2 * expected[name].float(), 1e-5)
    wide = MoE(H, I, E, K, device=DEVICE)
    with torch.no_grad():
        wide(x.float())
    try:
        wide(x.float())
    except moebius.Error as error:
        assert "float32 on cuda:0, where it trains in" in str(error), error
    else:
        raise AssertionError("MoE in float32 trains on a GPU")
    with torch.autocast("cuda", torch.bfloat16):
        wide(x.float()).float().square().mean().backward()
    assert wide.w13.grad.dtype == torch.float32 and wide.w13.grad.any()


def check_compile():
    def block(x, router, w13, w2):
        logits = moebius.router_gemm(x, router)
        weights, ids = moebius.route(logits, K)
        return moebius.moe(x, w13, w2, weights, ids, residual=x) * 0.5

    x, w13, w2, _, _ = layer(torch.bfloat16)
    router = normal(E, H).to(torch.bfloat16)
    compiled = torch.compile(block, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # the third call replays a CUDA graph
        x = normal(T, H).to(torch.bfloat16)
        same_bits("compiled", compiled(x, router, w13, w2).clone(), block(x, router, w13, w2))


def check_errors():
    x, w13, w2, weights, ids = layer(torch.bfloat16)

    def fails(kind, text, **changes):
        arguments = {"x": x, "w13": w13, "w2": w2, "topk_weights": weights, "topk_ids": ids, **changes}
        try:
            moebius.moe(**arguments)
        except kind as error:
            expect(text in str(error), f"{error!r} does not say {text!r}")
            print(f"   {error}")
            return
        raise AssertionError(f"no {kind.__name__} about {text}")

    odd = torch.empty(T * H + 1, dtype=torch.bfloat16, device=DEVICE)[1:].view(T, H)
    fails(ValueError, "residual is at 0x", residual=odd)
    fails(ValueError, "w2 is on cpu; it must be on cuda:0", w2=w2.cpu())
    fails(ValueError, "topk_ids is on cpu", topk_ids=ids.cpu())
    narrow = slice(0, H - 4)  # columns that are no multiple of 16 bytes
    fails(
        moebius.Error, "", x=x[:, narrow].contiguous(), w13=w13[..., narrow].contiguous(), w2=w2[:, narrow].contiguous()
    )


def check_transformers():
    import moebius.integrations.transformers as experts
    import transformers

    experts.register()
    config = transformers.Qwen3MoeConfig(
        vocab_size=512, hidden_size=256, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=8, num_key_value_heads=2, head_dim=32, num_experts=32, num_experts_per_tok=4,
        norm_topk_prob=True,
    )  # fmt: skip
    with torch.no_grad(), torch.device(DEVICE):
        model = transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).eval()
        for parameter in model.parameters():
            parameter.copy_(normal(*parameter.shape) / parameter.shape[-1] ** 0.5)
        tokens = torch.randint(0, 512, (2, 50))
        model.set_experts_implementation("eager")
        expected = model(tokens).logits
        model.set_experts_implementation("moebius")
        close("Qwen3-MoE logits", model(tokens).logits, expected, 1e-3)
        model.generate(tokens[:1], max_new_tokens=8, do_sample=False, pad_token_id=0)


def check_host_time():
    for name, microseconds in host_time.measure(DEVICE).items():
        print(f"   {name}: {microseconds:.1f} us of the CPU a call")


def main(names):
    checks = {name.removeprefix("check_"): value for name, value in globals().items() if name.startswith("check_")}
    failed = []
    for name in names or checks:
        torch.manual_seed(1)
        started = time.perf_counter()
        try:
            checks[name]()
            torch.cuda.synchronize()
        except Exception as error:
            failed.append(name)
            print("   " + "   ".join(traceback.format_exception(error)[-3:]).strip())
        print(f"{'FAILED' if name in failed else 'ok'} {name} ({time.perf_counter() - started:.1f} s)", flush=True)
    print(f"{len(failed)} of {len(names or checks)} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
