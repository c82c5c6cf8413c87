"""Do maps find what a network must have looked at? A patch of 4x4 pixels that alone encodes random labels.

    python benchmarks/planted_patch.py --out docs/results/planted-patch.json

Trains a small network on the sample's images with random labels; one cell of 8x8, drawn for each image, holds one of
ten coloured patterns, the label's. On other images it must be right with the patch, and at chance without it: then the
patch is the only evidence, and a map of the label's class should lie on it. For every method and baseline: pointing
hit (the highest cell is the patch's), mass (share of the positive map in its cell; chance 1/64 both) and mean rank (0
the first; 31.5 by chance).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from machine import describe_machine

from cifar_flax import cli, data, machine
from cifar_flax.data import normalize
from cifar_flax.explaining import agreement, cam, faithfulness, measures
from cifar_flax.network import model

SIZE = 4
STAGES = ("stage1", "stage2")  # both of 8x8
BATCH_SIZE = 100


def plant(images: np.ndarray, labels: np.ndarray, cells: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Images uint8 `[N, 32, 32, 3]` whose cell, int `[N]` of 0 ... 63, holds their label's pattern `[10, 4, 4, 3]`."""
    planted = images.copy()
    grid = planted.reshape(-1, faithfulness.GRID, SIZE, faithfulness.GRID, SIZE, 3)
    each = np.arange(len(images))
    grid[each, cells // faithfulness.GRID, :, cells % faithfulness.GRID] = patterns[labels]
    return planted


def localise(scores: np.ndarray, cells: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """How well scores `[N, 8, 8]` find the cell, int `[N]`; zero maps are counted and not scored."""
    ranks = faithfulness.rank(scores, rng).reshape(len(scores), -1)
    shares = agreement.share(scores).reshape(len(scores), -1)
    each, kept = np.arange(len(scores)), ~np.asarray(cam.is_zero(jnp.asarray(scores)))
    at = ranks[each, cells][kept]
    return {
        "hit": float((at == 0).mean()) if len(at) else None,
        "mass": float(shares[each, cells][kept].mean()) if len(at) else None,
        "mean_rank": float(at.mean()) if len(at) else None,
        "zero_maps": int((~kept).sum()),
    }


def _train(network: model.ResNet, images: np.ndarray, patterns: np.ndarray, steps: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    params = model.init_params(network, jax.random.key(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            logits = model.forward(network, params, normalize(images))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    for number in range(steps):
        chosen = rng.integers(len(images), size=BATCH_SIZE)
        labels, cells = rng.integers(10, size=BATCH_SIZE), rng.integers(64, size=BATCH_SIZE)
        params, state, value = step(params, state, plant(images[chosen], labels, cells, patterns), labels)
        if number % 100 == 99:
            print(f"step {number + 1}: loss {value:.3f}", flush=True)
    return params


def run(steps: int, seed: int, count: int) -> dict[str, Any]:
    """Trains, checks and scores; ready for JSON."""
    sample, rng = data.load_cifar10(source="sample"), np.random.default_rng(seed)
    patterns = 255 * rng.integers(0, 2, (10, SIZE, SIZE, 3)).astype(np.uint8)
    network = model.ResNet(widths=(16, 32), strides=(4, 1), blocks_per_stage=1)
    params = _train(network, sample.train_images, patterns, steps, seed)
    plain, labels, cells = sample.test_images[:count], rng.integers(10, size=count), rng.integers(64, size=count)
    planted = plant(plain, labels, cells, patterns)
    forward = jax.jit(lambda images: model.forward(network, params, normalize(images)))
    correct = {
        name: np.asarray(forward(x)).argmax(axis=1) == labels for name, x in (("with", planted), ("without", plain))
    }
    found: dict[str, Any] = {
        "steps": steps,
        "seed": seed,
        "images": count,
        "chance": {"hit": 1 / 64, "mass": 1 / 64, "mean_rank": 31.5},
        "accuracy_with_patch": float(correct["with"].mean()),
        "accuracy_without_patch": float(correct["without"].mean()),
    }
    if found["accuracy_with_patch"] < 0.95 or found["accuracy_without_patch"] > 0.2:
        return found | {"void": "the network does not look at the patch alone"}
    occluded = measures.build_occlusion(network)(params, planted, labels)
    for stage in STAGES:
        maps = np.asarray(
            measures.build_class_maps(network, stage, list(cam.METHODS))(params, planted, labels[:, None])
        )[:, 0]
        scores = {name: faithfulness.to_cells(maps[:, i]) for name, i in measures.distinct(maps).items()}
        scores |= dict(
            zip(
                measures.BASELINES,
                (
                    faithfulness.random_scores(count, rng),
                    faithfulness.centre_scores(count) + 100,  # positive, so that its mass can be measured
                    faithfulness.edge_scores(planted),
                    faithfulness.to_cells(maps[faithfulness.others(count), 0]),
                    np.asarray(occluded),
                ),
                strict=True,
            )
        )
        found[stage] = {name: localise(score, cells, rng) for name, score in scores.items()}
    return found


def main() -> None:
    parser = cli.Parser("planted_patch.py", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--steps", type=int, default=1500, help="steps of training (1500)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    parser.add_argument("--images", type=int, default=500, help="test images to score (500)")
    flags = parser.parse_args()
    machine.set_up()
    found = {
        "command": cli.command_line(),
        "machine": describe_machine(),
        **run(flags.steps, flags.seed, flags.images),
    }
    print(f"accuracy with the patch {found['accuracy_with_patch']:.3f}, without {found['accuracy_without_patch']:.3f}")
    for stage in STAGES:
        for name, row in found.get(stage, {}).items():
            print(f"{stage} {name}: {row}")
    if flags.out:
        flags.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(main))
