"""Checkpoints that answer what a script says: real models in every respect but their weights, for tests of all that
surrounds a model.

    write_parrot(directory, {"weather": "It rains.", "call": "<tool_call>..."}, template)

A prompt that has the text "<say weather>" in it gets the answer "It rains." and then the end of text, whatever the
temperature; the last such text counts. Without one the greedy answer is the first script. How it works: the answer is cut into pieces, each a
token of its own, so the next token is a function of the last one. Each token's embedding is a random code; the row of lm_head
of a token is the code of its predecessor, and everything between is the identity, but for one attention head that looks for the
newest "<say ...>" and adds its number. The layer's experts give zero.
"""

import json
import pathlib
import struct

import numpy

DEMO = pathlib.Path(__file__).resolve().parents[2] / "models/demo"
HIDDEN, HEAD, MAX_SCRIPTS = 512, 32, 32
SCRIPT, CODE = 2, 2 + MAX_SCRIPTS  # where in the hidden vector: 0 is always 1, 1 says "<say ...>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]

# Shows calls as Qwen3-Coder's template does. (The demo model's is Qwen3's.)
CODER_TEMPLATE = """{%- if tools %}{{ '<|im_start|>system\\n' ~ (tools | tojson) ~ '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ (m.content or '') }}
{%- for call in m.tool_calls or [] %}{{ '<tool_call>\\n<function=' ~ call.function.name ~ '>\\n' }}
{%- for key, value in call.function.arguments.items() %}{{ '<parameter=' ~ key ~ '>\\n' ~ value ~ '\\n</parameter>\\n' }}
{%- endfor %}{{ '</function>\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def byte_letters():
    """The letters that byte-level tokenizers write bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def cut(text, used):
    """The text as pieces that are not in `used`, each as short as can be and at least two bytes; adds them to `used`."""
    data, pieces, at = text.encode(), [], 0
    while at < len(data):
        end = at + 2
        while end <= len(data) and data[at:end] in used:
            end += 1
        if end > len(data):  # the rest is taken: the piece before grows
            last = pieces.pop() if pieces else b""
            used.discard(last)
            rest = last + data[at:]
            if len(rest) < 2 or rest in used:
                raise ValueError(f"a script that cannot be cut into new pieces: {text!r}; make its end longer")
            end, at = len(data), len(data) - len(rest)
        pieces.append(data[at:end])
        used.add(data[at:end])
        at = end
    return pieces


def write_parrot(directory, scripts, template=None, max_positions=8192):
    """Writes the checkpoint, with the demo model's chat template (Qwen3's) unless one is given; answers the directory."""
    template = template or json.loads((DEMO / "tokenizer_config.json").read_text())["chat_template"]
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    letters = byte_letters()
    added = SPECIAL + TAGS + [f"<say {name}>" for name in scripts]
    used = {text.encode() for text in added}
    answers = [cut(text, used) for text in scripts.values()]
    pieces = [piece for answer in answers for piece in answer]
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab |= {"".join(letters[byte] for byte in piece): 256 + i for i, piece in enumerate(pieces)}
    added_ids = {text: len(vocab) + i for i, text in enumerate(added)}
    _write_tokenizer(directory, vocab, added_ids, template)
    _write_weights(directory, answers, added_ids, list(scripts), len(vocab) + len(added), max_positions)
    return directory


def _write_tokenizer(directory, vocab, added_ids, template):
    tokens = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": text in SPECIAL}
        for text, i in added_ids.items()
    ]  # fmt: skip
    document = json.loads((DEMO / "tokenizer.json").read_text())
    document["added_tokens"] = tokens
    document["model"] |= {"vocab": vocab, "merges": []}
    (directory / "tokenizer.json").write_text(json.dumps(document))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
              "chat_template": template}  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _write_weights(directory, answers, added_ids, names, n_tokens, max_positions):
    end = added_ids["<|im_end|>"]
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": HIDDEN,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD,
        "vocab_size": n_tokens, "max_position_embeddings": max_positions, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16, "intermediate_size": 16, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False,
        "tie_word_embeddings": False, "torch_dtype": "float32", "eos_token_id": end,
        # The head's slowest pair of dimensions turns by pi / 3 over all positions.
        "rope_theta": float((3 * max_positions / numpy.pi) ** (HEAD / (HEAD - 2))),
    }  # fmt: skip
    random = numpy.random.default_rng(1)

    def code():
        vector = numpy.zeros(HIDDEN)
        vector[CODE:] = random.choice([-1.0, 1.0], HIDDEN - CODE)
        return vector

    before, last = code(), code()  # of every token that is no piece, and of every answer's last piece
    embed, head = numpy.tile(before, (n_tokens, 1)), numpy.zeros((n_tokens, HIDDEN))
    head[end] = last
    piece = 256
    for number, answer in enumerate(answers):
        previous = before.copy()
        previous[SCRIPT + number] = (HIDDEN - CODE) / 2 / 10  # the head adds 10 there
        for k in range(len(answer)):
            head[piece] = previous
            previous = embed[piece] = last if k == len(answer) - 1 else code()
            piece += 1
        if not answer:
            head[end] += previous
        say = added_ids[f"<say {names[number]}>"]
        embed[say, 1] = embed[say, SCRIPT + number] = 1
    embed[:, 0] = 1

    pair = HEAD // 2 - 1  # the slowest; it is (pair, pair + HEAD / 2)
    query, key, value, output = (numpy.zeros(shape) for shape in [(HEAD, HIDDEN)] * 3 + [(HIDDEN, HEAD)])
    # The score is S cos(pi/6 + angle between the positions): it falls with the distance, and is 0 for other tokens.
    query[pair, 0], query[pair + HEAD // 2, 0] = numpy.cos(numpy.pi / 6), numpy.sin(numpy.pi / 6)
    key[pair, 1] = 1
    value[numpy.arange(MAX_SCRIPTS), SCRIPT + numpy.arange(MAX_SCRIPTS)] = 1
    output[SCRIPT + numpy.arange(MAX_SCRIPTS), numpy.arange(MAX_SCRIPTS)] = 10
    ones, layer = numpy.ones(HIDDEN), "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": embed, "lm_head.weight": head, "model.norm.weight": ones,
        layer + "input_layernorm.weight": ones, layer + "post_attention_layernorm.weight": ones,
        layer + "self_attn.q_proj.weight": query, layer + "self_attn.k_proj.weight": key,
        layer + "self_attn.v_proj.weight": value, layer + "self_attn.o_proj.weight": output,
        layer + "self_attn.q_norm.weight": numpy.full(HEAD, 4000.0), layer + "self_attn.k_norm.weight": numpy.ones(HEAD),
        layer + "mlp.gate.weight": numpy.zeros((2, HIDDEN)),
    }  # fmt: skip
    for expert in range(2):
        prefix = f"{layer}mlp.experts.{expert}."
        tensors |= {prefix + "gate_proj.weight": numpy.zeros((16, HIDDEN)), prefix + "up_proj.weight": numpy.zeros((16, HIDDEN)),
                    prefix + "down_proj.weight": numpy.zeros((HIDDEN, 16))}  # fmt: skip
    header, body = {}, bytearray()
    for name, tensor in tensors.items():
        data = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))
    (directory / "config.json").write_text(json.dumps(config))
