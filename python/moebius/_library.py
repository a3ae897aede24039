"""The C library through ctypes: the parameter structs of ops.h, layers.h and train.h, field by field, and its errors."""

import ctypes
import os
import re
from ctypes import c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

# The enums of ops.h and train.h. Callers name their values by these strings.
FLOAT32, BFLOAT16, FLOAT16, FLOAT8 = range(4)
ACTIVATIONS = {name: i for i, name in enumerate(("swiglu", "geglu", "reglu", "silu", "gelu", "relu", "relu2", "none"))}
MOE_ACTIVATIONS = {name: code for name, code in ACTIVATIONS.items() if name != "none"}
GATED = frozenset(("swiglu", "geglu", "reglu"))
ORDERS = {"softmax_topk": 0, "topk_softmax": 1}
F32_MATH = {"tf32": 0, "exact": 1}
ROUNDINGS = {name: i for i, name in enumerate(("none", "nearest", "up", "down", "balanced"))}


class Error(RuntimeError):
    """The library refused a call or failed. The text says what, where and what to do; `status` is the status's name."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


class Weight(ctypes.Structure):
    """mb_weight"""

    _fields_ = [
        ("data", c_void_p),
        ("scale", c_void_p),
        ("global_scale", c_void_p),
        ("count", c_int64),
        ("rows", c_int64),
        ("cols", c_int64),
        ("scale_rows", c_int32),
        ("scale_cols", c_int32),
        ("dtype", c_int32),
        ("scale_dtype", c_int32),
    ]


class RouterGemmArgs(ctypes.Structure):
    """mb_moe_router_gemm_args"""

    _fields_ = [
        ("x", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("logits", c_void_p),
        ("n_tokens", c_int64),
        ("hidden", c_int32),
        ("n_experts", c_int32),
        ("dtype", c_int32),
        ("weight_dtype", c_int32),
    ]


class RouteArgs(ctypes.Structure):
    """mb_moe_route_args"""

    _fields_ = [
        ("logits", c_void_p),
        ("weights", c_void_p),
        ("ids", c_void_p),
        ("nan_flag", c_void_p),
        ("n_tokens", c_int64),
        ("n_experts", c_int32),
        ("top_k", c_int32),
        ("logits_dtype", c_int32),
        ("order", c_int32),
        ("renormalize", c_int32),
    ]


class PlanArgs(ctypes.Structure):
    """mb_moe_plan_args"""

    _fields_ = [
        ("ids", c_void_p),
        ("offsets", c_void_p),
        ("row_token", c_void_p),
        ("token_row", c_void_p),
        ("n_tokens", c_int64),
        ("top_k", c_int32),
        ("n_experts", c_int32),
        ("first_expert", c_int32),
        ("n_local_experts", c_int32),
        ("tiles", c_void_p),
        ("n_tiles", c_void_p),
        ("tile_rows", c_int32),
        ("tile_step", c_int32),
    ]


class GroupedGemmArgs(ctypes.Structure):
    """mb_grouped_gemm_args"""

    _fields_ = [
        ("a", c_void_p),
        ("a_scale", c_void_p),
        ("row_index", c_void_p),
        ("offsets", c_void_p),
        ("b", Weight),
        ("bias", c_void_p),
        ("row_weight", c_void_p),
        ("out", c_void_p),
        ("out_scale", c_void_p),
        ("n_rows", c_int64),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
        ("bias_dtype", c_int32),
        ("activation", c_int32),
        ("f32_math", c_int32),
    ]


class ExpertsArgs(ctypes.Structure):
    """mb_moe_experts_args"""

    _fields_ = [
        ("x", c_void_p),
        ("row_index", c_void_p),
        ("offsets", c_void_p),
        ("w13", Weight),
        ("w2", Weight),
        ("bias13", c_void_p),
        ("bias2", c_void_p),
        ("y", c_void_p),
        ("n_tokens", c_int64),
        ("n_rows", c_int64),
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("n_local_experts", c_int32),
        ("dtype", c_int32),
        ("activation", c_int32),
        ("f32_math", c_int32),
        ("x_scale", c_void_p),
        ("h_scale", c_void_p),
        ("p", c_void_p),
        ("x8", c_void_p),
        ("x8_scale", c_void_p),
    ]


class ReduceArgs(ctypes.Structure):
    """mb_moe_reduce_args"""

    _fields_ = [
        ("y", c_void_p),
        ("weights", c_void_p),
        ("token_row", c_void_p),
        ("residual", c_void_p),
        ("shared", c_void_p),
        ("out", c_void_p),
        ("n_tokens", c_int64),
        ("hidden", c_int32),
        ("top_k", c_int32),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
    ]


class ForwardArgs(ctypes.Structure):
    """mb_moe_forward_args"""

    _fields_ = [
        ("x", c_void_p),
        ("weights", c_void_p),
        ("ids", c_void_p),
        ("w13", Weight),
        ("w2", Weight),
        ("bias13", c_void_p),
        ("bias2", c_void_p),
        ("residual", c_void_p),
        ("shared", c_void_p),
        ("out", c_void_p),
        ("n_tokens", c_int64),
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("top_k", c_int32),
        ("n_experts", c_int32),
        ("first_expert", c_int32),
        ("n_local_experts", c_int32),
        ("dtype", c_int32),
        ("activation", c_int32),
        ("f32_math", c_int32),
        ("x_scale", c_void_p),
        ("h_scale", c_void_p),
        ("route", ctypes.POINTER(RouteArgs)),
        ("p", c_void_p),
        ("x8", c_void_p),
        ("x8_scale", c_void_p),
    ]


class RmsNormArgs(ctypes.Structure):
    """mb_rms_norm_args"""

    _fields_ = [
        ("x", c_void_p),
        ("rows", c_void_p),
        ("weight", Weight),
        ("out", c_void_p),
        ("n_rows", c_int64),
        ("hidden", c_int32),
        ("eps", c_float),
        ("dtype", c_int32),
        ("out8", c_void_p),
        ("out8_scale", c_void_p),
        ("residual", c_void_p),
        ("sum", c_void_p),
    ]


class GemmArgs(ctypes.Structure):
    """mb_gemm_args"""

    _fields_ = [
        ("x", c_void_p),
        ("x8", c_void_p),
        ("x8_scale", c_void_p),
        ("weight", Weight),
        ("bias", c_void_p),
        ("residual", c_void_p),
        ("out", c_void_p),
        ("n_tokens", c_int64),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
        ("bias_dtype", c_int32),
        ("norm_weight", Weight),
        ("norm_rows", c_void_p),
        ("eps", c_float),
        ("x_sum", ctypes.POINTER(ReduceArgs)),
    ]


class QkNormRopeStoreArgs(ctypes.Structure):
    """mb_qk_norm_rope_store_args"""

    _fields_ = [
        ("qkv", c_void_p),
        ("q_norm", Weight),
        ("k_norm", Weight),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("inv_freq", c_void_p),
        ("q", c_void_p),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("n_tokens", c_int64),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("rotary_dim", c_int32),
        ("eps", c_float),
        ("rope_scale", c_float),
        ("dtype", c_int32),
        ("cache_dtype", c_int32),
        ("k_scale", c_void_p),
        ("v_scale", c_void_p),
    ]


class AttentionArgs(ctypes.Structure):
    """mb_attention_args"""

    _fields_ = [
        ("q", c_void_p),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("q_start", c_void_p),
        ("kv_len", c_void_p),
        ("block_table", c_void_p),
        ("out", c_void_p),
        ("n_tokens", c_int64),
        ("n_sequences", c_int32),
        ("max_blocks", c_int32),
        ("max_q_len", c_int32),
        ("max_kv_len", c_int32),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("scale", c_float),
        ("dtype", c_int32),
        ("cache_dtype", c_int32),
        ("k_scale", c_void_p),
        ("v_scale", c_void_p),
    ]


class DecodeAttentionArgs(ctypes.Structure):
    """mb_decode_attention_args"""

    _fields_ = [
        ("qkv", c_void_p),
        ("q_norm", Weight),
        ("k_norm", Weight),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("inv_freq", c_void_p),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("q_start", c_void_p),
        ("kv_len", c_void_p),
        ("span_start", c_void_p),
        ("block_table", c_void_p),
        ("counters", c_void_p),
        ("out", c_void_p),
        ("n_tokens", c_int64),
        ("n_sequences", c_int32),
        ("max_blocks", c_int32),
        ("max_q_len", c_int32),
        ("max_kv_len", c_int32),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("rotary_dim", c_int32),
        ("eps", c_float),
        ("rope_scale", c_float),
        ("scale", c_float),
        ("dtype", c_int32),
        ("cache_dtype", c_int32),
        ("k_scale", c_void_p),
        ("v_scale", c_void_p),
    ]


class SampleRow(ctypes.Structure):
    """mb_sample_row"""

    _fields_ = [
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("top_k", c_int32),
        ("n_bias", c_int32),
        ("seed", c_int64),
        ("position", c_int64),
        ("bias_ids", c_void_p),
        ("biases", c_void_p),
        ("seen", c_void_p),
        ("allowed", c_void_p),
    ]


class SampleArgs(ctypes.Structure):
    """mb_sample_args"""

    _fields_ = [
        ("logits", c_void_p),
        ("rows", c_void_p),
        ("ids", c_void_p),
        ("logprobs", c_void_p),
        ("n_rows", c_int64),
        ("vocab", c_int32),
    ]


class BackwardArgs(ctypes.Structure):
    """mb_moe_backward_args"""

    _fields_ = [
        ("x", c_void_p),
        ("weights", c_void_p),
        ("ids", c_void_p),
        ("w13", Weight),
        ("w2", Weight),
        ("bias13", c_void_p),
        ("bias2", c_void_p),
        ("p", c_void_p),
        ("d_out", c_void_p),
        ("dx", c_void_p),
        ("dweights", c_void_p),
        ("dw13", c_void_p),
        ("dw2", c_void_p),
        ("dbias13", c_void_p),
        ("dbias2", c_void_p),
        ("n_tokens", c_int64),
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("top_k", c_int32),
        ("n_experts", c_int32),
        ("first_expert", c_int32),
        ("n_local_experts", c_int32),
        ("dtype", c_int32),
        ("grad_dtype", c_int32),
        ("activation", c_int32),
        ("accumulate", c_int32),
    ]


class RouterLossesArgs(ctypes.Structure):
    """mb_moe_router_losses_args"""

    _fields_ = [
        ("logits", c_void_p),
        ("ids", c_void_p),
        ("counts", c_void_p),
        ("load_balance", c_void_p),
        ("z", c_void_p),
        ("n_tokens", c_int64),
        ("n_experts", c_int32),
        ("top_k", c_int32),
        ("logits_dtype", c_int32),
    ]


class RouteBackwardArgs(ctypes.Structure):
    """mb_moe_route_backward_args"""

    _fields_ = [
        ("logits", c_void_p),
        ("ids", c_void_p),
        ("dweights", c_void_p),
        ("counts", c_void_p),
        ("d_load_balance", c_void_p),
        ("d_z", c_void_p),
        ("dlogits", c_void_p),
        ("n_tokens", c_int64),
        ("n_experts", c_int32),
        ("top_k", c_int32),
        ("logits_dtype", c_int32),
        ("order", c_int32),
        ("renormalize", c_int32),
    ]


class RoundingReport(ctypes.Structure):
    """mb_moe_rounding_report"""

    _fields_ = [
        ("routed", c_int64),
        ("processed", c_int64),
        ("hardware", c_int64),
        ("dropped", c_int64),
        ("added", c_int64),
        ("wasted_ratio", c_double),
    ]


class TokenRoundingArgs(ctypes.Structure):
    """mb_moe_token_rounding_args"""

    _fields_ = [
        ("logits", c_void_p),
        ("ids", c_void_p),
        ("out_ids", c_void_p),
        ("out_weights", c_void_p),
        ("counts", c_void_p),
        ("report", c_void_p),
        ("n_tokens", c_int64),
        ("n_experts", c_int32),
        ("top_k", c_int32),
        ("max_choices", c_int32),
        ("tile_rows", c_int32),
        ("rounding", c_int32),
        ("logits_dtype", c_int32),
        ("order", c_int32),
        ("renormalize", c_int32),
    ]


_WITH_WORKSPACE = {
    "mb_moe_router_gemm": RouterGemmArgs,
    "mb_moe_plan": PlanArgs,
    "mb_grouped_gemm": GroupedGemmArgs,
    "mb_moe_experts": ExpertsArgs,
    "mb_moe_forward": ForwardArgs,
    "mb_gemm": GemmArgs,
    "mb_attention": AttentionArgs,
    "mb_decode_attention": DecodeAttentionArgs,
    "mb_sample": SampleArgs,
    "mb_moe_backward": BackwardArgs,
    "mb_moe_router_losses": RouterLossesArgs,
    "mb_moe_token_rounding": TokenRoundingArgs,
}
_WITHOUT_WORKSPACE = {
    "mb_moe_route": RouteArgs,
    "mb_moe_reduce": ReduceArgs,
    "mb_rms_norm": RmsNormArgs,
    "mb_qk_norm_rope_store": QkNormRopeStoreArgs,
    "mb_moe_route_backward": RouteBackwardArgs,
}


def _open() -> ctypes.CDLL:
    path = os.environ.get("MOEBIUS_LIBRARY") or str(Path(__file__).parent / "libmoebius.so")
    try:
        library = ctypes.CDLL(path)
        for name, struct in _WITH_WORKSPACE.items():
            size = getattr(library, name + "_workspace")
            size.restype, size.argtypes = c_int32, [ctypes.POINTER(struct), ctypes.POINTER(c_size_t)]
            run = getattr(library, name)
            run.restype, run.argtypes = c_int32, [ctypes.POINTER(struct), c_void_p, c_size_t, c_void_p]
        for name, struct in _WITHOUT_WORKSPACE.items():
            run = getattr(library, name)
            run.restype, run.argtypes = c_int32, [ctypes.POINTER(struct), c_void_p]
        counters = library.mb_decode_attention_counters
        counters.restype, counters.argtypes = c_int64, [ctypes.POINTER(DecodeAttentionArgs)]
        for name in ("mb_last_error", "mb_version"):
            getattr(library, name).restype = ctypes.c_char_p
        library.mb_status_name.restype, library.mb_status_name.argtypes = ctypes.c_char_p, [c_int32]
    except (OSError, AttributeError) as error:
        raise ImportError(
            f"moebius: {path} cannot be used: {error}. Install with `pip install .` in the repository, or set "
            "MOEBIUS_LIBRARY to a libmoebius.so of the same version."
        ) from error
    return library


LIBRARY = _open()


# What Python calls the arguments that attention's structs have by other names.
_PYTHON_NAMES = {
    "kv_len": "kv_lengths",
    "q_start": "query_starts",
    "max_q_len": "max_query_length",
    "max_kv_len": "max_kv_length",
}


def failure(status: int) -> Error:
    """The exception for a status that is not MB_OK, with the text of this thread's last error."""
    text = LIBRARY.mb_last_error().decode(errors="replace")
    if text.startswith(("attention: ", "decode_")):
        text = re.sub(r"\w+", lambda word: _PYTHON_NAMES.get(word[0], word[0]), text)
    return Error(LIBRARY.mb_status_name(status).decode(), text)
