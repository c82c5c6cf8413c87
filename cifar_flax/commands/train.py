"""Trains a LayerNorm-only ResNet on CIFAR-10: `python train.py --epochs 40`, or `cifar-flax train`."""

import contextlib
import dataclasses
import datetime
import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_flax import cli, distributed
from cifar_flax import config as config_lib
from cifar_flax.cli import Parser
from cifar_flax.commands import common
from cifar_flax.config import Config
from cifar_flax.distributed import Job
from cifar_flax.errors import Interrupted, UserError

if TYPE_CHECKING:
    from cifar_flax.data import Dataset


# Shown by --help; the other fields of the config by --help-all.
_COMMON = ("preset", "dataset", "epochs", "batch_size", "learning_rate", "val_size", "seed")


# What a person who comes from PyTorch, or from an earlier version, may type.
_ELSEWHERE = {
    "--lr": "--learning-rate",
    "--wd": "--weight-decay",
    "--rtol": "--plateau-threshold",
    "--data": "--dataset",
    "--optimizer": "--muon-learning-rate 0 for SGD alone",
}


_MINUTES = 10.0  # between checkpoints within an epoch


def build_parser(prog: str) -> Parser:
    presets = " / ".join(config_lib.PRESETS)
    parser = Parser(
        prog, __doc__, f"In parentheses: the default; or the defaults of {presets}, where they differ.", _ELSEWHERE
    )
    run = parser.add_argument_group("this run")
    run.add_argument("--out", type=Path, help="folder of the run (runs/<preset>-<date>)")
    run.add_argument("--resume", action="store_true", help="continue the run in --out")
    run.add_argument("--profile", type=Path, metavar="DIR", help="trace ten steps into DIR, and exit")
    run.add_argument("--summary", action="store_true", help="print the layer table and exit")
    config_lib.add_flags(parser.add_argument_group("what is trained, and how"), _COMMON)
    others = {option.name for option in dataclasses.fields(Config)} - set(_COMMON)
    config_lib.add_flags(parser.rare("all other settings that change the result"), others)
    distributed.add_flags(parser.rare("several processes, each started with the same command"))
    run = parser.rare("rarely needed")
    common.add_source(run)
    run.add_argument(
        "--watch", action="store_true", help="also write a page, watch.html, that shows the run as it trains"
    )
    run.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    run.add_argument(
        "--checkpoint-every-minutes",
        type=_minutes,
        default=_MINUTES,
        help=f"minutes between checkpoints within an epoch ({_MINUTES:g})",
    )
    run.add_argument("--devices", type=int, default=0, help="devices that share a batch (as many as divide it)")
    return parser


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes >= 0:
        raise ValueError
    return minutes


_minutes.__name__ = "number of minutes"  # argparse names it in its messages


def _config(flags: dict, out: Path | None, resume: bool) -> Config:
    """The config that the flags ask for, or that of the run in `out` with the flags' changes."""
    if not resume:
        return config_lib.from_flags(flags)
    if out is None:
        raise UserError("--resume needs --out: the directory of the run to go on with")
    from cifar_flax.training import rundir  # with JAX behind it, which --help does without

    return config_lib.resumed(rundir.read_config(out), flags)


def _open(config: Config, data_dir: Path | None, source: str, say: Callable[[str], None]) -> "Dataset":
    from cifar_flax import data  # heavy, not needed before here

    size = config.image_size or None
    return data.open_dataset(
        config.dataset,
        data_dir=data_dir,
        image_size=size,
        source=source,
        report=say,
        skip_broken=config.skip_broken,
    )


