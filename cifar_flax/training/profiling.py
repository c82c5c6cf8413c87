"""Where the time of a training step goes: a trace of a few steps, and a table made from it."""

import collections
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from cifar_flax.config import Config
from cifar_flax.data import Cifar10
from cifar_flax.errors import UserError
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import Split, build_program

_NUM_STEPS = 10  # traced at once
_WARM_UP = 5  # times as many before

# A part of a step, and a pattern in the names that its operations have in the source; the first that fits.
_PARTS = (
    ("augmentation", r"\baugment\b"),
    ("optimizer and averaging", r"\boptimize\b"),
    ("convolution", r"/(shortcut_)?conv\d?/"),
    ("normalisation", r"/(shortcut_)?norm\d?/"),
    ("ReLU and residual", r"ResNet"),
    ("loss", r"jvp"),
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.*?)\s(?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)


class Row(NamedTuple):
    """A part of a step, its direction (`forward`, `backward` or neither), and its share of the time, 0 to 1."""

    part: str
    direction: str
    share: float


class Profile(NamedTuple):
    """Wall time of a step in seconds, untraced; images in a step; and where the time goes, the largest first."""

    step_seconds: float
    batch_size: int
    rows: list[Row]


def claim(folder: Path) -> None:
    """Makes the folder, unless it holds a trace already or cannot be written: a `UserError`."""
    if (folder / "plugins").exists():
        raise UserError(f"--profile {folder} holds a trace already: choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profile {folder} cannot be written: {error.strerror}; choose another") from error


def profile(config: Config, data: Cifar10, folder: Path) -> Profile:
    """Times and traces a few training steps, after others that compile and warm up.

    Args:
      config: the run whose steps they are.
      data: the data set that `config.data` names.
      folder: where the trace is written, for XProf or TensorBoard; made if absent.

    Raises:
      UserError: as `claim`.
    """
    claim(folder)
    steps = max(1, min(_NUM_STEPS, (len(data.train_images) - config.val_size) // config.batch_size))
    num_images = steps * config.batch_size
    program = build_program(config, num_images)
    split = program.place(Split(data.train_images[:num_images], data.train_labels[:num_images]))
    state, sums = program.create_state(), program.place(Metrics.empty())
    text = program.lower(state, sums, split).compile().as_text() or ""

    def run(state, epoch: int):
        *_, (_, state, _) = program.train_steps(state, program.place(Metrics.empty()), split, epoch, 0)
        return jax.block_until_ready(state)

    for epoch in range(1, _WARM_UP + 1):
        state = run(state, epoch)
    start = time.perf_counter()
    state = run(state, _WARM_UP + 1)
    seconds = (time.perf_counter() - start) / steps
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would crowd out the rest
    with jax.profiler.trace(folder, profiler_options=options):
        run(state, _WARM_UP + 2)
    return Profile(seconds, config.batch_size, summarize(read_events(folder), text))


def read_events(folder: Path) -> Iterator[tuple[str, float]]:
    """The compiled programs' instructions in a trace, each time one ran: its name and its own nanoseconds."""
    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:  # of one thread, or of one stream of a GPU
            events = [
                (event.start_ns, event.duration_ns, str(name))
                for event in line.events
                if (name := dict(event.stats).get("hlo_op")) is not None and not event.name.startswith("end: ")
            ]
            yield from own_durations(events)


def own_durations(events: Iterable[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """Name of each event, and how long it was the one that had begun last.

    XLA:CPU begins an instruction inside the one whose end it waited for, and both end together; on a GPU
    a kernel may begin before the one ahead of it in its stream has ended.

    Args:
      events: start, duration and name of the events of one thread or stream.
    """
    ordered = sorted(events, key=lambda event: (event[0], -event[1]))
    own, now = [0.0] * len(ordered), 0.0
    open_events: list[tuple[float, int]] = []  # end, and place in `ordered`
    for place, (start, duration, _) in enumerate([*ordered, (float("inf"), 0.0, "")]):
        while open_events:
            end, last = open_events[-1]
            own[last] += max(0.0, min(end, start) - now)
            now = max(now, min(end, start))
            if end > start:
                break
            open_events.pop()
        now = start
        open_events.append((start + duration, place))
    return [(name, duration) for (_, _, name), duration in zip(ordered, own, strict=True)]


def summarize(events: Iterable[tuple[str, float]], text: str) -> list[Row]:
    """Shares of the parts of a step, the largest first.

    Args:
      events: instruction names and their durations. On a CPU a duration includes waiting for a core.
      text: the compiled program that the instructions are of.
    """
    parts = parts_of_instructions(text)
    sums: dict[tuple[str, str], float] = collections.defaultdict(float)
    for instruction, duration in events:
        sums[parts.get(instruction, ("other", ""))] += duration
    total = sum(sums.values())
    return sorted((Row(*part, duration / total) for part, duration in sums.items()), key=lambda row: -row.share)


class Instruction(NamedTuple):
    """A line of a compiled program.

    Attributes:
      computation: the name of the one that it is in.
      name: its own.
      shape: of its result, as text.
      opcode: what it does.
      rest: the text after the opcode: operands and attributes.
    """

    computation: str
    name: str
    shape: str
    opcode: str
    rest: str


def read_instructions(text: str) -> Iterator[Instruction]:
    """The instructions of a compiled program, those of a computation before what calls it."""
    computation = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            computation = start["name"]
        elif found := _INSTRUCTION.match(line):
            yield Instruction(computation, *found.groups())


def parts_of_instructions(text: str) -> dict[str, tuple[str, str]]:
    """Part and direction of each instruction of a compiled program, by name."""
    opcodes: dict[str, set[str]] = collections.defaultdict(set)  # by computation
    parts = {}
    for instruction in read_instructions(text):
        opcodes[instruction.computation].add(instruction.opcode)
        called = re.search(r"calls=%?([\w.\-]+)", instruction.rest)
        inside = opcodes[called[1]] if called else {instruction.opcode}
        source = re.search(r'op_name="([^"]*)"', instruction.rest)
        parts[instruction.name] = _classify(inside, source[1] if source else "")
    return parts


def _classify(opcodes: set[str], source: str) -> tuple[str, str]:
    """Part and direction of an instruction of these opcodes that has this name in the source."""
    if opcodes & {"all-reduce", "all-reduce-start", "all-reduce-done"}:
        return "sum over devices", ""
    if not source:  # what the compiler made by itself
        if "convolution" in opcodes:
            return "convolution", "backward"
        return ("transposition", "") if opcodes <= {"copy", "transpose", "parameter", "bitcast"} else ("other", "")
    part = next((part for part, pattern in _PARTS if re.search(pattern, source)), "other")
    if "jvp" not in source:
        return part, ""
    return part, "backward" if "transpose(" in source else "forward"


def table(found: Profile) -> str:
    """A profile as text."""
    milliseconds = 1000 * found.step_seconds
    lines = [f"A step: {milliseconds:.1f} ms, {found.batch_size / found.step_seconds:.0f} images/s", ""]
    lines.append(f"{'part':<26}{'direction':<11}{'share':>6}{'ms':>9}")
    lines += [
        f"{row.part:<26}{row.direction:<11}{100 * row.share:>5.1f}%{milliseconds * row.share:>9.2f}"
        for row in found.rows
    ]
    return "\n".join(lines)
