"""What a person sees of a run: its beginning, a line or two an epoch, its end, and a bar."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cifar_flax import machine
from cifar_flax.config import Config, architecture
from cifar_flax.data import Dataset
from cifar_flax.execution import Execution
from cifar_flax.network.model import Layer
from cifar_flax.training.checkpoint import Progress

# ResNet-18 trains at some 22 images/s on a core that multiplies in bfloat16; only used to warn beforehand.
_RESNET18_IMAGES_PER_SECOND_PER_CORE = 22


def progress_bar(config: Config, num_train: int, progress: Progress, *, hidden: bool) -> tqdm:
    """A bar over the whole run on a terminal; nothing at all in a pipe or a file."""
    return tqdm(
        total=config.epochs * num_train,
        initial=len(progress.rows) * num_train + int(progress.sums.count),
        unit=" images",
        unit_scale=True,
        leave=False,
        disable=hidden or None,
    )


def greeting(
    config: Config, dataset: Dataset, layers: Sequence[Layer], execution: Execution, folder: Path, progress: Progress
) -> Iterator[str]:
    """What runs, on what, and from where it goes on."""
    done, steps, num_train = len(progress.rows), progress.steps, len(dataset.train.images) - config.val_size
    within = f" and {steps} steps" if steps else ""
    yield f"Run: {folder}" + (f", resumed after epoch {done}{within}" if done or steps else "")
    where = execution.record()
    spread = f" in {where['processes']} processes" if where["processes"] > 1 else ""
    yield f"Devices: {where['devices']} x {where['device']}{spread}, {where['precision']}"
    size = sum(layer.num_params for layer in layers)
    yield f"Model: {architecture(config)}, {size:,} parameters, LayerNorm only"
    if config.teacher:
        yield f"Teacher: {config.teacher}, SHA-256 {config.teacher_digest[:12]}"
    held_out = f", {config.val_size:,} held out for validation" if config.val_size else ""
    yield f"Data: {dataset.title}, {num_train:,} training images{held_out}"
    if config.warmup_epochs >= config.epochs:
        yield (
            f"Note: the rate rises for --warmup-epochs {config.warmup_epochs}, and the run has {config.epochs}: "
            "it does not reach --learning-rate"
        )
    if config.plateau_monitor == "test_loss":
        yield "Note: --plateau-monitor test_loss lets the test set steer the learning rate"
    if execution.on_cpu and size > 5_000_000:
        images = (config.epochs - done) * num_train
        hours = images / (_RESNET18_IMAGES_PER_SECOND_PER_CORE * machine.num_cores()) / 3600
        yield (
            f"Note: about {hours:.2g} hours on {machine.num_cores()} CPU cores; "
            "`--preset compact` is a small network that takes a tenth of that"
        )


def results(row: dict[str, Any], held_out: Iterable[str]) -> Iterator[str]:
    """An epoch's figures."""
    for name in ("train", *held_out):
        title = name.capitalize()
        accuracy = f"{100 * row[f'{name}_accuracy']:.3f}% ({row[f'{name}_correct']}/{row[f'{name}_total']})"
        yield f"{title} Loss: {row[f'{name}_loss']:.3f} | {title} Acc: {accuracy}"
    yield f"Learning Rate: {row['learning_rate']:.6g} | {row['images_per_second']:.0f} images/s"
    if row["skipped_steps"]:
        yield f"Skipped: {row['skipped_steps']} steps whose loss or gradient was not finite"


def farewell(config: Config, dataset: Dataset, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The run's figures."""
    last = rows[-1]
    if "test_accuracy" in last:
        yield f"Best Acc is :  {max(100 * row['test_accuracy'] for row in rows):.4g}"
        yield (
            f"Last epoch ({last['epoch']}): test accuracy {100 * last['test_accuracy']:.2f}%, test loss "
            f"{last['test_loss']:.3f}. The best epoch is chosen on the test set; the last one is not."
        )
    elif config.val_size:
        accuracy = f"{100 * last['val_accuracy']:.2f}%"
        yield f"Last epoch ({last['epoch']}): {accuracy} of {last['val_total']:,} held-out images"
    if dataset.is_sample:
        yield f"These are figures of the embedded sample, not of {dataset.spec.name}."
