"""Pre-tokenizer patterns against Hugging Face's `tokenizers`: the same pieces, or a refusal."""
import random
import re

import pytest
from tokenizers import Regex, pre_tokenizers

from text_tool import TextTool

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_WITH_MARKS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
                   r"|\s*[\r\n]+|\s+(?!\S)|\s+")
PUBLISHED = [
    QWEN, QWEN_WITH_MARKS,
    # GPT-2, Llama 3, GPT-4o, DeepSeek V3
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "[一-龥\u3040-ゟ゠-ヿ]+", r"\p{N}{1,3}",
]
CATEGORIES = ["L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Ps", "Pe",
              "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "C", "Cc", "Cf", "Co", "Cn"]
LONG = ["Letter", "Uppercase_Letter", "lowercaseletter", "Titlecase Letter", "MODIFIER-LETTER", "Other_Letter", "Mark",
        "Nonspacing_Mark", "Spacing_Mark", "Enclosing_Mark", "Number", "Decimal_Number", "Letter_Number", "Other_Number",
        "Punctuation", "Connector_Punctuation", "Dash_Punctuation", "Open_Punctuation", "Close_Punctuation",
        "Initial_Punctuation", "Final_Punctuation", "Other_Punctuation", "Symbol", "Math_Symbol", "Currency_Symbol",
        "Modifier_Symbol", "Other_Symbol", "Separator", "Space_Separator", "Line_Separator", "Paragraph_Separator", "Other",
        "Control", "Format", "Private_Use", "Unassigned", "lu", "^L", "^ Lu"]
# Planes 2 and 3 hold ideographs, planes 4 to 16 little but tags and variation selectors at U+E0000: their edges and some
# of the rest suffice.
CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and
              (c < 0x20000 or 0xE0000 <= c < 0xE0200 or c % 61 == 0 or 0 <= (c & 0xFFFF) - 0xA6C0 < 0x80)]
FEW = [c for c in CHARACTERS if ord(c) < 0x3000 or ord(c) % 31 == 0]


@pytest.fixture
def tool():
    client = TextTool()
    yield client
    client.close()


def reference(pattern, text):
    return [piece for piece, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]


def compare_code_points(tool, pattern, characters=CHARACTERS, around="{c}"):
    """The text is cut at line ends first: a difference is then that of one character."""
    pattern = r"\n|(?:" + pattern + ")"
    wrong = []
    for start in range(0, len(characters), 4096):
        part = characters[start:start + 4096]
        text = "\n".join(around.replace("{c}", c) for c in part)
        if tool.pieces(pattern, text) != reference(pattern, text):
            wrong += [f"U+{ord(c):04X}" for c in part
                      if tool.pieces(pattern, around.replace("{c}", c)) != reference(pattern, around.replace("{c}", c))]
    assert not wrong, f"{pattern}: {len(wrong)} code points: {' '.join(wrong[:40])}"


@pytest.mark.parametrize("category", CATEGORIES)
def test_category_of_every_code_point(tool, category):
    compare_code_points(tool, rf"\p{{{category}}}", CHARACTERS if len(category) == 2 or category in "LMN" else FEW)


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_pattern(tool, pattern):
    compare_code_points(tool, pattern, CHARACTERS if pattern == QWEN_WITH_MARKS else FEW, "a{c}b {c}1{c}!{c}{c}A{c}\u0301{c}\u0903 '{c}s")


@pytest.mark.parametrize("escape", [r"\s", r"\S", r"\d", r"\D", r"\P{L}", r"\p{^L}", r"\P{^L}", r"\P{M}", ".", r"[^\p{M}a]",
                                    r"[\P{L}]", r"[^\P{L}\d]", r"[^\S ]"])
def test_sets(tool, escape):
    compare_code_points(tool, escape, CHARACTERS if escape in (r"\s", ".") else FEW)


@pytest.mark.parametrize("name", LONG)
def test_names_of_categories(tool, name):
    text = "".join(random.Random(name).sample(CHARACTERS, 3000)) + "aA1 \u01c5\u0301\n_-()\u00ab\u00bb+$^\u2028\u2029\x01\u00ad"
    pattern = rf"\p{{{name}}}+"
    assert tool.pieces(pattern, text) == reference(pattern, text)


# Everything that can be written at one place of a pattern, in the translation's order.
CHARACTER = ["a", "B", "é", "漢", "1", "_", " ", "#", "!", ",", "-", "&", "~", "=", ":", "'", "\"", "<", ">", "/", "@", "`", "%", ";",
             *("\\" + c for c in "\\^$.[]|()?*+{}-/'\"#&~!%,:;<=>@_` rntf"), r"\x41", r"\x{e9}", r"\x{1F600}", r"\u6f22", r"\x09"]
