import dataclasses
import gc
import os
import tempfile
from pathlib import Path

# Most of the time would go into compiling the same programs again: the tests' processes share what
# they compile, and so do the commands they start. Set before jax is imported, which reads it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "cifar_flax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Two processes of tests share the cores: threads of one would spin as they wait for the other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests compute by themselves is soon compiled. The program's own is compiled as for its users: `execution.QUICK`.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
import numpy as np
import pytest

from cifar_flax import config, data

gc.set_threshold(50_000, 20, 20)  # a process holds programs by the hundred: looking through all takes half a second
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def sample() -> data.Dataset:
    return data.load_cifar10(source="sample")


@pytest.fixture(scope="session")
def few(sample) -> data.Dataset:
    """200 training and 150 test images: a run of seconds whose last batches are not full."""
    return dataclasses.replace(sample, train=sample.train.take(slice(200)), test=sample.test.take(slice(150)))


@pytest.fixture(scope="session")
def tiny() -> config.Config:
    """A network of one narrow, strided stage, on two devices, in float32."""
    changes = dict(widths=(8,), strides=(2,), epochs=3, batch_size=64, eval_batch_size=64, precision="float32")
    return config.validate(dataclasses.replace(config.PRESETS["smoke"], **changes))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
