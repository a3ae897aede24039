"""Answers that follow a grammar: json_schema, regex, choice and grammar of Sampling, as the grammar of an mb_request."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from ctypes import byref, c_void_p

from . import _engine_library as c
from ._checks import collection, shown, utf8
from ._library import LIBRARY
from ._sampling import Sampling
from ._session import Session

JSON_SCHEMA, REGEX, CHOICE, EBNF = 0, 2, 3, 5  # mb_grammar_kind
AFTER_THINK = 1  # mb_grammar_start


def _wanted(sampling: Sampling) -> tuple[int, bytes] | None:
    """The kind and the text of the grammar."""
    given = [name for name in ("json_schema", "regex", "choice", "grammar") if getattr(sampling, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are given; an answer follows one of them")
    if sampling.json_schema is not None:
        return JSON_SCHEMA, _schema_text(sampling.json_schema)
    if sampling.regex is not None:
        return REGEX, utf8("regex", sampling.regex)
    if sampling.grammar is not None:
        return EBNF, utf8("grammar", sampling.grammar)
    if sampling.choice is not None:
        texts = list(collection("choice", sampling.choice, "texts"))
        for text in texts:
            utf8("a text of choice", text)
        return CHOICE, json.dumps(texts).encode()
    return None


def _schema_text(schema: object) -> bytes:
    if isinstance(schema, str):
        return utf8("json_schema", schema)
    if not isinstance(schema, (Mapping, bool)):
        raise TypeError(f"json_schema is {shown(schema)}; it must be a schema: a dict, or its JSON as a text")
    try:
        return json.dumps(schema, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"json_schema cannot be written as JSON: {error}") from None


@contextlib.contextmanager
def grammar_of(session: Session, sampling: Sampling, rendered: bytes | None) -> Iterator[tuple[c_void_p | None, bool]]:
    """
    The grammar, or None, and whether it begins after the reasoning. `rendered`: the prompt, where the chat template
    made it; a text that is continued and token ids have no reasoning. Within `using`.
    """
    wanted, grammar = _wanted(sampling), c_void_p()
    if wanted is None:
        yield None, False
        return
    kind, text = wanted
    c.check(LIBRARY.mb_grammar_open(session.model, kind, text, len(text), byref(grammar)))
    try:
        start = LIBRARY.mb_answer_grammar_start(byref(session.answer_formats()), rendered) if rendered else 0
        yield grammar, start == AFTER_THINK
    finally:
        LIBRARY.mb_grammar_close(grammar)
