"""Does a network that was trained with wrong labels still show them? Planted errors, ranked by neighbours: JSON.

Of 10,000 images of CIFAR-10 a hundred get another label. One network is trained with all of them; two more with one half
each, and judge the other half. How many of the hundred are among the first hundred doubted?
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

import cifar_flax
from cifar_flax.data import Split
from cifar_flax.explaining import neighbours
from cifar_flax.explaining.network import no_progress

COUNT, WRONG = 10_000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    flags = parser.parse_args()
    dataset = cifar_flax.open_dataset("cifar10", data_dir=flags.data_dir)
    result = []
    for seed in range(flags.seeds):
        rng = np.random.default_rng(seed)
        images, labels, indices = dataset.train.take(rng.permutation(len(dataset.train.images))[:COUNT])
        wrong = rng.permutation(COUNT)[:WRONG]
        labels = labels.copy()
        labels[wrong] = (labels[wrong] + rng.integers(1, 10, WRONG)) % 10
        half = np.arange(COUNT) % 2 == 0
        config = dataclasses.replace(cifar_flax.PRESETS["compact"], epochs=flags.epochs, seed=seed)

        def features(train: np.ndarray, judged: np.ndarray, config=config, images=images, labels=labels):
            some = dataclasses.replace(dataset, train=Split(images[train], labels[train], np.flatnonzero(train)))
            with tempfile.TemporaryDirectory() as folder:
                row = cifar_flax.fit(config, some, Path(folder) / "run")[-1]
                network = cifar_flax.load(Path(folder) / "run")
                known = Split(images[judged], labels[judged], np.flatnonzero(judged))
                return neighbours.training_features(network, known, no_progress), row

        def found(features: np.ndarray, judged: np.ndarray, count: int, labels=labels, wrong=wrong) -> int:
            first, _ = neighbours.doubt(features, labels[judged], count)
            return int(np.isin(np.flatnonzero(judged)[first], wrong).sum())

        every = np.ones(COUNT, bool)
        own, row = features(every, every)
        entry = {
            "seed": seed,
            "trained_with_them": found(own, every, WRONG),
            "train_acc": row["train_acc"],
            "test_acc": row["test_acc"],
            "trained_without_them": 0,
            "the_same_in_halves": 0,
        }
        for judged in (half, ~half):
            apart, row = features(~judged, judged)
            entry["trained_without_them"] += found(apart, judged, WRONG // 2)
            entry["the_same_in_halves"] += found(own[judged], judged, WRONG // 2)
            entry.setdefault("test_acc_of_halves", []).append(row["test_acc"])
        result.append(entry)
        print(entry, flush=True)
        content = {"images": COUNT, "wrong": WRONG, "epochs": flags.epochs, "preset": "compact", "seeds": result}
        flags.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
