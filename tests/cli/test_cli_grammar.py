"""run --json-schema, --regex and --grammar: the answer has the form that was asked for."""
import json
import re

import jsonschema
from cli_support import DEMO

SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "maximum": 9, "minimum": 0}},
          "required": ["colour", "n"]}  # fmt: skip
ARGUMENTS = ("-p", "A colour?", "--no-think", "--temperature", 2, "--seed", 5, "--quiet")


def test_schema(moebius, tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    done = moebius("run", DEMO, *ARGUMENTS, "--json-schema", path)
    assert done.returncode == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


def test_regex_with_json(moebius):
    done = moebius("run", DEMO, *ARGUMENTS, "--regex", r"[a-z]{3,6} \d\.", "--json")
    answer = json.loads(done.stdout)
    assert re.fullmatch(r"[a-z]{3,6} \d\.", answer["text"]) and answer["finish_reason"] == "stop"


def test_grammar(moebius, tmp_path):
    path = tmp_path / "list.gbnf"
    path.write_text('root ::= item | item ", " root\nitem ::= [a-z]{2}\n')
    done = moebius("run", DEMO, *ARGUMENTS, "--grammar", path, "--json", "--max-new-tokens", 40)
    assert done.returncode == 0, done.stderr
    assert re.match(r"[a-z]{2}(, |$)", json.loads(done.stdout)["text"])
    done = moebius("run", DEMO, *ARGUMENTS, "--grammar", path, "--regex", "a")
    assert done.returncode == 2 and b"--regex and --grammar" in done.stderr, done.stderr
    path.write_text('root ::= "a"\n  | (b')
    done = moebius("run", DEMO, *ARGUMENTS, "--grammar", path)
    assert done.returncode == 1 and b"line 2, column 5: a group" in done.stderr, done.stderr


def test_a_byte_order_mark_is_named(moebius, tmp_path):
    path = tmp_path / "from windows"
    for option, text in (("--grammar", 'root ::= "a"'), ("--json-schema", "{}")):
        for encoding in ("utf-8-sig", "utf-16"):
            path.write_text(text, encoding=encoding)
            done = moebius("run", DEMO, *ARGUMENTS, option, path)
            assert done.returncode == 1 and done.stderr.count(b"\n") == 1
            assert b"from windows: " in done.stderr and b"begins with a byte order mark (BOM); save it as UTF-8" in done.stderr


def test_what_is_wrong(moebius, tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"properties": {"a": {"not": {}}}}')
    done = moebius("run", DEMO, *ARGUMENTS, "--json-schema", path)
    assert done.returncode == 1 and b"#/properties/a/not" in done.stderr, done.stderr
    done = moebius("run", DEMO, *ARGUMENTS, "--json-schema", tmp_path / "none.json")
    assert done.returncode == 1 and b"none.json" in done.stderr, done.stderr
    done = moebius("run", DEMO, *ARGUMENTS, "--json-schema", path, "--regex", "a")
    assert done.returncode == 2 and b"--regex" in done.stderr, done.stderr
    done = moebius("run", DEMO, *ARGUMENTS, "--regex", "a)")
    assert done.returncode == 1 and b"parenthesis" in done.stderr, done.stderr
