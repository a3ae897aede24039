"""
fused_experts with the parameters that vLLM's and SGLang's function of that name take, on moebius.moe.

w1 is [E, 2I, H], gate rows then up rows, as both store it.
"""

import torch

from .. import moe
from .._functions import Activation

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "swiglu",
    "swiglu": "swiglu",
    "gelu_tanh": "geglu",
    "relu2_no_mul": "relu2",
}


def _flat(scale: torch.Tensor | None) -> torch.Tensor | None:
    """[E, 1, 1], [E, 1] or [E] as [E]; [] as [1]."""
    return None if scale is None else scale.reshape(-1)


def fused_experts(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    inplace: bool = False,
    activation: str = "silu",
    use_fp8_w8a8: bool = False,
    global_num_experts: int = -1,
    expert_map: torch.Tensor | None = None,
    w1_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    w1_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    block_shape: list[int] | None = None,
) -> torch.Tensor:
    """The experts' weighted sum, [T, H] in hidden_states' dtype.

    hidden_states: [T, H] bfloat16, float16 or float32. w1: [E, 2I, H]. w2: [E, H, I].
    topk_weights: [T, K] of any float. topk_ids: [T, K] of any integer, global ids.
    inplace: the result is also written to hidden_states, which is returned.
    activation: "silu" (gated), "gelu_tanh" (gated), "relu2_no_mul" (w1 [E, I, H]).
    expert_map: [global_num_experts] local index of each expert, -1 for those that other ranks hold.
    use_fp8_w8a8: w1 and w2 are float8_e4m3fn; with block_shape [128, 128] w1_scale is [E, ceil(2I/128), ceil(H/128)],
    else one scale per expert, and a1_scale and a2_scale are the activations' (static) scales.

    Raises ValueError or TypeError with the names that moebius.moe gives the arguments.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(map(repr, _ACTIVATIONS))}")
    if block_shape is not None and list(block_shape) != [128, 128]:
        raise ValueError(f"block_shape is {block_shape}; it must be [128, 128]")
    if use_fp8_w8a8 != (w1.dtype is torch.float8_e4m3fn):
        raise ValueError(f"use_fp8_w8a8 is {use_fp8_w8a8}, but w1 has dtype {w1.dtype}")
    per_tensor = use_fp8_w8a8 and block_shape is None
    if per_tensor and (a1_scale is None or a2_scale is None):
        raise ValueError("a1_scale and a2_scale must be given: moebius quantises per tensor with static scales only")
    n_experts = w1.shape[0] if global_num_experts < 0 else global_num_experts
    if expert_map is not None:
        # Others' experts get the id behind the last local one, which moe drops.
        local = expert_map[topk_ids.long()]
        topk_ids = torch.where(local < 0, w1.shape[0], local)
        n_experts = w1.shape[0] + 1
    elif n_experts != w1.shape[0]:
        raise ValueError(f"expert_map is None; it must be given, because w1 holds {w1.shape[0]} of {n_experts} experts")
    out = moe(
        hidden_states,
        w1,
        w2,
        topk_weights.to(torch.float32),
        topk_ids.to(torch.int32),
        activation=_ACTIVATIONS[activation],
        bias13=w1_bias,
        bias2=w2_bias,
        w13_scale=_flat(w1_scale) if per_tensor else w1_scale,
        w2_scale=_flat(w2_scale) if per_tensor else w2_scale,
        x_scale=_flat(a1_scale) if per_tensor else None,
        h_scale=_flat(a2_scale) if per_tensor else None,
        n_experts=n_experts,
    )
    return hidden_states.copy_(out) if inplace else out
