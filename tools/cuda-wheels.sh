#!/usr/bin/env bash
# Makes a CUDA 13.0 compiler from PyPI's wheels for machines whose distribution has none: tools/cuda-wheels.sh DIR.
# Give CMake the true path of DIR/nvcc: the compiler finds its parts beside itself.
set -euo pipefail
directory=$1
python3 -m venv --clear "$directory"
"$directory/bin/pip" install -q --disable-pip-version-check --no-deps -r "$(dirname "$0")/cuda-13.0.txt"
root=$(realpath "$directory"/lib/python3*/site-packages/nvidia/cu13)
# The wheels hold versioned libraries only and no lib64; linkers and CMake look for both.
ln -sfn lib "$root/lib64"
(cd "$root/lib" && for library in *.so.*; do [ -e "$library" ] && ln -sfn "$library" "${library%%.so.*}.so"; done)
ln -sfn "$root/bin/nvcc" "$directory/nvcc"
"$directory/nvcc" --version | tail -n 1
