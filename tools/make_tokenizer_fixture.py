#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/tokenizer.json: a small byte-level BPE with Qwen's scheme, for the tokenizer's tests.

It is trained on text that this script generates, so that merges of many scripts, of white space, of code and of
emoji exist. The same version of `tokenizers` gives the same file.

    python3 tools/make_tokenizer_fixture.py
"""
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUTPUT = Path(__file__).resolve().parent.parent / "tests/golden/tokenizer/tokenizer.json"
N_TOKENS = 3000

# Qwen2's and Qwen3's pre-tokenizer pattern, as their tokenizer.json has it.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

# First letter, number of letters: alphabets and syllabaries that random words are spelled with.
SCRIPTS = [
    ("a", 26), ("a", 26), ("a", 26), ("A", 26), ("à", 23), ("α", 25), ("а", 32), ("ա", 38), ("א", 27), ("ا", 36),
    ("अ", 53), ("অ", 40), ("ก", 46), ("ა", 33), ("ሀ", 60), ("あ", 80), ("ア", 80), ("가", 500), ("一", 800), ("𐐀", 40),
]
CODE = [
    "for (int i = 0; i < n; i++) {\n    sum += values[i];\n}\n",
    "def area(width, height):\n    return width * height\n\n",
    "https://example.org/path/to/page?query=value&other=1#part\n",
    '{"name": "value", "list": [1, 2, 3], "none": null}\n',
    "if (!x) return -1;\t// nothing to do\r\n",
    "<div class=\"item\">text</div>\n",
]
ENDINGS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "", "", "", "", ",", ".", "!", "?", ":", " -", "..."]


def words(rng, count):
    for _ in range(count):
        first, size = rng.choice(SCRIPTS)
        # Few letters are frequent, as in real text: otherwise nothing would be worth a merge.
        word = "".join(chr(ord(first) + min(int(rng.expovariate(6 / size)), size - 1)) for _ in range(rng.randint(1, 8)))
        yield word + rng.choice(ENDINGS) + rng.choice([" "] * 8 + ["\n", "\n\n", "  ", "   \n", "\t", "\r\n", "        "])


def documents():
    rng = random.Random(1)
    for _ in range(3000):
        yield "".join(words(rng, 40))
        yield rng.choice(CODE) * rng.randint(1, 3)
        yield "".join(chr(rng.choice([0x1F600, 0x1F468, 0x1F1E6]) + rng.randrange(20)) for _ in range(3)) + "\u200d\ufe0f"
        yield "e" + chr(0x300 + rng.randrange(20)) + chr(0x316 + rng.randrange(6)) + " " + str(rng.randrange(10**6))


def main():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=N_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(documents(), trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im"])
    # The arrow is for the reference's decoder, which misreads added tokens of Latin-1 letters alone as spelled bytes.
    for content, normalized in [("<tool_call>", False), ("</tool_call>", False), ("<think>", False),
                                ("</think>", False), ("<think>\n", False), ("ünïque→", False), ("née→", True),
                                ("  two  ", True), ("한", True)]:
        tokenizer.add_tokens([AddedToken(content, special=False, normalized=normalized)])
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(OUTPUT), pretty=False)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes, {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
