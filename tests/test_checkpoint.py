import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from cifar_flax import checkpoint, loop
from cifar_flax.errors import UserError


@pytest.fixture(scope="module")
def state(tiny):
    return loop.build_program(tiny, 200).create_state()


def save_epochs(folder, state, config, losses):
    manager = checkpoint.open_manager(folder, "train_loss")
    for epoch, loss in enumerate(losses, start=1):
        checkpoint.save(manager, epoch, state.replace(step=jnp.int32(epoch)), {"train_loss": loss}, config)
    manager.close()


def test_restored_state_is_the_saved_one_bit_for_bit(state, tiny, tmp_path):
    save_epochs(tmp_path, state, tiny, [1.0])
    manager = checkpoint.open_manager(tmp_path, "train_loss")
    blank = jax.tree.map(jnp.zeros_like, state.replace(key=jax.random.key_data(state.key)))
    restored = checkpoint.restore(manager, 1, blank.replace(key=jax.random.key(99)))
    chex.assert_trees_all_equal(
        restored.replace(key=jax.random.key_data(restored.key)),
        jax.device_get(state.replace(step=jnp.int32(1), key=jax.random.key_data(state.key))),
    )
    manager.close()


def test_latest_two_and_the_best_are_kept(state, tiny, tmp_path):
    save_epochs(tmp_path, state, tiny, [3.0, 1.0, 2.0, 2.5, 2.2])
    manager = checkpoint.open_manager(tmp_path, "train_loss")
    assert sorted(manager.all_steps()) == [2, 4, 5]
    manager.close()


def test_checkpoint_of_another_network_is_refused(state, tiny, tmp_path):
    save_epochs(tmp_path, state, tiny, [1.0])
    other = loop.build_program(dataclasses.replace(tiny, widths=(12,)), 200).create_state()
    manager = checkpoint.open_manager(tmp_path, "train_loss")
    with pytest.raises(UserError, match="cannot be restored"):
        checkpoint.restore(manager, 1, other)
    manager.close()


def test_unfinished_checkpoint_is_not_there(state, tiny, tmp_path):
    """What Orbax leaves when it is killed: a temporary directory, cleaned up at the next start."""
    save_epochs(tmp_path, state, tiny, [1.0])
    (tmp_path / "1").rename(tmp_path / "2.orbax-checkpoint-tmp")
    manager = checkpoint.open_manager(tmp_path, "train_loss")
    assert manager.latest_step() is None
    manager.close()
