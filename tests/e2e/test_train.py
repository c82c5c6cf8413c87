"""`python train.py` as a person runs it: real images, a process of its own."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The smoke preset on a narrower network: it compiles in seconds.
SMOKE = ["--preset", "smoke", "--widths", "8", "--strides", "2"]


def train(*words, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def epochs_in(run):
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run: its process and its directory."""
    cwd = tmp_path_factory.mktemp("smoke")
    return train(*SMOKE, "--epochs", 2, "--out", "run", cwd=cwd), cwd / "run"


@pytest.mark.slow
def test_smoke_run_trains_on_the_embedded_sample(smoke):
    process, run = smoke
    assert process.returncode == 0, process.stderr
    assert "Data: embedded SAMPLE of CIFAR-10, 1,000 training images" in process.stdout
    assert re.search(r"^Train Loss: .* \(\d+/1000\)$", process.stdout, re.MULTILINE)
    assert "Best Acc is :  " in process.stdout
    assert epochs_in(run) == [1, 2]
    assert (run / "loss_accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_pipe_gets_no_control_characters_and_no_warnings(smoke):
    process, run = smoke
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", process.stdout)
    assert process.stderr == ""
    assert process.stdout == (run / "train.log").read_text() + "Next: python explain.py --ckpt run\n"


@pytest.mark.slow
def test_resume_goes_on_and_starting_anew_is_refused(smoke, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(smoke[1], run)  # the other tests have theirs
    refused = train(*SMOKE, "--out", run, cwd=tmp_path)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: --out .* already holds a run: go on with it with --resume, .*\n", refused.stderr)
    changed = train("--resume", "--out", run, "--batch-size", 32, cwd=tmp_path)
    assert changed.returncode == 2 and "cannot change --batch-size from 64 to 32" in changed.stderr
    resumed = train("--resume", "--out", run, "--epochs", 3, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after epoch 2" in resumed.stdout and "Epoch: 2" not in resumed.stdout
    assert epochs_in(run) == [1, 2, 3]


@pytest.mark.slow
def test_a_cut_checkpoint_is_one_line_for_both_commands(smoke, tmp_path):
    shutil.copytree(smoke[1], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/state/**/*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    commands = {
        r"error: no checkpoint in .* is intact: .*\n": ["train.py", "--resume", "--epochs", "9", "--out"],
        r"error: checkpoint .*/\d is damaged: state/.*\n": ["explain.py", "--ckpt"],
    }
    for message, (script, *words) in commands.items():
        command = [sys.executable, str(ROOT / script), *words, "run"]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.returncode == 2
        assert re.fullmatch(message, process.stderr), process.stderr


@pytest.mark.slow
def test_a_terminal_gets_a_progress_bar_and_ctrl_c_can_be_resumed(tmp_path):
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    command = [sys.executable, str(ROOT / "train.py"), *SMOKE, "--epochs", "1000", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=follower, stderr=follower, start_new_session=True) as process:
        os.close(follower)
        seen = b""
        deadline = time.monotonic() + 120
        while b"Epoch: 3" not in seen and time.monotonic() < deadline:
            seen += os.read(leader, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(leader, 4096):
                seen += chunk
        except OSError:  # Linux's way to say that the other end is closed
            pass
        process.wait(timeout=60)
    os.close(leader)
    text = seen.decode()
    assert process.returncode == 130
    assert re.search(r"\d+%\|.*<.*images/s, loss \d", text)  # done, time left, speed, loss
    assert "python train.py --resume --out run" in text and "Traceback" not in text
    assert "\r" not in (tmp_path / "run" / "train.log").read_text()
    epochs = epochs_in(tmp_path / "run")
    resumed = train("--resume", "--out", "run", "--epochs", len(epochs) + 1, cwd=tmp_path)
    assert f"resumed after epoch {len(epochs)}" in resumed.stdout, resumed.stderr


@pytest.mark.slow
def test_non_finite_loss_is_one_line_and_exit_code_3(tmp_path):
    process = train(*SMOKE, "--learning-rate", 1e30, "--clip-norm", 0, "--out", "run", cwd=tmp_path)
    assert process.returncode == 3
    assert re.fullmatch(r"error: loss or gradient is not finite at epoch 1, step \d+: stopped, .*\n", process.stderr)


_COUNTING = """
import sys, jax.monitoring, train
misses = 0
def listen(event, **_):
    global misses
    misses += event == "/jax/compilation_cache/cache_misses"
jax.monitoring.register_event_listener(listen)
code = train.main(["--preset", "smoke", "--widths", "8", "--strides", "2", "--epochs", "1", "--out", sys.argv[1]])
print("compiled", misses)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        environment.pop(name, None)
    compiled = []
    for run in ("first", "second"):
        command = [sys.executable, "-c", _COUNTING, str(tmp_path / run)]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        compiled.append(int(process.stdout.split()[-1]))
    assert compiled[0] > 5 and compiled[1] == 0
    assert list((tmp_path / ".cache" / "cifar_flax" / "compiled").iterdir())


def test_summary_prints_the_layer_table(tmp_path):
    process = train("--summary", cwd=tmp_path)
    assert process.returncode == 0
    assert "49 layers, 11,173,962 parameters" in process.stdout
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path):
    """As a process; `tests/test_misuse.py` has the many kinds."""
    process = train("--batch-size", 0, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr == "error: --batch-size is 0: expected 1 or more\n"
