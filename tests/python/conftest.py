"""The tests use the package in the source tree, and the CPU build's library unless MOEBIUS_LIBRARY names another."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("MOEBIUS_LIBRARY", str(ROOT / "build/cpu/libmoebius.so"))