def _train(
    config: Config,
    out: Path,
    job: Job,
    prog: str,
    *,
    resume: bool,
    data_dir: Path | None,
    source: str,
    devices: int,
    watch: bool,
    settings: distributed.Settings | None,
    **options: Any,
) -> None:
    from cifar_flax import machine  # heavy imports, not needed before here
    from cifar_flax.training import loop, rundir

    pictures = Path(config.dataset).resolve()
    if pictures.is_dir() and pictures in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} is in the folder of the data set, {config.dataset}: choose another")
    made = job.together(lambda: job.is_first and rundir.claim(out, resume=resume))  # before anything slow
    say = functools.partial(print, flush=True) if job.is_first else lambda line: None
    try:
        dataset = job.together(lambda: _open(config, data_dir, source, say))
        machine.set_up()
        if watch:
            from cifar_flax.explaining.watch import NAME, watching

            options["on_progress"] = watching(out, dataset)
            say(f"Watch: open {out / NAME}; your browser reloads it by itself")
        loop.fit(config, dataset, out, resume=resume, num_devices=devices, job=job, **options)
    except UserError:
        if job.is_first:
            rundir.give_up(out, made)
        raise
    except (Interrupted, KeyboardInterrupt):
        if not job.is_first:
            raise
        given = ["--watch"] * watch + ["--tensorboard"] * options["tensorboard"]
        if (minutes := options["checkpoint_every_minutes"]) != _MINUTES:
            given.append(f"--checkpoint-every-minutes {minutes:g}")
        given.append(_to_flags({"--data-dir": data_dir, "--source": source, "--devices": devices, "--out": out}))
        given += distributed.to_flags(settings)
        everywhere = ", in each process" if job.processes > 1 else ""
        print(f"interrupted: go on with  {cli.call(prog)} --resume {' '.join(given)}{everywhere}", file=sys.stderr)
        raise
    if job.is_first and config.test:
        where = _to_flags({"--ckpt": out, "--data-dir": data_dir, "--source": source})
        print(f"Next: {cli.call(prog.replace('train', 'explain'))} {where}")


def _to_flags(values: dict[str, Any]) -> str:
    """Flags as a person types them, without those that are at their default."""
    given = {flag: value for flag, value in values.items() if value not in (None, "auto", 0)}
    return " ".join(f"{flag} {shlex.quote(str(value))}" for flag, value in given.items())


def _summarize(config: Config, data_dir: Path | None, source: str) -> None:
    from cifar_flax import data
    from cifar_flax.network import build, model

    spec = data.CIFAR10  # known without its images
    if config.dataset not in ("cifar10", "sample") or config.image_size not in (0, spec.image_size):
        spec = _open(config, data_dir, source, lambda line: None).spec
    print(model.format_layer_table(build.build_model(config, spec=spec)))


def _profile(config: Config, folder: Path, data_dir: Path | None, source: str, devices: int) -> None:
    from cifar_flax import machine
    from cifar_flax.training import profiling

    profiling.claim(folder)  # before anything slow
    try:
        dataset = _open(config, data_dir, source, print)
        machine.set_up()
        path = profiling.profile(config, dataset, folder, num_devices=devices)
    except UserError:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()
        raise
    print(f"Wrote {path}: open it at https://ui.perfetto.dev, or run  xprof {shlex.quote(str(folder))}")


def _command(argv: list[str] | None, prog: str) -> None:
    flags: dict[str, Any] = vars(build_parser(prog).parse_args(argv))
    trace: Path | None = flags.pop("profile")
    out, resume, summary = flags.pop("out"), flags.pop("resume"), flags.pop("summary")
    settings = distributed.from_flags(flags)
    names = ("data_dir", "source", "watch", "tensorboard", "checkpoint_every_minutes", "devices")
    options = {name: flags.pop(name) for name in names}
    if summary or trace is not None:
        action = "--summary" if summary else "--profile"
        if settings is not None:
            raise UserError(f"{action} is of one process: leave out what joins several")
        for name in ("watch", "tensorboard"):
            if options[name]:
                raise UserError(f"{action} trains no network: leave out --{name}")
    if settings is not None and options["watch"]:
        raise UserError("--watch is of one process: leave it out, or what joins several")
    with distributed.joined(settings) as job:
        if job.processes > 1:
            asked = {"--" + name.replace("_", "-"): value for name, value in flags.items()}
            asked |= {"--resume": resume, "--devices": options["devices"]}
            job.require_equal(distributed.code_version() | asked)
        config = config_lib.from_json(job.of_first(lambda: config_lib.to_json(_config(flags, out, resume))))
        if summary:
            _summarize(config, options["data_dir"], options["source"])
        elif trace is not None:
            _profile(config, trace, options["data_dir"], options["source"], options["devices"])
        else:
            dated = Path("runs") / f"{config.preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
            out = Path(job.of_first(lambda: str(out or dated)))
            _train(config, out, job, prog, resume=resume, settings=settings, **options)


def main(argv: list[str] | None = None, prog: str = "train.py") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _command(argv, prog))
