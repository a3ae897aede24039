"""What cmake --install puts where: moved elsewhere, it still compiles, links and runs; the pages and completions."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from cli_support import BINARY, DEMO, ROOT

BUILD = BINARY.parent


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """An installation that was moved to another place, as packagers do."""
    if not (BUILD / "cmake_install.cmake").exists():
        pytest.skip(f"{BUILD} is not a build folder")
    folder = tmp_path_factory.mktemp("install")
    run("cmake", "--install", BUILD, "--prefix", folder / "first")
    (folder / "first").rename(folder / "moved")
    return folder / "moved"


@pytest.fixture(scope="module")
def library_path(prefix):
    (pc,) = prefix.rglob("moebius.pc")
    return pc.parent.parent


def test_files(prefix, library_path):
    for name in ("bin/moebius", "include/moebius/moebius.h", "include/moebius/ops.h", "include/moebius/layers.h",
                 "share/doc/moebius/LICENSE", "share/man/man1/moebius.1", "share/bash-completion/completions/moebius.bash",
                 "share/zsh/site-functions/_moebius", "share/fish/vendor_completions.d/moebius.fish"):  # fmt: skip
        assert (prefix / name).is_file(), name
    version = run(prefix / "bin/moebius", "--version").split()[1]
    minor = ".".join(version.split(".")[:2])
    assert (library_path / f"libmoebius.so.{version}").is_file() and (library_path / "libmoebius.a").is_file()
    assert os.readlink(library_path / f"libmoebius.so.{minor}") == f"libmoebius.so.{version}"
    assert f"Library soname: [libmoebius.so.{minor}]" in run("readelf", "-d", library_path / "libmoebius.so")
    assert (prefix / "share/doc/moebius/LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_nothing_names_the_first_prefix(prefix):
    for path in prefix.rglob("*"):
        if path.is_file() and path.name != "moebius" and "libmoebius" not in path.name:
            text = path.read_text()
            assert "/first" not in text and str(ROOT) not in text, path


@pytest.mark.parametrize("static", [False, True])
def test_pkg_config(prefix, library_path, tmp_path, static):
    environment = {**os.environ, "PKG_CONFIG_PATH": str(library_path / "pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", *(["--static"] if static else []), "moebius", env=environment).split()
    assert f"-I{prefix}/include" in [os.path.normpath(f[:2] + os.path.realpath(f[2:])) if f[:2] == "-I" else f for f in flags]
    if static:
        flags = [str(library_path / "libmoebius.a") if flag == "-lmoebius" else flag for flag in flags]
    run("cc", ROOT / "examples/generate.c", *flags, "-o", tmp_path / "generate")
    where = {} if static else {"LD_LIBRARY_PATH": str(library_path)}
    assert "42" in run(tmp_path / "generate", DEMO, env={**os.environ, **where})


def test_find_package(prefix, library_path, tmp_path):
    shutil.copy(ROOT / "examples/generate.c", tmp_path)
    (tmp_path / "CMakeLists.txt").write_text("""
cmake_minimum_required(VERSION 3.25)
project(example LANGUAGES C)
find_package(moebius 0.1 REQUIRED)
foreach(name moebius moebius_static)
  add_executable(with_${name} generate.c)
  target_link_libraries(with_${name} PRIVATE moebius::${name})
endforeach()
""")
    build = tmp_path / "build"
    run("cmake", "-G", "Ninja", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    for name in ("moebius", "moebius_static"):
        assert "42" in run(build / f"with_{name}", DEMO)
    assert "libmoebius.so" in run("readelf", "-d", build / "with_moebius")
    assert "libmoebius.so" not in run("readelf", "-d", build / "with_moebius_static")
    (tmp_path / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.25)\nproject(x C)\nfind_package(moebius 99 REQUIRED)\n")
    wrong = subprocess.run(["cmake", "-G", "Ninja", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True)
    assert wrong.returncode != 0


def test_man_page(moebius):
    page = moebius("help", "--man").stdout.decode()
    assert page.startswith(".TH MOEBIUS 1 ")
    assert re.findall(r"^\.SH (.*)", page, re.M) == ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS OF SEVERAL COMMANDS",
                                                    "EXIT STATUS", "ENVIRONMENT", "EXAMPLES"]  # fmt: skip
    for command in ("run", "chat", "info", "tokenize", "logprobs", "bench", "bench moe", "bench train"):
        assert f".SS moebius {command}\n" in page
        options = set(re.findall(r"--[a-z-]+", moebius("help", *command.split()).stdout.decode().split("OPTIONS")[-1]))
        assert all(option.replace("-", "\\-") in page for option in options - {"--help"})
    # Lines that begin with a dot are requests: only those that are meant.
    assert set(re.findall(r"^[.'](\S*)", page, re.M)) == {"TH", "SH", "SS", "TP", "PP", "nf", "fi"}
    if shutil.which("groff"):
        rendered = subprocess.run(["groff", "-man", "-ww", "-Tutf8"], input=page.encode(), capture_output=True, timeout=60)
        assert rendered.returncode == 0 and rendered.stderr == b""


def bash_completes(script, *words):
    line = " ".join(f"'{word}'" for word in words)
    out = run("bash", "-c", f'. "{script}"; COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _moebius; '
              'printf "%s\\n" "${COMPREPLY[@]}"', cwd=ROOT)  # fmt: skip
    return out.split()


def test_bash_completion(moebius, tmp_path):
    script = tmp_path / "moebius.bash"
    script.write_bytes(moebius("help", "--completion", "bash").stdout)
    assert bash_completes(script, "moebius", "") == ["run", "chat", "serve", "batch", "info", "tokenize", "logprobs", "bench", "help", "--help", "--version"]
    assert bash_completes(script, "moebius", "ben") == ["bench"]
    assert bash_completes(script, "moebius", "run", "mod") == ["models"]
    assert bash_completes(script, "moebius", "run", "models/demo", "--temp") == ["--temperature"]
    assert bash_completes(script, "moebius", "run", "models/demo", "--device", "") == ["cpu", "cuda"]
    assert bash_completes(script, "moebius", "run", "models/demo", "-n", "") == []
    assert bash_completes(script, "moebius", "chat", "models/demo", "--ra") == []
    assert "moe" in bash_completes(script, "moebius", "bench", "mo")
    assert bash_completes(script, "moebius", "bench", "moe", "--dtype", "fp8") == ["fp8_block", "fp8_tensor"]
    assert bash_completes(script, "moebius", "bench", "moe", "--output", "READ") == ["README.md"]
    assert bash_completes(script, "moebius", "serve", "models/demo", "--max-b") == ["--max-batch"]
    assert bash_completes(script, "moebius", "serve", "models/demo", "--gpu-memory", "") == []
    assert bash_completes(script, "moebius", "help", "lo") == ["logprobs"]


@pytest.mark.parametrize("shell, arguments", [("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_completion_of_other_shells(moebius, tmp_path, shell, arguments):
    """Every option is in it; where the shell is installed, it reads the script."""
    script = moebius("help", "--completion", shell).stdout.decode()
    options = set(re.findall(r"^ {7}(?:-\w, )?--([a-z-]+)", moebius("help", "run").stdout.decode(), re.M))
    options |= {"max-batch", "max-context", "max-step-tokens", "gpu-memory"}
    assert all(re.search(rf"(--|-l ){option}(?![\w-])", script) for option in options)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        run(shell, *arguments, tmp_path / "script")
