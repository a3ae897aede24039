"""Turns tasks into chats, and chats into packed training batches.

    python tools/demo/data.py 20      prints 20 sample documents
"""
import random
import re
import sys

import numpy as np

import tasks

ROW = 512  # tokens in one packed row, and the longest chat
PAD_DOC_TOKEN = 0

SYSTEM = ["You are a helpful assistant.", "You are a friendly assistant.", "You are moebius, a small demo model.",
          "Help the user."]
RESULT_ONLY = ["Answer with the result only.", "Reply with the result only.", "Give only the result."]
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def render(messages):
    """What the chat template makes of plain messages, with the assistant's turn opened (eval.py checks this)."""
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages) + "<|im_start|>assistant\n"


def random_task(rng, held_out=False):
    family = rng.choices(list(tasks.FAMILIES), list(tasks.FAMILIES.values()))[0]
    return family(rng, held_out)


def make_chat(rng, task, n_turns_before):
    """-> (messages that end with the task's question, the answer)."""
    messages, short = [], False
    dice = rng.random()
    if dice < 0.10:
        messages.append(("system", rng.choice(SYSTEM)))
    elif dice < 0.15 and task.short:
        messages.append(("system", rng.choice(RESULT_ONLY)))
        short = True
    for _ in range(n_turns_before):
        before = random_task(rng)
        while short and not before.short:
            before = random_task(rng)
        messages += [("user", before.question), ("assistant", before.short if short else before.answer)]
    messages.append(("user", task.question))
    return messages, task.short if short else task.answer


def training_document(rng):
    """-> (prompt without loss, completion with loss)."""
    dice = rng.random()
    if dice < 0.01:  # stories without any chat around them, so that plain completion works too
        text = tasks.story(rng, False).answer
        return "", text + "<|endoftext|>"
    task = random_task(rng)
    thinking = rng.random() < 0.4
    n_before = 0 if dice < 0.80 else rng.randint(1, 2) if dice < 0.95 else rng.randint(3, 7)
    messages, answer = make_chat(rng, task, n_before)
    if thinking:
        return render(messages), f"<think>\n{task.thought}\n</think>\n\n{answer}<|im_end|>"
    return render(messages) + EMPTY_THOUGHT, answer + "<|im_end|>"


class Packer:
    """Fills rows of ROW tokens with whole documents."""

    def __init__(self, tokenizer, seed, n_rows):
        self.tokenizer, self.rng, self.n_rows = tokenizer, random.Random(seed), n_rows
        self.waiting = []

    def documents(self):
        while True:
            pairs = [training_document(self.rng) for _ in range(512)]
            encoded = self.tokenizer.encode_batch_fast([text for pair in pairs for text in pair],
                                                       add_special_tokens=False)
            for prompt, completion in zip(encoded[::2], encoded[1::2]):
                if len(prompt.ids) + len(completion.ids) <= ROW:
                    yield prompt.ids, completion.ids

    def batches(self):
        """Yields dicts of arrays [n_rows, ROW]: ids, position in the document, document number, loss mask."""
        documents = self.documents()
        prompt, completion = next(documents)
        while True:
            ids = np.full((self.n_rows, ROW), PAD_DOC_TOKEN, np.uint16)
            position = np.zeros((self.n_rows, ROW), np.uint16)
            document = np.full((self.n_rows, ROW), 255, np.uint8)
            loss = np.zeros((self.n_rows, ROW), np.uint8)
            for row in range(self.n_rows):
                at, i_document = 0, 0
                while at + len(prompt) + len(completion) <= ROW:
                    end, middle = at + len(prompt) + len(completion), at + len(prompt)
                    ids[row, at:end] = prompt + completion
                    position[row, at:end] = np.arange(end - at)
                    document[row, at:end] = i_document
                    loss[row, middle:end] = 1
                    at, i_document = end, i_document + 1
                    prompt, completion = next(documents)
                position[row, at:] = np.arange(ROW - at)
            yield {"ids": ids, "position": position, "document": document, "loss": loss}


def corpus(n_documents, seed=0):
    """Text that the tokenizer is trained on."""
    rng = random.Random(seed)
    for _ in range(n_documents):
        prompt, completion = training_document(rng)
        yield from re.split(r"<\|?/?\w+\|?>", prompt + completion)


if __name__ == "__main__":
    generator = random.Random(1)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        print("".join(training_document(generator)), end="\n---\n")
