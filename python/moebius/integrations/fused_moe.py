"""
fused_experts, with the parameters of the function of that name in vLLM and SGLang, by moebius.moe.

w1 is [E, 2I, H], gate rows then up rows, as both store it.
"""

import torch

from .. import moe
from .._functions import Activation
from .._signatures import with_article

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "swiglu",
    "swiglu": "swiglu",
    "gelu_tanh": "geglu",
    "relu2_no_mul": "relu2",
}


def _check_tensors(**values: object) -> None:
    """TypeError for a value that is no tensor."""
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            found = "None" if value is None else with_article(type(value).__name__)
            raise TypeError(f"fused_experts: {name} is {found}; it must be a torch.Tensor")


def _indices(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as int32 if it is that, else as int64; TypeError unless it has integers."""
    if tensor.dtype is torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"fused_experts: {name} has dtype {tensor.dtype}; it must be int32 or another integer")
    return tensor if tensor.dtype is torch.int32 else tensor.long()


def _local_ids(topk_ids: torch.Tensor, n_local: int, expert_map: torch.Tensor | None) -> torch.Tensor:
    """The index in w1 of each choice's expert, as int32; another number, which moe drops, when w1 does not hold it."""
    ids = _indices("topk_ids", topk_ids)
    if expert_map is None:
        if ids.dtype is torch.int32:  # moe itself drops what is not in [0, n_local)
            return ids
    else:
        # Ids outside of the map must not index it: Python would take -1, vLLM's id for padding, as its last entry.
        is_expert = (ids >= 0) & (ids < len(expert_map))
        ids = torch.where(is_expert, _indices("expert_map", expert_map)[torch.where(is_expert, ids, 0)], -1)
    # This comes before the conversion to int32, which would turn 2**32 into expert 0.
    return torch.where((ids >= 0) & (ids < n_local), ids, -1).to(torch.int32)


def _flat(scale: torch.Tensor | None) -> torch.Tensor | None:
    """Scales of shape [E, 1, 1], [E, 1] or [E] as [E]; a scale of shape [] as [1]."""
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
    topk_weights: [T, K] of any float. topk_ids: [T, K] of any integer, global ids; a choice of an id that is no
    expert's, such as -1 for padding, adds nothing.
    inplace: the result is also written to hidden_states, which is returned.
    activation: "silu" (gated), "gelu_tanh" (gated), "relu2_no_mul" (w1 [E, I, H]).
    expert_map: [global_num_experts] local index of each expert, -1 for those that other ranks hold; w1 may hold none.
    use_fp8_w8a8: w1 and w2 are float8_e4m3fn; with block_shape [128, 128] w1_scale is [E, ceil(2I/128), ceil(H/128)],
    else one scale per expert, and a1_scale and a2_scale are the activations' (static) scales.

    Raises ValueError or TypeError with the names that moebius.moe gives the arguments.
    """
    _check_tensors(hidden_states=hidden_states, w1=w1, w2=w2, topk_weights=topk_weights, topk_ids=topk_ids)
    optional = {
        "expert_map": expert_map,
        "w1_scale": w1_scale,
        "w2_scale": w2_scale,
        "w1_bias": w1_bias,
        "w2_bias": w2_bias,
        "a1_scale": a1_scale,
        "a2_scale": a2_scale,
    }
    _check_tensors(**{name: value for name, value in optional.items() if value is not None})
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"fused_experts: activation is {activation!r}; it must be one of {', '.join(map(repr, _ACTIVATIONS))}"
        )
    if block_shape is not None and list(block_shape) != [128, 128]:
        raise ValueError(f"fused_experts: block_shape is {block_shape}; it must be [128, 128]")
    if use_fp8_w8a8 != (w1.dtype is torch.float8_e4m3fn):
        raise ValueError(f"fused_experts: use_fp8_w8a8 is {use_fp8_w8a8}, but w1 has dtype {w1.dtype}")
    per_tensor = use_fp8_w8a8 and block_shape is None
    if per_tensor and (a1_scale is None or a2_scale is None):
        raise ValueError(
            "fused_experts: a1_scale and a2_scale must be given: moebius quantises per tensor with static scales only"
        )
    n_local = w1.shape[0]
    n_experts = global_num_experts
    if n_experts < 0:
        n_experts = n_local if expert_map is None else len(expert_map)
    if n_local > n_experts:
        raise ValueError(f"fused_experts: global_num_experts is {n_experts}, but w1 holds {n_local} experts")
    if expert_map is None and n_local < n_experts:
        raise ValueError(
            f"fused_experts: expert_map is None; it must be given, because w1 holds {n_local} of {n_experts} experts"
        )
    if expert_map is not None and expert_map.shape != (n_experts,):
        raise ValueError(f"fused_experts: expert_map has shape {tuple(expert_map.shape)}; it must be ({n_experts},)")
    if expert_map is not None and expert_map.device != topk_ids.device:
        raise ValueError(
            f"fused_experts: expert_map is on {expert_map.device}; it must be on {topk_ids.device}, as topk_ids is"
        )
    if n_local == 0:
        return hidden_states.zero_() if inplace else torch.zeros_like(hidden_states)
    out = moe(
        hidden_states,
        w1,
        w2,
        topk_weights.to(torch.float32).contiguous(),
        _local_ids(topk_ids, n_local, expert_map).contiguous(),
        activation=_ACTIVATIONS[activation],
        bias13=w1_bias,
        bias2=w2_bias,
        w13_scale=_flat(w1_scale) if per_tensor else w1_scale,
        w2_scale=_flat(w2_scale) if per_tensor else w2_scale,
        x_scale=_flat(a1_scale) if per_tensor else None,
        h_scale=_flat(a2_scale) if per_tensor else None,
    )
    return hidden_states.copy_(out) if inplace else out
