"""
Hugging Face transformers 5: an experts implementation named "moebius".

    import moebius.integrations.transformers as moebius_experts

    moebius_experts.register()
    model.set_experts_implementation("moebius")

It serves every model that stores its experts as merged matrices: [E, 2I, H] (gate rows, then up rows; [E, I, H]
without a gate) and [E, H, I]. Qwen3-MoE and most others do, also from FP8 checkpoints with 128x128 blocks. It trains,
unless the weights are FP8, on the CPU and, in bfloat16 and float16, on a Hopper GPU.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from .. import moe
from .._functions import Activation
from .._torch_tensors import autocast


def register(name: str = "moebius") -> None:
    """Makes `name` known to set_experts_implementation and from_pretrained(experts_implementation=...)."""
    ALL_EXPERTS_FUNCTIONS.register(name, experts_forward)
    ALL_FP8_EXPERTS_FUNCTIONS.register(name, experts_forward)


def _activation(experts: nn.Module) -> Activation:
    """moebius's name of the module's activation; NotImplementedError when it has none."""
    function = experts.act_fn
    if isinstance(function, (nn.SiLU, type(ACT2FN["silu"]))):
        return "swiglu" if experts.has_gate else "silu"
    if isinstance(function, type(ACT2FN["gelu_pytorch_tanh"])):
        return "geglu" if experts.has_gate else "gelu"
    if isinstance(function, nn.ReLU):
        return "reglu" if experts.has_gate else "relu"
    if isinstance(function, type(ACT2FN["relu2"])) and not experts.has_gate:
        return "relu2"
    raise NotImplementedError(f"moebius has no activation {type(function).__name__}; use another implementation")


def _check_layout(experts: nn.Module, fp8: bool) -> None:
    """NotImplementedError for experts that compute something else than moebius.moe."""
    what = type(experts).__name__
    if experts.is_transposed or not experts.is_concatenated:
        raise NotImplementedError(f"{what} stores its weights transposed or interleaved; moebius needs [E, 2I, H]")
    if fp8:
        gate_is_plain = getattr(experts, "swiglu_alpha", None) is None and getattr(experts, "limit", None) is None
        block_size: Any = experts.block_size
        if experts.activation_scheme != "dynamic" or tuple(block_size or ()) != (128, 128):
            raise NotImplementedError(f"{what} is not quantised dynamically in blocks of 128x128, which moebius needs")
    else:
        gate_is_plain = getattr(type(experts), "_apply_gate", None) is _default_apply_gate
    if experts.has_gate and not gate_is_plain:
        raise NotImplementedError(f"{what} has a gate of its own; moebius computes act(gate) * up")


def experts_forward(
    self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """From hidden_states [T, H], top_k_index [T, K] and top_k_weights [T, K] the experts' weighted sum [T, H]."""
    up = "gate_up_proj" if self.has_gate else "up_proj"
    w13: Any = getattr(self, up)
    fp8 = w13.dtype is torch.float8_e4m3fn
    _check_layout(self, fp8)
    x, w2 = hidden_states, self.down_proj
    bias13, bias2 = (getattr(self, up + "_bias"), self.down_proj_bias) if self.has_bias else (None, None)
    if not fp8:
        x, w13, w2, bias13, bias2 = autocast(x, w13, w2, bias13, bias2)
    out = moe(
        x.contiguous(),
        w13,
        w2,
        top_k_weights.to(torch.float32).contiguous(),
        top_k_index.to(torch.int32).contiguous(),
        activation=_activation(self),
        bias13=bias13,
        bias2=bias2,
        w13_scale=getattr(self, up + "_scale_inv") if fp8 else None,
        w2_scale=self.down_proj_scale_inv if fp8 else None,
        # Under expert parallelism a choice of another rank's expert has the id after the last local one.
        n_experts=w13.shape[0] + 1,
    )
    return out.to(hidden_states.dtype)
