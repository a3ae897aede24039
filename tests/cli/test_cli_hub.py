"""Models by name, from the Hugging Face cache."""

import os
import subprocess

import pytest

from cli_support import BINARY, DEMO, ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_into_cache(hub, name="Qwen/Demo-1.5B_x", commit=COMMIT):
    """As `hf download` leaves it: files are links into blobs, here to the model itself."""
    repository = hub / ("models--" + name.replace("/", "--"))
    (repository / "snapshots" / commit).mkdir(parents=True)
    for file in DEMO.iterdir():
        (repository / "snapshots" / commit / file.name).symlink_to(file)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    return repository


def info(name, command="info", **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_", "XDG_"))}
    return subprocess.run([BINARY, command, name, *(["-p", "x", "-n", "1"] if command == "run" else [])], capture_output=True,
                          cwd=ROOT, timeout=60, env={**clean, "HOME": "/nonexistent", **environment})  # fmt: skip


@pytest.mark.parametrize("variable, below", [("HF_HUB_CACHE", "."), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub"),
                                             ("HOME", ".cache/huggingface/hub")])  # fmt: skip
def test_every_place_of_the_cache(tmp_path, variable, below):
    put_into_cache(tmp_path / below)
    result = info("Qwen/Demo-1.5B_x", **{variable: str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert b"Qwen3MoeForCausalLM" in result.stdout
    assert info("Qwen/Demo-1.5B_x", "run", **{variable: str(tmp_path)}).returncode == 0


def test_a_folder_goes_before_the_cache(tmp_path):
    put_into_cache(tmp_path, "models/demo")
    (tmp_path / "models--models--demo/refs/main").write_text("f" * 40)  # would fail if it were looked at
    assert info("models/demo", HF_HUB_CACHE=str(tmp_path)).returncode == 0


def test_a_model_that_is_not_there(tmp_path):
    result = info("Qwen/Qwen3-30B-A3B", HF_HOME=str(tmp_path))
    assert result.returncode == 1 and result.stdout == b""
    assert result.stderr.decode() == (
        f"moebius: Qwen/Qwen3-30B-A3B: no such directory, and no model of this name in the Hugging Face cache {tmp_path}/hub; "
        "if it is a model's name, get it with: hf download Qwen/Qwen3-30B-A3B\n"
    )


@pytest.mark.parametrize("name", ["nosuch", "no/such/model", "./such", "../such", "no/", "/such", "no/s*ch"])
def test_what_is_no_name_is_a_folder(tmp_path, name):
    result = info(name, HF_HOME=str(tmp_path))
    assert result.returncode == 1 and b"give the directory of a Hugging Face checkpoint" in result.stderr


def test_a_broken_cache(tmp_path):
    repository = put_into_cache(tmp_path)
    (repository / "refs/main").write_text("f" * 40)
    unfinished = info("Qwen/Demo-1.5B_x", HF_HUB_CACHE=str(tmp_path))
    assert unfinished.returncode == 1 and b"is not complete" in unfinished.stderr and b"hf download Qwen/Demo-1.5B_x" in unfinished.stderr
    for text in ("../../../etc", "", "x" * 40, "f" * 300):
        (repository / "refs/main").write_text(text)
        result = info("Qwen/Demo-1.5B_x", HF_HUB_CACHE=str(tmp_path))
        assert result.returncode == 1 and b"refs/main: not a commit" in result.stderr
    nowhere = info("Qwen/Demo-1.5B_x", HOME="")
    assert nowhere.returncode == 1 and b"neither HF_HOME nor HOME" in nowhere.stderr
    long = info("Qwen/Demo-1.5B_x", HF_HOME="/x" * 2100)
    assert long.returncode == 1 and b"too long" in long.stderr


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"])
def test_a_link_to_a_blob_that_is_gone(tmp_path, name):
    """The file is not taken for one that the model does not have."""
    repository = put_into_cache(tmp_path)
    file = repository / "snapshots" / COMMIT / name
    file.unlink(missing_ok=True)
    file.symlink_to(tmp_path / "blobs/gone")
    result = info("Qwen/Demo-1.5B_x", "run", HF_HUB_CACHE=str(tmp_path))
    assert result.returncode == 1 and name in result.stderr.decode() and b"not there" in result.stderr, result.stderr
    assert result.stdout == b""
