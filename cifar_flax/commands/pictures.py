"""Explains your own pictures: what the network takes them for, and which places speak for each class."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.commands import common
from cifar_flax.errors import UserError

if TYPE_CHECKING:  # heavy imports, which --help does without
    from cifar_flax.data import Dataset
    from cifar_flax.training.trained import Trained


def _parser(prog: str) -> Parser:
    parser = Parser(prog, __doc__)
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="pictures, or folders of pictures; where each folder is named like a class, with accuracy",
    )
    common.add_network(parser)
    common.add_maps(parser)
    common.add_out(parser, "pictures")
    return parser


def _reference(found: "Trained") -> "Dataset | None":
    """The data set that pictures may be unlike: the sample for CIFAR-10's networks, else their own if it is there.

    An imported network does not say what it was trained on, and a folder may have been changed since.
    """
    from cifar_flax import data

    if found.spec == data.CIFAR10:
        return data.open_dataset("sample")
    try:
        opened = found.spec.digest and data.open_dataset(
            found.config.dataset,
            image_size=found.spec.image_size,
            source="cache" if found.config.dataset in ("cifar10", "cifar100") else "auto",  # it is not downloaded
            skip_broken=found.config.skip_broken,
        )
    except UserError:
        opened = None
    if opened and opened.spec == found.spec and len(opened.test.images):
        return opened
    print("Its training set is not at hand, so no picture is marked as unlike it.")
    return None


def _pictures(flags: argparse.Namespace) -> None:
    """All that can be read are explained; what cannot is a line each at the end, and a `UserError`."""
    import numpy as np  # heavy imports, not needed before here

    from cifar_flax import machine
    from cifar_flax.data import pictures
    from cifar_flax.explaining import folder, own
    from cifar_flax.explaining.network import prepare
    from cifar_flax.training import trained

    machine.set_up()
    found = trained.load(flags.ckpt)
    out = flags.out or found.folder / "pictures"
    folder.check(out, folder.PICTURES, overwrite=flags.overwrite)  # before anything slow
    network = prepare(found)
    stage = common.stage_of(network, flags)
    read, refused = [], []
    for path in flags.paths:
        try:
            files = pictures.find(path)
        except UserError as error:
            refused.append(str(error))
            continue
        for file in files:
            try:
                read.append(pictures.read(file, network.spec.image_size))
            except UserError as error:
                refused.append(str(error))
    if read:
        # In a folder for each class, pictures say what they are.
        names = network.spec.class_names
        found_labels = [names.index(one.path.parent.name) if one.path.parent.name in names else -1 for one in read]
        labels = None if -1 in found_labels else np.array(found_labels)
        manifest = own.write(
            out,
            network,
            read,
            refused,
            stage=stage,
            method=flags.method,
            reference=_reference(found),
            overwrite=flags.overwrite,
            labels=labels,
            on_batch=common.progress()("explaining", len(read)),
        )
        for entry in manifest["pictures"]:
            marked = "  (unlike the training set)" if entry["unlike"] else ""
            wrong = (
                f"  (wrong: {entry['true']})" if entry.get("true", entry["predicted"]) != entry["predicted"] else ""
            )
            print(f"{entry['file']}: {entry['predicted']} {100 * max(entry['probabilities']):.0f}%{wrong}{marked}")
        if labels is not None:
            print(f"Accuracy: {100 * manifest['accuracy']:.2f}% of {len(read):,} pictures, by their folders' names")
        print(f"The network knows {network.spec.num_classes} classes, and names one of them for anything it is shown.")
        print(f"Wrote {out}: open {out / 'pictures.html'}")
    for line in refused[:-1]:
        print(f"error: {line}", file=sys.stderr)
    if refused:
        raise UserError(refused[-1])


def main(argv: list[str] | None = None, prog: str = "cifar-flax pictures") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _pictures(_parser(prog).parse_args(argv)))
