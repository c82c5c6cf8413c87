"""The embedded sample: the first 100 images of each class, of the training set and of the test set."""

import json
from pathlib import Path

import numpy as np

from cifar_flax.data.layout import CLASS_NAMES, Cifar10

_FOLDER = Path(__file__).parent / "sample"


def load_sample() -> Cifar10:
    """1,000 training and 1,000 test images, the first 100 of each class, in their official order."""
    from PIL import Image

    index = _index()

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        sheet = np.asarray(Image.open(_FOLDER / f"{split}.png").convert("RGB"))
        rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
        images = sheet.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
        return np.ascontiguousarray(images), np.array(index[split]["labels"], np.int32)

    return Cifar10(*read("train"), *read("test"), CLASS_NAMES)


def _index() -> dict:
    return json.loads((_FOLDER / "index.json").read_text())


def sample_indices(split: str) -> np.ndarray:
    """Places of the sample's images in the official order: int `[1000]`; split is train or test."""
    return np.array(_index()[split]["indices"])


def write_sample(data: Cifar10, folder: Path) -> None:
    """Writes the sample that the package embeds: two PNG sheets, 40 images wide, and an index."""
    from PIL import Image

    index = {}
    splits = {
        "train": (data.train_images, data.train_labels),
        "test": (data.test_images, data.test_labels),
    }
    for split, (images, labels) in splits.items():
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:100] for c in range(10)]))
        sheet = images[chosen].reshape(25, 40, 32, 32, 3).swapaxes(1, 2).reshape(25 * 32, 40 * 32, 3)
        Image.fromarray(sheet).save(folder / f"{split}.png", optimize=True)
        index[split] = {"indices": chosen.tolist(), "labels": labels[chosen].tolist()}
    (folder / "index.json").write_text(json.dumps(index) + "\n")
