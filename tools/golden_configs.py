"""The checkpoints of tests/golden/, as data for make_goldens.py.

config   the Qwen3MoeConfig keys that both spellings share
rope     rope_theta and the scaling, in the new spelling (the old one is derived)
keys     "old": num_experts, rope_theta + rope_scaling, torch_dtype; "new": what transformers 5.17 writes
dtype    of the stored weights; fp8: dtype of the block scales; f32_tensors: name endings kept in fp32
lengths  of the prompts; the KV cache's block is 64 tokens, so most goldens sit around that
"""

AROUND_A_BLOCK = [1, 63, 64, 65, 130]


def _config(**changes):
    config = {
        "vocab_size": 80, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 2,
        "norm_topk_prob": True, "tie_word_embeddings": False, "attention_bias": False,
        "bos_token_id": None, "eos_token_id": None,
    }
    return {**config, **changes}


def _rope(theta=10000.0, kind="default", **scaling):
    return {"rope_type": kind, "rope_theta": theta, **scaling}


GOLDENS = [
    {
        "name": "plain_f32", "seed": 1, "about": "new keys, F32 weights, no scaling",
        "config": _config(moe_intermediate_size=16, num_experts=8), "rope": _rope(), "keys": "new",
        "dtype": "float32", "lengths": AROUND_A_BLOCK,
    },
    {
        "name": "old_keys_bf16", "seed": 2,
        "about": "the keys of the published BF16 checkpoints, theta 1e6, generation_config.json with two end ids",
        "config": _config(vocab_size=96, bos_token_id=94, eos_token_id=95), "rope": _rope(1000000.0),
        "keys": "old", "dtype": "bfloat16", "lengths": AROUND_A_BLOCK,
        "generation": {"bos_token_id": 94, "do_sample": True, "eos_token_id": [95, 94], "pad_token_id": 94,
                       "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"},
    },
    {
        "name": "sparse_step_f16", "seed": 3,
        "about": "decoder_sparse_step 2: layers 0 and 2 dense; F16 weights; odd dense width",
        "config": _config(num_hidden_layers=4, decoder_sparse_step=2, intermediate_size=88), "rope": _rope(),
        "keys": "new", "dtype": "float16", "lengths": [1, 65],
    },
    {
        "name": "mlp_only_layers", "seed": 4,
        "about": "layers 0 and 2 dense by mlp_only_layers, moe_intermediate_size 24, norm_topk_prob false",
        "config": _config(num_hidden_layers=3, mlp_only_layers=[0, 2], moe_intermediate_size=24,
                          norm_topk_prob=False),
        "rope": _rope(), "keys": "old", "dtype": "bfloat16", "lengths": [1, 7, 64, 65],
    },
    {
        "name": "attention_bias", "seed": 5,
        "about": "biases on q, k, v and o; 6 heads on 1 KV head; head_dim 24 where hidden / heads is 13.3",
        "config": _config(hidden_size=80, num_attention_heads=6, num_key_value_heads=1, head_dim=24,
                          attention_bias=True, num_experts_per_tok=3),
        "rope": _rope(), "keys": "new", "dtype": "bfloat16", "lengths": [1, 64, 130],
    },
    {
        "name": "tied_top1", "seed": 6,
        "about": "tie_word_embeddings (no lm_head tensor), top-1, vocabulary of 65, as many KV heads as heads",
        "config": _config(vocab_size=65, tie_word_embeddings=True, num_experts_per_tok=1, num_key_value_heads=4,
                          norm_topk_prob=False),
        "rope": _rope(), "keys": "old", "dtype": "bfloat16", "lengths": AROUND_A_BLOCK,
    },
    {
        "name": "all_experts", "seed": 7,
        "about": "top-k equals the number of experts, moe_intermediate_size 40, rms_norm_eps 1e-5",
        "config": _config(num_experts=4, num_experts_per_tok=4, moe_intermediate_size=40, rms_norm_eps=1e-5),
        "rope": _rope(), "keys": "new", "dtype": "bfloat16", "lengths": [1, 33, 64, 65],
    },
    {
        "name": "many_experts", "seed": 8,
        "about": "128 experts, top-8 as in the real models; no head_dim key: hidden / heads; vocabulary of 300",
        "config": {k: v for k, v in _config(
            vocab_size=300, hidden_size=48, num_hidden_layers=1, num_experts=128, num_experts_per_tok=8,
            moe_intermediate_size=8, num_attention_heads=6).items() if k != "head_dim"},
        "rope": _rope(), "keys": "old", "dtype": "bfloat16", "lengths": [1, 50],
    },
    {
        "name": "yarn_new_keys", "seed": 9,
        "about": "YaRN factor 4 over 48 original positions (prompts go to 130), moe_intermediate_size 100",
        "config": _config(head_dim=32, moe_intermediate_size=100, num_experts=3, max_position_embeddings=192),
        "rope": _rope(10000.0, "yarn", factor=4.0, original_max_position_embeddings=48),
        "keys": "new", "dtype": "bfloat16", "lengths": [1, 64, 130],
    },
    {
        "name": "yarn_mscale_old_keys", "seed": 10,
        "about": "YaRN in rope_scaling with the older key \"type\"; mscale, mscale_all_dim, betas, truncate false",
        "config": _config(head_dim=32, num_experts=4, moe_intermediate_size=20, max_position_embeddings=200),
        "rope": _rope(100000.0, "yarn", factor=2.5, original_max_position_embeddings=80, mscale=1.4,
                      mscale_all_dim=0.6, beta_fast=16, beta_slow=2, truncate=False),
        "keys": "old", "rope_kind_key": "type", "dtype": "float32", "lengths": [1, 63, 130],
    },
    {
        "name": "yarn_attention_factor", "seed": 11,
        "about": "YaRN with its own attention_factor, prompts within the original positions and beyond",
        "config": _config(head_dim=32),
        "rope": _rope(10000.0, "yarn", factor=8.0, original_max_position_embeddings=32, attention_factor=1.2),
        "keys": "old", "dtype": "bfloat16", "lengths": [1, 20, 130],
    },
    {
        "name": "linear_rope", "seed": 12,
        "about": "linear rope scaling by 3; a sliding_window of 8 that use_sliding_window false switches off",
        "config": _config(sliding_window=8), "rope": _rope(10000.0, "linear", factor=3.0),
        "keys": "old", "dtype": "float16", "lengths": [1, 65, 130],
    },
    {
        "name": "linear_rope_new_keys", "seed": 13,
        "about": "linear rope scaling by 2 in rope_parameters, one layer",
        "config": _config(num_hidden_layers=1),
        "rope": _rope(10000.0, "linear", factor=2.0), "keys": "new", "dtype": "bfloat16", "lengths": [1, 65],
    },
    {
        "name": "sharded_bf16", "seed": 14, "about": "four shards with an index, three layers",
        "config": _config(num_hidden_layers=3), "rope": _rope(), "keys": "old", "dtype": "bfloat16",
        "n_shards": 4, "lengths": AROUND_A_BLOCK,
    },
    {
        "name": "fp8_blocks", "seed": 15,
        "about": "F8_E4M3 with 128 x 128 block scales in BF16, sizes multiples of 128, two shards",
        "config": _config(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                          moe_intermediate_size=256, num_experts=3, num_hidden_layers=1),
        "rope": _rope(1000000.0), "keys": "old", "dtype": "bfloat16", "fp8": "bfloat16", "n_shards": 2,
        "lengths": [1, 63, 65, 130],
    },
    {
        "name": "fp8_ragged", "seed": 16,
        "about": "F8_E4M3 with F32 scales, no size a multiple of 128, one dense layer, norms and router in F32",
        "config": _config(hidden_size=160, num_attention_heads=3, num_key_value_heads=1, head_dim=48,
                          moe_intermediate_size=72, intermediate_size=200, num_experts=5, num_hidden_layers=2,
                          mlp_only_layers=[0]),
        "rope": _rope(), "keys": "new", "dtype": "bfloat16", "fp8": "float32",
        "f32_tensors": ("norm.weight", "mlp.gate.weight"), "lengths": [1, 64, 65],
    },
    {
        "name": "odd_experts_f32", "seed": 17,
        "about": "3 experts, top-1; hidden 72 and moe_intermediate_size 40: no multiples of a tile; F32",
        "config": _config(hidden_size=72, moe_intermediate_size=40, num_experts=3, num_experts_per_tok=1),
        "rope": _rope(), "keys": "new", "dtype": "float32", "lengths": [1, 65],
    },
    {
        "name": "odd_experts_bf16", "seed": 18,
        "about": "3 experts, top-2; hidden 104 and moe_intermediate_size 56: no multiples of a tile; BF16",
        "config": _config(hidden_size=104, moe_intermediate_size=56, num_experts=3, num_experts_per_tok=2),
        "rope": _rope(), "keys": "new", "dtype": "bfloat16", "lengths": [1, 65],
    },
    {
        "name": "odd_experts_fp8", "seed": 19,
        "about": "3 experts, all chosen; hidden 144 and moe_intermediate_size 176: beyond a block of scales, and no "
                 "multiples of it or of a tile",
        "config": _config(hidden_size=144, moe_intermediate_size=176, num_experts=3, num_experts_per_tok=3,
                          num_hidden_layers=1),
        "rope": _rope(), "keys": "old", "dtype": "bfloat16", "fp8": "float32", "lengths": [1, 65],
    },
]
