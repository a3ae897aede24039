#!/usr/bin/env python3
"""Trains the demo model for a given time on one GPU and writes it as a Hugging Face checkpoint.

    python tools/demo/train.py --minutes 5 --out models/demo

The model is transformers' own Qwen3MoeForCausalLM. Two of its parts are swapped while training, for speed only: the
experts run as two dense products over all experts, weighted by the router (each expert is tiny), and attention runs
over packed documents. The checkpoint needs neither. --experts moebius trains with our experts instead, --experts eager
with transformers' own.
"""
import argparse
import math
import multiprocessing
import os
import queue
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

import data
import loading
import tasks

DOCUMENTS_PER_ROW = 40  # room for the document starts of a batch; more than this many in a row do not occur

CONFIG = dict(
    hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=128,
    num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, intermediate_size=512, norm_topk_prob=True,
    tie_word_embeddings=True, max_position_embeddings=2048, rms_norm_eps=1e-6, initializer_range=0.03,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, decoder_sparse_step=1, mlp_only_layers=[],
)
GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}


# ---- The swapped parts ---------------------------------------------------------------------------------------


def dense_experts(experts, x, chosen, weights):
    """All experts for all tokens as two matrix products; the router's weights are zero for those not chosen."""
    n_experts, _, hidden = experts.gate_up_proj.shape
    gates = torch.zeros(x.shape[0], n_experts, dtype=weights.dtype, device=x.device).scatter(1, chosen, weights)
    both = F.linear(x, experts.gate_up_proj.reshape(-1, hidden)).view(x.shape[0], n_experts, 2, -1)
    inner = F.silu(both[:, :, 0]) * both[:, :, 1] * gates[:, :, None].to(both.dtype)
    down = experts.down_proj.permute(1, 0, 2).reshape(hidden, -1)
    return F.linear(inner.reshape(x.shape[0], -1), down)


