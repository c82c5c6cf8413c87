import dataclasses
import json
import os
import random
import shutil
import threading

import chex
import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from cifar_flax import files
from cifar_flax.data import CIFAR10
from cifar_flax.errors import UserError
from cifar_flax.training import checkpoint
from cifar_flax.training.checkpoint import DamagedError, Progress
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import build_program


@pytest.fixture(scope="module")
def state(tiny):
    return build_program(tiny, 200).create_state()


EXECUTION = {"dtype": "float32"}


def progress_of(state, losses, steps=0):
    rows = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(losses, start=1)]
    return Progress(state.replace(step=jnp.int32(10 * len(rows) + steps)), Metrics.empty(), steps, rows)


def save(folder, state, config, losses, steps=0):
    """One checkpoint an epoch, and one within the next if `steps` are given."""
    with checkpoint.Writer(folder, config, CIFAR10, EXECUTION) as writer:
        for epoch in range(1, len(losses) + 1):
            writer.save(progress_of(state, losses[:epoch]))
        if steps:
            writer.save(progress_of(state, losses, steps))


def names(folder):
    return [path.name for path in checkpoint.find(folder)]


def test_restored_progress_is_the_saved_one_bit_for_bit(state, tiny, tmp_path):
    save(tmp_path, state, tiny, [1.0], steps=3)
    blank = jax.tree.map(jnp.zeros_like, state.replace(key=jax.random.key_data(state.key)))
    restored = checkpoint.restore(tmp_path / "1+3", blank.replace(key=jax.random.key(99)))
    chex.assert_trees_all_equal(
        restored.state.replace(key=jax.random.key_data(restored.state.key)),
        jax.device_get(state.replace(step=jnp.int32(13), key=jax.random.key_data(state.key))),
    )
    chex.assert_trees_all_equal(restored.sums, jax.device_get(Metrics.empty()))
    assert restored.steps == 3 and restored.rows == [{"epoch": 1, "train_loss": 1.0}]
    assert checkpoint.read_config(tmp_path / "1+3") == tiny
    assert checkpoint.read_spec(tmp_path / "1+3") == CIFAR10


def test_latest_two_and_the_best_are_kept(state, tiny, tmp_path):
    save(tmp_path, state, tiny, [3.0, 1.0, 2.0, 2.5, 2.2])
    assert names(tmp_path) == ["2", "4", "5"]


def test_a_checkpoint_within_an_epoch_goes_when_the_epoch_is_done(state, tiny, tmp_path):
    save(tmp_path, state, tiny, [3.0, 2.0], steps=7)
    assert names(tmp_path) == ["1", "2", "2+7"]
    with checkpoint.Writer(tmp_path, tiny, CIFAR10, EXECUTION) as writer:
        writer.save(progress_of(state, [3.0, 2.0], 9))
        writer.wait()
        assert names(tmp_path) == ["1", "2", "2+9"]
        writer.save(progress_of(state, [3.0, 2.0, 1.0]))
    assert names(tmp_path) == ["2", "3"]


def test_another_network_is_refused(state, tiny, tmp_path):
    save(tmp_path, state, tiny, [1.0])
    other = build_program(dataclasses.replace(tiny, widths=(12,)), 200).create_state()
    with pytest.raises(UserError, match="it is of another network"):
        checkpoint.restore(tmp_path / "1", other)


def test_what_an_interrupted_writer_left_is_no_checkpoint_and_is_removed(state, tiny, tmp_path):
    save(tmp_path, state, tiny, [1.0])
    shutil.copytree(tmp_path / "1", tmp_path / ".2.part")
    assert names(tmp_path) == ["1"]
    with checkpoint.Writer(tmp_path, tiny, CIFAR10, EXECUTION):
        assert not (tmp_path / ".2.part").exists()


