"""How an answer is generated: the fields of Sampling, checked, as an mb_request."""

import dataclasses
import numbers
import random
from collections.abc import Mapping, Sequence
from ctypes import c_int32
from typing import Any

from . import _engine_library as c

_MOST_NEW_TOKENS = 2048  # without max_new_tokens


@dataclasses.dataclass(frozen=True)
class Sampling:
    """
    How tokens are chosen and when an answer ends. None stands for the value of the checkpoint's generation_config.json,
    or for greedy decoding where there is none.
    """

    max_new_tokens: int | None = None  # None: as many as the context holds, at most 2048
    min_new_tokens: int = 0  # before so many tokens, those that end the answer are not drawn
    temperature: float | None = None  # 0: always the most probable token
    top_k: int | None = None  # 0: off
    top_p: float | None = None  # 1: off
    min_p: float | None = None  # 0: off
    repetition_penalty: float | None = None  # 1: off
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None  # token id: what is added to its logit
    seed: int | None = None  # of the first prompt, the next one has seed + 1; None: a new one every time
    stop: str | Sequence[str] = ()  # the answer ends before the first of these texts
    stop_ids: Sequence[int] = ()  # and before any of these tokens
    ignore_eos: bool = False  # go on after the model's end-of-text tokens
    skip_special: bool = True  # special tokens are no part of the text
    priority: int = 0  # the smaller runs sooner

    def stops(self) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for stop in stops:
            if not isinstance(stop, str):
                raise TypeError(f"stop: {stop!r} is no text")
            if not stop:
                raise ValueError("stop: a text is empty; leave it out")
            if "\0" in stop:
                raise ValueError(f"stop: {stop!r} has a zero character")
        return stops


def integer(name: str, value: Any, minimum: int, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {value!r}; it must be a whole number")
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} is {value}; it must be from {minimum} to {maximum}")
    return int(value)


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; it must be a number")
    return float(value)


def fill_request(request: c.Request, ids: list[int], sampling: Sampling, index: int, context: int) -> None:
    """Puts prompt number `index` and what the user chose over the defaults of mb_request_init. Values that are of the
    right type and out of range are left to mb_submit, whose sentence names them."""
    request.ids, request.n_ids = (c_int32 * len(ids))(*ids), len(ids)
    if sampling.max_new_tokens is None:
        request.max_new_tokens = max(0, min(_MOST_NEW_TOKENS, context - len(ids)))
    else:
        request.max_new_tokens = integer("max_new_tokens", sampling.max_new_tokens, 0, 2**62)
    request.min_new_tokens = integer("min_new_tokens", sampling.min_new_tokens, 0, 2**62)
    chosen = request.sampling
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        if value is not None:
            setattr(chosen, name, number(name, value))
    if sampling.top_k is not None:
        chosen.top_k = integer("top_k", sampling.top_k, 0, 2**31 - 1)
    if sampling.seed is None:
        chosen.seed = random.SystemRandom().getrandbits(64)
    else:
        chosen.seed = (integer("seed", sampling.seed, 0, 2**64 - 1) + index) % 2**64
    biases = [
        (integer("logit_bias", id, 0, 2**31 - 1), number("logit_bias", bias))
        for id, bias in (sampling.logit_bias or {}).items()
    ]
    chosen.logit_bias, chosen.n_logit_bias = (c.LogitBias * len(biases))(*biases), len(biases)
    stop_ids = [integer("stop_ids", id, 0, 2**31 - 1) for id in sampling.stop_ids]
    request.stop_ids, request.n_stop_ids = (c_int32 * len(stop_ids))(*stop_ids), len(stop_ids)
    request.ignore_eos = bool(sampling.ignore_eos)
    request.priority = integer("priority", sampling.priority, -(2**31), 2**31 - 1)
