"""Candidates that take turns, each in a process of its own, and a table of what they took."""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from machine import ROOT, commit

from cifar_flax.errors import UserError

# A candidate is built in a process of its own: a function that does the work once, and one for the facts about it.
Build = Callable[[], tuple[Callable[[], Any], Callable[[], dict[str, Any]]]]
OURS = "cifar_flax"
WARM_UP = 2


class Benchmark(NamedTuple):
    """What is timed, by name; turns that only warm up, and how often the work is done in one turn."""

    candidates: dict[str, Build]
    warm_up: int = WARM_UP
    repeats: int = 1


def take_turns(
    benchmark: Benchmark, turns: int, processes: int, beside: Path | None = None
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds that each candidate takes for its work, one figure a turn, and the facts about all of them.

    With `beside`, a folder with another version of this repository, they are ours of both versions alone.

    Each is in a process of its own: in one process the threads of each library go on spinning in the other's turn.
    After some turns all begin again in new processes: how memory happens to be laid out is worth some percent.
    """
    starts = {name: functools.partial(served, name) for name in benchmark.candidates}
    if beside is not None:
        starts = {OURS: starts[OURS], f"{OURS} at {commit(beside)}": functools.partial(served, OURS, beside)}
    times: dict[str, list[float]] = {name: [] for name in starts}
    facts: dict[str, Any] = {}
    for _ in range(processes):
        with contextlib.ExitStack() as stack:
            servers = {name: stack.enter_context(start()) for name, start in starts.items()}
            for turn in range(benchmark.warm_up + turns):
                for name, ask in servers.items():
                    seconds = ask("turn") / benchmark.repeats
                    if turn >= benchmark.warm_up:
                        times[name].append(seconds)
            for ask in servers.values():
                facts = ask("facts") | facts  # the first one's, ours, where two differ
    return times, facts


@contextlib.contextmanager
def served(name: str, checkout: Path = ROOT) -> Iterator[Callable[[str], Any]]:
    """A process that has built a checkout's candidate, as a function that sends it a line and returns its answer."""
    # Several of them share a GPU's memory; each imports its own checkout's package, not the installed one.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": str(checkout.resolve())}
    script = checkout.resolve() / "benchmarks" / Path(sys.argv[0]).name
    beside = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    beside.add_argument("--beside")
    words = beside.parse_known_args(sys.argv[1:])[1]  # an older version does not know the flag
    command = [sys.executable, str(script), *words, "--serve", name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(line: str) -> Any:
            print(line, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                raise UserError(f"{name} ended before it was timed: its own message is above")
            return json.loads(answer)

        try:
            ask("ready")
            yield ask
        finally:
            process.stdin.close()


def serve(benchmark: Benchmark, name: str) -> None:
    """Builds a candidate and answers the lines of standard input on standard output, until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    if not name.startswith(OURS):
        jax.config.update("jax_platforms", "cpu")  # the accelerator is PyTorch's
    run, facts = benchmark.candidates[name]()
    for line in sys.stdin:
        start = time.perf_counter()
        if line.strip() == "turn":
            for _ in range(benchmark.repeats):
                run()
        answer = facts() if line.strip() == "facts" else time.perf_counter() - start
        print(json.dumps(answer), file=answers, flush=True)


def table(times: dict[str, list[float]], facts: dict[str, Any]) -> str:
    """Medians and quartiles, and how many times as long as ours each takes."""
    ours = statistics.median(times[OURS]) if OURS in times else None
    lines = [f"{'':<36}{'median':>11}{'quartiles':>22}{'images/s':>10}{'of ours':>9}{'TFLOP/s':>9}"]
    for name, seconds in times.items():
        low, median, high = np.percentile(seconds, [25, 50, 75]) * 1000
        line = f"{name:<36}{median:>8.1f} ms{f'{low:.1f} to {high:.1f} ms':>22}"
        line += f"{1000 * facts['images'] / median:>10.0f}" if "images" in facts else f"{'':>10}"
        line += f"{median / 1000 / ours:>9.2f}" if ours else f"{'':>9}"
        line += f"{facts['flop'] / median / 1e9:>9.3f}" if "flop" in facts else ""
        lines.append(line)
    if "limits" in facts:
        flop, moved = (facts["limits"][f"{name}_per_second"] for name in ("flop", "bytes"))
        lines.append(f"The machine's limits, measured: {flop / 1e12:.3g} TFLOP/s, {moved / 1e9:.3g} GB/s")
    return "\n".join(lines)
