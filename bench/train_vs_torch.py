#!/usr/bin/env python3
"""
A training step of one MoE layer against PyTorch's autograd in fp32: first the output and the gradients, then the time.

    python bench/train_vs_torch.py --thiek 256,256,128,16,2 --device cpu
    python bench/train_vs_torch.py --thiek 256,256,128,16,2 --device cpu --routing rounding --tile-rows 16
    python bench/train_vs_torch.py --thiek 512,256,128,16,2 --activation gelu --add-bias --output rows.jsonl

Each contender computes the same layer from tokens and router's matrix: moebius.nn.MoE, torch.nn.functional.grouped_mm
(torch._grouped_mm in older versions) with autograd, Hugging Face's eager and grouped_mm experts. moebius chooses the
experts; the others are given its choices, so that equal logits do not count as errors. drouter is the gradient of the
router's matrix. Exit status 1 when moebius is absent, refuses the device or its results are wrong.

Two forwards stand below: moebius with the routing given, and the ceiling: a layer of the same shape whose experts have
equally many rows, already sorted, as two batched GEMMs of cuBLAS with activation and weighted sum between them
(torch.compile fuses each of these two into one kernel). kept: what autograd keeps from the forward to the backward,
tokens included, parameters not. peak: memory taken by the pass beyond parameters, tokens and gradient of the output.
"""

import argparse
import sys

import torch
import torch.nn.functional as F

from measure import HOW, Sensors, append_rows, card_name, commit, median_us, row

LAUNCHED = "launched from Python"  # which runs ahead of the GPU where a pass takes the GPU longer
CHUNK = 1 << 26  # values compared at once: fp64 copies of a gradient would not fit

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
    parser.add_argument("--without", metavar="NAME", action="append", default=[], help="leave a contender out; can be repeated")
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
        if self.given.routing == "rounding":  # places without a choice come last
            order = order[: int(ends[-1])]
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

    def __call__(self, x, _ids):
        return self.module(x)  # chooses them itself


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
            if name in given.without:
                continue
            step(contender, x, ids, d_out)
            found.append(contender)
        except Missing as reason:
            print(f"  {name}: {reason}")
        except Exception as error:  # many libraries, many reasons, of which the first line is enough
            print(f"  {name}: does not run here: {(str(error) or type(error).__name__).splitlines()[0]}")
    return found


