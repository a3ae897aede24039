"""bench/measure.py: power as nvidia-smi tells it, with a program of our own in its place."""

import pathlib
import sys
import time
import types

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import measure  # noqa: E402

# What it prints where it is asked for the power of the moment, else a mean; with -lms again and again.
PROGRAM = """#!/bin/sh
draw='echo "1500, 350.00, 700.00"'
case "$*" in *power.draw.instant*) draw='%s' ;; esac
eval "$draw"
case "$*" in *-lms*) touch "$0.told"; while sleep 0.05; do eval "$draw"; done ;; esac
"""


@pytest.mark.parametrize(
    "instant, watts, power",
    [
        ('echo "1410, 698.50, 700.00"', 698.5, "instant"),
        ('echo "Field \\"power.draw.instant\\" is not a valid field to query."; exit 2', 350.0, "mean"),
        ('echo "1410, [N/A], 700.00"', 350.0, "mean"),
    ],
)
def test_power(tmp_path, monkeypatch, instant, watts, power):
    program = tmp_path / "nvidia-smi"
    program.write_text(PROGRAM % instant)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="1-2-3"))
    end = time.monotonic() + 60
    with measure.Sensors(torch.device("cuda")) as sensors:
        while time.monotonic() < end and not (tmp_path / "nvidia-smi.told").exists():
            time.sleep(0.01)
    found = sensors.figures()
    assert (found["watts"], found["power"], found["limit_watts"]) == (watts, power, 700.0)


def test_nothing_on_the_cpu():
    with measure.Sensors(torch.device("cpu")) as sensors:
        pass
    assert sensors.figures() == {}
