"""Everything that `explain.py` writes: pictures, `manifest.json`, `cams.npz` and the report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax import files, plots
from cifar_flax.errors import UserError
from cifar_flax.explaining import cam, comparison, evaluation, explanation, measures, people, report, trust_tables
from cifar_flax.explaining.comparison import Comparison
from cifar_flax.explaining.explanation import DIFFERENCE, TestSet
from cifar_flax.explaining.folder import MANIFEST, check, replacing
from cifar_flax.explaining.people import People
from cifar_flax.training.trained import Network

NUM_CORRECT = 10
NUM_CHANGED = 20
_REPORT_CORRECT_PER_CLASS = 20
_ZOOM = 8  # a 32x32 image is shown at 256x256: its pixels as squares, maps interpolated


class Trust(NamedTuple):
    """What to evaluate: so many images, drawn by the seed, or all where `num_images` is None."""

    num_images: int | None
    seed: int = 0


class Choice(NamedTuple):
    """What to explain, and how.

    Attributes:
      stage: the stage whose activation is explained.
      method: one of `cam.METHODS`.
      num_wrong: how many wrong predictions; of correct ones as many, but at most `NUM_CORRECT`.
      sort: one of `explanation.SORTS`.
      true: only this class, or None.
      predicted: only images taken for this class, or None.
      indices: places in the official test set to explain instead of the above, or None.
    """

    stage: str
    method: str
    num_wrong: int = 20
    sort: str = "index"
    true: int | None = None
    predicted: int | None = None
    indices: Sequence[int] | None = None


def _positions(test: TestSet, logits: np.ndarray, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the wrong and of the correct predictions to explain."""
    if choice.indices is not None:
        place = {index: position for position, index in enumerate(test.indices.tolist())}
        missing = [index for index in choice.indices if index not in place]
        if missing:
            raise UserError(
                f"--indices {missing[0]} is not among the {len(test.images)} images of the {test.name}: "
                "expected places in the official test set; --data full has all 10,000"
            )
        positions = np.array([place[index] for index in choice.indices])
        correct = logits.argmax(axis=1)[positions] == test.labels[positions]
        return positions[~correct], positions[correct]
    wrong = explanation.select(
        test.labels, logits, correct=False, sort=choice.sort, true=choice.true, predicted=choice.predicted
    )
    # A class that is asked for is asked for in the correct predictions too; there true is predicted.
    wanted = choice.true if choice.true is not None else choice.predicted
    correct = explanation.select(test.labels, logits, correct=True, sort=choice.sort, true=wanted)
    return wrong[: choice.num_wrong], correct[: min(choice.num_wrong, NUM_CORRECT)]


