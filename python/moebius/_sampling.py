"""How an answer is generated: the fields of Sampling, checked, as an mb_request."""

import dataclasses
import random
from collections.abc import Collection, Mapping
from ctypes import c_int32
from typing import Any

from . import _engine_library as c
from ._checks import c_text, collection, flag, integer, number, shown
from ._library import Error

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
    stop: str | Collection[str] | None = None  # the answer ends before the first of these texts
    stop_ids: Collection[int] | None = None  # and before any of these tokens
    ignore_eos: bool = False  # go on after the model's end-of-text tokens
    skip_special: bool = True  # special tokens are no part of the text
    priority: int = 0  # the smaller runs sooner
    # One of these at most: what the answer is made to follow. The answer to a chat may reason before.
    json_schema: Mapping[str, Any] | str | bool | None = None  # a JSON schema; docs/text.md has its words
    regex: str | None = None  # matches the whole answer
    choice: Collection[str] | None = None  # the answer is one of these texts
    grammar: str | None = None  # rules in GBNF or EBNF; the answer follows `root`

    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(collection("stop", self.stop, "texts"))
        for stop in stops:
            if not c_text("a text of stop", stop):
                raise ValueError("stop: a text is empty; leave it out")
        return stops


def fill_request(request: c.Request, ids: list[int], sampling: Sampling, index: int, context: int) -> None:
    """Puts prompt number `index` and what the user chose over the defaults of mb_request_init. Values that are of the
    right type and out of range are left to mb_submit, whose sentence names them."""
    request.ids, request.n_ids = (c_int32 * len(ids))(*ids), len(ids)
    if sampling.max_new_tokens is None:
        if len(ids) >= context:
            raise Error(
                "MB_ERR_CAPACITY",
                f"a prompt of {len(ids)} tokens leaves no room for an answer in a context of {context}; shorten the prompt",
            )
        request.max_new_tokens = min(_MOST_NEW_TOKENS, context - len(ids))
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
    logit_bias = sampling.logit_bias if sampling.logit_bias is not None else {}
    if not isinstance(logit_bias, Mapping):
        raise TypeError(f"logit_bias is {shown(logit_bias)}; it must be a dict of token ids and what is added")
    biases = [
        (integer("a token id of logit_bias", id, 0, 2**31 - 1), number(f"logit_bias[{id!r}]", bias))
        for id, bias in logit_bias.items()
    ]
    chosen.logit_bias, chosen.n_logit_bias = (c.LogitBias * len(biases))(*biases), len(biases)
    stop_ids = [] if sampling.stop_ids is None else collection("stop_ids", sampling.stop_ids, "token ids")
    stop_ids = [integer("a token id of stop_ids", id, 0, 2**31 - 1) for id in stop_ids]
    request.stop_ids, request.n_stop_ids = (c_int32 * len(stop_ids))(*stop_ids), len(stop_ids)
    request.ignore_eos = flag("ignore_eos", sampling.ignore_eos)
    request.priority = integer("priority", sampling.priority, -(2**31), 2**31 - 1)
