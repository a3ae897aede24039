"""The engine's part of the C library through ctypes: the structs and functions of moebius.h, grammar.h,
answer.h and stop_text.h."""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p

from ._library import LIBRARY, failure

STATES = ("waiting", "running", "stop", "length", "cancelled", "failed")  # mb_state, as finish reasons
OK, ERR_CAPACITY = 0, 7  # mb_status


class ModelOptions(ctypes.Structure):
    """mb_model_options"""

    _fields_ = [
        ("device", c_char_p),
        ("dtype", c_char_p),
        ("chat_template", c_char_p),
        ("quant", c_char_p),
        ("kv_dtype", c_char_p),
        ("n_threads", c_int),
        ("load", c_int),
        ("progress", c_void_p),
        ("progress_user", c_void_p),
    ]


class ModelInfo(ctypes.Structure):
    """mb_model_info"""

    _fields_ = [
        *((name, c_char_p) for name in ("architecture", "device", "dtype", "kv_dtype", "weight_dtype")),
        *(
            (name, c_int32)
            for name in (
                *("n_layers", "n_moe_layers", "hidden", "n_heads", "n_kv_heads", "head_dim"),
                *("n_experts", "top_k", "moe_intermediate", "intermediate", "vocab", "max_positions"),
            )
        ),
        *(
            (name, c_uint64)
            for name in (
                *("n_parameters", "n_active_parameters", "weight_bytes", "kv_bytes_per_token"),
                *("device_memory_bytes", "device_free_bytes"),
            )
        ),
        ("eos_ids", POINTER(c_int32)),
        ("n_eos_ids", c_int32),
        ("has_tokenizer", c_int),
        ("has_chat_template", c_int),
        ("has_unknown_chat_template", c_int),
        ("chat_template_problem", c_char_p),
        ("chat_template", c_char_p),
        ("tokenizer_problem", c_char_p),
    ]


class ChatOptions(ctypes.Structure):
    """mb_chat_options"""

    _fields_ = [
        ("add_generation_prompt", c_int),
        ("enable_thinking", c_int),
        ("tools_json", c_char_p),
        ("kwargs_json", c_char_p),
    ]


class LogitBias(ctypes.Structure):
    """mb_logit_bias"""

    _fields_ = [("id", c_int32), ("bias", c_float)]


class Sampling(ctypes.Structure):
    """mb_sampling"""

    _fields_ = [
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("seed", c_uint64),
        ("logit_bias", POINTER(LogitBias)),
        ("n_logit_bias", c_int32),
    ]


class SessionOptions(ctypes.Structure):
    """mb_session_options"""

    _fields_ = [
        ("max_sequences", c_int32),
        ("max_step_tokens", c_int32),
        ("prefill_chunk", c_int32),
        ("max_queued", c_int32),
        ("kv_tokens", c_int64),
        ("memory_fraction", c_float),
        ("max_context", c_int64),
        ("graphs", c_int),
        ("prefix_caching", c_int),
        ("max_decode_slowdown", c_float),
        ("steps_in_flight", c_int32),
    ]


class Request(ctypes.Structure):
    """mb_request"""

    _fields_ = [
        ("ids", POINTER(c_int32)),
        ("n_ids", c_size_t),
        ("max_new_tokens", c_int64),
        ("min_new_tokens", c_int64),
        ("ignore_eos", c_int),
        ("stop_ids", POINTER(c_int32)),
        ("n_stop_ids", c_int32),
        ("sampling", Sampling),
        ("on_logprobs", c_void_p),
        ("on_logprobs_user", c_void_p),
        ("prompt_logprobs", c_int),
        ("priority", c_int32),
        ("cache_salt", c_uint64),
        ("waiter", c_void_p),
        ("waiter_user", c_void_p),
        ("grammar", c_void_p),
        ("grammar_after_think", c_int),
    ]


class AnswerFormats(ctypes.Structure):
    """mb_answer_formats"""

    _fields_ = [("reasoning", c_int), ("tools", c_int), ("tags_are_special", c_int)]


class Token(ctypes.Structure):
    """mb_token"""

    _fields_ = [("id", c_int32), ("logprob", c_float)]