def _for_report(test: TestSet, logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Positions of what the report shows: all wrong predictions, some correct ones, and what was chosen."""
    wrong = explanation.select(test.labels, logits, correct=False)
    correct = [
        explanation.select(test.labels, logits, correct=True, true=label)[:_REPORT_CORRECT_PER_CLASS]
        for label in range(len(test.class_names))
    ]
    return np.unique(np.concatenate([wrong, *correct, chosen]))


def write(
    folder: Path,
    network: Network,
    test: TestSet,
    choice: Choice,
    *,
    overwrite: bool,
    progress: Callable[[str, int], Callable[[int], None]],
    say: Callable[[str], None],
    said: People | None = None,
    trust: Trust | None = None,
    other: tuple[Network, str] | None = None,
) -> dict[str, Any]:
    """Explains a network on a test set and writes all of it, or nothing.

    Args:
      folder: the output directory; must not exist unless `overwrite`.
      network: the network.
      test: the images.
      choice: what to explain.
      overwrite: replace `folder`, once the new one is complete.
      progress: (what, total) to a function that is told how many more are done.
      say: called with lines for the person.
      said: what people said of these images, for a badge on every wrong prediction.
      trust: also measure how far the maps and the confidence can be believed.
      other: a network to compare with, and its stage that is explained.

    Returns:
      The manifest.

    Raises:
      UserError: `folder` exists, cannot be written, or an image asked for is not in the test set.
    """
    check(folder, MANIFEST, overwrite=overwrite)
    found = _find(network, test, choice, progress, said, other)
    if not len(found.wrong):
        say("No wrong prediction fits this choice; the pictures of wrong predictions are empty.")
    evaluated = None
    if trust is not None:
        evaluated = evaluation.evaluate(
            network,
            test,
            found.logits,
            stage=choice.stage,
            method=choice.method,
            count=trust.num_images,
            seed=trust.seed,
            progress=progress,
        )
    with replacing(folder, MANIFEST, overwrite=overwrite) as new:
        return _write_files(new, found, evaluated, progress("drawing", len(found.wrong) + len(found.correct)))


class _Found(NamedTuple):
    """All that is known of a network on a test set of `N` images, before anything is written.

    Attributes:
      network: the network.
      test: the images.
      choice: what is explained.
      logits: float `[N, 10]`.
      probabilities: float `[N, 10]`, their softmax.
      guesses: int `[N]`, the most probable class.
      wrong: positions of the wrong predictions chosen.
      correct: positions of the correct ones chosen.
      shown: positions of the `n` images in the report, in order; those above are among them.
      raw: float `[n, 11, h, w]`, their maps.
      said: what people said of the images, or None.
      badges: of every prediction, what people say of it, or None.
      compared: what another network makes of the images, or None.
    """

    network: Network
    test: TestSet
    choice: Choice
    logits: np.ndarray
    probabilities: np.ndarray
    guesses: np.ndarray
    wrong: np.ndarray
    correct: np.ndarray
    shown: np.ndarray
    raw: np.ndarray
    said: People | None
    badges: Sequence[str | None]
    compared: Comparison | None

    @property
    def maps(self) -> dict[int, np.ndarray]:
        """The maps `[11, h, w]` of an image shown, by its position."""
        return dict(zip(self.shown.tolist(), self.raw, strict=True))


def _find(
    network: Network,
    test: TestSet,
    choice: Choice,
    progress: Callable[[str, int], Callable[[int], None]],
    said: People | None,
    other: tuple[Network, str] | None,
) -> _Found:
    """Predicts all images, chooses, compares, and explains what is shown."""
    logits = explanation.predict(network, test.images, progress("predicting", len(test.images)))
    wrong, correct = _positions(test, logits, choice)
    guesses = logits.argmax(axis=1)
    compared = None
    if other is not None:
        compared = comparison.measure(other[0], test, guesses, stage=other[1], method=choice.method, progress=progress)
    changed = [] if compared is None else [compared.changed]
    shown = _for_report(test, logits, np.concatenate([wrong, correct, *changed]).astype(int))
    raw = explanation.explain(
        network,
        test.images[shown],
        test.labels[shown],
        guesses[shown],
        stage=choice.stage,
        method=choice.method,
        on_batch=progress("explaining", len(shown)),
    )
    badges = [None] * len(guesses) if said is None else people.judge(said, test.labels, guesses)
    p = explanation.probabilities(logits)
    return _Found(network, test, choice, logits, p, guesses, wrong, correct, shown, raw, said, badges, compared)


def _write_files(
    folder: Path,
    found: _Found,
    evaluated: tuple[dict[str, Any], measures.Pictures] | None,
    on_drawn: Callable[[int], None],
) -> dict[str, Any]:
    """Writes all of it into an empty folder; returns the manifest."""
    network, test = found.network, found.test
    (folder / "gradcam_images").mkdir()
    entries = {}
    for kind, positions in (("wrong", found.wrong), ("correct", found.correct)):
        entries[kind] = _entries(found, kind, positions)
        _draw(folder, kind, found, entries[kind], positions, on_drawn)
    if network.rows:
        plots.plot_curves(network.rows, folder / "loss_accuracy.png", f"training of {network.config.preset}")
    manifest = _manifest(found, entries)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (test.labels, found.guesses), 1)
    title = f"{manifest['test_accuracy']:.2f}% of {len(test.labels):,} images correct, {test.name}"
    plots.plot_confusion(confusion, test.class_names, folder / "confusion_matrix.png", title)
    (folder / MANIFEST).write_text(files.to_json(manifest, indent=1) + "\n")
    _write_maps(folder, found)
    tables = []
    if evaluated is not None:
        figures = evaluated[0] if found.said is None else evaluated[0] | {"people": manifest["people"]}
        _write_trust(folder, figures, evaluated[1], test.class_names)
        tables = trust_tables.build(figures)
    if found.compared is not None:
        (folder / "comparison.json").write_text(files.to_json(found.compared.figures, indent=1) + "\n")
        _draw_changed(folder, found, found.compared)
    html = report.render(
        manifest,
        network.rows,
        confusion,
        test,
        found.shown,
        found.probabilities,
        found.raw,
        badges=found.badges,
        trust=tables,
        pictures={table.picture: (folder / table.picture).read_bytes() for table in tables if table.picture},
        network=network,
        compared=found.compared,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    return manifest


def _manifest(found: _Found, entries: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    network, test, choice = found.network, found.test, found.choice
    manifest = {
        "checkpoint": network.name,
        "checkpoint_sha256": network.digest,
        "model": network.config.preset,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(network.params)),
        "layer": choice.stage,
        "method": choice.method,
        "data": test.name,
        "test_accuracy": 100 * int((found.guesses == test.labels).sum()) / len(test.labels),
        "test_count": len(test.labels),
        "wrong": entries["wrong"],
        "correct": entries["correct"],
    }
    if found.said is not None:
        sure = found.probabilities.max(axis=1)
        manifest["people"] = people.summarise(found.said, test.labels, found.guesses, sure, found.badges)
    return manifest


def _write_maps(folder: Path, found: _Found) -> None:
    """`cams.npz`: the raw maps of what was chosen, wrong ones first."""
    chosen = np.concatenate([found.wrong, found.correct]).astype(int)
    raw = found.raw[np.searchsorted(found.shown, chosen)]
    np.savez(folder / "cams.npz", indices=found.test.indices[chosen], raw=raw)


def _write_trust(
    folder: Path, figures: dict[str, Any], pictures: measures.Pictures, class_names: Sequence[str]
) -> None:
    (folder / "trust.json").write_text(files.to_json(figures, indent=1) + "\n")
    where = f"{figures['images']:,} images, {figures['data']}"
    calibrated, faithful = figures["calibration"], figures["faithfulness"]
    title = f"ECE {100 * calibrated['ece']:.2f}%; {where}"
    plots.plot_calibration(calibrated, folder / "calibration.png", title)
    title = (
        f"Faithfulness at {figures['layer']}, {faithful['images']['wrong']} wrong and {faithful['images']['right']} "
    )
    title += f"right predictions, {figures['data']}"
    plots.plot_faithfulness(faithful, measures.BASELINES, folder / "faithfulness.png", title)
    title = f"Where it looked: mean {figures['method']} at {figures['layer']}, {where}"
    plots.plot_pairs(pictures.pair_maps, pictures.pairs, class_names, folder / "confusion_maps.png", title)


def _draw_changed(folder: Path, found: _Found, compared: Comparison) -> None:
    """`mended.png` and `broken.png`: the surest of each, with both networks' maps of their own predictions."""
    ours, theirs = found.maps, dict(zip(compared.changed.tolist(), compared.maps, strict=True))
    test, names, p, q = found.test, found.test.class_names, found.probabilities, compared.probabilities
    for kind, positions in (("mended", compared.mended), ("broken", compared.broken)):
        surest = positions[np.argsort(-q.max(axis=1)[positions], kind="stable")][:NUM_CHANGED].tolist()
        overlays, said = [], []
        for i in surest:
            our, their = int(found.guesses[i]), int(compared.guesses[i])
            overlays.append([_overlay(test.images[i], raw) for raw in (ours[i][our], theirs[i])])
            by = (("this", our, p[i, our]), ("other", their, q[i, their]))
            said.append([f"{who}: {names[guess]} {100 * confidence:.0f}%" for who, guess, confidence in by])
        plots.plot_overlays(
            test.images[np.array(surest, int)],
            overlays,
            [f"#{test.indices[i]}\ntrue: {names[int(test.labels[i])]}" for i in surest],
            said,
            folder / f"{kind}.png",
            f"{compared.figures[kind]:,} {kind}: {comparison.DEFINITIONS[kind]}; the other surest first, {test.name}",
            "test images " + ", ".join(str(test.indices[i]) for i in surest),
        )


def _entries(found: _Found, kind: str, positions: np.ndarray) -> list[dict[str, Any]]:
    """What the manifest says of these predictions."""
    test, maps, entries = found.test, found.maps, []
    for number, position in enumerate(positions.tolist(), start=1):
        true, predicted, raw = int(test.labels[position]), int(found.guesses[position]), maps[position]
        entry = {
            "index": int(test.indices[position]),
            "true": test.class_names[true],
            "predicted": test.class_names[predicted],
            "probabilities": [round(float(x), 6) for x in found.probabilities[position]],
            "files": [f"gradcam_images/{kind}_{number}.png"],
            "raw_min": {"predicted": float(raw[predicted].min()), "true": float(raw[true].min())},
            "raw_max": {"predicted": float(raw[predicted].max()), "true": float(raw[true].max())},
            "zero_map": {"predicted": _is_zero(raw[predicted]), "true": _is_zero(raw[true])},
        }
        if (badge := found.badges[position]) is not None:
            entry["badge"] = badge
        entries.append(entry)
    return entries


def _is_zero(raw: np.ndarray) -> bool:
    return bool(cam.is_zero(jnp.asarray(raw)))


def _overlay(image: np.ndarray, raw: np.ndarray) -> np.ndarray | None:
    """The overlay at the size it is shown, or None for a zero map."""
    if _is_zero(raw):
        return None
    pixels = image.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1) / np.float32(255)
    return cam.overlay(pixels, np.asarray(cam.to_image(jnp.asarray(raw), (pixels.shape[0], pixels.shape[1]))))


