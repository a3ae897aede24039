#!/usr/bin/env python3
"""Checks which folder may include which (docs/architecture.md): reads every #include "..." and fails on a breach.
Checks too where PTX is written: of the CUDA sources in src/ only those in src/ops/hopper/ have asm, one instruction a
function.

A rule names the folders whose headers a part of the tree may use. The part is found by the longest matching prefix of
the file's path, so a rule for one file goes before the rule of its folder.
"""
import re
import subprocess
import sys

PUBLIC = "moebius/"
RULES = {
    "src/base/": ["base/", PUBLIC],
    "src/ops/common/": ["base/", "ops/common/", "ops/op_table.h", PUBLIC],
    "src/ops/hopper/": ["base/", "ops/hopper/", PUBLIC],
    # An operator sees itself, the shared parts, and its siblings through the table only.
    "src/ops/": ["base/", "ops/hopper/", "ops/common/", "ops/op_table.h", "@own", PUBLIC],
    "src/ops/op_table.h": ["ops/", PUBLIC],
    # The dense layer on the GPU is the grouped GEMM of one group.
    "src/ops/gemm/gemm_sm90.cu": ["base/", "ops/hopper/", "ops/common/", "ops/moe/moe_sm90.h", "@own", PUBLIC],
    "src/ops/gemm/few_prepare.cuh": ["base/", "ops/hopper/", "ops/common/", "ops/moe/to_fp8.cuh", "@own", PUBLIC],
    # A norm may make its rows in fp8.
    "src/ops/norm/norm_sm90.cu": ["base/", "ops/hopper/", "ops/common/", "ops/moe/to_fp8.cuh", "@own", PUBLIC],
    # A norm may be in front of the dense layer, and the sum of the experts in front of the norm.
    "src/ops/gemm/gemm.h": ["ops/common/", "ops/norm/norm.h", PUBLIC],
    "src/ops/gemm/gemm_ref.c": ["base/", "ops/common/", "ops/moe/arguments.h", "ops/moe/moe.h", "@own", PUBLIC],
    # The whole MoE block begins with a norm.
    "src/ops/moe/moe_sm90.h": ["ops/norm/norm.h", PUBLIC],
    "src/device/": ["base/", "ops/", "device/", PUBLIC],
    "src/comm/": ["base/", "device/", "comm/", PUBLIC],
    "src/grammar/": ["base/", "model/json.h", "grammar/", PUBLIC],
    "src/model/": ["base/", "device/", "comm/", "ops/op_table.h", "ops/common/dtype.h", "model/", PUBLIC],
    # Policy: tested and simulated without a model.
    "src/engine/prefix_cache.": ["base/", "engine/prefix_cache.h", PUBLIC],
    "src/engine/kv.": ["base/", "engine/prefix_cache.h", "engine/kv.h", PUBLIC],
    "src/engine/job.": ["base/", "engine/prefix_cache.h", "engine/job.h", PUBLIC],
    "src/engine/pace.": ["base/", "engine/pace.h", PUBLIC],
    "src/engine/scheduler.": ["base/", "engine/prefix_cache.h", "engine/kv.h", "engine/job.h", "engine/pace.h",
                              "engine/scheduler.h", PUBLIC],
    "src/engine/": ["base/", "device/", "comm/", "ops/op_table.h", "ops/common/dtype.h", "model/", "grammar/", "engine/",
                    PUBLIC],
    "src/bench/": ["base/", "device/", "ops/common/cost.h", "ops/common/dtype.h", "bench/", PUBLIC],
    "src/server/": ["base/", "server/", PUBLIC],
    "src/load/": ["base/", "load/", PUBLIC],
    "src/cli/": ["base/", "bench/bench.h", "server/server.h", "server/offline.h", "load/summary.h", "cli/", PUBLIC],
    "include/": [PUBLIC],
    "examples/": [PUBLIC],
}
# CUDA's headers stay where CUDA is spoken.
CUDA_ALLOWED = re.compile(r"\.cuh?$|^src/device/cuda\.c$|^src/comm/|^tests/gpu/")
CUDA_HEADER = re.compile(r"^(cuda|cublas|nccl|nvtx|nvToolsExt)")
PTX = re.compile(r"\b(asm|__asm__)\b\s*(volatile|__volatile__)?\s*\(")
PTX_ALLOWED = re.compile(r"^src/ops/hopper/|^(?!src/)|\.[ch]$")
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')


def allowed_for(path: str) -> list[str] | None:
    prefixes = [prefix for prefix in RULES if path.startswith(prefix)]
    return RULES[max(prefixes, key=len)] if prefixes else None


def breaches(path: str):
    allowed = allowed_for(path)
    own_folder = "/".join(path.removeprefix("src/").split("/")[:2]) + "/"  # ops/moe/ for all below src/ops/moe/
    for number, line in enumerate(open(path, encoding="utf-8"), 1):
        if PTX.search(line) and not PTX_ALLOWED.search(path):
            yield f"{path}:{number}: asm outside of src/ops/hopper/; give the instruction a function there"
        match = INCLUDE.match(line)
        if not match:
            continue
        bracket, header = match.groups()
        if CUDA_HEADER.match(header) and not CUDA_ALLOWED.search(path):
            yield f"{path}:{number}: CUDA header {header} outside of .cu, .cuh, device/cuda.c and comm/"
        if bracket == "<" or allowed is None:
            continue
        if not any(header.startswith(own_folder if a == "@own" else a) for a in allowed):
            yield f"{path}:{number}: may not include {header}; allowed: {', '.join(allowed)}"


def main() -> int:
    files = subprocess.run(["git", "ls-files", "*.c", "*.h", "*.cu", "*.cuh"], capture_output=True, text=True, check=True)
    found = [breach for path in files.stdout.split() for breach in breaches(path)]
    print("\n".join(found) if found else f"import rules: {len(files.stdout.split())} files, no breach")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