class SessionStats(ctypes.Structure):
    """mb_session_stats"""

    _fields_ = [
        ("n_waiting", c_int32),
        ("n_running", c_int32),
        ("kv_blocks_total", c_int64),
        ("kv_blocks_free", c_int64),
        ("n_steps", c_uint64),
        ("n_prompt_tokens", c_uint64),
        ("n_generated_tokens", c_uint64),
        ("n_preemptions", c_uint64),
        ("n_prefix_queries", c_uint64),
        ("n_prefix_hits", c_uint64),
    ]


class Usage(ctypes.Structure):
    """mb_usage"""

    _fields_ = [
        ("n_prompt", c_int64),
        ("n_cached_tokens", c_int64),
        ("n_generated", c_int64),
        ("n_preemptions", c_int32),
    ]


_TEXT = POINTER(c_void_p)  # a char * that the library hands out, with its bytes in a size_t

_WITH_STATUS = {
    "mb_find_model": [c_char_p, POINTER(c_void_p)],
    "mb_model_open": [c_char_p, POINTER(ModelOptions), POINTER(c_void_p)],
    "mb_tokenize": [c_void_p, c_char_p, c_size_t, c_int, POINTER(c_int32), c_size_t, POINTER(c_size_t)],
    "mb_chat_render": [c_void_p, c_char_p, POINTER(ChatOptions), POINTER(c_void_p)],
    "mb_decoder_open": [c_void_p, c_int, POINTER(c_void_p)],
    "mb_decoder_push": [c_void_p, c_int32, _TEXT, POINTER(c_size_t)],
    "mb_decoder_finish": [c_void_p, _TEXT, POINTER(c_size_t)],
    "mb_session_open": [c_void_p, POINTER(SessionOptions), POINTER(c_void_p)],
    "mb_submit": [c_void_p, POINTER(Request), POINTER(c_uint64)],
    "mb_step": [c_void_p, POINTER(c_int)],
    "mb_read": [c_void_p, c_uint64, POINTER(Token), c_size_t, POINTER(c_size_t), POINTER(c_int)],
    "mb_get_failure": [c_void_p, c_uint64],
    "mb_get_usage": [c_void_p, c_uint64, POINTER(Usage)],
    "mb_release": [c_void_p, c_uint64],
    "mb_grammar_open": [c_void_p, c_int, c_char_p, c_size_t, POINTER(c_void_p)],
    "mb_answer_formats_of": [c_void_p, POINTER(AnswerFormats)],
    "mb_stop_text_open": [POINTER(c_char_p), c_size_t, POINTER(c_void_p)],
    "mb_stop_text_push": [c_void_p, c_char_p, c_size_t, _TEXT, POINTER(c_size_t)],
}
_WITHOUT_STATUS = {
    "mb_free_text": [c_void_p],
    "mb_model_options_init": [POINTER(ModelOptions)],
    "mb_model_close": [c_void_p],
    "mb_model_get_info": [c_void_p, POINTER(ModelInfo)],
    "mb_decoder_close": [c_void_p],
    "mb_chat_options_init": [POINTER(ChatOptions)],
    "mb_session_options_init": [POINTER(SessionOptions)],
    "mb_session_close": [c_void_p],
    "mb_session_get_stats": [c_void_p, POINTER(SessionStats)],
    "mb_request_init": [c_void_p, POINTER(Request)],
    "mb_grammar_close": [c_void_p],
    "mb_stop_text_close": [c_void_p],
    "mb_stop_text_finish": [c_void_p, _TEXT, POINTER(c_size_t)],
}


def _declare() -> None:
    for name, arguments in (_WITH_STATUS | _WITHOUT_STATUS).items():
        function = getattr(LIBRARY, name)
        function.restype, function.argtypes = c_int32 if name in _WITH_STATUS else None, arguments
    LIBRARY.mb_stop_text_found.restype, LIBRARY.mb_stop_text_found.argtypes = c_int, [c_void_p]
    start = LIBRARY.mb_answer_grammar_start
    start.restype, start.argtypes = c_int, [POINTER(AnswerFormats), c_char_p]


_declare()


def check(status: int) -> None:
    """Raises the library's failure for a status that is not MB_OK."""
    if status != OK:
        raise failure(status)


def take_text(pointer: c_void_p) -> str:
    """The text of a char * that must be freed, and frees it."""
    try:
        return ctypes.string_at(pointer.value).decode()
    finally:
        LIBRARY.mb_free_text(pointer)
