import dataclasses

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

from cifar_flax import config, data  # noqa: E402


@pytest.fixture(scope="session")
def sample() -> data.Cifar10:
    return data.load_cifar10(source="sample")


@pytest.fixture(scope="session")
def few(sample) -> data.Cifar10:
    """200 training and 150 test images: a run of seconds whose last batches are not full."""
    return sample._replace(
        train_images=sample.train_images[:200],
        train_labels=sample.train_labels[:200],
        test_images=sample.test_images[:150],
        test_labels=sample.test_labels[:150],
    )


@pytest.fixture(scope="session")
def tiny() -> config.Config:
    """A network of one narrow, strided stage, on two devices."""
    return config.validate(
        dataclasses.replace(
            config.PRESETS["smoke"], widths=(8,), strides=(2,), epochs=3, batch_size=64, eval_batch_size=64
        )
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