SETS = [r"\s", r"\S", r"\d", r"\D", r"\p{L}", r"\P{L}", r"\p{^Lu}", r"\p{M}", r"\p{Punctuation}", r"\p{Nd}", r"\p{Zs}", r"\p{S}"]
REPEATS = ["", "", "", "", "*", "+", "?", "*?", "+?", "??", "*+", "++", "?+", "{2}", "{1,3}", "{2,}", "{,2}", "{1,2}?"]


def random_class(rng):
    items = []
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.3:
            low, high = sorted(rng.sample("abcxyzABC019éè漢語", 2))
            items.append(f"{low}-{high}")
        else:
            items.append(rng.choice(SETS if rng.random() < 0.4 else [c for c in CHARACTER if c not in ("-", "&")]))
    hyphens = rng.choice([("", ""), ("", ""), ("-", ""), ("", "-")])
    return "[" + rng.choice(["", "", "^"]) + hyphens[0] + "".join(items) + hyphens[1] + "]"


def random_atom(rng, depth, caseless):
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(CHARACTER)
    if kind < 6:
        return rng.choice([r"\s", r"\S", "."] if caseless else SETS + ["."])
    if kind < 8 and not caseless:
        return random_class(rng)
    if depth < 3:
        opening = rng.choice(["(", "(?:", "(?:", "(?i:", "(?=", "(?!", "(?>"])
        return opening + random_pattern(rng, depth + 1, caseless or opening == "(?i:") + ")"
    return rng.choice(["a", "^", "$", "}", "{", "]", "{,}", "{x}"])


def random_pattern(rng, depth=0, caseless=False):
    def branch():
        atoms = [random_atom(rng, depth, caseless) for _ in range(rng.randint(1, 4))]
        return "".join(atom + ("" if atom[:3] in ("(?=", "(?!") or atom in ("^", "$", "{", "{,}", "{x}") else rng.choice(REPEATS))
                       for atom in atoms)
    return "|".join(branch() for _ in range(rng.choice([1, 1, 2, 3])))


@pytest.mark.parametrize("pattern", [r"\P{Lu}??\P{Nd}+?|\(", r"\P{L}*\P{N}", r"[^\p{L}]?\P{M}+", r"\P{Nd}+\P{L}a", r"[aA]{0,2}(?>[-a ]*(?:&*?))[aA(&]"])
def test_sets_that_overlap(tool, pattern):
    """PCRE2 may make the repeat of a negated category possessive as if what follows shared no character with it."""
    rng = random.Random(4)
    for _ in range(300):
        text = "".join(rng.choice("aA1 %\u0301\u2160é漢&(") for _ in range(12))
        assert tool.pieces(pattern, text) == reference(pattern, text), repr(text)


def test_random_patterns(tool):
    rng = random.Random(16)
    letters = "aabBéÉ漢1_ #!,-&~=:'\"<>/@`%;\\^$.[]|()?*+{}\t\n\r\f語xXyZ09\u0301\u2160\U0001F600A\u00a0"
    compared = refused = 0
    for _ in range(4000):
        pattern = random_pattern(rng)
        try:
            Regex(pattern)
        except Exception:
            continue
        text = "".join(rng.choice(letters) for _ in range(rng.randint(1, 30)))
        got = tool.pieces(pattern, text)
        if isinstance(got, dict): # engines may differ in what they refuse, never in what they accept
            assert got["status"] in ("MB_ERR_UNSUPPORTED", "MB_ERR_FORMAT", "MB_ERR_CAPACITY"), (pattern, got)
            refused += 1
            continue
        try:
            want = reference(pattern, text)
        except BaseException as error: # Oniguruma gave up
            assert type(error).__name__ == "PanicException", error
            continue
        assert got == want, (pattern, text)
        compared += 1
    assert compared > 2000 and refused < compared / 10, (compared, refused)


@pytest.mark.parametrize("pattern", [r"\w+", r"\bx", r"\h", r"\R", r"\X", r"\v", r"(a)\1", r"\p{Han}", r"\p{Alpha}", r"\p{L&}", r"\pL",
                                     r"(?<n>a)", r"(?m:.)", r"(?x: a)", r"(?i)a", r"\Ka", r"\x80", r"a{2}?", r"a{2}+", r"a{0}", r"a{0,00}?", r"a{,0}",
                                     r"[[:alpha:]]", r"[a&&b]", r"[]a]", r"(?i:\p{Lu})", r"\Q.\E", r"\01", r"\cA"])
def test_refused(tool, pattern):
    answer = tool.pieces(pattern, "text")
    assert answer["status"] == "MB_ERR_UNSUPPORTED" and re.search(r"at byte \d+", answer["error"]), answer
