"""Added tokens against Hugging Face's `tokenizers`: every combination of flags, and every character beside them; then the
files that may name them, and the shapes in which tokenizers are saved.
"""
import copy
import itertools
import json
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from text_tool import TextTool

SMALL = json.loads(Path("tests/golden/tokenizer/tokenizer.json").read_text())
FIRST = 3013  # the first id that the small tokenizer leaves free
FLAGS = ["lstrip", "rstrip", "single_word", "normalized", "special"]
ALL_FLAGS = [dict(zip(FLAGS, values)) for values in itertools.product([False, True], repeat=5)]
N_CODE_POINTS = 0x110000


@pytest.fixture
def tool():
    client = TextTool()
    yield client
    client.close()


def with_added(tokens, **more):
    """The small tokenizer's file with more added tokens: (content, flags). A token of the vocabulary keeps its id."""
    root = copy.deepcopy(SMALL) | more
    free = itertools.count(FIRST)
    root["added_tokens"] += [{"id": root["model"]["vocab"].get(content) or next(free), "content": content, **flags}
                             for content, flags in tokens]
    return json.dumps(root)


def open_both(tool, source):
    tool.open(source)
    return Tokenizer.from_str(source)


def compare(tool, reference, text, parse_special=True):
    want = reference.encode(text, add_special_tokens=False).ids
    assert tool.encode(text, parse_special) == want, repr(text)


# ---- Flags ----------------------------------------------------------------------------------------------------------

AROUND = ["a", "b ", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200b", "\u2028", "\x1c", "\x85", "_", "-", ".", "1", "é", "e\u0301",
          "\u0301", "漢", "\u200d", "\u0903", "²", "\u24b6", "\U0001F130", "\ufeff", "ab", "<m", ">", "X"]


@pytest.mark.parametrize("flags", ALL_FLAGS, ids=lambda flags: "+".join(name for name in FLAGS if flags[name]) or "none")
def test_one_token_of_every_kind(tool, flags):
    tokens = ["<m>", "dé", "word", "\u1100\u1161"]
    reference = open_both(tool, with_added([(content, flags) for content in tokens]))
    rng = random.Random(3)
    for text in ["<m>", " <m> ", "<m><m>", "  <m>  <m>  ", "a<m>b", "a <m> b", "\n<m>\n"]:
        compare(tool, reference, text)
    for _ in range(600):
        compare(tool, reference, "".join(rng.choice(AROUND + 3 * tokens) for _ in range(rng.randint(1, 12))))


def test_tokens_of_many_kinds(tool):
    """Tokens that start alike, touch, contain white space, or lie in the white space that another one takes."""
    contents = ["<m>", "<m>x", "m>", "x", "xx", " x", "x ", "a b", "<n>", "dé", "E\u0301", "...", "_", "漢字", "<m> <n>"]
    for seed in range(60):
        rng = random.Random(seed)
        tokens = [(content, rng.choice(ALL_FLAGS)) for content in rng.sample(contents, rng.randint(2, 8))]
        reference = open_both(tool, with_added(tokens))
        pieces = AROUND + 4 * [content for content, _ in tokens] + ["<|im_end|>", "<think>"]
        for _ in range(60):
            compare(tool, reference, "".join(rng.choice(pieces) for _ in range(rng.randint(1, 14))))
        reference.encode_special_tokens = True
        for _ in range(20):
            compare(tool, reference, "".join(rng.choice(pieces) for _ in range(rng.randint(1, 14))), parse_special=False)


@pytest.mark.parametrize("around", ["{c}<m>{c}", "{c}{c}<m> {c}", "<m>{c}<m>"])
def test_every_code_point_beside_a_token(tool, around):
    characters = [chr(c) for c in range(N_CODE_POINTS) if not 0xD800 <= c < 0xE000 and
                  (c < 0x20000 or 0xE0000 <= c < 0xE0200 or c % 61 == 0)]
    for flags in [{"lstrip": True, "rstrip": True}, {"single_word": True}]:
        tokens = [("<m>", dict.fromkeys(FLAGS, False) | flags), ("\n", dict.fromkeys(FLAGS, False))]
        reference = open_both(tool, with_added(tokens, normalizer=None))
        wrong = []
        for start in range(0, len(characters), 4096):
            part = characters[start:start + 4096]
            text = "\n".join(around.replace("{c}", c) for c in part)
            if tool.encode(text) != reference.encode(text, add_special_tokens=False).ids:
                wrong += [f"U+{ord(c):04X}" for c in part if tool.encode(around.replace("{c}", c)) !=
                          reference.encode(around.replace("{c}", c), add_special_tokens=False).ids]
        assert not wrong, f"{flags}: {len(wrong)} code points: {' '.join(wrong[:40])}"


