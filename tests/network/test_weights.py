import dataclasses

import chex
import hypothesis
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from cifar_flax.config import PRESETS
from cifar_flax.errors import UserError
from cifar_flax.network import weights
from cifar_flax.network.model import ResNet, init_params

CONFIG = dataclasses.replace(PRESETS["compact"], widths=(4,), strides=(1,))
PARAMS = jax.device_get(init_params(ResNet(widths=(4,), strides=(1,)), jax.random.key(0)))


def test_flatten_and_unflatten_are_inverse():
    flat = weights.flatten(PARAMS)
    assert "stage1_block1.conv1.kernel" in flat and list(flat) == sorted(flat)
    chex.assert_trees_all_equal(weights.unflatten(flat), PARAMS)


def test_saved_weights_are_loaded_bit_for_bit(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save_weights(path, PARAMS, CONFIG, {"seed": 3})
    loaded = weights.load_weights(path)
    chex.assert_trees_all_equal(loaded.params, PARAMS)
    assert loaded.config == CONFIG and loaded.about == {"seed": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_half_precision_is_half_as_large_and_rounded_to_nearest(tmp_path):
    for name, half in (("full", False), ("half", True)):
        weights.save_weights(tmp_path / f"{name}.safetensors", PARAMS, CONFIG, {}, half=half)
    loaded = weights.load_weights(tmp_path / "half.safetensors").params
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(np.float16).astype(np.float32), PARAMS)
    chex.assert_trees_all_equal(loaded, rounded)
    numbers = 2 * sum(x.size for x in jax.tree.leaves(PARAMS))
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[0] - sizes[1] == pytest.approx(numbers, abs=64)


def test_digest_depends_on_every_number_and_name_and_on_nothing_else():
    first = weights.digest(PARAMS)
    assert first == weights.digest(dict(reversed(PARAMS.items())))
    changed = jax.tree.map(np.copy, PARAMS)
    changed["linear"]["bias"][3] += 1e-7
    assert weights.digest(changed) != first
    assert weights.digest({"renamed" if k == "norm" else k: v for k, v in PARAMS.items()}) != first


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_cut_file_is_refused(keep, tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save_weights(path, PARAMS, CONFIG, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read"):
        weights.load_weights(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "is of format None"),
        ({"format": "other/2"}, "is of format other/2"),
        ({"format": weights.FORMAT}, "broken header"),
        ({"format": weights.FORMAT, "config": "{}", "about": "{}", "sha256": "0"}, "is damaged: its SHA-256"),
        ({"format": weights.FORMAT, "config": "{}", "sha256": "0"}, "broken header"),
    ],
)
def test_foreign_header_is_refused(metadata, message, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save(weights.flatten(PARAMS), metadata))
    with pytest.raises(UserError, match=message):
        weights.load_weights(tmp_path / "a.safetensors")


@hypothesis.given(st.binary(max_size=300))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_no_file_raises_anything_but_a_user_error(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError):
        weights.load_weights(tmp_path / "a.safetensors")