def difference(got, expected):
    """The reference's largest and mean absolute value, the largest difference, the mean one as a share, calc_diff."""
    maxima, sums = torch.zeros(2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for a, b in zip(got.flatten().split(CHUNK), expected.flatten().split(CHUNK), strict=True):
        a, b = a.double(), b.double()
        apart = (a - b).abs()
        maxima = torch.maximum(maxima, torch.stack([b.abs().max(), apart.max()]).cpu())
        sums += torch.stack([b.abs().sum(), apart.sum(), (a * a + b * b).sum(), (a * b).sum()]).cpu()
    values, apart, squares, products = sums.tolist()
    largest, most_apart = maxima.tolist()
    relative = apart / values if values else float(apart != 0)  # with K 1 the router has no gradient: all zeros
    return largest, values / expected.numel(), most_apart, relative, 1 - 2 * products / squares if squares else 0.0


def check(given, contenders, parameters, x, ids, d_out):
    """Prints everybody's differences; true when moebius is there and within its limits."""
    reference = step(Plain(given, leaves(parameters, torch.float32)), x.float(), ids, d_out.float())
    is_right = False
    for contender in contenders:
        print(f"\n{contender.name}")
        print(f"  {'':8}{'max |ref|':>12}{'mean |ref|':>12}{'max |diff|':>12}{'mean rel':>11}{'calc_diff':>11}")
        good = True
        for name, got in step(contender, x, ids, d_out).items():
            largest, mean, apart, relative, calc_diff = difference(got, reference[name])
            fits = relative <= LIMITS[given.dtype] and calc_diff <= 1e-4
            good = good and fits
            print(f"  {name:8}{largest:12.4g}{mean:12.4g}{apart:12.4g}{relative:11.1e}{calc_diff:11.1e}" + ("" if fits else "  WRONG"))
        if contender.name == "moebius":
            is_right = good
    return is_right


# ---- Memory --------------------------------------------------------------------------------------------------


def kept_bytes(forward, parameters):
    """What autograd keeps for the backward: each storage once, the parameters' not."""
    own, kept = {p.untyped_storage().data_ptr() for p in parameters}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = forward()
    del out
    return sum(kept.values())


def peak_bytes(function, device):
    """Memory that PyTorch's allocator hands out during function(), the result included; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    out = function()
    torch.cuda.synchronize()
    del out
    return torch.cuda.max_memory_allocated(device) - before


# ---- The ceiling ---------------------------------------------------------------------------------------------


def weighted_sum(y, places, weights):
    """out[t] = sum over k of weights[t, k] y[places[t, k]], in float32."""
    return (y[places].float() * weights[:, :, None]).sum(1).to(y.dtype)


def compiled(function):
    """Fused by torch.compile on a GPU; as it is where there is no compiler, and on the CPU."""

    def call(*arguments):
        if call.function is not function:
            try:
                return call.function(*arguments)
            except Exception as error:  # no Triton, no C compiler
                print(f"  torch.compile does not work: {(str(error) or type(error).__name__).splitlines()[0]}")
                call.function = function
        return function(*arguments)

    call.function = torch.compile(function) if torch.cuda.is_available() else function
    return call


class Ceiling:
    """The forward as dense algebra: rows sorted beforehand, as many for each expert, no routing."""

    name = "cuBLAS batched GEMMs"

    def __init__(self, given, shape, parameters):
        n_tokens, hidden, _, n_experts, top_k = shape
        if n_tokens * top_k % n_experts:
            raise Missing("T K is no multiple of E")
        if given.add_bias:
            raise Missing("compared without biases")
        n_rows, device = n_tokens * top_k, parameters["w2"].device
        self.w13, self.w2 = (parameters[name].detach().mT for name in ("w13", "w2"))
        self.rows = torch.randn(n_experts, n_rows // n_experts, hidden, device=device).to(self.w2.dtype)
        # Token t's choices are t K to t K + K - 1 in turn round the experts: each expert gets as many rows.
        choices = torch.arange(n_rows, device=device).view(n_tokens, top_k)
        self.places = choices % n_experts * (n_rows // n_experts) + choices // n_experts
        self.weights = torch.full((n_tokens, top_k), 1 / top_k, device=device)
        self.activate = compiled(lambda values: activate(given.activation, values))
        self.sum = compiled(weighted_sum)

    def __call__(self):
        hidden = self.activate(torch.bmm(self.rows, self.w13))
        y = torch.bmm(hidden, self.w2)
        return self.sum(y.view(-1, y.shape[-1]), self.places, self.weights)


# ---- Times ---------------------------------------------------------------------------------------------------


class Report:
    """Prints times, and collects the rows."""

    def __init__(self, given, shape, device, n_rows):
        self.given, self.card, self.device = given, card_name(device), device
        self.sides = dict(zip("THIEK", shape, strict=True))
        _, hidden, intermediate, _, _ = shape
        self.flops = (6 if given.activation in GATED else 4) * hidden * intermediate * n_rows
        self.rows = []
        self.how = f"L2 flushed, {LAUNCHED}" if device.type == "cuda" else "wall clock"

    def us(self, function):
        return median_us(function, self.device)

    def add(self, who, name, us, share, how="", **extra):
        given, tflops = self.given, share * self.flops / us * 1e-6
        memory = "".join(f"{extra[key] / (1 << 20):12.1f}" if extra.get(key) else f"{'':12}" for key in ("kept_bytes", "peak_bytes"))
        print(f"  {who:28}{name:>10}{us:12.1f}{tflops:10.3f}{memory}".rstrip(), flush=True)
        figures = {"pass": name, "routing": given.routing, "activation": given.activation, "bias": given.add_bias}
        figures |= {"grad_dtype": given.dtype, "us": round(us, 1), "tflops": round(tflops, 3)} | {k: v for k, v in extra.items() if v is not None}
        how = "; ".join(filter(None, [f"{self.how}, {HOW}", how]))
        self.rows.append(row("train_block", who, self.card, given.dtype, self.sides, figures, how, given.commit))


def time_contender(report, contender, x, ids, d_out):
    leaf = x.detach().requires_grad_()

    def inference():
        with torch.no_grad():
            return contender(x, ids)

    def forward():
        return contender(leaf, ids)

    def both():
        return step(contender, x, ids, d_out)

    memory = {
        "forward": {"kept_bytes": kept_bytes(forward, contender.parameters.values())},
        "both": {"peak_bytes": peak_bytes(both, x.device)},
    }
    with Sensors(x.device) as sensors:
        us = {name: report.us(function) for name, function in (("inference", inference), ("forward", forward), ("both", both))}
    us["backward"] = us["both"] - us["forward"]
    power = sensors.figures()
    for name, share in (("inference", 1), ("forward", 1), ("both", 3), ("backward", 2)):
        how = "backward: both - forward" if name == "backward" else ""
        report.add(contender.name, name, us[name], share, how, **memory.get(name, {}), **power)
    if power:
        drawn = f"{power['watts']:.0f} of {power['limit_watts']:.0f} W, SM clock {power['sm_mhz']:.0f} MHz"
        print(f"  {'':28}{drawn} (medians); at the limit the clock falls, so compare within a run")


def time_experts(report, given, parameters, x, ids):
    """moebius's forward with choices and weights given: what the ceiling computes, and the gather."""
    import moebius

    leaf, p = x.detach().requires_grad_(), leaves(parameters)
    weights = weights_of(x, p["router"], ids).detach().requires_grad_()
    options = {"activation": given.activation, "bias13": p.get("bias13"), "bias2": p.get("bias2")}
    us = report.us(lambda: moebius.moe(leaf, p["w13"], p["w2"], weights, ids, **options))
    report.add("moebius, routing given", "forward", us, 1)
    return us


def time_all(given, contenders, shape, parameters, x, ids, d_out):
    report = Report(given, shape, x.device, int((ids >= 0).sum()))
    print(f"\n  {'':28}{'pass':>10}{'us':>12}{'TFLOP/s':>10}{'kept MiB':>12}{'peak MiB':>12}")
    for contender in contenders:
        time_contender(report, contender, x, ids, d_out)
    us = time_experts(report, given, parameters, x, ids)
    try:
        if given.routing != "topk" or Ceiling.name in given.without:
            raise Missing("compared with top-k" if given.routing != "topk" else "left out")
        bound = report.us(Ceiling(given, shape, parameters))
        report.add(Ceiling.name, "forward", bound, 1, "experts with equally many rows, sorted beforehand")
        print(f"  moebius's forward with the routing given reaches {100 * bound / us:.1f} % of the batched GEMMs")
    except Missing as reason:
        print(f"  {Ceiling.name}: {reason}")
    return report.rows


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


def shape_of(text):
    try:
        shape = [int(n) for n in text.split(",")]
    except ValueError:
        shape = []
    if len(shape) != 5 or min(shape) < 1:
        sys.exit(f"train_vs_torch: --thiek {text}: give five whole numbers from 1, separated by commas")
    if shape[4] > min(32, shape[3]):
        sys.exit(f"train_vs_torch: --thiek {text}: K is {shape[4]}; with {shape[3]} experts it must be at most {min(32, shape[3])}")
    return shape


def refuse(given):
    """What would else fail after the first measurement, or in many lines."""
    if given.tile_rows < 1:
        sys.exit(f"train_vs_torch: --tile-rows is {given.tile_rows}; it must be at least 1")
    try:
        torch.empty(0, device=given.device)
    except Exception as error:  # no such device, no driver, a PyTorch without CUDA
        sys.exit(f"train_vs_torch: --device {given.device}: {(str(error) or type(error).__name__).splitlines()[0]}")
    if given.output:
        try:
            append_rows(given.output, [])
        except OSError as error:
            sys.exit(f"train_vs_torch: --output {given.output}: {error.strerror}")


def main():
    given = parse()
    shapes = [(text, shape_of(text)) for text in given.thiek or ["256,256,128,16,2"]]
    refuse(given)
    for text, shape in shapes:
        given.top_k = shape[4]
        x, d_out, parameters = make_layer(given, shape)
        print(f"T,H,I,E,K {text}, {given.dtype}, {given.activation}, {given.routing}, {card_name(x.device)}, torch {torch.__version__}")
        ids = choices(given, parameters, x)
        contenders = make_all(given, parameters, x, ids, d_out)
        if not any(contender.name == "moebius" for contender in contenders):
            sys.exit("train_vs_torch: moebius does not run here (see above)")
        if not given.skip_test and not check(given, contenders, parameters, x, ids, d_out):
            sys.exit("train_vs_torch: moebius's results are wrong (see above)")
        rows = time_all(given, contenders, shape, parameters, x, ids, d_out)
        if given.output:  # of each shape at once: a later one may fail
            append_rows(given.output, rows)


if __name__ == "__main__":
    main()
