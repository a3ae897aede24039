"""The moebius binary on a pseudo-terminal, and checkpoints of random weights."""

import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import termios
import time

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("MOEBIUS_BIN", ROOT / "build/cpu/moebius")).resolve()
DEMO = ROOT / "models/demo"
GOLDEN = ROOT / "tests/golden"
TIMEOUT = 120


class Terminal:
    """A process on a pseudo-terminal of its own."""

    def __init__(self, *arguments, environment=None, program=BINARY):
        self.output = ""
        self.bytes = b""
        pid, self.master = pty.fork()
        if pid == 0:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it
            os.chdir(ROOT)
            os.environ.pop("NO_COLOR", None)
            os.environ.update({"TERM": "xterm", "HOME": "/nonexistent", **(environment or {})})
            os.execv(program, [str(program), *map(str, arguments)])
        self.pid = pid
        self.status = None
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))

    def _read(self, timeout):
        ready, _, _ = select.select([self.master], [], [], timeout)
        if not ready:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux reports the end of a terminal as EIO
            data = b""
        self.bytes += data
        self.output = self.bytes.decode("utf-8", "replace")
        return bool(data)

    def expect(self, pattern, after=0, timeout=60):
        """Waits until the output behind position `after` matches; answers the position behind the match."""
        end = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.output[after:])
            if match:
                return after + match.end()
            assert time.monotonic() < end, f"no {pattern!r} in {self.output[after:]!r}"
            if not self._read(0.2) and self._ended():
                self._read(0)
                match = re.search(pattern, self.output[after:])
                assert match, f"ended without {pattern!r}: {self.output[after:]!r}"
                return after + match.end()

    def settle(self):
        """Until the process has dealt with all signals and waits for input; reads what it printed."""
        wait_until_it_waits(self.pid)
        while self._read(0):
            pass

    def wait_for_catch(self):
        """Until the process catches Ctrl-C: before that, Ctrl-C ends it as it ends any program."""
        end = time.monotonic() + 60
        while True:
            is_ours = pathlib.Path(f"/proc/{self.pid}/exe").resolve() == BINARY  # before that it is Python, which catches too
            status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
            caught = int(re.search(r"SigCgt:\s*(\w+)", status).group(1), 16)
            if is_ours and caught & 1 << signal.SIGINT - 1:
                return
            assert time.monotonic() < end, status
            time.sleep(0.002)

    def send(self, text):
        os.write(self.master, text.encode())

    def type(self, text):
        """Sends what a line editor is to see: it prints its prompt just before it takes the terminal over. It lets the
        terminal turn no line break into another."""
        end = time.monotonic() + 60
        while (modes := termios.tcgetattr(self.master))[3] & termios.ICANON or modes[0] & (termios.INLCR | termios.ICRNL):
            assert time.monotonic() < end, f"no line editor: {self.output!r}"
            time.sleep(0.002)
        self.send(text)

    def _ended(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self, timeout=60):
        """Reads to the end; answers the exit status."""
        end = time.monotonic() + timeout
        while not self._ended():
            assert time.monotonic() < end, f"still running: {self.output!r}"
            self._read(0.1)
        while self._read(0):
            pass
        return self.status

    def close(self):
        if not self._ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.master)


def wait_until_it_waits(pid):
    """Until a process has taken every signal and sleeps. A signal on its way would end what the process does next."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        pending = [int(mask, 16) for mask in re.findall(r"(?:SigPnd|ShdPnd):\s*(\w+)", status)]
        if re.search(r"State:\s*S", status) and not any(mask & 1 << signal.SIGINT - 1 for mask in pending):
            return
        time.sleep(0.001)
    raise AssertionError(status)


def token_id(text):
    """The id of a token of the demo model, from the tokenizer's file."""
    document = json.loads((DEMO / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    return added.get(text, document["model"]["vocab"].get(text))


def write_checkpoint(directory, vocab, max_positions, hidden=64, layers=2, experts=4, intermediate=64, seed=1):
    """A Qwen3-MoE checkpoint of random fp32 weights, written with numpy alone."""
    directory.mkdir(parents=True, exist_ok=True)
    heads, kv_heads, head_dim = 4, 2, 16
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "vocab_size": vocab, "max_position_embeddings": max_positions,
        "num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": intermediate,
        "intermediate_size": intermediate, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False,
        "tie_word_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (heads * head_dim, hidden),
            prefix + "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            prefix + "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, heads * head_dim),
            prefix + "self_attn.q_norm.weight": (head_dim,),
            prefix + "self_attn.k_norm.weight": (head_dim,),
            prefix + "mlp.gate.weight": (experts, hidden),
        }
        for expert in range(experts):
            shapes |= {
                f"{prefix}mlp.experts.{expert}.gate_proj.weight": (intermediate, hidden),
                f"{prefix}mlp.experts.{expert}.up_proj.weight": (intermediate, hidden),
                f"{prefix}mlp.experts.{expert}.down_proj.weight": (hidden, intermediate),
            }
    random, header, body = numpy.random.default_rng(seed), {}, bytearray()
    for name, shape in shapes.items():
        values = random.normal(0, 0.3, shape) if len(shape) == 2 else 1 + random.normal(0, 0.1, shape)
        data = values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))
    (directory / "config.json").write_text(json.dumps(config))
    return directory
