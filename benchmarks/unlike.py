"""How many pictures that are unlike the training set `explain.py --images` marks, beside other rules: JSON.

    python benchmarks/unlike.py --json docs/results/unlike.json

Each rule marks what is below the value that all but 5% of the sample's 1,000 test images exceed. The area under the
ROC curve is of the 10,000 test images against the pictures. Needs scikit-learn (the extra `test`), for its digits and
photographs.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from machine import describe_machine
from PIL import Image
from scipy.special import logsumexp
from sklearn import datasets
from sklearn.metrics import roc_auc_score

from cifar_flax import data
from cifar_flax import machine as devices
from cifar_flax.explaining import explanation, own
from cifar_flax.network import model
from cifar_flax.training.trained import Network, load_network


def strange_pictures(test_images: np.ndarray, rng: np.random.Generator, count: int = 300) -> dict[str, np.ndarray]:
    """Sets of pictures, uint8 `[N, 32, 32, 3]`, by name."""
    pixels = test_images[:count].reshape(count, -1, 3)
    angle, frequency = rng.uniform(0, np.pi, (count, 1, 1)), rng.uniform(0, 2, (count, 1, 1))
    rows, columns = np.mgrid[:32, :32]
    waves = np.sin(frequency * (np.cos(angle) * rows + np.sin(angle) * columns))
    photographs = datasets.load_sample_images().images

    def crop(size: int) -> np.ndarray:
        photograph = photographs[rng.integers(len(photographs))]
        y, x = (rng.integers(length - size) for length in photograph.shape[:2])
        square = Image.fromarray(photograph[y : y + size, x : x + size])
        return np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR))

    digits = [Image.fromarray((255 / 16 * digit).astype(np.uint8)) for digit in datasets.load_digits().images[:count]]
    resized = [np.asarray(x.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB")) for x in digits]
    return {
        "uniform noise": rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
        "one colour": np.tile(rng.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8), (1, 32, 32, 1)),
        "gratings": np.repeat((127.5 + 127.5 * waves).astype(np.uint8)[..., None], 3, axis=-1),
        "test images, pixels shuffled": np.stack([x[rng.permutation(1024)] for x in pixels]).reshape(-1, 32, 32, 3),
        "digits": np.stack(resized),
        "photographs, 64 pixels wide": np.stack([crop(64) for _ in range(count)]),
        "photographs, 200 pixels wide": np.stack([crop(200) for _ in range(count)]),
        "test images, upside down": test_images[:1000, ::-1],
        "test images, colours inverted": 255 - test_images[:1000],
    }


def last_layer(network: Network, images: np.ndarray) -> np.ndarray:
    """Sun et al.'s own rule: the cosine of the last layer's inputs, of an image and its 10th nearest: float `[N]`."""
    stage = network.model.stage_names[-1]

    @explanation.compiled
    def features(params, images):
        return model.features(network.model, params, data.normalize(images), stage=stage).mean(axis=(1, 2))

    def of(images):
        found = explanation.in_batches(features, network.params, (images,), lambda n: None)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    known = of(data.load_cifar10(source="sample").train_images)
    return np.sort(of(images) @ known.T, axis=1)[:, -own.NEIGHBOUR]


def scores(network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """What each rule looks at, the larger the more like the training set: float `[N]`."""
    logits = explanation.predict(network, images).astype(np.float64)
    return {
        "nearest neighbours": -own.distance(network, images)[0],
        "last layer": last_layer(network, images),
        "energy": logsumexp(logits, axis=1),
        "largest logit": logits.max(axis=1),
        "largest probability": explanation.probabilities(logits).max(axis=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, help="what explain.py's --ckpt takes (the embedded network)")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 is kept")
    parser.add_argument("--json", type=Path, required=True)
    flags = parser.parse_args()
    devices.set_up()
    network, test = load_network(flags.ckpt), data.load_cifar10(flags.data_dir).test_images
    held_out = scores(network, data.load_cifar10(source="sample").test_images)
    limits = {rule: np.quantile(values, own.UNLIKE_SHARE) for rule, values in held_out.items()}
    known = scores(network, test)
    found: dict = {"test set": {rule: {"marked": float((known[rule] < limits[rule]).mean())} for rule in limits}}
    for name, images in strange_pictures(test, np.random.default_rng(0)).items():
        of = scores(network, images)
        truth = np.repeat([1, 0], [len(test), len(images)])
        found[name] = {
            rule: {
                "marked": float((of[rule] < limits[rule]).mean()),
                "auroc": float(roc_auc_score(truth, np.concatenate([known[rule], of[rule]]))),
            }
            for rule in limits
        }
        print(f"{name:<32}", {rule: f"{100 * row['marked']:.0f}%" for rule, row in found[name].items()}, flush=True)
    about = {"network": network.name, "sha256": network.digest, "machine": describe_machine()}
    flags.json.write_text(json.dumps(about | {"pictures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
