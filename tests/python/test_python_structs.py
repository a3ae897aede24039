"""The ctypes structs against the header. A C compiler tells the sizes, offsets and enum values."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from moebius import _arrays, _engine_library, _grammar, _library, _transformer

ROOT = Path(__file__).resolve().parents[2]
STRUCTS = {
    "mb_weight": _library.Weight,
    "mb_moe_router_gemm_args": _library.RouterGemmArgs,
    "mb_moe_route_args": _library.RouteArgs,
    "mb_moe_plan_args": _library.PlanArgs,
    "mb_grouped_gemm_args": _library.GroupedGemmArgs,
    "mb_moe_experts_args": _library.ExpertsArgs,
    "mb_moe_reduce_args": _library.ReduceArgs,
    "mb_moe_forward_args": _library.ForwardArgs,
    "mb_rms_norm_args": _library.RmsNormArgs,
    "mb_gemm_args": _library.GemmArgs,
    "mb_qk_norm_rope_store_args": _library.QkNormRopeStoreArgs,
    "mb_attention_args": _library.AttentionArgs,
    "mb_decode_attention_args": _library.DecodeAttentionArgs,
    "mb_sample_row": _library.SampleRow,
    "mb_sample_args": _library.SampleArgs,
    "mb_moe_backward_args": _library.BackwardArgs,
    "mb_moe_router_losses_args": _library.RouterLossesArgs,
    "mb_moe_route_backward_args": _library.RouteBackwardArgs,
    "mb_moe_rounding_report": _library.RoundingReport,
    "mb_moe_token_rounding_args": _library.TokenRoundingArgs,
    "mb_model_options": _engine_library.ModelOptions,
    "mb_model_info": _engine_library.ModelInfo,
    "mb_chat_options": _engine_library.ChatOptions,
    "mb_logit_bias": _engine_library.LogitBias,
    "mb_sampling": _engine_library.Sampling,
    "mb_session_options": _engine_library.SessionOptions,
    "mb_request": _engine_library.Request,
    "mb_token": _engine_library.Token,
    "mb_usage": _engine_library.Usage,
    "mb_session_stats": _engine_library.SessionStats,
    "mb_answer_formats": _engine_library.AnswerFormats,
}
ENUMS = {
    **{f"MB_ACT_{name.upper()}": value for name, value in _library.ACTIVATIONS.items()},
    **{f"MB_ROUTE_{name.upper()}": value for name, value in _library.ORDERS.items()},
    **{f"MB_F32_{name.upper()}": value for name, value in _library.F32_MATH.items()},
    **{f"MB_ROUNDING_{name.upper()}": value for name, value in _library.ROUNDINGS.items()},
    "MB_KV_BLOCK": _transformer.KV_BLOCK,
    "MB_DECODE_TOKENS": _transformer.DECODE_TOKENS,
    "MB_DECODE_SPAN": _transformer.DECODE_SPAN,
    "MB_F32": _library.FLOAT32,
    "MB_BF16": _library.BFLOAT16,
    "MB_F16": _library.FLOAT16,
    "MB_F8_E4M3": _library.FLOAT8,
    "MB_WAITING": _engine_library.STATES.index("waiting"),
    "MB_RUNNING": _engine_library.STATES.index("running"),
    "MB_FINISHED_STOP": _engine_library.STATES.index("stop"),
    "MB_FINISHED_LENGTH": _engine_library.STATES.index("length"),
    "MB_CANCELLED": _engine_library.STATES.index("cancelled"),
    "MB_FAILED": _engine_library.STATES.index("failed"),
    "MB_GRAMMAR_JSON_SCHEMA": _grammar.JSON_SCHEMA,
    "MB_GRAMMAR_REGEX": _grammar.REGEX,
    "MB_GRAMMAR_CHOICE": _grammar.CHOICE,
    "MB_GRAMMAR_AFTER_THINK": _grammar.AFTER_THINK,
    "MB_OK": _engine_library.OK,
    "MB_ERR_CAPACITY": _engine_library.ERR_CAPACITY,
}


def layouts():
    """Pairs (C expression, its value as Python sees it)."""
    for name, struct in STRUCTS.items():
        yield f"sizeof({name})", ctypes.sizeof(struct)
        for field, _ in struct._fields_:
            yield f"offsetof({name}, {field})", getattr(struct, field).offset
    yield from ENUMS.items()


def test_structs_and_enums_are_those_of_the_header(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    prints = "\n".join(f'printf("%s %zu\\n", "{what}", (size_t)({what}));' for what, _ in layouts())
    source = tmp_path / "layout.c"
    source.write_text(f'#include <stdio.h>\n#include "moebius/answer.h"\n#include "moebius/moebius.h"\n#include "moebius/layers.h"\n#include "moebius/train.h"\nint main(void) {{\n{prints}\nreturn 0;\n}}\n')
    subprocess.run([compiler, "-I", ROOT / "include", "-o", tmp_path / "layout", source], check=True)
    printed = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [f"{what} {value}" for what, value in layouts()]


def test_dtype_names_stand_in_the_order_of_their_codes():
    assert _arrays.DTYPE_NAMES.index("float8_e4m3fn") == _library.FLOAT8
    assert _arrays.DTYPE_NAMES.index("bfloat16") == _library.BFLOAT16
    assert _arrays.DTYPE_NAMES.index("float16") == _library.FLOAT16


@pytest.mark.parametrize("path", ["no/such/libmoebius.so", "libc.so.6"])
def test_a_library_that_cannot_be_used_is_an_import_error_that_says_what_to_do(path):
    program = f"""
import os, sys
os.environ["MOEBIUS_LIBRARY"] = {path!r}
sys.path.insert(0, {str(ROOT / "python")!r})
try:
    import moebius
except ImportError as error:
    print(error)
"""
    text = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert path in text and "MOEBIUS_LIBRARY" in text
