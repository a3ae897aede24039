"""moebius bench says how large a step was, and takes no step that a batch has no room in."""

import json
import shutil

import pytest
from cli_support import DEMO

SHORT = ["bench", str(DEMO), "--prompt-lengths", "40", "-n", "2", "--repeat", "1", "--json", "--threads", "1"]


def rows_of(moebius, *options):
    result = moebius(*SHORT, *options)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.decode().splitlines()], result.stderr.decode()


def test_rows_say_the_step(moebius):
    rows, _ = rows_of(moebius, "--batches", "1,6", "--device", "cpu")
    assert [(row["bench"], row["shape"]["batch"], row["max_step_tokens"]) for row in rows] == [
        ("prefill", 1, 512), ("decode", 1, 512), ("prefill", 6, 2048), ("decode", 6, 2048)
    ]  # fmt: skip


def test_rows_say_the_graphs(moebius):
    for graphs in ("step", "none", "attention", "two-streams"):
        rows, _ = rows_of(moebius, "--batches", "1", "--device", "cpu", "--graphs", graphs)
        assert [row["graphs"] for row in rows] == 2 * [graphs]


def test_a_step_of_its_own(moebius):
    rows, told = rows_of(moebius, "--batches", "1,4,16", "--device", "cpu", "--max-step-tokens", "24")
    assert {row["shape"]["batch"]: row["max_step_tokens"] for row in rows} == {1: 24, 4: 24}
    assert "batch 16: steps of 24 tokens are too small for it; give --max-step-tokens 32 or more" in told


# ---- Random weights


@pytest.fixture
def folder(tmp_path):
    """A folder with nothing but the config of the demo model."""
    to = tmp_path / "shape"
    to.mkdir()
    shutil.copy(DEMO / "config.json", to)
    return to


OF_RANDOM = ["--prompt-lengths", "8", "-n", "2", "--repeat", "1", "--json", "--threads", "1", "--device", "cpu", "--random-weights"]


@pytest.mark.parametrize("path, cwd", [("shape", "."), ("shape/config.json", "."), ("config.json", "shape"), ("./config.json", "shape"), (".", "shape")])
def test_random_weights_take_the_folder_or_its_config(moebius, folder, path, cwd):
    result = moebius("bench", path, *OF_RANDOM, cwd=folder.parent / cwd)
    assert result.returncode == 0, result.stderr
    assert {json.loads(line)["model"] for line in result.stdout.decode().splitlines()} == {"shape"}


def test_paths_have_one_slash(moebius, folder):
    (folder / "config.json").write_text("{}")
    for path in ("shape/config.json", "shape/", "shape"):
        error = moebius("bench", path, *OF_RANDOM, cwd=folder.parent).stderr.decode()
        assert "shape/config.json: " in error and "//" not in error


def test_a_config_alone_is_no_model(moebius, folder):
    config, other = folder / "config.json", folder / "other.json"
    result = moebius("bench", config, *OF_RANDOM[:-1])  # without --random-weights
    assert result.returncode == 1 and b"config.json: not a directory; give the directory" in result.stderr
    shutil.copy(config, other)
    result = moebius("bench", other, *OF_RANDOM)  # the folder's config.json is another file
    assert result.returncode == 1 and b"other.json: not a directory; give the directory" in result.stderr
    config.unlink()
    result = moebius("bench", config, *OF_RANDOM)
    assert result.returncode == 1 and b"config.json: no such directory" in result.stderr
