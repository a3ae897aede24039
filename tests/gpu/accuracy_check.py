"""The demo model's held-out answers on a device: python tests/gpu/accuracy_check.py [--device cpu|cuda] [--every
N]

All 2000 prompts are answered greedily in bf16, with fp8 weights, with an fp8 KV cache, and with both. Where
an answer is right or wrong, as many must be right as with Hugging Face in fp32, but for 0.5 % of them in bf16
and 1 % in fp8. Stories have no right answer; of them it is printed how many are word for word the
reference's.
"""

import argparse
import json
import time

from engine_support import DEMO, Model, Session, Verdict

KINDS = {"bf16": ({}, 0.005), "fp8 weights": ({"quant": "fp8"}, 0.01), "fp8 KV": ({"kv_dtype": "fp8"}, 0.01),
         "fp8 weights and KV": ({"quant": "fp8", "kv_dtype": "fp8"}, 0.01)}  # fmt: skip
MAX_NEW = 512


def answers(model, rows):
    """-> the text of each answer after its thinking."""
    with Session(model, max_sequences=256, max_context=2048, kv_tokens=64 * 1024, max_queued=len(rows)) as session:
        sequences = [session.submit(row["prompt_ids"], MAX_NEW, ignore_eos=False) for row in rows]
        session.finish(sequences)
    return [model.text([id for id, _ in s.tokens]).rpartition("</think>")[2].strip("\n") for s in sequences]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--every", type=int, default=1, help="only every Nth prompt")
    given = parser.parse_args()
    with open(DEMO / "heldout.jsonl") as file:
        rows = [json.loads(line) for i, line in enumerate(file) if i % given.every == 0]
    verdict = Verdict("accuracy_check")
    for name, (options, allowed) in KINDS.items():
        begin = time.perf_counter()
        with Model(DEMO, given.device, dtype="bf16", **options) as model:
            got = answers(model, rows)
        judged = [(text == row["expected"], row["hf_correct"]) for text, row in zip(got, rows) if row["expected"]]
        stories = [text == row["hf_answer"] for text, row in zip(got, rows) if not row["expected"]]
        right, of_hf = sum(mine for mine, _ in judged), sum(theirs for _, theirs in judged)
        verdict.say(
            right >= of_hf - allowed * len(judged),
            f"{name}: {right} of {len(judged)} right, HF {of_hf}; {sum(stories)} of {len(stories)} stories as HF's; "
            f"{time.perf_counter() - begin:.0f} s",
        )
    verdict.end()


if __name__ == "__main__":
    main()
