#!/usr/bin/env python3
"""Measures the demo model on held-out tasks with transformers and writes models/demo/heldout.jsonl.

    python tools/demo/eval.py [--model models/demo] [--per-family 200]

Greedy, fp32 from the stored bf16 weights. Every line of the file holds one prompt, what Hugging Face answered and
whether that was right, so that another engine can be compared without Hugging Face:

  id, family, thinking   thinking false: the prompt ends with an empty <think> block
  prompt, prompt_ids     rendered text and its ids
  expected               the right answer, without thinking; "" for stories, which a checker judges
  hf_answer, hf_ids      what followed </think>, and every new id up to the end token
  hf_correct
"""
import argparse
import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
import stories
import tasks

MAX_NEW = 256


def held_out_set(tokenizer, per_family):
    rows, seen = [], set()
    for family in tasks.FAMILIES:
        if family is tasks.chat:  # small talk has too few forms to hold any out
            continue
        rng, n = random.Random(f"heldout {family.__name__}"), 0
        while n < per_family:
            thinking = n % 2 == 0
            task = family(rng, True)
            messages, expected = data.make_chat(rng, task, int(rng.random() < 0.1))
            prompt = tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in messages], tokenize=False,
                add_generation_prompt=True, enable_thinking=thinking)
            if prompt != data.render(messages) + ("" if thinking else data.EMPTY_THOUGHT):
                raise SystemExit("data.render() and the chat template disagree")
            if prompt in seen:
                continue
            seen.add(prompt)
            rows.append({
                "id": f"{task.family}-{n:03}", "family": task.family, "thinking": thinking, "prompt": prompt,
                "prompt_ids": tokenizer(prompt)["input_ids"], "expected": "" if task.subject else expected,
                "subject": task.subject})
            n += 1
    return rows


def answer_of(text):
    """What follows the thoughts."""
    return text.split("</think>")[-1].lstrip("\n")


def is_right(row, text):
    return stories.is_story(text, *row["subject"]) if row["subject"] else text == row["expected"]


@torch.no_grad()
def answer(model, tokenizer, rows):
    """Greedy answers of one batch, padded on the left."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    width = max(len(r["prompt_ids"]) for r in rows)
    ids = torch.tensor([[pad] * (width - len(r["prompt_ids"])) + r["prompt_ids"] for r in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(r["prompt_ids"])) + [1] * len(r["prompt_ids"]) for r in rows],
                        device=model.device)
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, temperature=None, top_k=None,
                         top_p=None, max_new_tokens=MAX_NEW, pad_token_id=pad)
    for row, new in zip(rows, out[:, width:].tolist()):
        row["hf_ids"] = new[:new.index(end) + 1] if end in new else new
        text = tokenizer.decode(row["hf_ids"], skip_special_tokens=True)
        row["hf_answer"] = answer_of(text)
        row["hf_correct"] = end in new and is_right(row, row["hf_answer"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--model", type=Path, default=root / "models" / "demo")
    parser.add_argument("--per-family", type=int, default=200)
    parser.add_argument("--out", type=Path, help="default: heldout.jsonl beside the model")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32,
                                                 experts_implementation="eager").to(device).eval()
    rows = held_out_set(tokenizer, arguments.per_family)
    print(f"{'family':14}{'thinking':>10}{'direct':>10}{'both':>10}")
    right = 0
    for family in dict.fromkeys(r["family"] for r in rows):
        group = [r for r in rows if r["family"] == family]
        answer(model, tokenizer, group)
        shares = [sum(r["hf_correct"] for r in part) / max(1, len(part)) for part in (
            [r for r in group if r["thinking"]], [r for r in group if not r["thinking"]], group)]
        right += sum(r["hf_correct"] for r in group)
        print(f"{family:14}" + "".join(f"{100 * share:9.1f}%" for share in shares), flush=True)
    print(f"all: {right} of {len(rows)} right, {100 * right / len(rows):.2f}%")
    with open(arguments.out or arguments.model / "heldout.jsonl", "w") as file:
        for row in rows:
            row.pop("subject")
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
