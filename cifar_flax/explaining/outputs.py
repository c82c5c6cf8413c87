"""Everything that an `Analysis` becomes on disk: pictures, `manifest.json`, `cams.npz` and the report.

It computes nothing of the network, and reads nothing that it has written.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_flax import config, files, plots
from cifar_flax.data import Split
from cifar_flax.explaining import cam, comparison, drawing, measures, neighbours, people, report, tables
from cifar_flax.explaining.analysis import Analysis
from cifar_flax.explaining.folder import EXPLANATION, replacing
from cifar_flax.explaining.neighbours import Doubted, Neighbours
from cifar_flax.explaining.network import Progress

NUM_CHANGED = 20


def save(analysis: Analysis, folder: Path, *, overwrite: bool, progress: Progress) -> dict[str, Any]:
    """Writes all of it, or nothing; returns the manifest."""
    on_drawn = progress("drawing", len(analysis.wrong) + len(analysis.correct))
    with replacing(folder, EXPLANATION, overwrite=overwrite) as new:
        (new / "gradcam_images").mkdir()
        content = manifest(analysis)
        for kind, positions in (("wrong", analysis.wrong), ("correct", analysis.correct)):
            _draw(new, kind, analysis, positions, content[kind], on_drawn)
        if analysis.network.history:
            title = f"training of {config.architecture(analysis.network.trained.config)}"
            taught = bool(analysis.network.trained.config.teacher)
            plots.plot_curves(analysis.network.history, new / "loss_accuracy.png", title, taught=taught)
        title = f"{100 * analysis.predictions.accuracy:.2f}% of {len(analysis.predictions):,} images correct, "
        figure = drawing.confusion_figure(analysis.predictions.confusion, analysis.predictions.class_names)
        figure.axes[0].set_title(title + analysis.dataset.test_title)
        plots.save_figure(figure, new / "confusion_matrix.png")
        _write_maps(new, analysis)
        pictures: dict[str, bytes] = {}
        if analysis.evaluation is not None:
            pictures = _write_evaluation(new, analysis, content)
        if analysis.neighbours is not None:
            _draw_neighbours(new, analysis, analysis.neighbours)
        if analysis.robustness is not None:
            _write_robustness(new, analysis)
        if analysis.comparison is not None:
            (new / "comparison.json").write_text(files.to_json(analysis.comparison.figures, indent=1) + "\n")
            _draw_changed(new, analysis)
        (new / "report.html").write_text(report.render(analysis, content, pictures), encoding="utf-8")
        content = content | {
            "files": sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
        }
        (new / EXPLANATION.manifest).write_text(files.to_json(content, indent=1) + "\n")
    return content


def manifest(analysis: Analysis) -> dict[str, Any]:
    """What `manifest.json` says, but for the files."""
    content = EXPLANATION.header() | analysis.network.identity()
    content |= {
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(analysis.network.params)),
        "stage": analysis.selection.stage,
        "method": analysis.selection.method,
        "data": analysis.dataset.test_title,
        "is_sample": analysis.dataset.is_sample,
        "class_names": list(analysis.predictions.class_names),
        "accuracy": analysis.predictions.accuracy,
        "correct_count": int(analysis.predictions.correct.sum()),
        "count": len(analysis.predictions),
        "wrong": _entries(analysis, "wrong", analysis.wrong),
        "correct": _entries(analysis, "correct", analysis.correct),
    }
    if analysis.neighbours is not None:
        found, dataset = analysis.neighbours, analysis.dataset
        content["neighbours"] = found.figures | {
            "doubted": _doubted(analysis, dataset.train, found.doubted),
            "doubted_test": _doubted(analysis, dataset.test, found.doubted_test),
        }
    if analysis.slices is not None:
        content["slices"] = analysis.slices.figures
    if analysis.people is not None:
        content["people"] = people.summarise(analysis.people, analysis.predictions, analysis.badges)
    return content


def _entries(analysis: Analysis, kind: str, positions: np.ndarray) -> list[dict[str, Any]]:
    """What the manifest says of these predictions."""
    predictions, names, entries = analysis.predictions, analysis.predictions.class_names, []
    for number, position in enumerate(positions.tolist(), start=1):
        true, predicted = int(predictions.true[position]), int(predictions.predicted[position])
        raw = {"predicted": analysis.map_of(position, predicted), "true": analysis.map_of(position, true)}
        entry = {
            "index": int(analysis.dataset.test.indices[position]),
            "true": names[true],
            "predicted": names[predicted],
            "probabilities": [round(float(x), 6) for x in predictions.probabilities[position]],
            "picture": f"gradcam_images/{kind}_{number}.png",
            "raw_min": {name: float(x.min()) for name, x in raw.items()},
            "raw_max": {name: float(x.max()) for name, x in raw.items()},
            "zero_map": {name: bool(cam.is_zero(x)) for name, x in raw.items()},
        }
        if (badge := analysis.badges[position]) is not None:
            entry["badge"] = badge
        if analysis.neighbours is not None:
            found, (place,) = analysis.neighbours, analysis.places_of([position])
            entry["neighbours"] = neighbours.entries(
                analysis.dataset.train, names, found.places[place], found.similarity[place]
            )
        entries.append(entry)
    return entries


def _doubted(analysis: Analysis, split: Split, found: Doubted) -> list[dict[str, Any]]:
    names = analysis.predictions.class_names
    return [
        {"index": int(split.indices[i]), "label": names[int(split.labels[i])], "neighbours": names[int(label)]}
        for i, label in zip(*found, strict=True)
    ]


def _write_maps(folder: Path, analysis: Analysis) -> None:
    """`cams.npz`: the raw maps of what was chosen, wrong ones first, their classes, and predicted minus true."""
    chosen = np.concatenate([analysis.wrong, analysis.correct]).astype(int)
    places = analysis.places_of(chosen)
    np.savez(
        folder / "cams.npz",
        indices=analysis.dataset.test.indices[chosen],
        classes=analysis.classes[places],
        raw=analysis.maps[places],
        difference=analysis.differences[places],
    )


def _write_evaluation(folder: Path, analysis: Analysis, content: dict[str, Any]) -> dict[str, bytes]:
    """`trust.json`, with what the manifest says of people, and its pictures; returns these by name."""
    assert analysis.evaluation is not None
    figures, confused = analysis.evaluation.figures, analysis.evaluation.confused
    if "people" in content:
        figures = figures | {"people": content["people"]}
    (folder / "trust.json").write_text(files.to_json(figures, indent=1) + "\n")
    where = f"{figures['images']:,} images, {figures['data']}"
    calibrated, faithful = figures["calibration"], figures["faithfulness"]
    title = f"ECE {100 * calibrated['ece']:.2f}%; {where}"
    pictures = {"calibration.png": drawing.plot_calibration(calibrated, folder / "calibration.png", title)}
    title = (
        f"Faithfulness at {figures['stage']}, {faithful['images']['wrong']} wrong and {faithful['images']['right']} "
    )
    title += f"right predictions, {figures['data']}"
    path = folder / "faithfulness.png"
    pictures[path.name] = drawing.plot_faithfulness(faithful, measures.BASELINES, path, title)
    title = f"Where it looked: mean {figures['method']} at {figures['stage']}, {where}"
    path, names = folder / "confusion_maps.png", analysis.predictions.class_names
    pictures[path.name] = drawing.plot_pairs(confused.maps, confused.pairs, names, path, title)
    return pictures


def _write_robustness(folder: Path, analysis: Analysis) -> None:
    """`robustness.json` and its picture, of both networks where there are two."""
    ours, other = analysis.robustness, analysis.other_robustness
    assert ours is not None
    data = analysis.dataset.test_title
    about = tables.about_robustness(ours, other, data)
    figures = analysis.network.identity() | {"data": data, "about": about} | ours.figures()
    if other is not None:
        assert analysis.comparison is not None
        figures["other"] = {"checkpoint": analysis.comparison.figures["checkpoint"]} | other.figures()
    (folder / "robustness.json").write_text(files.to_json(figures, indent=1) + "\n")
    title = f"{analysis.network.name} on corrupted images: {int(ours.count.sum()):,} images, {data}"
    drawing.plot_grids([*tables.of_robustness(ours, other).values()], folder / "corruptions.png", title)


def _draw_changed(folder: Path, analysis: Analysis) -> None:
    """`mended.png` and `broken.png`: the surest of each, with both networks' maps of their own predictions."""
    compared, ours, test = analysis.comparison, analysis.predictions, analysis.dataset.test
    assert compared is not None
    theirs, names = compared.predictions, ours.class_names
    their_maps = dict(zip(compared.changed.tolist(), compared.maps, strict=True))
    for kind, positions in (("mended", compared.mended), ("broken", compared.broken)):
        surest = positions[np.argsort(-theirs.confidence[positions], kind="stable")][:NUM_CHANGED].tolist()
        overlays, titles = [], []
        for i in surest:
            our = int(ours.predicted[i])
            raw = analysis.map_of(i, our), their_maps[i]
            overlays.append([drawing.overlay(test.images[i], x) for x in raw])
            titles.append(
                [
                    f"{who}: {names[int(by.predicted[i])]} {100 * by.confidence[i]:.0f}%"
                    for who, by in (("this", ours), ("other", theirs))
                ]
            )
        figure = drawing.overlay_figure(
            test.images[np.array(surest, int)],
            overlays,
            [f"#{test.indices[i]}\ntrue: {names[int(ours.true[i])]}" for i in surest],
            titles,
            f"{compared.figures[kind]:,} {kind}: {comparison.DEFINITIONS[kind]}; the other surest first, "
            f"{analysis.dataset.test_title}",
        )
        description = "test images " + ", ".join(str(test.indices[i]) for i in surest)
        plots.save_figure(figure, folder / f"{kind}.png", description)