def packed_attention(module, query, key, value, _mask, scaling, cu_seq_lens_q, max_length_q, **_):
    """Causal attention inside each document of one long row."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = (t[0].transpose(0, 1).to(torch.bfloat16) for t in
               (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)))
    out = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), cu_seq_lens_q, cu_seq_lens_q, max_length_q,
                      max_length_q, scale=scaling, window_size=(-1, 0))
    return out[None], None


def router_forward(router, x):
    """As transformers does it, in fp32 whatever the autocast, and keeping the load-balancing loss."""
    with torch.autocast(x.device.type, enabled=False):
        logits = F.linear(x.reshape(-1, router.hidden_dim).float(), router.weight)
        probabilities = logits.softmax(-1)
        weights, chosen = probabilities.topk(router.top_k, dim=-1)
        load = F.one_hot(chosen, router.num_experts).sum(1).float().mean(0) / router.top_k
        router.balance_loss = router.num_experts * (load * probabilities.mean(0)).sum()
        if router.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
    return logits, weights, chosen


ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
AttentionInterface.register("packed", packed_attention)


# ---- Data ----------------------------------------------------------------------------------------------------


def produce(tokenizer_file, seed, n_rows, focus, into):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tasks.FAMILIES.update({getattr(tasks, name): int(weight) for name, weight in
                           (pair.split("=") for pair in focus.split(",") if pair)})
    for batch in data.Packer(Tokenizer.from_file(tokenizer_file), seed, n_rows).batches():
        into.put(batch)


def prepare(batch, packed):
    """What the model reads, as tensors in host memory."""
    ids = torch.from_numpy(batch["ids"].astype(np.int64))
    # the label of a token is the next one, when that one counts and belongs to the same document
    labels = torch.full_like(ids, -100)
    counts = torch.from_numpy(batch["loss"][:, 1:].astype(bool))
    labels[:, :-1] = torch.where(counts, ids[:, 1:], -100)
    position = torch.from_numpy(batch["position"].astype(np.int64))
    document = torch.from_numpy(batch["document"])
    inputs = {}
    if packed:
        starts = np.flatnonzero(batch["position"].ravel() == 0)
        bounds = np.full(ids.shape[0] * DOCUMENTS_PER_ROW + 1, ids.numel(), np.int32)
        bounds[:len(starts)] = starts
        inputs["cu_seq_lens_q"] = torch.from_numpy(bounds)
        ids, position = ids.reshape(1, -1), position.reshape(1, -1)
    inputs.update(input_ids=ids, position_ids=position, labels=labels.reshape(-1), document=document)
    return inputs


def prefetch(source, packed, depth=4):
    """Prepares batches in a thread, ahead of the training loop."""
    ready = queue.Queue(depth)

    def work():
        while True:
            ready.put(prepare(source.get(), packed))

    threading.Thread(target=work, daemon=True).start()
    while True:
        yield ready.get()


# ---- Training ------------------------------------------------------------------------------------------------


def build_model(tokenizer, device, warm_start):
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    if warm_start:
        model = Qwen3MoeForCausalLM.from_pretrained(warm_start, dtype=torch.float32)
    else:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
            vocab_size=tokenizer.get_vocab_size(), eos_token_id=end, pad_token_id=pad, bos_token_id=None, **CONFIG))
        shrink = 1 / math.sqrt(2 * CONFIG["num_hidden_layers"])  # residual branches start small
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj")):
                weight.data.mul_(shrink)
    model.generation_config.update(eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=None, **GENERATION)
    return model.to(device)


def loss_of(model, inputs, packed, balance):
    extra = {}
    if packed:
        extra = {"cu_seq_lens_q": inputs["cu_seq_lens_q"], "max_length_q": data.ROW}
    else:
        document = inputs["document"]
        same = document[:, None, :, None] == document[:, None, None, :]
        extra = {"attention_mask": same & torch.ones_like(same[:1, :1], dtype=torch.bool).tril()}
    hidden = model.model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False,
                         **extra).last_hidden_state
    logits = model.lm_head(hidden).flatten(0, 1).float()
    loss = F.cross_entropy(logits, inputs["labels"], ignore_index=-100)
    routers = [m for m in model.modules() if isinstance(m, Qwen3MoeTopKRouter)]
    return loss, loss + balance * torch.stack([r.balance_loss for r in routers]).mean()


def optimiser(model, rate, fused):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
                             lr=rate, betas=(0.9, 0.98), eps=1e-9, fused=fused)


def packed_attention_works(device):
    """The packed kernel against plain attention, forward and backward; says so and returns False when it is off."""
    try:
        bounds = torch.tensor([0, 40, 100, 100], dtype=torch.int32, device=device)
        qkv = [torch.randn(1, heads, 100, 128, device=device, requires_grad=True) for heads in (4, 2, 2)]
        out, _ = packed_attention(None, *qkv, None, 128 ** -0.5, bounds, 60)
        out.float().square().sum().backward()
        grads = [t.grad.clone() for t in qkv]
        plain = torch.cat([F.scaled_dot_product_attention(*(t[:, :, a:b] for t in qkv), is_causal=True,
                                                          enable_gqa=True) for a, b in ((0, 40), (40, 100))], 2)
        for t in qkv:
            t.grad = None
        plain.square().sum().backward()
        wrong = max((g - t.grad).norm().item() / t.grad.norm().item() for g, t in zip(grads, qkv))
        wrong = max(wrong, (out.transpose(1, 2) - plain).norm().item() / plain.norm().item())
        print(f"packed attention differs by {wrong:.1e}", flush=True)
        return wrong < 0.02
    except Exception as error:  # any kernel trouble: the slower path is always right
        print(f"packed attention is off: {error!r}", flush=True)
        return False


def export(model, tokenizer_dir, out):
    """A checkpoint in bf16 under the published tensor names."""
    out.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    config = Qwen3MoeConfig.from_dict({**model.config.to_dict(), "dtype": "bfloat16"})
    copy = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    copy.load_state_dict(state, strict=False)
    copy.tie_weights()
    copy.generation_config = model.generation_config
    copy.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if tokenizer_dir.resolve() != out.resolve():
            shutil.copy(tokenizer_dir / name, out / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, start-up not counted")
    parser.add_argument("--steps", type=int, default=10 ** 9, help="stop earlier")
    parser.add_argument("--rows", type=int, default=128, help=f"rows of {data.ROW} tokens in a batch")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the load-balancing loss")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 3))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--warm-start", help="checkpoint to go on from")
    parser.add_argument("--focus", default="", help="other shares of the task mix, as in table=40,multiply=15")
    parser.add_argument("--experts", choices=("dense", "eager", "moebius"), default="dense")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tokenizer", type=Path, default=root / "models" / "demo")
    parser.add_argument("--out", type=Path, default=root / "models" / "demo")
    arguments = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    batches = context.Queue(32)
    tokenizer_file = str(arguments.tokenizer / "tokenizer.json")
    producers = [context.Process(target=produce, daemon=True, args=(
        tokenizer_file, 1000 * arguments.seed + i, arguments.rows, arguments.focus, batches))
                 for i in range(arguments.workers)]
    for producer in producers:
        producer.start()

    torch.manual_seed(arguments.seed)
    Qwen3MoeTopKRouter.forward = router_forward
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(Tokenizer.from_file(tokenizer_file), device, arguments.warm_start)
    packed = device.type == "cuda" and packed_attention_works(device)
    if arguments.experts == "moebius":
        import moebius.integrations.transformers

        moebius.integrations.transformers.register()
    model.config._experts_implementation = arguments.experts
    model.config._attn_implementation = "packed" if packed else "sdpa"
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, attention {model.config._attn_implementation}",
          flush=True)
    if not arguments.no_compile:
        for layer in model.model.layers:  # one layer's code serves all
            layer.compile()
    adam = optimiser(model, arguments.rate, device.type == "cuda")
    source = loading.on_device(prefetch(batches, packed), device)
    budget = 60 * arguments.minutes
    start = saved = time.time()
    step = tokens = 0
    while step < arguments.steps:
        inputs = next(source)
        passed = time.time() - start
        if passed > budget:
            break
        done = max(passed / budget, step / arguments.steps)
        rate = arguments.rate * min(1.0, (step + 1) / 200) * (1 - done)
        for group in adam.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16):
            loss, total = loss_of(model, inputs, packed, arguments.balance)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        step += 1
        tokens = step * arguments.rows * data.ROW
        if step in (1, 3, 10, 30, 100) or step % 500 == 0:
            speed = tokens / (time.time() - start) / 1e6
            unbalance = (total - loss).item() / arguments.balance
            print(f"step {step} {time.time() - start:.1f} s loss {loss.item():.4f} balance {unbalance:.3f} "
                  f"{speed:.2f} M tokens/s waiting {batches.qsize()}", flush=True)
            if step == 3:
                start = time.time()  # compilation does not count
            if time.time() - saved > 90:
                export(model, arguments.tokenizer, arguments.out)
                saved = time.time()
    seconds = time.time() - start
    export(model, arguments.tokenizer, arguments.out)
    print(f"{step} steps, {tokens / 1e6:.0f} M tokens, {seconds:.1f} s", flush=True)
    for producer in producers:
        producer.kill()
    os._exit(0)  # without waiting for the thread that prepares batches


if __name__ == "__main__":
    main()
