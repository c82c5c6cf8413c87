"""Kills, signals and a full disk, as processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cifar_flax.training import checkpoint, rundir

sys.path.insert(0, str(Path(__file__).parent))
from processes import assert_same_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SMOKE = ["--preset", "smoke", "--widths", "8", "--strides", "2"]
EVERY_STEP = ["--checkpoint-every-minutes", "0"]


def start(*words, cwd):
    command = [sys.executable, str(ROOT / "train.py"), *words]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_epoch(run, epoch):
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < epoch:
        assert time.monotonic() < deadline, "it did not train"
        time.sleep(0.02)


@contextlib.contextmanager
def small_disk(folder, options):
    """A tmpfs with these mount options, for as long as it is needed."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=False)


def test_kills_while_a_checkpoint_is_written_change_nothing(tmp_path):
    """Three SIGKILLs; then the run is finished, and is the one that was left alone."""
    run, words = tmp_path / "run", SMOKE
    for _ in range(3):
        before, deadline = checkpoint.find(run / "checkpoints")[-1:], time.monotonic() + 120
        with start(*words, "--epochs", "10000", *EVERY_STEP, "--out", "run", cwd=tmp_path) as process:
            while checkpoint.find(run / "checkpoints")[-1:] == before or not list(run.glob("checkpoints/.*.part")):
                assert process.poll() is None and time.monotonic() < deadline
            process.kill()
        words = ["--resume"]
    epochs = str(len(rundir.read_rows(run)) + 1)
    for more in (["--resume", "--out", "run"], [*SMOKE, "--out", "alone"]):
        with start(*more, "--epochs", epochs, cwd=tmp_path) as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert_same_run(run, tmp_path / "alone")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_answered_with_a_checkpoint_and_a_line(number, code, tmp_path):
    with start(*SMOKE, "--epochs", "10000", "--devices", "1", "--out", "run", cwd=tmp_path) as process:
        wait_for_epoch(tmp_path / "run", 1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == "interrupted: go on with  python train.py --resume --devices 1 --out run\n"
    newest = checkpoint.find(tmp_path / "run" / "checkpoints")[-1]
    epochs = int(newest.name.split("+")[0])
    with start("--resume", "--out", "run", "--epochs", str(epochs + 1), cwd=tmp_path) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert re.search(rf"resumed after epoch {epochs}\b", output)


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", "size=6m") as disk:
        with start(*SMOKE, "--epochs", "2", "--out", "disk/run", cwd=tmp_path) as process:
            wait_for_epoch(disk / "run", 2)
            process.communicate(timeout=120)
        room = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(room - 20_000))
        with start("--resume", "--epochs", "50", "--out", "disk/run", cwd=tmp_path) as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert re.fullmatch(r"error: .*No space left on device.*mend that, then go on with --resume\n", errors)
        for path in checkpoint.find(disk / "run" / "checkpoints"):
            checkpoint.verify(path)
        (disk / "filler").unlink()
        with start("--resume", "--epochs", "4", "--out", "disk/run", cwd=tmp_path) as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        rows = [json.loads(line) for line in (disk / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_a_read_only_disk_is_one_line(tmp_path):
    with small_disk(tmp_path / "disk", "size=1m,ro"):
        with start(*SMOKE, "--out", "disk/run", cwd=tmp_path) as process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert errors == "error: --out disk/run cannot be written: Read-only file system; choose another\n"


def test_a_vanished_directory_is_one_line(tmp_path):
    with start(*SMOKE, "--epochs", "10000", "--out", "run", cwd=tmp_path) as process:
        wait_for_epoch(tmp_path / "run", 1)
        (tmp_path / "run").rename(tmp_path / "moved")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    missing = "No such file or directory|does not exist|NOT_FOUND"  # the last two are Orbax's
    assert re.fullmatch(rf"error: .*({missing}).*mend that, then go on with --resume\n", errors)
    for path in checkpoint.find(tmp_path / "moved" / "checkpoints"):
        checkpoint.verify(path)


def test_a_second_process_in_the_directory_is_refused(tmp_path):
    with start(*SMOKE, "--epochs", "10000", "--out", "run", cwd=tmp_path) as first:
        wait_for_epoch(tmp_path / "run", 1)
        with start("--resume", "--out", "run", cwd=tmp_path) as second:
            _, errors = second.communicate(timeout=60)
        first.kill()
    assert second.returncode == 2
    assert errors == "error: --out run is being trained by another process: wait for it, or choose another\n"


def test_nobody_reading_the_output_is_no_traceback(tmp_path):
    command = f"{sys.executable} {ROOT / 'train.py'} --summary | head -1"
    process = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.stderr == ""
