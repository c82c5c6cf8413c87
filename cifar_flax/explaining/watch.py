"""A page that shows a run while it trains: its curves, rate and norms, and the surest of its latest errors."""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from cifar_flax import config, files
from cifar_flax.data import Dataset, Split
from cifar_flax.explaining import pages
from cifar_flax.explaining.network import Network, prepare
from cifar_flax.training import rundir
from cifar_flax.training.beginning import Beginning
from cifar_flax.training.trained import Trained

NAME = rundir.WATCH
SECONDS = 5
_IMAGES, _SHOWN = 500, 24


def watching(folder: Path, dataset: Dataset) -> Callable[[Beginning], None]:
    """A function to call before the first step of a run and after each epoch: it writes `watch.html` into its folder.

    A browser loads the page anew every `SECONDS`, until the run is complete. The errors are of at most 500 test
    images, the same ones each time; none is looked at where the run does without test images.
    """
    drawn = np.sort(np.random.default_rng(0).permutation(len(dataset.test.images))[:_IMAGES])
    network: Network | None = None

    def write(state: Beginning) -> None:
        nonlocal network
        asked, (rows, averages) = state.config, (state.progress.rows, state.progress.state.ema_params)
        test = dataset.test.take(drawn if asked.test and rows else drawn[:0])
        precision = state.program.execution.precision
        trained = Trained(str(folder), jax.device_get(averages), asked, dataset.spec, rows, precision)
        # What was compiled is kept: only the parameters change.
        network = prepare(trained) if network is None else dataclasses.replace(network, trained=trained)
        content = {
            "class_names": dataset.spec.class_names,
            "image_size": dataset.spec.image_size,
            "run": trained.name,
            "model": config.architecture(asked),
            "written": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
            "rows": rows,
            "taught": bool(asked.teacher),
            "epochs": asked.epochs,
            "seconds": SECONDS if len(rows) < asked.epochs else None,
            "tested": len(test.images),
            "errors": _errors(network, test) if len(test.images) else [],
        }
        files.write_atomically(folder / NAME, pages.render(NAME, content).encode())

    return write


def _errors(network: Network, test: Split) -> list[dict[str, Any]]:
    """The surest errors, and their images as PNG."""
    found = network.predict(test.images, test.labels)
    wrong = np.flatnonzero(~found.correct)
    surest = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:_SHOWN]
    return [
        {
            "index": int(test.indices[i]),
            "true": int(test.labels[i]),
            "predicted": int(found.predicted[i]),
            "confidence": round(float(found.confidence[i]), 4),
            "picture": pages.picture_url(Image.fromarray(test.images[i]), "PNG"),
        }
        for i in surest
    ]