def _draw(
    folder: Path,
    kind: str,
    found: _Found,
    entries: list[dict[str, Any]],
    positions: np.ndarray,
    on_drawn: Callable[[int], None],
) -> None:
    """The pictures of these predictions: one each, and those of all together."""
    test, maps = found.test, found.maps
    names, subtitle = list(test.class_names), f"{found.choice.method} at {found.choice.stage}, {test.name}"
    description = "test images " + ", ".join(str(entry["index"]) for entry in entries)
    images, titles, overlays, overlay_titles = test.images[positions], [], [], []
    for position, entry in zip(positions.tolist(), entries, strict=True):
        image, raw = test.images[position], maps[position]
        true, predicted = names.index(entry["true"]), names.index(entry["predicted"])
        confidence = f"{100 * entry['probabilities'][predicted]:.0f}%"
        label = f"true: {entry['true']}\n" if true != predicted else ""
        badge = entry.get("badge")
        titles.append(
            f"#{entry['index']}\n{label}predicted: {entry['predicted']} {confidence}" + (f"\n{badge}" if badge else "")
        )
        explained = [predicted] if true == predicted else [predicted, true]
        overlays.append([_overlay(image, raw[label]) for label in explained])
        overlay_titles.append([f"for {names[label]}" for label in explained])
        said = f", {badge}" if badge else ""
        verdict = "correctly predicted" if true == predicted else f"taken for {entry['predicted']}"
        plots.plot_explanation(
            image,
            overlays[-1],
            overlay_titles[-1],
            raw[DIFFERENCE],
            np.array(entry["probabilities"]),
            names,
            folder / entry["files"][0],
            f"test image {entry['index']}: {entry['true']}, {verdict} ({confidence}){said}; {subtitle}",
            f"test images {entry['index']}",
        )
        on_drawn(1)
    word = {"wrong": "Wrong predictions", "correct": "Correct predictions"}[kind]
    plots.plot_predictions(images, titles, folder / f"{kind}_prediction.png", f"{word}, {test.name}", description)
    file, title = folder / f"gradcam_{kind}.png", f"{word}: {subtitle}"
    plots.plot_overlays(images, overlays, titles, overlay_titles, file, title, description)
