#!/usr/bin/env python3
"""Fails when a kernel in a CUDA build uses local memory: a spill or a stack array, both ruinous in a hot kernel.

usage: check_spills.py BUILD_DIR CUDA_BIN_DIR. Reads the resource table of every device object with cuobjdump.
"""
import pathlib
import re
import subprocess
import sys

FUNCTION = re.compile(r"Function (\S+):")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)")


def main() -> int:
    build, cuda_bin = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    objects = sorted(build.rglob("*.cu.o"))
    kernels, bad = 0, []
    for path in objects:
        text = subprocess.run([cuda_bin / "cuobjdump", "--dump-resource-usage", path], capture_output=True, text=True, check=True)
        name = "?"
        for line in text.stdout.splitlines():
            if match := FUNCTION.search(line):
                name = match.group(1)
            elif match := USAGE.search(line):
                kernels += 1
                registers, stack, local = map(int, match.groups())
                if stack or local:
                    bad.append(f"{path.name}: {name}: {stack} B of stack, {local} B of local memory, {registers} registers")
    print("\n".join(bad) if bad else f"register spills: {len(objects)} objects, {kernels} kernels, none")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
