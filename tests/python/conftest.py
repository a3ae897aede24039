"""The package is the source tree's, the library the CPU build's, unless MOEBIUS_LIBRARY names another."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("MOEBIUS_LIBRARY", str(ROOT / "build/cpu/libmoebius.so"))
