"""What the tests of moebius.Engine share: the demo model, and programs of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models/demo"
STORY = "Once upon a time"


def run_program(text):
    """What a program prints that begins with an open `engine`. It must end well and say nothing on stderr."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT / 'python')!r})\nfrom moebius import Engine\nDEMO = {str(DEMO)!r}\nengine = Engine(DEMO)\n"
    done = subprocess.run([sys.executable, "-c", code + text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
