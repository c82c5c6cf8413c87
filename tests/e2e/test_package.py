"""The wheel, installed without the checkout, in an empty directory and with the network cut off."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(*words, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def build(folder, *flags):
    """Builds the checkout's tracked files, copied: a build writes beside what it builds."""
    source = folder / "source"
    if not source.exists():
        names = run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")[:-1]
        for name in names:
            if not name.startswith(("docs/results/", "tests/")) and (ROOT / name).exists():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
    out = folder / f"dist{len(flags)}"
    process = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *flags, cwd=source)
    assert process.returncode == 0, process.stdout + process.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source distribution."""
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """The installed command. Its environment finds the dependencies in this one, and no network."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    python = folder / "bin" / "python"
    installed = run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder
    )
    assert installed.returncode == 0, installed.stderr
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(
        "import socket\n\ndef refuse(*_):\n    raise OSError('no network')\n\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    where = run(python, "-c", "import cifar_flax; print(cifar_flax.__file__)", cwd=folder).stdout
    assert where.startswith(str(folder))
    return folder / "bin" / "cifar-flax"


def test_the_source_distribution_builds_the_same_wheel(wheel):
    """The same files, byte by byte, as the checkout does."""
    direct = build(wheel.parents[1], "--wheel")
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(direct) as theirs:
        assert {name: ours.read(name) for name in ours.namelist()} == {
            name: theirs.read(name) for name in theirs.namelist()
        }
        top = {name.split("/")[0].split("-")[0] for name in ours.namelist()}
    assert top == {"cifar_flax"}


def test_it_explains_trains_and_explains_that(command, tmp_path):
    for words in (
        ["explain", "--count", 2],
        ["train", "--preset", "smoke", "--epochs", 1, "--widths", 8, "--strides", 2, "--out", "run"],
        ["explain", "--ckpt", "run", "--count", 2],
        ["export", "--ckpt", "resnet18", "--out", "better.safetensors"],  # the other network that it brings
        ["export", "--format", "pytorch", "--out", "net.safetensors"],
        ["import", "net.safetensors", "--out", "mine.safetensors"],
    ):
        process = run(command, *words, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        if words[0] == "train":
            assert process.stdout.endswith("Next: cifar-flax explain --ckpt run\n")
    assert (tmp_path / "explain" / "report.html").exists() and (tmp_path / "run" / "explain" / "report.html").exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "explain",
        "run",
        "better.safetensors",
        "net.safetensors",
        "mine.safetensors",
    }


def test_data_that_cannot_be_had_is_one_line(command, tmp_path):
    process = run(command, "train", "--data-dir", "nowhere", "--source", "archive", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("error: CIFAR-10 could not be had") and process.stderr.count("\n") == 1
