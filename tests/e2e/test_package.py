"""The wheel, installed without the checkout, in an empty directory and with the network cut off."""

import os
import re
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


@pytest.mark.parametrize(
    ("origin", "web"),
    [
        ("git@example.org:you/there.git", "https://example.org/you/there"),
        ("https://you:secret@example.org/group/you/there", "https://example.org/group/you/there"),
        ("/home/you/there", None),
        (None, None),
    ],
)
def test_pictures_and_links_survive_on_a_package_index(origin, web, tmp_path):
    """What an index shows is the README, whose relative links lead nowhere outside the repository."""
    (tmp_path / "cifar_flax").mkdir()
    for name in ("README.md", "pyproject.toml", "setup.py", "cifar_flax/__init__.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    commit = ""
    if origin is not None:
        run("git", "init", "-q", cwd=tmp_path)
        run("git", "remote", "add", "origin", origin, cwd=tmp_path)
        run(
            "git",
            *["-c", "user.name=you", "-c", "user.email=you@example.org", "commit", "-qm", "x", "--allow-empty"],
            cwd=tmp_path,
        )
        commit = run("git", "rev-parse", "HEAD", cwd=tmp_path).stdout.strip()
    made = run(
        sys.executable,
        "-c",
        "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')",
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    shown, original = metadata.read_text(), (ROOT / "README.md").read_text()
    links = re.findall(r"(!?)\[([^]]+)\]\(([^)]+)\)", shown)
    if web is None:
        assert links == [] and "*An error in report.html*" in shown and "secret" not in shown
        return
    kinds = {"!": "raw", "": "blob"}
    assert links == [
        (picture, words, f"{web}/{kinds[picture]}/{commit}/{path}")
        for picture, words, path in re.findall(r"(!?)\[([^]]+)\]\(([^)]+)\)", original)
    ]


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
