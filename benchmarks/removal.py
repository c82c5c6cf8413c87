"""Are an image's neighbours what its answer was learned from? Trains again without them, and looks at the answer.

For test images of the sample, five at a time, the first 1% of training images of each by a measure are removed, a
network is trained anew, and the predicted class's logit (less the mean of all logits) is compared with that of
networks trained without as many drawn at random. Measures: the cosine of features, TracIn of the last layer in closed
form (Pruthi et al. 2020, arXiv 2002.08484: the gradient of the class's logit times that of a training image's loss),
the distance of pixels, and random images of the predicted class. Every training has a seed of its own, so that its
noise is in the interval.
"""

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

import cifar_flax
from benchmarks.machine import describe_machine
from cifar_flax.data import similar

SHARE, GROUP, BASES = 100, 5, 6  # one in so many is removed; test images at once; trainings without random ones


def orders(network, train, image, label, rng):
    """By each measure, the positions of training images, those that should matter most for a class first."""
    known, asked = network.predict(train.images, train.labels), network.predict(image[None])
    cosines = (similar.unit(asked.features) @ similar.unit(known.features).T)[0]
    residual = (train.labels == label) - known.probabilities[:, label]
    pixels = ((train.images.astype(np.float32) - image) ** 2).sum(axis=(1, 2, 3))
    of_class = rng.permutation(np.flatnonzero(train.labels == label))
    return {
        "cosine of features": np.argsort(-cosines),
        "TracIn of the last layer": np.argsort(-residual * (known.features @ asked.features[0])),
        "pixels": np.argsort(pixels),
        "random of the predicted class": of_class,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    sample, rng = cifar_flax.open_dataset("sample"), np.random.default_rng(0)
    config = dataclasses.replace(cifar_flax.PRESETS["smoke"], epochs=flags.epochs, test=False, batch_size=50)
    positions = np.sort(rng.choice(len(sample.test.images), flags.images, replace=False))
    images, seeds = sample.test.images[positions], iter(range(1, 10_000))
    count = len(sample.train.images) // SHARE

    def answers(removed):
        """A network trained without some images, and its logits of the test images less their mean."""
        kept = np.setdiff1d(np.arange(len(sample.train.images)), removed)
        folder = tempfile.mkdtemp()
        seeded = dataclasses.replace(config, seed=next(seeds))
        cifar_flax.fit(seeded, dataclasses.replace(sample, train=sample.train.take(kept)), folder)
        network = cifar_flax.load(folder)
        shutil.rmtree(folder)
        logits = network.predict(images).logits
        return network, logits - logits.mean(axis=1, keepdims=True)

    bases = [answers(rng.choice(1000, GROUP * count, replace=False)) for _ in range(BASES)]
    first, base = bases[0][0], np.mean([logits for _, logits in bases], axis=0)
    predicted = base.argmax(axis=1)
    falls = {}
    for start in range(0, flags.images, GROUP):
        group = range(start, min(start + GROUP, flags.images))
        found = [orders(first, sample.train, images[i], predicted[i], rng) for i in group]
        for name in found[0]:
            _, logits = answers(np.unique([order[name][:count] for order in found]))
            falls.setdefault(name, []).extend(float((base - logits)[i, predicted[i]]) for i in group)
        result = {"machine": describe_machine(), "epochs": flags.epochs, "removed_an_image": count, "bases": BASES}
        result |= {"images": start + len(group), "mean": {}, "falls": falls}
        for name, values in falls.items():
            low, high = bootstrap((values,), np.mean, method="basic", rng=0).confidence_interval
            result["mean"][name] = {"fall": np.mean(values), "interval": [float(low), float(high)]}
        flags.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
