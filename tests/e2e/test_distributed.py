"""Two processes over gloo on loopback, and eight devices in one: the same run, and an end for every failure."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from cifar_flax import config as config_lib
from cifar_flax.execution import resolve
from cifar_flax.training import checkpoint, rundir

sys.path.insert(0, str(Path(__file__).parent))
from processes import assert_same_run, first_batch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about two processes of one CPU device"),
    pytest.mark.skipif(sys.platform == "win32", reason="joins processes on POSIX only"),
]
ROOT = Path(__file__).parents[2]
TINY = ["--preset", "smoke", "--widths", "8", "--strides", "2", "--precision", "float32", "--devices", "2"]
PLAIN = ["--rotate-degrees", "0", "--crop-padding", "0", "--cutout-size", "0"]  # soon compiled
LOST = "error: a process of this job is gone or stuck ("


def start(words, cwd, scripts=("train.py", "train.py"), **limits):
    """Two processes of one device each, with their output in files in `cwd`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
    limits = {"init_timeout": 60, "heartbeat_timeout": 3, "step_timeout": 60} | limits
    flags = [part for name, value in limits.items() for part in ("--" + name.replace("_", "-"), str(value))]
    flags += ["--coordinator", coordinator, "--num-processes", "2"]
    processes = []
    for i, (script, mine) in enumerate(
        zip(scripts, words if isinstance(words[0], list) else [words] * 2, strict=True)
    ):
        command = [sys.executable, str(ROOT / script), *flags, "--process-id", str(i), *mine]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
        with open(cwd / f"{i}.out", "w") as out, open(cwd / f"{i}.err", "w") as errors:
            processes.append(subprocess.Popen(command, cwd=cwd, stdout=out, stderr=errors, env=environment))
    return processes


@contextlib.contextmanager
def running(words, cwd, **options):
    """`start`, and an end in any case."""
    processes = start(words, cwd, **options)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ended(processes, cwd, seconds=60):
    """Exit codes, and what each process said on stderr."""
    codes = [process.wait(seconds) for process in processes]
    return codes, [(cwd / f"{i}.err").read_text() for i in range(2)]


def run_two(words, cwd, **options):
    with running(words, cwd, **options) as processes:
        return ended(processes, cwd)


def run_one(words, cwd):
    """One process of two devices: this one."""
    with contextlib.chdir(cwd):
        assert train.main(words) == 0


@pytest.fixture
def begun(tmp_path):
    """A run of one epoch, by one process."""
    run_one([*TINY, *PLAIN, "--epochs", "1", "--out", "run"], tmp_path)
    return tmp_path / "run"


def wait_for_another_epoch(processes, folder):
    """Until one more epoch is finished than there was before."""
    before, deadline = len(rundir.read_rows(folder)), time.monotonic() + 60
    while len(rundir.read_rows(folder)) <= before:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)


FAILURES = [(signal.SIGTERM, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)]


def test_a_run_goes_on_after_any_end_with_any_number_of_processes(tmp_path):
    """Begun by two processes, gone on with by one, by two that end in each way in turn, and by one.

    It is the run that was left alone. Process 1 sees no run directory.
    """
    new, resume = [*TINY, *PLAIN, "--epochs", "1", "--out"], ["--resume", "--devices", "2", "--out"]
    begun = tmp_path / "run"
    assert run_two([[*new, "run"], [*new, "elsewhere"]], tmp_path) == ([0, 0], ["", ""])
    assert (begun / "train.log").read_text().count("Epoch: 1\n") == 1
    assert "Epoch" in (tmp_path / "0.out").read_text() and "Epoch" not in (tmp_path / "1.out").read_text()
    run_one([*resume, "run", "--epochs", "2"], tmp_path)
    for number, victim in FAILURES:
        endless = ["--epochs", "10000"]
        with running([[*resume, "run", *endless], [*resume, "elsewhere", *endless]], tmp_path) as processes:
            wait_for_another_epoch(processes, begun)
            processes[victim].send_signal(number)
            if number == signal.SIGTERM:
                code = 128 + number
                codes, (line, nothing) = ended(processes, tmp_path)
                assert codes == [code, code] and nothing == "" and line.endswith(", in each process\n")
                again = line.removeprefix("interrupted: go on with  python train.py ").removesuffix(
                    ", in each process\n"
                )
                expected = [
                    *resume,
                    "run",
                    "--coordinator",
                    processes[0].args[processes[0].args.index("--coordinator") + 1],
                ]
                expected += ["--num-processes", "2", "--process-id", "I", "--init-timeout", "60"]
                assert shlex.split(again) == [*expected, "--heartbeat-timeout", "3", "--step-timeout", "60"]
                checkpoint.verify(checkpoint.find(begun / rundir.CHECKPOINTS)[-1])
            else:
                survivor = 1 - victim
                assert processes[survivor].wait(30) == 75, number
                error = (tmp_path / f"{survivor}.err").read_text()
                assert error.startswith(LOST) and error.count("\n") == 1, error
    epochs = str(len(rundir.read_rows(begun)) + 1)
    run_one([*resume, "run", "--epochs", epochs], tmp_path)
    run_one([*TINY, *PLAIN, "--epochs", epochs, "--out", "alone"], tmp_path)
    assert_same_run(begun, tmp_path / "alone")
    names = [{path.name for path in folder.iterdir()} for folder in (begun, tmp_path / "alone")]
    assert names[0] == names[1]
    log = (begun / "train.log").read_text()
    assert "processes 1, now 2" in log and "processes 2, now 1" in log and "Devices: 2 x cpu in 2 processes" in log
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([*TINY], [*TINY, "--momentum", "0.8"], "process 1 has another --momentum than process 0 (0.8 against none)"),
        (
            [*TINY, "--devices", "1"],
            [*TINY, "--devices", "1"],
            "--devices is 1: expected a multiple of the 2 processes",
        ),
        (["--resume", "--out", "none"], ["--resume"], "none holds no run: no config.json can be read there"),
    ],
)
def test_what_does_not_fit_is_refused_in_each_process(first, second, message, tmp_path):
    codes, errors = run_two([first, second], tmp_path)
    assert codes == [2, 2], errors
    for error in errors:
        assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not list(tmp_path.glob("*/*/checkpoints"))


