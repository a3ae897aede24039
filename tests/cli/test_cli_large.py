"""A checkpoint far larger than this machine's memory: it can be asked about, and is refused in a sentence.

Its file is sparse: terabytes by its size, a page on the disk."""

import json
import shutil
import struct

import pytest

from cli_support import ROOT


@pytest.fixture
def large_model(tmp_path, endless_model):
    hidden, inner, layers, heads, head_dim = 65536, 1 << 20, 8, 1, 16
    shapes = {"model.embed_tokens.weight": (1000, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (1000, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (head_dim, hidden),
            prefix + "self_attn.k_proj.weight": (head_dim, hidden),
            prefix + "self_attn.v_proj.weight": (head_dim, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, head_dim),
            prefix + "self_attn.q_norm.weight": (head_dim,),
            prefix + "self_attn.k_norm.weight": (head_dim,),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    header, end = {}, 0
    for name, shape in shapes.items():
        n_bytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    config = json.loads((endless_model / "config.json").read_text())
    config |= {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "head_dim": head_dim, "vocab_size": 1000, "intermediate_size": inner, "num_experts": 0,
        "torch_dtype": "bfloat16", "eos_token_id": 1,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").symlink_to(endless_model / "tokenizer.json")
    return tmp_path


def test_info_tells_what_it_would_take(moebius, large_model):
    result = moebius("info", large_model, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "weights as they are  3.30 TB" in result.stdout.decode()
    assert "none: the weights are larger than the free memory" in result.stdout.decode()
    document = json.loads(moebius("info", large_model, "--json", "--device", "cpu").stdout)
    assert document["weight_bytes"] > 3.2e12 and document["kv_tokens_that_fit"]["here"] == 0


def test_loading_is_refused_before_it_begins(moebius, large_model):
    result = moebius("run", large_model, "--ids", "1", "-n", 1, "--device", "cpu")
    assert result.returncode == 1
    sentence = result.stderr.decode()
    assert "the weights need 2199 GB of memory, but of the " in sentence, sentence
    assert " GB are free; end other programs, or take a machine with more memory" in sentence, sentence


def test_tokenize_needs_no_weights(moebius, large_model):
    result = moebius("tokenize", large_model, "-p", "hi", "--json")
    assert result.returncode == 0, result.stderr
    (large_model / "model.safetensors").unlink()
    assert moebius("tokenize", large_model, "-p", "hi", "--json").stdout == result.stdout


def test_info_needs_no_weights(moebius, tmp_path):
    """What the configuration alone gives, with a warning; the model itself is refused."""
    model = shutil.copytree(ROOT / "models/demo", tmp_path / "model")
    whole = json.loads(moebius("info", model, "--json").stdout)
    for file in model.glob("*.safetensors*"):
        file.unlink()
    result = moebius("info", model, "--json")
    assert result.returncode == 0 and b"there are no weights; their sizes are worked out from config.json" in result.stderr
    info = json.loads(result.stdout)
    for key in ("parameters", "active_parameters", "weight_dtype", "kv_bytes_per_token"):
        assert info[key] == whole[key], key
    assert abs(info["weight_bytes"] / whole["weight_bytes"] - 1) < 0.01
    refused = moebius("run", model, "--ids", "1", "-n", 1)
    assert refused.returncode == 1 and b"there are no weights (model.safetensors, or shards with" in refused.stderr