def test_white_space_is_measured_once(tool):
    """A token of white space that takes the white space behind: quadratic when every match measures the run anew."""
    tool.open(with_added([(" ", dict.fromkeys(FLAGS, False) | {"rstrip": True})]))
    assert tool.encode(" " * (1 << 20)) == [FIRST] * (1 << 20)


# ---- Files ----------------------------------------------------------------------------------------------------------


def token(content, **flags):
    return {"content": content, **dict.fromkeys(FLAGS, False), **flags}


def decoder(tokens):
    return {"added_tokens_decoder": {str(i): t for i, t in tokens.items()}}


def test_tokens_of_the_configuration(tool):
    """As AutoTokenizer adds them: in order of their ids, behind those of tokenizer.json."""
    added = {FIRST: token("<x>", special=True), FIRST + 1: token("<y>", lstrip=True), FIRST + 2: token("é\u0301", normalized=True)}
    tool.open(json.dumps(SMALL), config=decoder(added))
    reference = Tokenizer.from_str(json.dumps(SMALL))
    reference.add_tokens([AddedToken(**added[i]) for i in sorted(added)])
    rng = random.Random(8)
    for _ in range(300):
        compare(tool, reference, "".join(rng.choice(AROUND + ["<x>", "<y>", "é\u0301", "<think>"]) for _ in range(9)))
    ids = [FIRST, FIRST + 1, 70]
    assert tool.decode(ids, skip_special=True) == reference.decode(ids, skip_special_tokens=True)
    assert tool.decode(ids) == reference.decode(ids, skip_special_tokens=False)


def test_flags_of_the_configuration_count(tool):
    """A token of both files keeps its id; the configuration's flags count."""
    think = next(t for t in SMALL["added_tokens"] if t["content"] == "<think>")
    tool.open(json.dumps(SMALL), config=decoder({think["id"]: token("<think>", lstrip=True, rstrip=True)}))
    assert tool.encode("a <think> b") == [*tool.encode("a"), think["id"], *tool.encode("b")]
    tool.open(json.dumps(SMALL), config=decoder({FIRST + 7: token("<think>", rstrip=True)}))
    assert tool.encode("a <think> b") == [*tool.encode("a "), think["id"], *tool.encode("b")]


def test_an_id_behind_a_gap_is_kept(tool):
    tool.open(json.dumps(SMALL), config=decoder({FIRST + 50: token("<x>")}))
    assert tool.encode("a<x>") == [*tool.encode("a"), FIRST + 50]
    assert tool.decode([FIRST + 49, FIRST + 50]) == "<x>"


def test_an_id_beyond_the_model_is_left_out(tool):
    tool.open(json.dumps(SMALL), vocab=FIRST + 1, config=decoder({FIRST: token("<x>"), FIRST + 1: token("<y>")}))
    assert tool.encode("<x>") == [FIRST]
    tool.open(json.dumps(SMALL))
    plain = tool.encode("<y>")
    tool.open(json.dumps(SMALL), vocab=FIRST, added={"<y>": FIRST})
    assert tool.encode("<y>") == plain


def test_tokens_of_the_vocabulary(tool):
    """The vocabulary's id counts, whatever the configuration says."""
    vocab = SMALL["model"]["vocab"]
    tool.open(json.dumps(SMALL), config=decoder({vocab["name"]: token("name")}))
    assert tool.encode("!name!") == [*tool.encode("!"), vocab["name"], *tool.encode("!")]
    tool.open(json.dumps(SMALL), config=decoder({FIRST: token("name")}))
    assert tool.encode("!name!") == [*tool.encode("!"), vocab["name"], *tool.encode("!")]


