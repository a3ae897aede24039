#!/usr/bin/env python3
"""
A training step of one MoE layer against PyTorch's autograd in fp32: first the output and the gradients, then the time.

    python bench/train_vs_torch.py --thiek 256,256,128,16,2 --device cpu
    python bench/train_vs_torch.py --thiek 256,256,128,16,2 --device cpu --routing rounding --tile-rows 16
    python bench/train_vs_torch.py --thiek 512,256,128,16,2 --activation gelu --add-bias --output rows.jsonl

Each contender computes the same layer from tokens and router's matrix: moebius.nn.MoE, torch.nn.functional.grouped_mm
(torch._grouped_mm in older versions) with autograd, Hugging Face's eager and grouped_mm experts. The choices are
moebius's own, given to all, so that equal logits do not count as errors. drouter is the gradient of the router's
matrix. Exit status 1 when moebius is absent, refuses the device or its results are wrong.
"""

import argparse
import sys

import torch
import torch.nn.functional as F

from measure import HOW, Sensors, append_rows, card_name, commit, median_us, row

GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}
ONE_SIDED = {
    "silu": F.silu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Of moebius's mean absolute difference, as a share of the mean: bf16's is that of SonicMoE, arXiv 2512.14080.
LIMITS = {"bf16": 3e-2, "fp16": 4e-3, "fp32": 1e-4}
NAMES = {"w13": "dw1", "w2": "dw2", "bias13": "db1", "bias2": "db2", "router": "drouter"}


class Missing(Exception):
    """Why a contender cannot run here."""


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thiek", metavar="T,H,I,E,K", action="append", help="a shape; can be given several times")
    parser.add_argument("--routing", choices=("topk", "rounding"), default="topk")
    parser.add_argument("--tile-rows", type=int, default=128, help="of token rounding (default 128)")
    parser.add_argument("--activation", choices=(*GATED, *ONE_SIDED), default="swiglu")
    parser.add_argument("--add-bias", action="store_true", help="the experts have biases")
    parser.add_argument("--skip-test", action="store_true", help="do not compare, only time")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", metavar="FILE", help="append the rows to FILE; - prints them")
    parser.add_argument("--commit", default=commit(), help="what the rows name as the measured commit")
    return parser.parse_args()


def activate(activation, values):
    if activation in GATED:
        gate, up = values.chunk(2, dim=-1)
        return ONE_SIDED[GATED[activation]](gate) * up
    return ONE_SIDED[activation](values)


def weights_of(x, router, ids):
    """The choices' weights: softmax of the chosen logits; -1 is no choice."""
    logits = F.linear(x, router).float()
    chosen = logits.gather(1, ids.long().clamp(min=0)).masked_fill(ids < 0, -torch.inf)
    return torch.softmax(chosen, -1).masked_fill(ids < 0, 0)  # of a token without choices: NaN becomes 0


class Plain:
    """The layer expert by expert in plain PyTorch: the reference in fp32."""

    name = "torch, expert by expert"

    def __init__(self, given, parameters):
        self.given, self.parameters = given, parameters

    def __call__(self, x, ids):
        p = self.parameters
        weights, out = weights_of(x, p["router"], ids), torch.zeros_like(x)
        for e in range(len(p["w2"])):
            t, k = torch.where(ids == e)
            values = F.linear(x[t], p["w13"][e], p["bias13"][e] if "bias13" in p else None)
            y = F.linear(activate(self.given.activation, values), p["w2"][e], p["bias2"][e] if "bias2" in p else None)
            out = out.index_add(0, t, y * weights[t, k, None].to(y.dtype))
        return out


class GroupedMm(Plain):
    """Sorted rows, two grouped GEMMs with autograd, a weighted sum."""

    name = "torch grouped_mm"

    def __init__(self, given, parameters):
        super().__init__(given, parameters)
        self.grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
        if self.grouped_mm is None:
            raise Missing(f"torch {torch.__version__} has none")
        if given.add_bias or given.dtype == "fp16":
            raise Missing("compared without biases, in bf16 and fp32")

    def __call__(self, x, ids):
        p = self.parameters
        n_experts = len(p["w2"])
        weights = weights_of(x, p["router"], ids)
        sorted_ids, order = torch.where(ids < 0, n_experts, ids).flatten().sort(stable=True)
        ends = torch.searchsorted(sorted_ids, torch.arange(n_experts, device=x.device), right=True).to(torch.int32)
        n_rows = int(ends[-1]) if (ids < 0).any() else len(order)
        order = order[:n_rows]
        hidden = activate(self.given.activation, self.grouped_mm(x[order // ids.shape[1]], p["w13"].mT, offs=ends))
        y = self.grouped_mm(hidden, p["w2"].mT, offs=ends) * weights.flatten()[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add(0, order // ids.shape[1], y)


class HuggingFace(Plain):
    """Qwen3-MoE's experts of transformers in one of their implementations."""

    def __init__(self, given, parameters, implementation):
        super().__init__(given, parameters)
        self.name = f"HF {implementation}"
        try:
            from transformers import Qwen3MoeConfig
            from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
        except ImportError:
            raise Missing("transformers is not installed") from None
        if given.add_bias or given.activation != "swiglu" or given.routing != "topk":
            raise Missing("swiglu without biases, top-k")
        n_experts, hidden, intermediate = parameters["w2"].shape
        config = Qwen3MoeConfig(hidden_size=hidden, moe_intermediate_size=intermediate, num_experts=n_experts)
        config._experts_implementation = implementation
        with torch.device("meta"):
            self.experts = Qwen3MoeExperts(config)
        self.experts.gate_up_proj = torch.nn.Parameter(parameters["w13"], requires_grad=True)
        self.experts.down_proj = torch.nn.Parameter(parameters["w2"], requires_grad=True)
        self.parameters = {"router": parameters["router"], "w13": self.experts.gate_up_proj, "w2": self.experts.down_proj}

    def __call__(self, x, ids):
        return self.experts(x, ids.long(), weights_of(x, self.parameters["router"], ids).to(x.dtype))


class Moebius:
    name = "moebius"

    def __init__(self, given, parameters):
        try:
            from moebius.nn import MoE
        except ImportError as error:
            raise Missing(f"not installed: {error}") from None
        n_experts, hidden, intermediate = parameters["w2"].shape
        options = {"activation": given.activation, "bias": given.add_bias, "routing": given.routing}
        options |= {"tile_rows": given.tile_rows, "device": "meta", "dtype": parameters["w2"].dtype}
        self.module = MoE(hidden, intermediate, n_experts, given.top_k, **options)
        self.module.load_state_dict(parameters, assign=True)
        self.module.requires_grad_(True)
        self.parameters = dict(self.module.named_parameters())

    def __call__(self, x, ids):
        return self.module(x, ids=ids)


MAKERS = (
    Moebius,
    GroupedMm,
    lambda *a: HuggingFace(*a, "eager"),
    lambda *a: HuggingFace(*a, "grouped_mm"),
)


def step(contender, x, ids, d_out):
    """The output and the gradients by name."""
    x = x.detach().requires_grad_()
    out = contender(x, ids)
    names = list(contender.parameters)
    found = torch.autograd.grad(out, [x, *contender.parameters.values()], d_out)
    return {"o": out.detach(), "dx": found[0]} | {NAMES[n]: g for n, g in zip(names, found[1:], strict=True)}


def make_layer(given, shape):
    """x, d_out and the parameters, all random."""
    n_tokens, hidden, intermediate, n_experts, _ = shape
    generator = torch.Generator(given.device).manual_seed(1)

    def values(*size, deviation=1.0):
        normal = torch.randn(size, device=given.device, generator=generator)
        return (normal * deviation).to(DTYPES[given.dtype])

    rows = 2 * intermediate if given.activation in GATED else intermediate
    parameters = {
        "router": values(n_experts, hidden, deviation=hidden**-0.5),
        "w13": values(n_experts, rows, hidden, deviation=hidden**-0.5),
        "w2": values(n_experts, hidden, intermediate, deviation=intermediate**-0.5),
    }
    if given.add_bias:
        parameters |= {"bias13": values(n_experts, rows, deviation=0.5), "bias2": values(n_experts, hidden, deviation=0.5)}
    return values(n_tokens, hidden), values(n_tokens, hidden), parameters


def leaves(parameters, dtype=None):
    return {name: value.detach().to(dtype or value.dtype).requires_grad_() for name, value in parameters.items()}


def make_all(given, parameters, x, ids, d_out):
    found = []
    for make in MAKERS:
        name = getattr(make, "name", "HF")
        try:
            contender = make(given, leaves(parameters))
            name = contender.name
            step(contender, x, ids, d_out)
            found.append(contender)
        except Missing as reason:
            print(f"  {name}: {reason}")
        except Exception as error:  # many libraries, many reasons, of which the first line is enough
            print(f"  {name}: does not run here: {(str(error) or type(error).__name__).splitlines()[0]}")
    return found


def check(given, contenders, parameters, x, ids, d_out):
    """Prints everybody's differences; true when moebius is there and within its limits."""
    reference = step(Plain(given, leaves(parameters, torch.float32)), x.float(), ids, d_out.float())
    is_right = False
    for contender in contenders:
        print(f"\n{contender.name}")
        print(f"  {'':8}{'max |ref|':>12}{'mean |ref|':>12}{'max |diff|':>12}{'mean rel':>11}{'calc_diff':>11}")
        good = True
        for name, got in step(contender, x, ids, d_out).items():
            expected = reference[name].double()
            apart = (got.double() - expected).abs()
            mean = float(apart.mean() / expected.abs().mean())
            squares = (got.double() ** 2 + expected**2).sum()
            calc_diff = float(1 - 2 * (got.double() * expected).sum() / squares)
            fits = mean <= LIMITS[given.dtype] and calc_diff <= 1e-4
            good = good and fits
            figures = f"{float(expected.abs().max()):12.4g}{float(expected.abs().mean()):12.4g}{float(apart.max()):12.4g}"
            print(f"  {name:8}{figures}{mean:11.1e}{calc_diff:11.1e}" + ("" if fits else "  WRONG"))
        if contender.name == "moebius":
            is_right = good
    return is_right


def time_all(given, contenders, shape, x, ids, d_out):
    n_tokens, hidden, intermediate, n_experts, top_k = shape
    device, card = x.device, card_name(x.device)
    n_rows = int((ids >= 0).sum())
    forward_flops = (6 if given.activation in GATED else 4) * hidden * intermediate * n_rows
    rows = []
    print(f"\n  {'':28}{'pass':>10}{'us':>12}{'TFLOP/s':>10}")
    for contender in contenders:

        def inference(contender=contender):
            with torch.no_grad():
                return contender(x, ids)

        def forward(contender=contender):
            return contender(x, ids)

        with Sensors(device) as sensors:
            times = {
                "inference": (median_us(inference, device), 1),
                "forward": (median_us(forward, device), 1),
                "both": (median_us(lambda c=contender: step(c, x, ids, d_out), device), 3),
            }
        times["backward"] = (times["both"][0] - times["forward"][0], 2)
        power = sensors.figures()
        for name, (us, share) in times.items():
            tflops = share * forward_flops / us * 1e-6
            print(f"  {contender.name:28}{name:>10}{us:12.1f}{tflops:10.3f}")
            figures = {"pass": name, "routing": given.routing, "activation": given.activation, "bias": given.add_bias}
            figures |= {"us": round(us, 1), "tflops": round(tflops, 3)} | power
            how = f"{'L2 flushed' if device.type == 'cuda' else 'wall clock'}, {HOW}; choices given; backward: both - forward"
            sides = {"T": n_tokens, "H": hidden, "I": intermediate, "E": n_experts, "K": top_k}
            rows.append(row("train", contender.name, card, given.dtype, sides, figures, how, given.commit))
        if power:
            drawn = f"{power['watts']:.0f} of {power['limit_watts']:.0f} W, SM clock {power['sm_mhz']:.0f} MHz"
            print(f"  {'':28}{drawn} (medians); at the limit the clock falls, so compare within a run")
    return rows


def choices(given, parameters, x):
    """moebius's, rounded if that is asked for; without moebius PyTorch's top-k."""
    try:
        import moebius
        from moebius import training
    except ImportError:
        return F.linear(x, parameters["router"]).topk(given.top_k).indices.to(torch.int32)
    with torch.no_grad():
        logits = moebius.router_gemm(x, parameters["router"])
        ids = moebius.route(logits, given.top_k)[1]
        if given.routing == "rounding":
            ids = training.token_rounding(logits, ids, tile_rows=given.tile_rows).ids
    return ids


def main():
    given = parse()
    rows = []
    for text in given.thiek or ["256,256,128,16,2"]:
        shape = [int(n) for n in text.split(",")]
        if len(shape) != 5 or min(shape) < 1:
            sys.exit(f"train_vs_torch: --thiek {text}: give five whole numbers from 1, separated by commas")
        given.top_k = shape[4]
        x, d_out, parameters = make_layer(given, shape)
        print(f"T,H,I,E,K {text}, {given.dtype}, {given.activation}, {given.routing}, {card_name(x.device)}, torch {torch.__version__}")
        ids = choices(given, parameters, x)
        contenders = make_all(given, parameters, x, ids, d_out)
        if not any(contender.name == "moebius" for contender in contenders):
            sys.exit("train_vs_torch: moebius does not run here (see above)")
        if not given.skip_test and not check(given, contenders, parameters, x, ids, d_out):
            sys.exit("train_vs_torch: moebius's results are wrong (see above)")
        rows += time_all(given, contenders, shape, x, ids, d_out)
    if given.output:
        append_rows(given.output, rows)


if __name__ == "__main__":
    main()
