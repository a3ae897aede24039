"""Answers of moebius.Engine that follow json_schema, regex, choice or grammar."""

import json
import re

import pytest
from engine_program import DEMO, STORY
from moebius import Engine, Error, Sampling

SUM = [{"role": "user", "content": "What is 7 + 8?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def engine():
    with Engine(DEMO, device="cpu") as opened:
        yield opened


def test_json_schema(engine):
    """As a dict and as its text; of several prompts; in a stream."""
    options = {"temperature": 1.5, "seed": 1, "max_new_tokens": 120}
    answers = engine.generate([STORY, STORY], json_schema=SCHEMA, **options)
    for answer in answers:
        value = json.loads(answer.text)
        assert answer.finish_reason == "stop" and len(value["name"]) <= 8 and 0 <= value["age"] <= 99
    assert engine.generate(STORY, json_schema=json.dumps(SCHEMA), **options).text == answers[0].text
    with engine.stream(STORY, Sampling(json_schema=SCHEMA), **options) as stream:
        assert "".join(map(str, stream)) == answers[0].text


def test_regex_and_choice(engine):
    answer = engine.generate(STORY, regex="[A-Z][a-z]{2,5} (is|was) [0-9]{2}", temperature=2, seed=4)
    assert re.fullmatch("[A-Z][a-z]{2,5} (is|was) [0-9]{2}", answer.text)
    answer = engine.generate(STORY, grammar='root ::= "(" root ")" | [0-9]', temperature=2, seed=4)
    assert re.fullmatch(r"\(*[0-9]\)*", answer.text) and answer.text.count("(") == answer.text.count(")")
    chosen = {engine.generate(STORY, choice=["yes", "né\n", '"'], temperature=2, seed=i).text for i in range(12)}
    assert chosen <= {"yes", "né\n", '"'} and len(chosen) > 1


def test_after_the_reasoning(engine):
    """A chat may reason before; without thinking, and where a text is continued, the grammar begins at once."""
    text = engine.generate(SUM, regex="[0-9]{4}", temperature=0).text
    assert re.fullmatch("<think>.*</think>\n{0,2}[0-9]{4}", text, re.DOTALL)
    assert re.fullmatch("[0-9]{4}", engine.generate(SUM, regex="[0-9]{4}", temperature=0, thinking=False).text)
    assert re.fullmatch("[0-9]{4}", engine.generate(STORY, regex="[0-9]{4}").text)


def test_mistakes(engine):
    with pytest.raises(ValueError, match="json_schema and regex are given; an answer follows one of them"):
        engine.generate(STORY, json_schema={}, regex="a")
    with pytest.raises(Error, match="#/uniqueItems: this word is not supported"):
        engine.generate(STORY, json_schema={"type": "array", "uniqueItems": True})
    with pytest.raises(Error, match="regular expression"):
        engine.generate(STORY, regex="(")
    with pytest.raises(Error, match='line 1, column 10: the rule "a" is called'):
        engine.generate(STORY, grammar="root ::= a")
    with pytest.raises(Error, match="choice"):
        engine.generate(STORY, choice=[])
    for wrong in ({"json_schema": 7}, {"regex": b"a"}, {"choice": "yes"}, {"choice": [1]}, {"grammar": 1}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            engine.generate(STORY, **wrong)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        engine.generate(STORY, json_schema={"const": float("nan")})
    with pytest.raises(ValueError, match="surrogate"):
        engine.generate(STORY, choice=["\ud800"])
    assert engine.generate(STORY, choice=["on"]).text == "on"  # nothing is left over
