"""Kills a training run again and again, and compares what comes out with a run left alone.

    python benchmarks/kill_storm.py --kills 50
    python benchmarks/kill_storm.py --kills 20 --processes 2

A run on the embedded sample with a checkpoint after every step gets SIGKILL: half of the times at a
random moment, half while a checkpoint is being written. After the last kill it is resumed and
finishes its epoch. Parameters, averaged parameters, optimizer, plateau and key, and every row of
metrics.jsonl but its clocks, must then be those of a run that was never killed, bit for bit.

With `--processes 2` two processes of one device each train together over loopback, and a random one of them is
killed; the other must leave by itself, with its exit code and one line, before both are started again.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chex
import jax

from cifar_flax import machine
from cifar_flax.errors import LostProcessError
from cifar_flax.training import checkpoint, rundir
from cifar_flax.training.program import build_program

ROOT = Path(__file__).parents[1]
RUN = ["--preset", "smoke", "--widths", "8", "--strides", "2"]
CLOCKS = ("seconds", "images_per_second")


LIMITS = ["--init-timeout", "30", "--heartbeat-timeout", "10", "--step-timeout", "120"]


def start(out: Path, processes: int, *words: str) -> list[subprocess.Popen[bytes]]:
    """The processes of a run; of several, each has one device."""
    command = [sys.executable, str(ROOT / "train.py"), "--out", str(out), *words]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out.parent / "cache")}
    each = [[]]
    if processes > 1:
        environment["JAX_NUM_CPU_DEVICES"] = "1"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
        joined = ["--coordinator", coordinator, "--num-processes", str(processes), *LIMITS]
        joined += ["--devices", str(processes)]
        each = [[*joined, "--process-id", str(i)] for i in range(processes)]
    return [
        subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        for more in each
    ]


def finish(out: Path, processes: int, *words: str) -> None:
    for process in start(out, processes, *words):
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"a run ended with code {process.returncode}: {errors.decode()}")


def kill_once(out: Path, processes: int, chooser: random.Random, *, while_writing: bool) -> str:
    """Starts or resumes the run and kills it, or one of its processes; returns what it was doing."""
    checkpoints = out / rundir.CHECKPOINTS
    words = ["--resume"] if (out / rundir.CONFIG).exists() else RUN
    started = start(out, processes, *words, "--epochs", "100000", "--checkpoint-every-minutes", "0")
    newest = checkpoint.find(checkpoints)[-1:]
    deadline = time.monotonic() + (120 if while_writing else chooser.uniform(0, 10))
    while all(process.poll() is None for process in started) and time.monotonic() < deadline:
        # A first new checkpoint is waited for, so that every such kill finds the run in full swing.
        if while_writing and checkpoint.find(checkpoints)[-1:] != newest and list(checkpoints.glob(".*.part")):
            time.sleep(chooser.uniform(0, 0.1))
            break
        time.sleep(0.001)
    victim = chooser.randrange(processes)
    started[victim].send_signal(signal.SIGKILL)
    for i, process in enumerate(started):
        _, errors = process.communicate()
        expected = -signal.SIGKILL if i == victim else LostProcessError.exit_code
        # Before they have met, the others say that they did not.
        if process.returncode != expected and not (i != victim and process.returncode == 2 and "meet" in str(errors)):
            raise SystemExit(f"process {i} ended with code {process.returncode}: {errors.decode()}")
        if i != victim and errors.count(b"\n") != 1:
            raise SystemExit(f"process {i} said more than a line: {errors.decode()}")
    if not checkpoints.exists():
        return "starting"
    writing = bool(list(checkpoints.glob(".*.part")))
    what = "writing" if writing else "training or starting"
    return what if processes == 1 else f"process {victim}, {what}"


def outcome(out: Path) -> tuple[object, list[dict]]:
    """The final state, and the rows without their clocks."""
    config = rundir.read_config(out)
    newest = checkpoint.find(out / rundir.CHECKPOINTS)[-1]
    progress = checkpoint.restore(newest, build_program(config, 1000).create_state())
    rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rundir.read_rows(out)]
    return progress.state.replace(key=jax.random.key_data(progress.state.key)), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    chooser, began = random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        killed, alone = Path(folder) / "killed", Path(folder) / "alone"
        counts: dict[str, int] = {}
        for i in range(arguments.kills):
            what = kill_once(killed, arguments.processes, chooser, while_writing=i % 2 == 1)
            counts[what] = counts.get(what, 0) + 1
        progress = checkpoint.find(killed / rundir.CHECKPOINTS)[-1].name
        epochs = int(progress.split("+")[0]) + 1
        finish(killed, arguments.processes, "--resume", "--epochs", str(epochs))
        finish(alone, arguments.processes, *RUN, "--epochs", str(epochs))
        (state, rows), (expected_state, expected_rows) = outcome(killed), outcome(alone)
        assert [row["epoch"] for row in rows] == list(range(1, epochs + 1)), "an epoch is missing or logged twice"
        assert rows == expected_rows, "metrics.jsonl differs"
        chex.assert_trees_all_equal(state, expected_state)
    result = {
        "kills": arguments.kills,
        "processes": arguments.processes,
        "seed": arguments.seed,
        "killed_while": counts,
        "epochs": epochs,
        "steps": int(state.step),
        "bit_identical": True,
        "seconds": round(time.monotonic() - began, 1),
        "jax": jax.__version__,
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    # The state is restored on as many devices as the runs had, and before JAX is used.
    machine.set_up()
    main()