def test_another_version_of_the_code_is_refused(tmp_path):
    shutil.copytree(
        ROOT / "cifar_flax", tmp_path / "cifar_flax", ignore=shutil.ignore_patterns("sample", "pretrained")
    )
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "cifar_flax" / "new.py").write_text("")
    codes, errors = run_two(TINY, tmp_path, scripts=("train.py", tmp_path / "train.py"))
    assert codes == [2, 2]
    for error in errors:
        assert error.startswith("error: process 1 has another code of cifar_flax than process 0 (")
        assert error.count("\n") == 1


def test_a_process_that_is_stuck_ends_all(begun, tmp_path):
    """Process 1 is alive, and answers heartbeats, but takes no step any more."""
    script = "tests/e2e/processes.py"
    codes, errors = run_two(["--out", "run", "--stuck"], tmp_path, scripts=(script, script), step_timeout=8)
    assert codes == [75, 75]
    assert any("--step-timeout" in error for error in errors)
    for error in errors:
        assert error.startswith(LOST) and error.count("\n") == 1


def test_a_device_out_of_memory_is_one_line_and_ends_all(begun, tmp_path):
    script = "tests/e2e/processes.py"
    codes, errors = run_two(["--out", "run", "--full"], tmp_path, scripts=(script, script))
    assert codes == [75, 2]
    assert errors[0].startswith(LOST) and errors[0].count("\n") == 1
    assert errors[1].startswith("error: a device is out of memory") and errors[1].count("\n") == 1


def test_a_step_has_the_same_images_in_any_layout(tmp_path):
    """Which images, and how augmented, exactly; and other data in one of the processes is refused."""
    script = "tests/e2e/processes.py"
    codes, errors = run_two([*TINY, "--out", "run"], tmp_path, scripts=(script, script))
    assert codes == [2, 2]
    assert len(set(errors)) == 1 and "error: process 1 has another data set than process 0 (" in errors[0]
    assert not (tmp_path / "run" / "checkpoints").exists()
    found = np.load(tmp_path / "batch.npy")
    for num_devices in (1, 2):
        execution = resolve("float32", 64, num_devices)
        np.testing.assert_array_equal(np.asarray(first_batch(config_lib.PRESETS["smoke"], execution)), found)


def test_processes_that_do_not_meet_are_one_line(tmp_path):
    """Process 0 without the other, and the other without process 0."""
    (tmp_path / "elsewhere").mkdir()
    with (
        running(TINY, tmp_path, init_timeout=3) as (first, late),
        running(TINY, tmp_path / "elsewhere", init_timeout=3) as (gone, second),
    ):
        late.kill()
        gone.kill()
        assert [first.wait(60), second.wait(60)] == [2, 2]
    for path in (tmp_path / "0.err", tmp_path / "elsewhere" / "1.err"):
        assert path.read_text().startswith("error: the processes did not meet at 127.0.0.1:")
        assert path.read_text().count("\n") == 1


def test_eight_devices_train_as_one_does(tmp_path):
    """One epoch of the sample: counts alike, figures and parameters within rounding; each augments its share."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "e2e" / "processes.py"), "eight"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same images"] and found["images a device"] == [64, 8]
    one, eight = found["rows"]
    for name in ("train", "test"):
        assert one[f"{name}_total"] == eight[f"{name}_total"] == 1000
        assert eight[f"{name}_loss"] == pytest.approx(one[f"{name}_loss"], rel=1e-3)
        assert abs(eight[f"{name}_correct"] - one[f"{name}_correct"]) <= 5
    assert found["difference"] < 1e-3
