"""
moebius: Engine answers prompts with a Qwen3-MoE model; the other functions are the MoE operators for NVIDIA Hopper, and
their CPU reference, on NumPy arrays and PyTorch tensors. moebius.nn.MoE is a layer that trains, and moebius.training
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

__version__ = _LIBRARY.mb_version().decode()

__all__ = [
    "Answer",
    "Engine",
    "Error",
    "Piece",
    "Plan",
    "Sampling",
    "Stream",
    "grouped_gemm",
    "moe",
    "moe_experts",
    "moe_from_logits",
    "plan",
    "reduce",
    "route",
    "router_gemm",
]
