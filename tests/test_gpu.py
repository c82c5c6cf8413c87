"""The script for a GPU, tried without one: it is cut, and goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402

# Marks that it has begun, and hangs the first time.
SLOW = """
import pathlib, sys, time
begun = pathlib.Path(sys.argv[1])
if not begun.exists():
    begun.write_text("")
    time.sleep(600)
"""


@pytest.mark.slow
def test_every_part_is_a_command_of_known_flags(tmp_path):
    """Of one more flag each says that this one is unknown, and so knows the others."""
    data, asked = ["--data-dir", str(tmp_path)], {}
    for words in gpu.parts(tmp_path, ["--epochs", "40"], data).values():
        kind = words[2] if words[0] == "-m" else words[0]
        asked.setdefault((kind, *(word for word in words if word.startswith("--"))), words)
    for words in asked.values():
        command = [sys.executable, *words, "--no-such-flag"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert said.returncode == 2 and "error: unrecognized arguments: --no-such-flag" in said.stderr, said.stderr


@pytest.mark.slow
def test_it_goes_on_where_it_was_cut(tmp_path, monkeypatch, capsys):
    out, begun = tmp_path / "out", tmp_path / "begun"
    parts = {"first": ["-c", "pass"], "second": ["-c", SLOW, str(begun)], "third": ["-c", "raise SystemExit(5)"]}
    monkeypatch.setattr(gpu, "parts", lambda *_: parts)
    monkeypatch.setattr(gpu, "GRACE", 10)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out), "--minutes", "0.3"])
    assert gpu.main() == 1
    assert begun.exists() and list(json.loads((out / "done.json").read_text())) == ["first"]
    assert gpu.main() == 0
    said = capsys.readouterr().out
    assert said.count("first: done") == said.count("second: done") == 1 and "third: exit code 5" in said
    assert list(json.loads((out / "done.json").read_text())) == ["first", "second"]


# As train.py: begins a run directory.
BEGIN = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(exist_ok=True)
(out / "config.json").write_text("{}")
"""


def test_training_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text(BEGIN)
    words = gpu.parts(tmp_path, ["--epochs", "1"], [])["teacher"]
    for _ in range(2):
        assert gpu.run(words, tmp_path / "log", 60) == 0
    commands = [line for line in (tmp_path / "log").read_text().splitlines() if line[0] == "$"]
    assert ["--resume" in command for command in commands] == [False, True]
