"""Draws eight images of the sample and five augmented versions of each: `cifar-flax augment --out grid.png`."""

from pathlib import Path

from cifar_flax import cli
from cifar_flax.errors import UserError


def _command(argv: list[str] | None, prog: str) -> None:
    parser = cli.Parser(prog, "Draw eight images and five augmented versions of each.")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    flags = parser.parse_args(argv)
    if flags.out.exists():
        raise UserError(f"--out {flags.out} exists: choose another, or delete it")

    import jax  # heavy imports, not needed before here
    import jax.numpy as jnp
    import numpy as np

    from cifar_flax import data, plots
    from cifar_flax.data.augment import augment

    images = data.normalize(jnp.asarray(data.load_cifar10(source="sample").test_images[:8]))
    versions = [images] + [augment(key, images) for key in jax.random.split(jax.random.key(flags.seed), 5)]
    labels = ["original", *(f"version {i}" for i in range(1, 6))]
    try:
        plots.plot_image_grid(np.stack([data.denormalize(x) for x in versions]), flags.out, labels)
    except OSError as error:
        raise UserError(f"--out {flags.out} cannot be written: {error.strerror}; choose another") from error
    print(f"Wrote {flags.out}")


def main(argv: list[str] | None = None, prog: str = "cifar-flax augment") -> int:
    """The command; returns its exit code."""
    return cli.run(lambda: _command(argv, prog))
