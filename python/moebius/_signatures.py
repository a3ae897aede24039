"""
The parameters of every operator, written once, in torch.library's notation.

Two things are made from them: the torch schemas, and the check that every argument has its parameter's Python type.
"""

from typing import Any

import numpy

_TERMS = (
    "str activation, Tensor? bias13, Tensor? bias2, Tensor? residual, Tensor? shared, Tensor? w13_scale, "
    "Tensor? w2_scale, Tensor? x_scale, Tensor? h_scale, str f32, Tensor? out"
)

# The order is that in which the public functions pass their arguments on.
PARAMETERS = {
    "router_gemm": "Tensor x, Tensor weight, Tensor? bias",
    "route": "Tensor logits, int top_k, bool renormalize, str order, Tensor? nan_flag",
    "plan": "Tensor ids, int n_experts, int first_expert, int? n_local_experts",
    "grouped_gemm": (
        "Tensor a, Tensor b, Tensor? offsets, Tensor? row_index, Tensor? bias, Tensor? row_weight, str activation, "
        "Tensor? a_scale, Tensor? b_scale, ScalarType? out_dtype, str f32"
    ),
    "reduce": (
        "Tensor y, Tensor weights, Tensor token_row, Tensor? residual, Tensor? shared, ScalarType? out_dtype, "
        "Tensor? out"
    ),
    "moe": (
        "Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids, int first_expert, int? n_experts, "
        + _TERMS
    ),
    "moe_experts": (
        "Tensor x, Tensor w13, Tensor w2, Tensor offsets, Tensor? row_index, str activation, Tensor? bias13, "
        "Tensor? bias2, Tensor? w13_scale, Tensor? w2_scale, Tensor? x_scale, Tensor? h_scale, str f32, Tensor? out"
    ),
    "moe_from_logits": (
        "Tensor x, Tensor router_logits, Tensor w13, Tensor w2, int top_k, bool renormalize, str order, "
        "int first_expert, " + _TERMS
    ),
    "rms_norm": "Tensor x, Tensor weight, float eps, Tensor? residual, ScalarType? out_dtype",
    "linear": (
        "Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? weight_scale, ScalarType? out_dtype, "
        "Tensor? out"
    ),
    "qk_norm_rope_store": (
        "Tensor qkv, Tensor k_cache, Tensor v_cache, Tensor positions, Tensor slots, Tensor inv_freq, Tensor? q_norm, "
        "Tensor? k_norm, float eps, float rope_scale, Tensor? k_scale, Tensor? v_scale"
    ),
    "attention": (
        "Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor kv_lengths, Tensor query_starts, "
        "float? scale, int? max_query_length, int? max_kv_length, Tensor? k_scale, Tensor? v_scale, Tensor? out"
    ),
    "decode_schedule": ("Tensor kv_lengths, Tensor query_starts, int n_heads, int n_kv_heads, int max_query_length"),
    "decode_attention": (
        "Tensor qkv, Tensor k_cache, Tensor v_cache, Tensor positions, Tensor slots, Tensor inv_freq, "
        "Tensor block_table, Tensor kv_lengths, Tensor query_starts, Tensor schedule, Tensor? q_norm, Tensor? k_norm, "
        "float eps, float rope_scale, float? scale, int? max_query_length, int? max_kv_length, Tensor? k_scale, "
        "Tensor? v_scale"
    ),
    "sample": (
        "Tensor logits, Tensor seeds, Tensor positions, Tensor? temperature, Tensor? top_k, Tensor? top_p, "
        "Tensor? min_p, Tensor? repetition_penalty, Tensor? presence_penalty, Tensor? frequency_penalty, "
        "Tensor? seen, Tensor? allowed"
    ),
    "train_moe": (
        "Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids, int first_expert, int? n_experts, "
        "str activation, Tensor? bias13, Tensor? bias2, Tensor? residual, Tensor? shared, str f32, bool recompute"
    ),
    "moe_backward": (
        "Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids, Tensor d_out, Tensor? p, "
        "int first_expert, int? n_experts, str activation, Tensor? bias13, Tensor? bias2, ScalarType? grad_dtype, "
        "bool dx, bool dweights, bool parameters"
    ),
    "router_losses": "Tensor logits, Tensor ids",
    "route_backward": (
        "Tensor logits, Tensor ids, Tensor? dweights, Tensor? counts, Tensor? d_load_balance, Tensor? d_z, "
        "bool renormalize, str order"
    ),
    "token_rounding": (
        "Tensor logits, Tensor ids, int tile_rows, str rounding, int? max_choices, bool renormalize, str order"
    ),
}


# What errors call an operator that is part of a function of another name.
_NAMES = {"train_moe": "moe"}


class Signature:
    """The parameters of one operator for one array library."""

    def __init__(self, op: str, array: type, dtype: tuple[type, ...], array_name: str, dtype_name: str) -> None:
        """`array` is the library's array type, `dtype` the types of its dtypes; the two names are for errors."""
        types: dict[str, tuple[type, ...]] = {
            "Tensor": (array,),
            "int": (int, numpy.integer),
            "float": (float, int, numpy.floating, numpy.integer),
            "bool": (bool, numpy.bool_),
            "str": (str,),
            "ScalarType": dtype,
        }
        names = {
            "Tensor": array_name,
            "int": "an int",
            "float": "a float",
            "bool": "a bool",
            "str": "a str",
            "ScalarType": dtype_name,
        }
        self.op = _NAMES.get(op, op)
        self.names: list[str] = []
        self._types: list[tuple[type, ...]] = []
        self._wanted: list[str] = []
        self._accepted: set[tuple[type, ...]] = set()
        for parameter in PARAMETERS[op].split(", "):
            kind, name = parameter.split()
            optional = kind.endswith("?")
            kind = kind.removesuffix("?")
            self.names.append(name)
            self._types.append((*types[kind], type(None)) if optional else types[kind])
            self._wanted.append(names[kind] + " or None" if optional else names[kind])

    def check(self, arguments: tuple[Any, ...]) -> None:
        """TypeError unless each argument has its parameter's type. Types that were right once cost one look-up."""
        types = tuple(map(type, arguments))
        if types not in self._accepted:
            self.check_each(arguments)
            self._accepted.add(types)

    def check_each(self, arguments: tuple[Any, ...]) -> None:
        """The same without that memory: the form that torch.compile can trace."""
        for name, value, types, wanted in zip(self.names, arguments, self._types, self._wanted, strict=True):
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):  # a bool is no int
                found = "None" if value is None else with_article(type(value).__name__)
                raise TypeError(f"{self.op}: {name} is {found}; it must be {wanted}")


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" or noun == "ndarray" else "a ") + noun