def test_a_removal_that_failed_halfway_does_not_stop_the_next(state, tiny, tmp_path):
    save(tmp_path, state, tiny, [3.0, 2.0])
    with checkpoint.Writer(tmp_path, tiny, CIFAR10, EXECUTION) as writer:
        shutil.copytree(tmp_path / "1", tmp_path / ".1.trash")
        writer.save(progress_of(state, [3.0, 2.0, 1.0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_a_newer_format_is_refused_by_name(state, tiny, tmp_path):
    save(tmp_path, state, tiny, [1.0])
    path = tmp_path / "1" / "manifest.json"
    path.write_text(path.read_text().replace(checkpoint.FORMAT, "cifar_flax-checkpoint/9"))
    with pytest.raises(UserError, match=r"is of format 'cifar_flax-checkpoint/9': this program reads .*/1") as error:
        checkpoint.restore(tmp_path / "1", state)
    assert not isinstance(error.value, DamagedError)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "3", "{}", '{"format": "cifar_flax-checkpoint/1"}', "[" * 100_000, "\xff",
        '{"format": "cifar_flax-checkpoint/1", "files": 3}',
        '{"format": "cifar_flax-checkpoint/1", "files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}',
    ],
)  # fmt: skip
def test_a_hostile_manifest_is_refused(content, state, tiny, tmp_path):
    save(tmp_path, state, tiny, [1.0])
    (tmp_path / "1" / "manifest.json").write_text(content)
    with pytest.raises(UserError):
        checkpoint.verify(tmp_path / "1")


@hypothesis.given(st.binary(max_size=300) | st.text().map(str.encode))
@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_no_manifest_raises_anything_but_a_user_error(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError):
        checkpoint.verify(tmp_path)


def corrupt(folder, chooser):
    """Flips a bit, cuts, empties, deletes or adds a file; returns what it did."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = chooser.choice(paths)
    kind = chooser.choice(["flip", "flip", "flip", "cut", "delete", "add", "append"])
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        os.truncate(path, chooser.randrange(len(content)))
    elif kind == "delete":
        path.unlink()
    elif kind == "append":
        path.write_bytes(content + b"\n")
    else:
        path.with_name("extra").write_bytes(b"")
    return f"{kind} {path.relative_to(folder)}"


@pytest.mark.slow
def test_none_of_200_corruptions_is_loaded(state, tiny, tmp_path):
    save(tmp_path / "good", state, tiny, [1.0])
    chooser = random.Random(0)
    for _ in range(200):
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        what = corrupt(tmp_path / "bad" / "1", chooser)
        try:
            checkpoint.restore(tmp_path / "bad" / "1", state)
        except UserError:
            pass
        else:
            pytest.fail(f"loaded after: {what}")
        shutil.rmtree(tmp_path / "bad")
    checkpoint.restore(tmp_path / "good" / "1", state)


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_leaves_the_last_one(state, tiny, tmp_path, monkeypatch):
    save(tmp_path, state, tiny, [1.0])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    message = "2 could not be written: No space left on device; the one before is kept"
    with pytest.raises(UserError, match=message), checkpoint.Writer(tmp_path, tiny, CIFAR10, EXECUTION) as writer:
        monkeypatch.setattr(checkpoint, "write_manifest", full)
        writer.save(progress_of(state, [1.0, 0.5]))
    assert names(tmp_path) == ["1"] and not list(tmp_path.glob(".*"))
    checkpoint.verify(tmp_path / "1")


def test_a_vanished_directory_is_one_line(state, tiny, tmp_path):
    message = "could not be written: No such file or directory"
    with (
        pytest.raises(UserError, match=message),
        checkpoint.Writer(tmp_path / "gone", tiny, CIFAR10, EXECUTION) as writer,
    ):
        shutil.rmtree(tmp_path / "gone")
        writer.save(progress_of(state, [1.0]))


def test_saving_does_not_wait_for_the_disk(state, tiny, tmp_path, monkeypatch):
    """And the state may be donated at once: what is written is a copy."""
    disk, write = threading.Event(), files.write_atomically

    def wait(*arguments):
        assert disk.wait(60)
        write(*arguments)

    monkeypatch.setattr(files, "write_atomically", wait)
    doomed = jax.tree.map(jnp.copy, state)
    with checkpoint.Writer(tmp_path, tiny, CIFAR10, EXECUTION) as writer:
        writer.save(progress_of(doomed, [1.0]))
        jax.tree.map(lambda x: x.delete(), doomed)
        assert not (tmp_path / "1").exists()
        disk.set()
    restored = checkpoint.restore(tmp_path / "1", state).state
    chex.assert_trees_all_equal(restored.params, jax.device_get(state.params))


def test_rows_of_the_run_are_in_the_checkpoint(state, tiny, tmp_path):
    save(tmp_path, state, tiny, [2.0, 1.0])
    assert json.loads((tmp_path / "2" / "progress.json").read_text()) == progress_of(state, [2.0, 1.0]).rows


def test_rows_of_the_first_version_had_percentages(state, tiny, tmp_path):
    progress = progress_of(state, [1.0])
    with checkpoint.Writer(tmp_path, tiny, CIFAR10, EXECUTION) as writer:
        writer.save(progress._replace(rows=[progress.rows[0] | {"train_acc": 50.0}]))
    assert checkpoint.restore(tmp_path / "1", state).rows == [progress.rows[0] | {"train_accuracy": 0.5}]