def test_added_tokens_file(tool):
    """Read when the configuration lists no added tokens, as in transformers. Special is what the configuration names."""
    for config in (None, {}, {"eos_token": "<x>"}, {"extra_special_tokens": ["<x>"]}):
        tool.open(json.dumps(SMALL), config=config, added={"<x>": FIRST, "<y>": FIRST + 1})
        assert tool.encode("<x><y>") == [FIRST, FIRST + 1]
        assert tool.decode([FIRST, FIRST + 1], skip_special=True) == ("<y>" if config else "<x><y>")
    tool.open(json.dumps(SMALL), config=decoder({FIRST: token("<y>")}), added={"<x>": FIRST + 1})
    assert tool.encode("<y>") == [FIRST]
    assert FIRST + 1 not in tool.encode("<x>")


def test_special_tokens_by_name(tool):
    config = {"pad_token": "<p>", "eos_token": {"content": "<e>", "lstrip": True, "__type": "AddedToken"}, "bos_token": None,
              "unk_token": "<|endoftext|>", "extra_special_tokens": ["<z>", "<p>"]}
    tool.open(json.dumps(SMALL), config=config)
    assert tool.encode("<p><z> <e>") == [FIRST + 1, FIRST + 2, FIRST]
    assert tool.decode([FIRST, FIRST + 1, FIRST + 2], skip_special=True) == ""
    tool.open(json.dumps(SMALL), vocab=FIRST + 1, config=config)  # no room for more than one
    assert tool.encode(" <e>") == [FIRST]


# ---- Shapes of tokenizer.json ---------------------------------------------------------------------------------------


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
NFC = {"type": "NFC"}
SPLIT, BYTE_LEVEL = SMALL["pre_tokenizer"]["pretokenizers"]


@pytest.mark.parametrize("part, value", [
    ("post_processor", TEMPLATE), ("post_processor", None), ("post_processor", BYTES),
    ("post_processor", sequence("processors")), ("post_processor", sequence("processors", TEMPLATE)),
    ("post_processor", sequence("processors", BYTES, TEMPLATE)), ("post_processor", sequence("processors", sequence("processors", BYTES))),
    ("decoder", sequence("decoders", BYTES)), ("decoder", sequence("decoders", sequence("decoders", BYTES))),
    ("normalizer", sequence("normalizers", NFC)), ("normalizer", sequence("normalizers")),
    ("normalizer", sequence("normalizers", sequence("normalizers", NFC), NFC)),
    ("pre_tokenizer", sequence("pretokenizers", sequence("pretokenizers", SPLIT, BYTE_LEVEL))),
    ("pre_tokenizer", sequence("pretokenizers", sequence("pretokenizers", SPLIT), sequence("pretokenizers", BYTE_LEVEL))),
    ("pre_tokenizer", sequence("pretokenizers", sequence("pretokenizers", sequence("pretokenizers", SPLIT)), BYTE_LEVEL)),
])
def test_sequences_are_what_they_contain(tool, part, value):
    source = json.dumps(SMALL | {part: value})
    reference = open_both(tool, source)
    for text in ["Hello, world", "e\u0301 <think>it's 12\n\n  x", "漢字 <|im_end|>"]:
        compare(tool, reference, text)
        ids = tool.encode(text)
        assert tool.decode(ids) == reference.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("settings", [{"unk_token": "<|endoftext|>"}, {"byte_fallback": True},
                                      {"unk_token": "<|endoftext|>", "byte_fallback": True, "fuse_unk": True}])
def test_settings_for_unknown_bytes(tool, settings):
    """They change nothing where every byte has a token."""
    reference = open_both(tool, json.dumps(SMALL | {"model": SMALL["model"] | settings}))
    for text in ["Hello, world", "e\u0301 \x00\x7f <think>", "漢字 \U0010ffff"]:
        compare(tool, reference, text)


def test_ids_without_a_token(tool):
    reference = Tokenizer.from_str(json.dumps(SMALL))
    tool.open(json.dumps(SMALL), vocab=FIRST + 100)
    ids = [70, FIRST, 71, FIRST + 99]
    assert tool.decode(ids) == reference.decode(ids, skip_special_tokens=False)
    assert tool.decode([FIRST + 5]) == ""
