"""All that is known of a network's predictions of a test set, as plain arrays; `outputs` draws it.

Whatever is written or shown is a function of an `Analysis`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_flax.data import Dataset
from cifar_flax.errors import UserError, is_whole, require_whole
from cifar_flax.explaining import comparison, evaluation, neighbours, people, robustness, slices
from cifar_flax.explaining.comparison import Comparison
from cifar_flax.explaining.evaluation import Evaluation
from cifar_flax.explaining.neighbours import Neighbours
from cifar_flax.explaining.network import NO_CLASS, Network, Progress, no_progress
from cifar_flax.explaining.people import People
from cifar_flax.explaining.predictions import MOST_CLASSES, SORTS, Predictions
from cifar_flax.explaining.robustness import Robustness
from cifar_flax.explaining.slices import Slices

NUM_CORRECT = 10
_REPORT_CORRECT_PER_CLASS = 20
_REPORT_WRONG = 3000


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to explain, and how.

    Attributes:
      stage: the stage whose activation is explained; "" for the last one.
      method: one of `cam.METHODS`.
      num_wrong: how many wrong predictions; of correct ones as many, but at most `NUM_CORRECT`.
      sort: one of `SORTS`. `index` is the data set's order; where that is by class, as many at equal distances.
      true: only this class, by name or label, or None.
      predicted: only images taken for this class, likewise.
      indices: numbers of test images to explain instead of the above, or None.
      neighbours: how many of the nearest training images are looked up of each image; 0 for none.
    """

    stage: str = ""
    method: str = "grad-cam"
    num_wrong: int = 20
    sort: str = "index"
    true: str | int | None = None
    predicted: str | int | None = None
    indices: Sequence[int] | None = None
    neighbours: int = neighbours.COUNT


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate: so many images, drawn by the seed, or all where `num_images` is None; corrupted ones, too."""

    num_images: int | None = None
    seed: int = 0
    corruptions: bool = False


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A network's predictions of a test set of `N` images with `C` classes, and the maps of `n` of these images.

    Attributes:
      network: the network.
      dataset: the data set; its test images are meant.
      selection: what was chosen; its stage is named.
      predictions: of all test images.
      wrong: positions of the wrong predictions chosen.
      correct: positions of the correct ones chosen.
      shown: positions of the `n` images explained, in order; those above are among them.
      classes: int `[n, T]`, the classes explained of each of these.
      maps: float32 `[n, T, h, w]`, their raw maps.
      differences: float32 `[n, h, w]`, the raw maps of predicted minus true.
      people: what people said of the images, or None.
      badges: of every prediction, what people say of it, or None.
      comparison: what another network makes of the images, or None.
      evaluation: how far maps and confidence can be trusted, or None.
      neighbours: the training images nearest to those shown, or None.
      robustness: what becomes of accuracy and confidence on corrupted images, or None.
      other_robustness: the same of the network compared with, or None.
      slices: the groups of images that fail more often than the others of their class, or None.
    """

    network: Network
    dataset: Dataset
    selection: Selection
    predictions: Predictions
    wrong: np.ndarray
    correct: np.ndarray
    shown: np.ndarray
    classes: np.ndarray
    maps: np.ndarray
    differences: np.ndarray
    people: People | None = None
    badges: Sequence[str | None] = ()
    comparison: Comparison | None = None
    evaluation: Evaluation | None = None
    neighbours: Neighbours | None = None
    robustness: Robustness | None = None
    other_robustness: Robustness | None = None
    slices: Slices | None = None

    def map_of(self, position: int, label: int) -> np.ndarray:
        """The raw map `[h, w]` of a class of an image shown.

        Raises:
          ValueError: the image is not shown, or that class of it was not explained.
        """
        (place,) = self.places_of([position])
        return self.maps[place, self.classes[place].tolist().index(label)]

    def places_of(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Where images are among those shown, int `[N]`.

        Raises:
          ValueError: one is not shown.
        """
        places = np.searchsorted(self.shown, np.asarray(positions, int))
        if not np.array_equal(self.shown[places[places < len(self.shown)]], positions):
            raise ValueError(f"of images {[*positions]} not all are shown")
        return places

    def save(self, folder: str | Path, *, overwrite: bool = False, progress: Progress = no_progress) -> dict[str, Any]:
        """Writes pictures, `manifest.json`, `cams.npz` and `report.html`, all or nothing; returns the manifest.

        Raises:
          UserError: `folder` exists and is not to be replaced, or cannot be written.
        """
        from cifar_flax.explaining import outputs  # which draws: matplotlib is not needed before

        return outputs.save(self, Path(folder), overwrite=overwrite, progress=progress)


def analyse(
    network: Network,
    dataset: Dataset,
    selection: Selection | None = None,
    *,
    compare_with: Network | None = None,
    evaluate: EvaluationOptions | None = None,
    human_labels: People | None = None,
    progress: Progress = no_progress,
) -> Analysis:
    """Predicts a data set's test images, chooses, and explains.

    Args:
      network: the network.
      dataset: the data set.
      selection: what to explain, and how; None for the first 20 wrong predictions by Grad-CAM at the last stage.
      compare_with: another network, to be asked about the same images.
      evaluate: also measure how far maps and confidence can be trusted, and what corruptions do to both networks.
      human_labels: what people said of these images.
      progress: (what, total) to a function that is told how many more are done.

    Raises:
      UserError: the data set is not of the network's classes and image size, or has no test images; or the selection
        names a stage, method, order, class or image that there is not.
    """
    if not isinstance(network, Network) or not isinstance(dataset, Dataset):
        raise UserError("analyse takes what cifar_flax.load and cifar_flax.open_dataset return")
    test, title = dataset.test, dataset.test_title
    selection = selection or Selection()
    if not isinstance(selection, Selection):
        raise UserError(f"selection is {selection!r}: expected a cifar_flax.Selection")
    selection = dataclasses.replace(selection, stage=selection.stage or network.stages[-1])
    require(network, dataset, selection)
    if compare_with is not None:
        _require_same_data(compare_with, dataset)
        ours, theirs = ((one.trained.digest, one.model) for one in (network, compare_with))
        if ours == theirs:
            raise UserError(f"{compare_with.name} is the network itself: expected another one to compare it with")
    _require_evaluation(evaluate, len(test.images))
    if not isinstance(human_labels, People | None):
        raise UserError(f"human_labels is {human_labels!r}: expected a cifar_flax.explaining.people.People")
    predictions = network.predict(test.images, test.labels, progress("predicting", len(test.images)))
    wrong, correct = choose(network, dataset, predictions, selection)
    raw = network.maps(
        test.images,
        predictions.predicted[:, None],
        stage=selection.stage,
        methods=[selection.method],
        on_batch=progress("mapping", len(test.images)),
    )[:, 0, 0]
    middle = network.stages[(len(network.stages) - 1) // 2]
    features = network.channel_means(test.images, [middle], progress("grouping", len(test.images)))
    groups = slices.find(slices.attributes(test.images, raw), features, predictions)
    compared = None
    if compare_with is not None:
        stage = selection.stage if selection.stage in compare_with.stages else compare_with.stages[-1]
        compared = comparison.measure(
            compare_with,
            test,
            predictions,
            groups,
            stage=stage,
            method=selection.method,
            title=title,
            progress=progress,
        )
    shown = _for_report(
        predictions, np.concatenate([wrong, correct, *([] if compared is None else [compared.changed])])
    )
    classes = predictions.take(shown).explained_classes()
    labels = predictions.true[shown, None]
    raw = network.maps(
        test.images[shown],
        np.concatenate([classes, predictions.predicted[shown, None]], axis=1),
        against=np.concatenate([np.full_like(classes, NO_CLASS), labels], axis=1),
        stage=selection.stage,
        methods=[selection.method],
        on_batch=progress("explaining", len(shown)),
    )[:, :, 0]
    nearest = None
    if selection.neighbours and len(dataset.train.images):
        nearest = neighbours.measure(network, dataset, predictions, shown, selection.neighbours, progress)
    evaluated, robust = None, [None, None]
    if evaluate is not None:
        evaluated = evaluation.evaluate(
            network,
            test,
            predictions,
            stage=selection.stage,
            method=selection.method,
            title=title,
            count=evaluate.num_images,
            seed=evaluate.seed,
            progress=progress,
        )
        if evaluate.corruptions:
            rng = np.random.default_rng(evaluate.seed)
            images = test.take(evaluation.draw_images(len(test.images), evaluate.num_images, rng))
            robust = [
                each and robustness.measure(each, images, seed=evaluate.seed, progress=progress)
                for each in (network, compare_with)
            ]
    return Analysis(
        network=network,
        dataset=dataset,
        selection=selection,
        predictions=predictions,
        wrong=wrong,
        correct=correct,
        shown=shown,
        classes=classes,
        maps=raw[:, :-1],
        differences=raw[:, -1],
        people=human_labels,
        badges=[None] * len(predictions) if human_labels is None else people.judge(human_labels, predictions),
        comparison=compared,
        evaluation=evaluated,
        neighbours=nearest,
        robustness=robust[0],
        other_robustness=robust[1],
        slices=groups,
    )


def require(network: Network, dataset: Dataset, selection: Selection) -> None:
    """Refuses a selection of a data set that a network cannot be asked about.

    Raises:
      UserError: as `analyse` says.
    """
    _require_same_data(network, dataset)
    if not len(dataset.test.images):
        raise UserError(f"{dataset.title} has no test images: there is nothing to explain")
    network.require_known(selection.stage, [selection.method])
    for what, given in (("true", selection.true), ("predicted", selection.predicted)):
        if given is not None:
            network.label_of(given, what)
    if selection.sort not in SORTS:
        raise UserError(f"sort {selection.sort} is not known: expected one of {', '.join(SORTS)}")
    require_whole(selection.neighbours, "neighbours", 0, neighbours.MOST)
    require_whole(selection.num_wrong, "num_wrong", 1)
    if selection.indices is not None:
        is_list = isinstance(selection.indices, Sequence | np.ndarray) and not isinstance(selection.indices, str)
        if not is_list or not len(selection.indices) or not all(map(is_whole, selection.indices)):
            raise UserError(f"indices is {selection.indices!r}: expected the numbers of one or more images, in a list")
        if len(set(selection.indices)) < len(selection.indices):
            raise UserError("indices names an image twice: name each image once")


def _require_evaluation(evaluate: EvaluationOptions | None, there: int) -> None:
    if evaluate is None:
        return
    if not isinstance(evaluate, EvaluationOptions):
        raise UserError(f"evaluate is {evaluate!r}: expected cifar_flax.EvaluationOptions(), or None")
    require_whole(evaluate.seed, "seed", 0, 2**32 - 1)
    require_whole(there if evaluate.num_images is None else evaluate.num_images, "num_images", 2, there)


def _require_same_data(network: Network, dataset: Dataset) -> None:
    if not isinstance(network, Network):
        raise UserError(f"{network!r} is no network: expected what cifar_flax.load returns")
    spec = network.spec
    if difference := spec.difference(dataset.spec):
        raise UserError(
            f"{network.name} was trained on {spec.name}, and this data set is {dataset.spec.name} ({difference}): "
            "explain it on the data set that it was trained on"
        )


def positions_of(dataset: Dataset, indices: Sequence[int]) -> np.ndarray:
    """Positions of test images by their numbers.

    Raises:
      UserError: one is not there.
    """
    place = {index: position for position, index in enumerate(dataset.test.indices.tolist())}
    missing = [index for index in indices if index not in place]
    if missing:
        whole = "; --dataset cifar10 has all 10,000" if dataset.is_sample else ""
        raise UserError(
            f"--indices {missing[0]} is not among the {len(place)} images of the {dataset.test_title}: expected "
            f"numbers of test images in their official order{whole}"
        )
    return np.array([place[index] for index in indices], int)


def choose(
    network: Network, dataset: Dataset, predictions: Predictions, selection: Selection
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the wrong and of the correct predictions to explain."""
    if selection.indices is not None:
        positions = positions_of(dataset, selection.indices)
        correct = predictions.correct[positions]
        return positions[~correct], positions[correct]
    true, predicted = (
        None if given is None else network.label_of(given) for given in (selection.true, selection.predicted)
    )
    wrong = predictions.select(correct=False, sort=selection.sort, true=true, predicted=predicted)
    # A class that is asked for is asked for in the correct predictions too; there true is predicted.
    correct = predictions.select(correct=True, sort=selection.sort, true=predicted if true is None else true)
    few = min(selection.num_wrong, NUM_CORRECT)
    if selection.sort != "index":
        return wrong[: selection.num_wrong], correct[:few]
    return first_of_each(wrong, selection.num_wrong, predictions), first_of_each(correct, few, predictions)


def first_of_each(positions: np.ndarray, count: int, predictions: Predictions) -> np.ndarray:
    """The first positions; where the images lie class by class, as many at equal distances, to show all classes."""
    if len(positions) > count and predictions.by_class:
        return positions[np.arange(count) * len(positions) // count]
    return positions[:count]


def _for_report(predictions: Predictions, chosen: np.ndarray) -> np.ndarray:
    """Positions of what the report shows: the wrong predictions, some correct ones, and what was chosen."""
    wrong = first_of_each(predictions.select(correct=False), _REPORT_WRONG, predictions)
    count = len(predictions.class_names)
    each = max(2, _REPORT_CORRECT_PER_CLASS * MOST_CLASSES // max(MOST_CLASSES, count))
    correct = [predictions.select(correct=True, true=label)[:each] for label in range(count)]
    return np.unique(np.concatenate([wrong, *correct, chosen]).astype(int))