def _draw_neighbours(folder: Path, analysis: Analysis, found: Neighbours) -> None:
    """`neighbours_wrong.png`: the wrong predictions chosen, each with its nearest training images."""
    test, train, predictions = analysis.dataset.test, analysis.dataset.train, analysis.predictions
    names, places = predictions.class_names, analysis.places_of(analysis.wrong)
    captions = [
        [f"{names[int(train.labels[i])]}\n{cosine:.2f}" for i, cosine in zip(*pair, strict=True)]
        for pair in zip(found.places[places], found.similarity[places], strict=True)
    ]
    figure = drawing.overlay_figure(
        test.images[analysis.wrong],
        list(train.images[found.places[places]]),
        [
            f"#{test.indices[i]}\ntrue: {names[int(predictions.true[i])]}\npredicted: {predictions.names[i]}"
            for i in analysis.wrong
        ],
        captions,
        f"The training images nearest to wrong predictions, {analysis.dataset.test_title}: labels and cosines",
    )
    description = "test images " + ", ".join(str(test.indices[i]) for i in analysis.wrong)
    plots.save_figure(figure, folder / "neighbours_wrong.png", description)


def _draw(
    folder: Path,
    kind: str,
    analysis: Analysis,
    positions: np.ndarray,
    entries: Sequence[dict[str, Any]],
    on_drawn: Callable[[int], None],
) -> None:
    """The pictures of these predictions: one each, and those of all together."""
    test, predictions, title_of_data = analysis.dataset.test, analysis.predictions, analysis.dataset.test_title
    names, subtitle = predictions.class_names, f"{analysis.selection.method} at {analysis.selection.stage}"
    subtitle += f", {title_of_data}"
    images, titles, overlays, overlay_titles = test.images[positions], [], [], []
    for position, entry in zip(positions.tolist(), entries, strict=True):
        image, true, predicted = (
            test.images[position],
            int(predictions.true[position]),
            int(predictions.predicted[position]),
        )
        index, badge = test.indices[position], analysis.badges[position]
        confidence = f"{100 * predictions.confidence[position]:.0f}%"
        label = f"true: {names[true]}\n" if true != predicted else ""
        titles.append(f"#{index}\n{label}predicted: {names[predicted]} {confidence}" + (f"\n{badge}" if badge else ""))
        explained = [predicted] if true == predicted else [predicted, true]
        overlays.append([drawing.overlay(image, analysis.map_of(position, c)) for c in explained])
        overlay_titles.append([f"for {names[c]}" for c in explained])
        said = f", {badge}" if badge else ""
        verdict = "correctly predicted" if true == predicted else f"taken for {names[predicted]}"
        most = predictions.ranked[position, :10] if len(names) > 10 else np.arange(len(names))
        drawing.plot_explanation(
            image,
            overlays[-1],
            overlay_titles[-1],
            analysis.differences[analysis.places_of([position])[0]],
            predictions.probabilities[position, most],
            [names[int(c)] for c in most],
            folder / entry["picture"],
            f"test image {index}: {names[true]}, {verdict} ({confidence}){said}; {subtitle}",
            f"test images {index}",
        )
        on_drawn(1)
    description = "test images " + ", ".join(str(test.indices[position]) for position in positions)
    word = {"wrong": "Wrong predictions", "correct": "Correct predictions"}[kind]
    path = folder / f"{kind}_prediction.png"
    drawing.plot_predictions(images, titles, path, f"{word}, {title_of_data}", description)
    figure = drawing.overlay_figure(images, overlays, titles, overlay_titles, f"{word}: {subtitle}")
    plots.save_figure(figure, folder / f"gradcam_{kind}.png", description)
