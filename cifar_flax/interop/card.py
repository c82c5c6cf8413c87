"""A folder to publish a network in: its weights, and a model card as the Hugging Face Hub reads it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from cifar_flax import config
from cifar_flax.errors import UserError
from cifar_flax.training import trained
from cifar_flax.training.trained import Trained

CARD, PAGE = "README.md", "index.html"
_HUB = {"CIFAR-10": "uoft-cs/cifar10"}  # names of data sets on the Hugging Face Hub


def write(folder: Path, network: Trained, report: Path | None = None) -> list[str]:
    """Writes a network's weights, its card, and a report as `index.html`; returns the names of the files.

    Args:
      folder: made if absent; must hold none of these files.
      network: the network.
      report: what `explain`, `compare` or `evaluate` wrote of it, if that is to be shown.

    Raises:
      UserError: one of the files exists, or cannot be written; the report is none, or of another network; or the
        network had BatchNorm.
    """
    if network.config.norm == "affine":
        raise UserError(f"{network.name} had BatchNorm: publish the file that it came from")
    page, robustness = (None, None) if report is None else _read(report, network)
    # A path would say where its maker's pictures are.
    name = network.config.dataset
    if Path(name).name != name and not name.startswith("tfds:"):
        name = config.as_path(Path(name).name)
    network = dataclasses.replace(network, config=dataclasses.replace(network.config, dataset=name))
    try:
        corrupted = _robustness(robustness)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{report}: robustness.json is not what evaluate wrote: evaluate it again") from error
    card = text(network, corrupted)
    names = [CARD, trained.PUBLISHED_AS, *([PAGE] if page else [])]
    for name in names:
        if (folder / name).exists():
            raise UserError(f"{folder} holds a {name}: choose another folder, or delete it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trained.export(network, folder / trained.PUBLISHED_AS)
        (folder / CARD).write_text(card, encoding="utf-8")
        if page:
            (folder / PAGE).write_bytes(page)
    except (OSError, UserError) as error:
        for name in names if folder.is_dir() else []:  # all or nothing
            (folder / name).unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{folder} cannot be written: {reason}; choose another") from error
    return names


def _read(report: Path, network: Trained) -> tuple[bytes, dict[str, Any] | None]:
    """A report's page, and its figures of corrupted images if it has them.

    Raises:
      UserError: there is none, or it is of another network.
    """
    try:
        of = str(json.loads((report / "manifest.json").read_bytes())["checkpoint_sha256"])
        page, figures = (report / "report.html").read_bytes(), report / "robustness.json"
        robustness = json.loads(figures.read_bytes()) if figures.exists() else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"--report {report} is no report: expected what explain, compare or evaluate wrote") from error
    if of != network.digest:
        raise UserError(f"--report {report} is of another network, with SHA-256 {of[:12]}: explain this one")
    return page, robustness


def text(network: Trained, corrupted: Sequence[str] = ()) -> str:
    """The card: YAML front matter with a model index, then what the network is, from its run's own figures.

    Args:
      network: the network.
      corrupted: lines on corrupted images.
    """
    row, dataset = network.history[-1] if network.history else {}, network.config.dataset
    size = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    name = f"cifar_flax {config.architecture(network.config)}, {size:,} parameters"
    data = network.spec.name
    if dataset == "sample":
        data = f"the embedded sample of {data}, 1,000 training and 1,000 test images"
    made = f"trained on {data} in JAX and Flax by `cifar_flax`"
    if network.imported_from:
        made = f"trained elsewhere, on {data}, and imported from {network.imported_from} by `cifar_flax`"
    lines = [
        *_front_matter(name, network.spec.name, data, row),
        f"# {name}",
        "",
        f"A ResNet with LayerNorm over height, width and channels and no other normalisation, {made}. "
        f"It knows the {network.spec.num_classes} classes of "
        f"{network.spec.name}, and names one of them for anything it is shown.",
        "",
        "## Use",
        "",
        "```python",
        "import cifar_flax",
        "",
        f'network = cifar_flax.load("{trained.PUBLISHED_AS}")',
        'predictions = network.predict("picture.jpg")  # or uint8 [N, H, W, 3], RGB',
        "print(predictions.names, predictions.probabilities)",
        "```",
        "",
        f"`cifar-flax explain --ckpt {trained.PUBLISHED_AS} --dataset DATASET` shows what it gets wrong among the "
        f"test images of {network.spec.name}, and what it was looking at.",
        "",
        "## Figures",
        "",
        *_figures(network, row),
        *corrupted,
        *_settings(network),
        f"SHA-256 of the parameters: `{network.digest}`",
        "",
    ]
    return "\n".join(lines)


def _front_matter(name: str, data_name: str, data: str, row: dict[str, Any]) -> list[str]:
    lines = ["---", "library_name: flax", "pipeline_tag: image-classification"]
    lines += ["tags: [jax, flax, resnet, layer-normalization, grad-cam]"]
    hub = _HUB.get(data_name)
    lines += [f"datasets: [{hub}]"] * bool(hub) + ["metrics: [accuracy]"]
    if "test_accuracy" in row:
        lines += [
            "model-index:",
            f"- name: {json.dumps(name)}",
            "  results:",
            "  - task: {type: image-classification, name: Image classification}",
            f"    dataset: {{type: {hub or json.dumps(data_name)}, name: {json.dumps(data)}, split: test}}",
            "    metrics:",
            f"    - {{type: accuracy, value: {row['test_accuracy']:.4f}, name: test accuracy of the last epoch}}",
            f"    - {{type: loss, value: {row['test_loss']:.4f}, name: test loss of the last epoch}}",
        ]
    return [*lines, "---", ""]


def _settings(network: Trained) -> list[str]:
    """The run's settings; of an imported network the shape alone."""
    settings = dataclasses.asdict(network.config)
    if network.imported_from:
        settings = {key: settings[key] for key in ("widths", "strides", "blocks")}
    title = "## Its shape" if network.imported_from else "## How it was trained"
    rows = (f"| `{key}` | {json.dumps(value)} |" for key, value in settings.items())
    return [title, "", "| setting | value |", "| --- | --- |", *rows, ""]


def _figures(network: Trained, row: dict[str, Any]) -> list[str]:
    if not row:
        return ["The weights came without their training's figures.", ""]
    lines = [f"At the last epoch, {row['epoch']}:", "", "| images | loss | accuracy |", "| --- | --: | --: |"]
    titles = {"train": "training, augmented", "val": "held out of training", "test": "test"}
    for key, title in titles.items():
        if f"{key}_accuracy" in row:
            counts = f"{100 * row[f'{key}_accuracy']:.2f}%"
            if f"{key}_correct" in row:
                counts += f" ({row[f'{key}_correct']:,} of {row[f'{key}_total']:,})"
            lines.append(f"| {title} | {row[f'{key}_loss']:.3f} | {counts} |")
    if "test_accuracy" in row:
        best = max(network.history, key=lambda x: x["test_accuracy"])
        share = f"{100 * best['test_accuracy']:.2f}%"
        lines += ["", f"The best epoch, {best['epoch']}, has {share}: it is chosen on the test set."]
    return [*lines, ""]


def _robustness(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    rows = ([name, *(f"{100 * x:.1f}%" for x in values)] for name, values in found["accuracy"].items())
    return [
        "## On corrupted images",
        "",
        *(line for words in found["about"] for line in (words, "")),
        "| accuracy at severity | 1 | 2 | 3 | 4 | 5 |",
        "| --- | --: | --: | --: | --: | --: |",
        *(f"| {' | '.join(row)}{' |' * (7 - len(row))}" for row in rows),
        "",
    ]
