#!/usr/bin/env python3
"""Writes a checkpoint folder without weights whose tokenizer has as many tokens as wanted, always the same ones:

    python tools/made_up_vocabulary.py DIR [--tokens 151936]
    moebius bench text DIR

    python tools/made_up_vocabulary.py DIR --config bench/shapes/qwen3-30b-a3b/config.json
    moebius serve DIR --random-weights

The tokens are as byte-pair merging gives them: all bytes, words with and without a space before, pieces of JSON and
of programs, other scripts and parts of their characters, runs of spaces. No merges: the folder is for masks and
templates, and for servers that are measured with random weights, not for text. The template is models/demo's, and so
is config.json without --config.
"""
import argparse
import json
import pathlib
import random

DEMO = pathlib.Path(__file__).resolve().parent.parent / "models" / "demo"
SYLLABLES = ("ta in er con pro re an th ing tion s e al lo mi sub ver com na id or ist un est ble ment ac ke ra do "
             "wi le so ha be no").split()
SIGNS = '""""{}[]():;,,,...//--==<>\\\\\n\n\t  _\'#'
SCRIPT = "éßжобאبक中文的是不了人我在有他这あいうのにを한국어😀🚀"


def byte_letters():
    """The letter that stands for each byte in byte-level tokenizers (GPT-2)."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in seen}
    for i, byte in enumerate(b for b in range(256) if b not in letters):
        letters[byte] = chr(256 + i)
    return letters


def make_word(rng):
    word = "".join(rng.choices(SYLLABLES, k=rng.randint(1, 5)))
    return word.capitalize() if rng.random() < 0.17 else word


def make_token(rng):
    kind = rng.random()
    signs = "".join(rng.choices(SIGNS, k=rng.randint(1, 5)))
    if kind < 0.45:
        return (" " + make_word(rng)).encode()
    if kind < 0.72:
        return make_word(rng).encode()
    if kind < 0.95:
        script = "".join(rng.choices(SCRIPT, k=rng.randint(1, 4))).encode()
        return script[:-1] if rng.random() < 0.2 else script
    if kind < 0.97:
        return signs.encode()
    if kind < 0.98:
        return (make_word(rng) + signs).encode()
    if kind < 0.995:
        return (signs + make_word(rng)).encode()
    return rng.choice([b" ", b"-", b"=", b"\n"]) * rng.randint(1, 60)


def main():
    parser = argparse.ArgumentParser(description="a folder with a tokenizer of made-up tokens")
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=151936)
    parser.add_argument("--config", type=pathlib.Path, default=DEMO / "config.json", help="of another shape of model")
    args = parser.parse_args()
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    config, demo = json.loads(args.config.read_text()), json.loads((DEMO / "config.json").read_text())
    n_added = len(tokenizer["added_tokens"])
    if not 256 + n_added <= args.tokens <= 1 << 20:
        parser.error(f"--tokens must be from {256 + n_added} to {1 << 20}")

    rng, letters = random.Random(1), byte_letters()
    tokens = dict.fromkeys(bytes([byte]) for byte in range(256))  # in order, each once
    while len(tokens) < args.tokens - n_added:
        tokens[make_token(rng)] = None
    vocab = {"".join(letters[byte] for byte in token): i for i, token in enumerate(tokens)}
    ids = {}
    for i, added in enumerate(tokenizer["added_tokens"]):
        ids[added["id"]] = added["id"] = len(vocab) + i
    tokenizer["model"]["vocab"], tokenizer["model"]["merges"] = vocab, []
    settings = json.loads((DEMO / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder", None)  # the ids are others
    config["vocab_size"] = args.tokens
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config[key] = ids.get(demo.get(key))

    args.directory.mkdir(parents=True, exist_ok=True)
    (args.directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (args.directory / "config.json").write_text(json.dumps(config))
    (args.directory / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main()
