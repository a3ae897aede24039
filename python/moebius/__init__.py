"""
moebius: Engine answers prompts with a Qwen3-MoE model; the other functions are the operators of its layers for NVIDIA
Hopper (the MoE's; norm, dense layer, rotary embedding, attention over a paged KV cache, sampling), and their CPU
reference, on NumPy arrays and PyTorch tensors. moebius.nn.MoE is a layer that trains, and moebius.training
has the operators of training.

Words: T tokens, H hidden, I intermediate size of one expert, E experts, K chosen experts per token, R routed rows.
Matrices are row-major; a weight [N, K] multiplies as y = x W^T, as in torch.nn.Linear.
"""

from ._engine import Answer, Engine, Piece, Stream
from ._functions import grouped_gemm, moe, moe_experts, moe_from_logits, plan, reduce, route, router_gemm
from ._library import LIBRARY as _LIBRARY
from ._library import Error
from ._operators import Plan
from ._sampling import Sampling
from ._transformer_functions import (
    attention,
    decode_attention,
    decode_schedule,
    linear,
    qk_norm_rope_store,
    rms_norm,
    sample,
)

__version__ = _LIBRARY.mb_version().decode()

__all__ = [
    "Answer",
    "Engine",
    "Error",
    "Piece",
    "Plan",
    "Sampling",
    "Stream",
    "attention",
    "decode_attention",
    "decode_schedule",
    "grouped_gemm",
    "linear",
    "moe",
    "moe_experts",
    "moe_from_logits",
    "plan",
    "qk_norm_rope_store",
    "reduce",
    "rms_norm",
    "route",
    "router_gemm",
    "sample",
]
