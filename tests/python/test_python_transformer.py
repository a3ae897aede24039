"""Norm, dense layer, rotary embedding, and attention over a paged KV cache, against their definitions in float64."""

import zlib

import moebius
import numpy
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FP8 = torch.float8_e4m3fn
HEADS, KV_HEADS, DIM, BLOCKS = 6, 2, 24, 9
BAR = {torch.float32: 1e-11, torch.bfloat16: 1e-5, torch.float16: 1e-6}


@pytest.fixture
def generator(request):
    return torch.Generator().manual_seed(zlib.crc32(request.node.name.encode()))


def normal(generator, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=generator).to(dtype)


def close(got, expected, limit):
    """Fails unless calc_diff = 1 - 2xy / (x^2 + y^2) is at most `limit`."""
    got, expected = got.double(), expected.double()
    assert got.shape == expected.shape and torch.isfinite(got).all()
    assert 1 - 2 * (got * expected).sum() / (got**2 + expected**2).sum() <= limit


def same_bits(got, expected):
    assert torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def normed(x, weight):
    return x * (x**2).mean(-1, keepdim=True).add(1e-6).rsqrt() * weight


@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_norm(generator, dtype):
    x, residual = normal(generator, 7, 200, dtype=dtype), normal(generator, 7, 200, dtype=dtype)
    weight = normal(generator, 200)
    close(moebius.rms_norm(x, weight), normed(x.double(), weight.double()), BAR[dtype])
    out, total = moebius.rms_norm(x, weight, residual=residual)
    same_bits(total, x + residual)
    same_bits(out, moebius.rms_norm(total, weight))
    assert moebius.rms_norm(x[:0], weight).shape == (0, 200)
    if dtype is torch.float32:
        return
    out, scale = moebius.rms_norm(x, weight, out_dtype=FP8)
    assert out.dtype is FP8 and scale.shape == (7, 2)
    wide = out.double() * scale.double().repeat_interleave(128, 1)[:, :200]
    close(wide, moebius.rms_norm(x, weight), 1e-3)
    again, again_scale, total = moebius.rms_norm(x, weight, residual=torch.zeros_like(x), out_dtype=FP8)
    for got, expected in ((again, out), (again_scale, scale), (total, x)):
        same_bits(got, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_linear(generator, dtype):
    x, weight = normal(generator, 5, 72, dtype=dtype), normal(generator, 40, 72, dtype=dtype)
    bias, residual = normal(generator, 40), normal(generator, 5, 40, dtype=dtype)
    expected = x.double() @ weight.double().T + bias.double() + residual.double()
    got = moebius.linear(x, weight, bias=bias, residual=residual)
    close(got, expected, BAR[dtype])
    same_bits(moebius.linear(x[2:3], weight, bias=bias, residual=residual[2:3]), got[2:3])
    wide = moebius.linear(x, weight, bias=bias.to(dtype), residual=residual.float(), out_dtype=torch.float32)
    assert wide.dtype is torch.float32
    out = residual.clone()
    assert moebius.linear(x, weight, bias=bias, residual=out, out=out) is out
    same_bits(out, got)
    if dtype is torch.float32:
        return
    eights = (weight.float() * 50).to(FP8)
    for scale in (torch.tensor([0.02]), torch.full((1, 1), 0.02), torch.full((5, 1), 0.02)):
        close(moebius.linear(x, eights, weight_scale=scale), x.double() @ (eights.double().T * 0.02), BAR[dtype])


def paged(generator, query_lengths, kv_lengths):
    """Block table, lengths, query starts, positions and slots of sequences whose blocks lie anywhere."""
    table = torch.full((len(kv_lengths), max(-(-length // 64) for length in kv_lengths)), -1, dtype=torch.int32)
    free = torch.randperm(BLOCKS, generator=generator).tolist()
    positions, slots = [], []
    for s, (n_queries, length) in enumerate(zip(query_lengths, kv_lengths, strict=True)):
        for block in range(-(-length // 64)):
            table[s, block] = free.pop()
        for position in range(length - n_queries, length):
            positions.append(position)
            slots.append(int(table[s, position // 64]) * 64 + position % 64)
    starts = numpy.cumsum([0, *query_lengths]).tolist()
    return table, *(torch.tensor(values, dtype=torch.int32) for values in (kv_lengths, starts, positions, slots))


def cached(cache, table, n):
    """The first n positions of a sequence, [n, Hkv, D]."""
    blocks = cache[table[: -(-n // 64)].long()]
    return blocks.transpose(1, 2).reshape(-1, *blocks.shape[1:2], blocks.shape[3])[:n]


def rotated(x, positions, inv_freq):
    angle = positions.double()[:, None, None] * inv_freq.double()
    half = inv_freq.shape[0]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), -1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("cache", ["same", "float8", "float8 with scales"])
def test_attention_over_the_paged_cache(generator, dtype, cache):
    cache_dtype = dtype if cache == "same" else FP8
    query_lengths, kv_lengths = (3, 1, 65, 0), (70, 129, 65, 10)
    table, lengths, starts, positions, slots = paged(generator, query_lengths, kv_lengths)
    n_tokens = sum(query_lengths)
    scales = {}
    if cache == "float8 with scales":
        scales = {"k_scale": torch.tensor([0.5, 2.0]), "v_scale": torch.tensor([0.25, 1.0])}
    k_cache, v_cache = (normal(generator, BLOCKS, KV_HEADS, 64, DIM).to(cache_dtype) for _ in range(2))
    before = k_cache.clone()
    qkv = normal(generator, n_tokens, (HEADS + 2 * KV_HEADS) * DIM, dtype=dtype)
    q_norm, k_norm = normal(generator, DIM), normal(generator, DIM)
    inv_freq = 1e4 ** (-torch.arange(DIM // 2 - 4) / (DIM / 2))  # some dimensions are not rotated
    arguments = (qkv, k_cache, v_cache, positions, slots, inv_freq)
    q = moebius.qk_norm_rope_store(*arguments, q_norm=q_norm, k_norm=k_norm, **scales)

    heads = qkv.double().view(n_tokens, -1, DIM)
    expected_q = rotated(normed(heads[:, :HEADS], q_norm.double()), positions, inv_freq)
    close(q, expected_q, BAR[dtype])
    stored = {"k": rotated(normed(heads[:, HEADS:-KV_HEADS], k_norm.double()), positions, inv_freq)}
    stored["v"] = heads[:, -KV_HEADS:]
    blocks, offsets = slots.long() // 64, slots.long() % 64
    wide = {}
    for name, c in (("k", k_cache), ("v", v_cache)):
        scale = scales.get(name + "_scale", torch.ones(KV_HEADS)).double()[None, :, None]
        wide[name] = c.double() * scale[..., None]
        close(c[blocks, :, offsets].double() * scale, stored[name], 1e-3 if cache_dtype is FP8 else BAR[dtype])
    is_old = torch.ones(BLOCKS * 64, dtype=torch.bool)
    is_old[slots.long()] = False
    old = [c.transpose(1, 2).reshape(BLOCKS * 64, -1)[is_old] for c in (k_cache, before)]
    same_bits(*old)

    got = moebius.attention(q, k_cache, v_cache, table, lengths, starts, **scales)
    for s, (n_queries, length) in enumerate(zip(query_lengths, kv_lengths, strict=True)):
        if n_queries == 0:
            continue
        begin = int(starts[s])
        rows = q[begin : begin + n_queries]
        k, v = (cached(wide[name], table[s], length).transpose(0, 1)[None] for name in "kv")
        visible = torch.arange(length)[None] <= torch.arange(length - n_queries, length)[:, None]
        expected = functional.scaled_dot_product_attention(
            rows.double().transpose(0, 1)[None], k, v, attn_mask=visible, enable_gqa=True
        )[0].transpose(0, 1)
        close(got[begin : begin + n_queries], expected, BAR[dtype])
        one = torch.tensor([0, n_queries], dtype=torch.int32)
        alone = moebius.attention(rows, k_cache, v_cache, table[s : s + 1], lengths[s : s + 1], one, **scales)
        same_bits(alone, got[begin : begin + n_queries])
    out = torch.empty_like(got)
    longest = {"max_query_length": 65, "max_kv_length": 129}
    assert moebius.attention(q, k_cache, v_cache, table, lengths, starts, **longest, **scales, out=out) is out
    same_bits(out, got)
    doubled = moebius.attention(q, k_cache, v_cache, table, lengths, starts, scale=2 * DIM**-0.5, **scales)
    same_bits(doubled, moebius.attention(2 * q, k_cache, v_cache, table, lengths, starts, **scales))


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, FP8])
def test_decode_attention_has_the_bits_of_its_two_parts(generator, cache_dtype):
    query_lengths, kv_lengths = (1, 8, 0, 2), (256, 30, 9, 65)
    table, lengths, starts, positions, slots = paged(generator, query_lengths, kv_lengths)
    qkv = normal(generator, 11, (HEADS + 2 * KV_HEADS) * DIM, dtype=torch.bfloat16)
    caches = [normal(generator, BLOCKS, KV_HEADS, 64, DIM).to(cache_dtype) for _ in range(2)]
    again = [cache.clone() for cache in caches]
    options = {"q_norm": normal(generator, DIM), "k_norm": normal(generator, DIM)}
    if cache_dtype is FP8:
        options |= {"k_scale": torch.tensor([0.5, 2.0]), "v_scale": torch.tensor([0.25, 1.0])}
    scales = {name: scale for name, scale in options.items() if "scale" in name}
    inv_freq = 1e4 ** (-torch.arange(DIM // 2) / (DIM / 2))
    q = moebius.qk_norm_rope_store(qkv, *caches, positions, slots, inv_freq, **options)
    expected = moebius.attention(q, *caches, table, lengths, starts, **scales)
    schedule = moebius.decode_schedule(lengths, starts, HEADS, KV_HEADS)
    assert schedule[:5].tolist() == [0, 1, 2, 2, 3] and not schedule[5:].any()
    arguments = (positions, slots, inv_freq, table, lengths, starts)
    for longest in ({}, {"max_query_length": 8, "max_kv_length": 256}):
        same_bits(moebius.decode_attention(qkv, *again, *arguments, schedule, **options, **longest), expected)
    same_bits(caches[0].float(), again[0].float())
    same_bits(caches[1].float(), again[1].float())

    def refused(exception, text, function, *changed, **wrong):
        fails(exception, text, function, *changed, **{**options, **wrong})

    few = moebius.decode_schedule(lengths, starts, HEADS, KV_HEADS, max_query_length=1)[:-1].contiguous()
    refused(ValueError, "schedule has shape", moebius.decode_attention, qkv, *again, *arguments, few)
    text = "max_query_length is 9; it must be in [1, 8]"
    refused(ValueError, text, moebius.decode_attention, qkv, *again, *arguments, schedule, max_query_length=9)
    text = "span_start[1] is 7, but the sequences in front have 1 spans"
    refused(
        moebius.Error,
        text,
        moebius.decode_attention,
        qkv,
        *again,
        *arguments,
        torch.full_like(schedule, 7) * (torch.arange(len(schedule)) > 0).int(),
    )
    fails(
        ValueError,
        "n_heads is 5; it must be a multiple of n_kv_heads, 2",
        moebius.decode_schedule,
        lengths,
        starts,
        5,
        2,
    )


def test_numpy_gives_the_bits_of_pytorch(generator):
    table, lengths, starts, positions, slots = paged(generator, (3, 70), (70, 70))
    tensors = [normal(generator, 73, (HEADS + 2 * KV_HEADS) * DIM)]
    tensors += [normal(generator, BLOCKS, KV_HEADS, 64, DIM) for _ in range(2)]
    tensors += [positions, slots, 1e4 ** (-torch.arange(DIM // 2) / (DIM / 2))]
    arrays = [tensor.clone().numpy() for tensor in tensors]
    q, expected_q = moebius.qk_norm_rope_store(*arrays), moebius.qk_norm_rope_store(*tensors)
    assert (q == expected_q.numpy()).all() and (arrays[1] == tensors[1].numpy()).all()
    out = moebius.attention(q, *arrays[1:3], table.numpy(), lengths.numpy(), starts.numpy())
    assert (out == moebius.attention(expected_q, *tensors[1:3], table, lengths, starts).numpy()).all()
    weight = arrays[0][:5, :DIM].copy()
    x = q[:, 0].copy()
    assert (moebius.linear(x, weight) == moebius.linear(torch.from_numpy(x), torch.from_numpy(weight)).numpy()).all()
    same = moebius.rms_norm(torch.from_numpy(x), torch.from_numpy(weight[0]))
    assert (moebius.rms_norm(x, weight[0]) == same.numpy()).all()


def test_compiled(generator):
    def layer(x, weight, norm, k_cache, v_cache, table, lengths, starts, positions, slots, inv_freq):
        normed_x, total = moebius.rms_norm(x, norm, residual=x)
        qkv = moebius.linear(normed_x, weight)
        q = moebius.qk_norm_rope_store(qkv, k_cache, v_cache, positions, slots, inv_freq)
        return moebius.attention(q, k_cache, v_cache, table, lengths, starts).flatten(1) + total[:, :1]

    table, lengths, starts, positions, slots = paged(generator, (2, 1), (66, 5))
    norm, weight = normal(generator, 16), normal(generator, (HEADS + 2 * KV_HEADS) * DIM, 16)
    inv_freq = 1e4 ** (-torch.arange(DIM // 2) / (DIM / 2))
    caches = [normal(generator, BLOCKS, KV_HEADS, 64, DIM) for _ in range(2)]
    again = [cache.clone() for cache in caches]
    x = normal(generator, 3, 16)
    rest = (table, lengths, starts, positions, slots, inv_freq)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, weight, norm, *caches, *rest)
    same_bits(got, layer(x, weight, norm, *again, *rest))
    same_bits(caches[0], again[0])


def test_a_backward_pass_fails(generator):
    table, lengths, starts, positions, slots = paged(generator, (3,), (70,))
    cache = normal(generator, BLOCKS, KV_HEADS, 64, DIM)
    store = (cache, cache.clone(), positions, slots, torch.ones(DIM // 2))
    calls = {
        "rms_norm": lambda x: moebius.rms_norm(x, cache[0, 0, 0].repeat(10)),
        "linear": lambda x: moebius.linear(x, normal(generator, 8, 10 * DIM)),
        "qk_norm_rope_store": lambda x: moebius.qk_norm_rope_store(x, *store),
        "attention": lambda x: moebius.attention(x.view(3, 10, DIM), cache, cache, table, lengths, starts),
        "sample": lambda x: moebius.sample(x, torch.arange(3), torch.arange(3))[1],
    }
    for name, call in calls.items():
        x = normal(generator, 3, 10 * DIM).requires_grad_()
        with pytest.raises(NotImplementedError, match=f"{name}: there is no backward pass for this"):
            call(x).sum().backward()
        with torch.no_grad():
            assert not call(x).requires_grad


def fails(exception, text, function, *arguments, **options):
    with pytest.raises(exception) as caught:
        function(*arguments, **options)
    assert text in str(caught.value)


def test_refusals(generator):
    table, lengths, starts, positions, slots = paged(generator, (3,), (70,))
    q, cache = normal(generator, 3, HEADS, DIM), normal(generator, BLOCKS, KV_HEADS, 64, DIM)
    qkv, inv_freq = normal(generator, 3, (HEADS + 2 * KV_HEADS) * DIM), torch.ones(DIM // 2)

    def attend(exception, text, **changes):
        right = {"q": q, "k_cache": cache, "v_cache": cache, "block_table": table, "kv_lengths": lengths}
        fails(exception, "attention: " + text, moebius.attention, **{**right, "query_starts": starts, **changes})

    attend(ValueError, "k_cache has shape (9, 2, 32, 24); it must be [n_blocks, Hkv, 64, D]", k_cache=cache[:, :, :32])
    attend(ValueError, "q has shape (3, 5, 24); it must be [T, a multiple of 2, 24]", q=q[:, :5].contiguous())
    attend(ValueError, "q has shape (3, 6, 8); it must be [T, a multiple of 2, 24]", q=q[..., :8].contiguous())
    attend(ValueError, "v_cache has shape (8, 2, 64, 24); it must be (9, 2, 64, 24)", v_cache=cache[:8])
    attend(ValueError, "kv_lengths has shape (2,); it must be (1,)", kv_lengths=lengths.repeat(2))
    attend(ValueError, "k_scale is given; it must be None, because k_cache is not float8_e4m3fn", k_scale=torch.ones(2))
    attend(ValueError, "scale is 0.0; it must be from 1.5e-45 to 3.4e38", scale=0.0)
    attend(ValueError, "out is q; it must be other memory", out=q)
    attend(ValueError, "block_table has 9 for sequence 0; it must be in [0, 9)", block_table=torch.full_like(table, 9))
    attend(ValueError, "block_table has -1 for sequence 0", block_table=torch.full_like(table, -1))
    attend(moebius.Error, "kv_lengths[0] is 2, less than its 3 queries", kv_lengths=torch.full_like(lengths, 2))
    attend(moebius.Error, "kv_lengths[0] is 129, more than", kv_lengths=torch.full_like(lengths, 129), max_kv_length=999)
    attend(moebius.Error, "query_starts runs from 1 to 3, not from 0", query_starts=starts + (starts == 0).int())
    attend(moebius.Error, "sequence 0 has 3 queries, max_query_length is 2", max_query_length=2)
    attend(moebius.Error, "kv_lengths[0] is 70, max_kv_length 69", max_kv_length=69)

    def store(text, **changes):
        right = {"qkv": qkv, "k_cache": cache, "v_cache": cache, "positions": positions, "slots": slots}
        fails(ValueError, text, moebius.qk_norm_rope_store, **{**right, "inv_freq": inv_freq, **changes})

    store("qkv has shape (3, 239); it must be [T, (Hq + 4) * 24], as k_cache has 2 heads", qkv=qkv[:, :-1].contiguous())
    store("qkv has shape (3, 96); it must be [T, (Hq + 4) * 24]", qkv=qkv[:, :96].contiguous())
    store("inv_freq has shape (13,); it must be [R / 2]", inv_freq=torch.ones(13))
    store(f"slots has {BLOCKS * 64}; it must be below {BLOCKS * 64}", slots=torch.full_like(slots, BLOCKS * 64))
    store("q_norm has shape (25,); it must be (24,)", q_norm=torch.ones(25))
    store("eps is nan; it must be from 0 to 3.4e38", eps=float("nan"))
    read_only = cache.numpy().copy()
    read_only.flags.writeable = False
    arrays = [array.numpy() for array in (qkv, cache, cache, positions, slots, inv_freq)]
    fails(ValueError, "v_cache is read-only", moebius.qk_norm_rope_store, *arrays[:2], read_only, *arrays[3:])

    x = normal(generator, 3, 16)
    fails(TypeError, "rms_norm: out_dtype has dtype", moebius.rms_norm, x, x[0], out_dtype=FP8)
    fails(
        ValueError,
        "rms_norm: residual has shape (2, 16); it must be (3, 16)",
        moebius.rms_norm,
        x,
        x[0],
        residual=x[:2],
    )
    fails(ValueError, "linear: weight has shape (3, 8); it must be (3, 16)", moebius.linear, x, x[:, :8].contiguous())
    fails(ValueError, "linear: weight_scale is given", moebius.linear, x, x, weight_scale=torch.ones(1))
    half, eights = x.bfloat16(), x.to(FP8)
    fails(ValueError, "weight_scale is None; it must be given, because weight is", moebius.linear, half, eights)
    wrong = torch.ones(1, 2)
    fails(
        ValueError, "weight_scale has shape (1, 2); it must be (1, 1)", moebius.linear, half, eights, weight_scale=wrong
    )


def test_sample(generator):
    vocab, n_rows = 70, 6
    logits = normal(generator, n_rows, vocab) * 3
    seeds, positions = torch.full((n_rows,), 11), torch.arange(n_rows)
    ids, logprobs = moebius.sample(logits, seeds, positions)
    assert torch.equal(ids.long(), logits.argmax(-1)) and ids.dtype is torch.int32
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))

    allowed = torch.zeros(n_rows, 3, dtype=torch.int32)
    allowed[:, 0], allowed[:, 2] = -(2**31), 0b1000  # tokens 31 and 67
    ids, _ = moebius.sample(logits, seeds, positions, allowed=allowed)
    assert torch.equal(ids.long(), torch.where(logits[:, 31] >= logits[:, 67], 31, 67))

    seen = torch.zeros(n_rows, vocab, dtype=torch.int32)
    best = logits.argmax(-1)
    seen[torch.arange(n_rows), best] = 2
    penalty = {"frequency_penalty": torch.full((n_rows,), 1e3)}
    ids, _ = moebius.sample(logits, seeds, positions, seen=seen, **penalty)
    assert torch.equal(ids.long(), logits.topk(2).indices[:, 1])
    assert (seen[torch.arange(n_rows), ids.long()] == 2).all() and seen.sum() == 4 * n_rows

    # Draws: within the filters, as often as they are probable, the same alone and again.
    row = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log()
    n_draws = 4000
    many, draws = row.expand(n_draws, -1).contiguous(), torch.arange(n_draws)
    options = {"temperature": torch.ones(n_draws)}
    seeds = torch.full((n_draws,), 2**40 + 3)
    ids, logprobs = moebius.sample(many, seeds, draws, **options)
    shares = torch.bincount(ids, minlength=5) / n_draws
    torch.testing.assert_close(shares, row.exp(), atol=0.03, rtol=0)
    torch.testing.assert_close(logprobs, row[ids.long()])
    alone = moebius.sample(many[:1], seeds[:1], draws[9:10], temperature=torch.ones(1))[0]
    assert alone[0] == ids[9]
    for name, value, most in (("top_k", 2, 2), ("top_p", 0.8, 3), ("min_p", 0.2, 3)):
        limit = torch.full((n_draws,), value, dtype=torch.int32 if name == "top_k" else torch.float32)
        drawn = moebius.sample(many, seeds, draws, **options, **{name: limit})[0]
        assert set(drawn.tolist()) == set(range(most)), name
    arrays = [t.numpy() for t in (many, seeds, draws)]
    assert (moebius.sample(*arrays, temperature=options["temperature"].numpy())[0] == ids.numpy()).all()
    many[0, 0] = torch.nan
    assert moebius.sample(many, seeds, draws)[0][:2].tolist() == [-1, 0]
    assert moebius.sample(many[:0], seeds[:0], draws[:0])[0].shape == (0,)
    text = "sample: seen is None; it must be given, because there are penalties"
    fails(ValueError, text, moebius.sample, many, seeds, draws, presence_penalty=torch.ones(n_draws))
    fails(
        ValueError,
        "allowed has shape (4000, 2); it must be (4000, 1)",
        moebius.sample,
        many,
        seeds,
        draws,
        allowed=torch.ones(n_draws, 2).int(),
    )
