import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal

import chex
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax import config as config_lib
from cifar_flax import data, execution, machine
from cifar_flax.config import PRESETS
from cifar_flax.data import CIFAR10, DataSpec
from cifar_flax.distributed import ALONE
from cifar_flax.errors import Interrupted, NonFiniteError, UserError
from cifar_flax.execution import resolve
from cifar_flax.network import cpu, weights
from cifar_flax.network.model import layer_table
from cifar_flax.training import beginning, checkpoint, interrupts, loop, messages, rundir, trained
from cifar_flax.training.checkpoint import Progress
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import DeviceSplit, build_program

pytestmark = pytest.mark.slow
NEEDS_TWO_DEVICES = pytest.mark.skipif(jax.device_count() != 2, reason="needs exactly two devices, as CPU cores give")


def final_state(config, folder, num_train=200):
    """Everything in the newest checkpoint of a run."""
    like = build_program(config, num_train).create_state()
    progress = checkpoint.restore(checkpoint.find(folder / "checkpoints")[-1], like)
    return progress.state.replace(key=jax.random.key_data(progress.state.key))


def train_epoch(program, state, split, epoch=1):
    *_, (_, state, sums) = program.train_steps(state, program.place(Metrics.empty()), split, epoch, 0)
    return state, sums


def without_clocks(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


@pytest.fixture(scope="module")
def finished(tiny, few, tmp_path_factory):
    """A run of three epochs: its directory, its rows and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "run"
    rows = loop.fit(tiny, few, folder)
    return folder, rows


def test_the_plateau_watches_what_of_the_loss_can_still_be_gained(tiny, few, tmp_path):
    """Label smoothing puts a floor under the training loss, and none under that of held-out images."""
    smoothed = dataclasses.replace(tiny, epochs=1, warmup_epochs=0, label_smoothing=0.1, val_size=50)
    share = np.full(10, 0.01) + 0.9 * np.eye(10)[0]
    for monitor, floor in (("train_loss", -(share * np.log(share)).sum()), ("val_loss", 0.0)):
        config = dataclasses.replace(smoothed, plateau_monitor=monitor)
        (row,) = loop.fit(config, few, tmp_path / monitor)
        best = final_state(config, tmp_path / monitor, 150).plateau_state.best_value
        np.testing.assert_allclose(best, row[monitor] - floor, rtol=1e-5)


def test_a_row_has_the_lengths_of_kernels_and_of_steps(finished, tiny):
    folder, rows = finished
    kernels = [np.asarray(x) for x in jax.tree.leaves(final_state(tiny, folder).params) if x.ndim == 4]
    np.testing.assert_allclose(rows[-1]["kernel_norm"], np.sqrt(np.mean([np.sum(x**2) for x in kernels])), rtol=1e-5)
    assert all(0 < row["relative_step"] < 1 for row in rows)


def test_run_directory_is_complete(finished, tiny):
    folder, rows = finished
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "data.json", "metrics.jsonl", "train.log", "loss_accuracy.png", "checkpoints",
    }  # fmt: skip
    assert rundir.read_config(folder) == config_lib.for_images(tiny, 32)
    assert DataSpec.from_json((folder / "data.json").read_bytes()) == CIFAR10
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    # Warm-up is the first epoch's 4 steps, from a fifth of the rate: its last step is the fourth.
    assert [row["learning_rate"] / tiny.learning_rate for row in rows] == pytest.approx([0.8, 1, 1])
    for row in rows:
        assert row["train_total"] == 200 and row["test_total"] == 150
        assert row["train_accuracy"] == row["train_correct"] / 200
        assert row["seconds"] > 0 and row["images_per_second"] > 0


def test_log_has_the_lines_of_the_reference_and_no_control_characters(finished, tiny):
    folder, rows = finished
    text = (folder / "train.log").read_text()
    lines = text.splitlines()
    start = lines.index("Epoch: 1")
    assert re.fullmatch(r"Train Loss: \d\.\d{3} \| Train Acc: \d+\.\d{3}% \(\d+/200\)", lines[start + 1])
    assert re.fullmatch(r"Test Loss: \d\.\d{3} \| Test Acc: \d+\.\d{3}% \(\d+/150\)", lines[start + 2])
    assert re.fullmatch(rf"Learning Rate: {0.8 * tiny.learning_rate:g} \| \d+ images/s", lines[start + 3])
    assert lines[start + 4] == "Epoch: 2"
    best = max(100 * row["test_accuracy"] for row in rows)
    assert f"Best Acc is :  {best:.4g}" in lines
    assert "Last epoch (3): test accuracy" in text and "sample" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


def test_same_seed_same_bits(finished, tiny, few, tmp_path):
    folder, rows = finished
    again = loop.fit(tiny, few, tmp_path / "run")
    assert without_clocks(again) == without_clocks(rows)
    chex.assert_trees_all_equal(final_state(tiny, tmp_path / "run"), final_state(tiny, folder))


def test_another_seed_differs(finished, tiny, few, tmp_path):
    other = loop.fit(dataclasses.replace(tiny, seed=1, epochs=1), few, tmp_path / "run")
    assert other[0]["train_loss"] != finished[1][0]["train_loss"]


def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(finished, tiny, few, tmp_path):
    folder, rows = finished
    for epochs in (1, 2, 3):
        resumed = loop.fit(dataclasses.replace(tiny, epochs=epochs), few, tmp_path / "run", resume=True)
    assert without_clocks(resumed) == without_clocks(rows)
    assert rundir.read_rows(tmp_path / "run") == resumed
    chex.assert_trees_all_equal(final_state(tiny, tmp_path / "run"), final_state(tiny, folder))


def test_epoch_without_checkpoint_is_run_again_and_logged_once(finished, tiny, few, tmp_path):
    """Killed between the metrics of epoch 2 and its checkpoint."""
    folder = tmp_path / "run"
    loop.fit(dataclasses.replace(tiny, epochs=1), few, folder)
    rundir.append_row(folder, {"epoch": 2, "train_loss": 0.0})
    rows = loop.fit(tiny, few, folder, resume=True)
    assert without_clocks(rows) == without_clocks(finished[1])


def test_finished_run_resumes_to_nothing(finished, tiny, few):
    folder, rows = finished
    assert loop.fit(tiny, few, folder, resume=True) == rows


def test_directory_with_a_run_is_refused_and_untouched(finished, tiny, few):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match="already holds a run"):
        loop.fit(tiny, few, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_training_can_start_from_weights(finished, tiny, few, tmp_path):
    """From the averaged parameters of the finished run: its test loss is where the new run begins."""
    params = final_state(tiny, finished[0]).ema_params
    weights.save_weights(tmp_path / "w.safetensors", params, tiny, {})
    small = {"learning_rate": 1e-6, "muon_learning_rate": 1e-6}
    config = dataclasses.replace(tiny, init=str(tmp_path / "w.safetensors"), epochs=1, **small)
    rows = loop.fit(config, few, tmp_path / "run")
    assert rows[0]["test_loss"] == pytest.approx(finished[1][-1]["test_loss"], rel=1e-3)
    with pytest.raises(UserError, match=r"--init .* holds a network of widths \(8,\)"):
        loop.fit(dataclasses.replace(config, widths=(12,)), few, tmp_path / "other")


class KilledError(Exception):
    pass


def kill_at(monkeypatch, number):
    """Ends the run in the way of a SIGKILL, between two steps: nothing of ours is told."""
    steps = 0
    train_step = loop.check_finite

    def count(*arguments):
        nonlocal steps
        steps += 1
        if steps > number:
            raise KilledError
        train_step(*arguments)

    monkeypatch.setattr(loop, "check_finite", count)


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_resumed_within_an_epoch_it_is_the_uninterrupted_run_bit_for_bit(
    step, finished, tiny, few, tmp_path, monkeypatch
):
    """With a checkpoint after every step; an epoch has four."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(patch, step)
        loop.fit(tiny, few, folder, checkpoint_every_minutes=0)
    newest = checkpoint.find(folder / "checkpoints")[-1].name
    assert newest == {1: "0+1", 3: "0+3", 4: "1", 6: "1+2"}[step]
    rows = loop.fit(tiny, few, folder, resume=True)
    assert without_clocks(rows) == without_clocks(finished[1])
    assert rundir.read_rows(folder) == rows
    chex.assert_trees_all_equal(final_state(tiny, folder), final_state(tiny, finished[0]))
    assert [path.name for path in checkpoint.find(folder / "checkpoints")] == ["2", "3"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_the_run(number, code, finished, tiny, few, tmp_path, monkeypatch):
    folder, steps, check = tmp_path / "run", [], loop.check_finite

    def send(*arguments):
        steps.append(1)
        if len(steps) == 6:
            os.kill(os.getpid(), number)
        check(*arguments)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as interruption:
        patch.setattr(loop, "check_finite", send)
        loop.fit(tiny, few, folder)
    assert interruption.value.exit_code == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert checkpoint.find(folder / "checkpoints")[-1].name == "1+2"
    rows = loop.fit(tiny, few, folder, resume=True)
    assert without_clocks(rows) == without_clocks(finished[1])
    chex.assert_trees_all_equal(final_state(tiny, folder), final_state(tiny, finished[0]))


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(finished, tiny, few, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    with open(folder / "checkpoints" / "3" / "progress.json", "r+b") as file:
        file.write(b"#")
    rows = loop.fit(tiny, few, folder, resume=True)
    output = capsys.readouterr().out
    assert "checkpoints/3 is damaged: progress.json has another SHA-256 sum" in output
    assert "resumed after epoch 2" in output
    assert without_clocks(rows) == without_clocks(finished[1])
    chex.assert_trees_all_equal(final_state(tiny, folder), final_state(tiny, finished[0]))
    for path in (folder / "checkpoints").glob("*/manifest.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact: delete that directory"):
        loop.fit(tiny, few, folder, resume=True)


def test_config_changed_since_the_checkpoint_is_refused_by_field(finished, tiny, few, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    changed = dataclasses.replace(tiny, momentum=0.8, epochs=9)
    with pytest.raises(UserError, match=r"config.json was changed since .*: momentum \(0.8 against 0.9\);"):
        loop.fit(changed, few, tmp_path / "run", resume=True)


def test_lost_metrics_are_written_again(finished, tiny, few, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("scribble")
    loop.fit(tiny, few, tmp_path / "run", resume=True)
    assert rundir.read_rows(tmp_path / "run") == finished[1]


def test_a_second_process_in_the_directory_is_refused(finished, tiny, few, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    with open(tmp_path / "run" / "train.log", "a") as log:
        rundir.lock(log, tmp_path / "run")
        with pytest.raises(UserError, match="is being trained by another process"):
            loop.fit(tiny, few, tmp_path / "run", resume=True)
    loop.fit(tiny, few, tmp_path / "run", resume=True)  # the lock went with its owner


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tiny, few, tmp_path):
    folder = tmp_path / "run"
    wild = dataclasses.replace(tiny, learning_rate=1e30, clip_norm=0.0, epochs=2)
    with pytest.raises(NonFiniteError, match=r"not finite at epoch 1, step \d+.*--on-nan skip") as error:
        loop.fit(wild, few, folder, checkpoint_every_minutes=0)
    assert error.value.exit_code == 3
    chex.assert_tree_all_finite(final_state(wild, folder).params)


def test_an_evaluation_that_is_not_finite_ends_the_run_and_is_not_written(tiny, few, tmp_path, monkeypatch):
    """Of averaged parameters that overflowed, say; the last good checkpoint and every row stay readable."""
    build = beginning.build_program

    def broken(*arguments, **options):
        built = build(*arguments, **options)

        def evaluate(params, split, between):
            sums = built.evaluate(params, split, between)
            return dataclasses.replace(sums, loss_sum=sums.loss_sum + jnp.nan)

        return built._replace(evaluate=evaluate)

    folder = tmp_path / "run"
    loop.fit(dataclasses.replace(tiny, epochs=1), few, folder)
    rows = (folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(beginning, "build_program", broken)
    with pytest.raises(NonFiniteError, match="test_loss is not finite after epoch 2: stopped") as error:
        loop.fit(dataclasses.replace(tiny, epochs=2), few, folder, resume=True)
    assert error.value.exit_code == 3
    assert (folder / "metrics.jsonl").read_bytes() == rows
    assert [path.name for path in checkpoint.find(folder / "checkpoints")] == ["1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("train", "images", lambda x: x / 255), "training images are float64: expected uint8"),
        (
            ("test", "images", lambda x: np.zeros((len(x), 64, 64, 3), np.uint8)),
            r"test images are of shape \[150, 64, 64, 3\]",
        ),
        (("train", "labels", lambda x: x + 1), "training labels hold 10: expected 0 to 9"),
        (("train", "labels", lambda x: x[:-1]), "expected 200 integers, one an image"),
        (("test", "labels", lambda x: np.eye(10)[x]), r"test labels are float64 \[150, 10\]"),
    ],
)
def test_arrays_that_are_no_cifar10_are_refused_before_anything_is_written(changes, message, tiny, few, tmp_path):
    kind, name, change = changes
    split = getattr(few, kind)
    wrong = dataclasses.replace(few, **{kind: split._replace(**{name: change(getattr(split, name))})})
    with pytest.raises(UserError, match=message):
        loop.fit(tiny, wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_is_not_resumed_to_fewer_epochs_than_it_has(finished, tiny, few):
    folder, rows = finished
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    with pytest.raises(UserError, match=r"--epochs is 2: the run in .* has begun epoch 3; expected 3 or more"):
        loop.fit(dataclasses.replace(tiny, epochs=2), few, folder, resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == before
    assert len(rundir.read_rows(folder)) == len(rows) == 3


def test_a_run_that_is_all_warm_up_is_told_so(tiny, few, tmp_path, capsys):
    loop.fit(dataclasses.replace(tiny, epochs=1, warmup_epochs=4), few, tmp_path / "run")
    assert (
        "Note: the rate rises for --warmup-epochs 4, and the run has 1: it does not reach" in capsys.readouterr().out
    )


def test_steps_that_are_not_finite_can_be_skipped_and_are_counted(tiny, few, tmp_path, capsys):
    """Images whose loss is made infinite: a step that sees one is left out, of the figures too."""
    poison = np.zeros(200, bool)
    poison[[3, 50]] = True

    def infect(key, images):
        red = images[..., 0].mean((1, 2), keepdims=True)[..., None]
        return images * jnp.where(red > 2, jnp.inf, 1.0)  # no picture but a reddened one is as red

    images = few.train.images.copy()
    images[poison, :, :, 0] = 255
    poisoned = dataclasses.replace(few, train=few.train._replace(images=images))
    rows = loop.fit(dataclasses.replace(tiny, on_nan="skip"), poisoned, tmp_path / "run", augment=infect)
    assert all(1 <= row["skipped_steps"] <= 2 and row["train_total"] < 200 for row in rows)
    assert all(np.isfinite(row["train_loss"]) and row["test_total"] == 150 for row in rows)
    chex.assert_tree_all_finite(final_state(tiny, tmp_path / "run"))
    assert "steps whose loss or gradient was not finite" in capsys.readouterr().out
    with pytest.raises(NonFiniteError, match="not finite at epoch 1"):
        loop.fit(tiny, poisoned, tmp_path / "stopped", augment=infect)


def test_a_step_that_was_skipped_does_not_end_a_run_that_is_resumed(tiny, few, tmp_path, monkeypatch):
    """By the skipped steps' number alone it would, at each attempt; and warm-up goes on where it was."""
    folder = tmp_path / "run"

    def infect(key, images):
        return images * jnp.inf

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(interrupts, "as_flag", lambda: contextlib.nullcontext(lambda: signal.SIGTERM))
        loop.fit(dataclasses.replace(tiny, on_nan="skip"), few, folder, augment=infect)
    assert checkpoint.find(folder / "checkpoints")[-1].name == "0+1"
    rows = loop.fit(dataclasses.replace(tiny, epochs=1), few, folder, resume=True)
    assert rows[0]["skipped_steps"] == 1
    # Four steps of warm-up, of which three were taken: the fifth would be at the whole rate.
    assert rows[0]["learning_rate"] == pytest.approx(tiny.learning_rate * 3 / 5)
    with pytest.raises(NonFiniteError, match="not finite at epoch 2, step 1:"):
        loop.fit(dataclasses.replace(tiny, epochs=2), few, folder, resume=True, augment=infect)


def test_a_run_is_named_after_what_it_was_trained_on(tiny, few, tmp_path):
    loop.fit(dataclasses.replace(tiny, epochs=1, dataset="cifar10"), few, tmp_path / "sample")
    assert rundir.read_config(tmp_path / "sample").dataset == "sample"
    whole = dataclasses.replace(few, is_sample=False)
    loop.fit(dataclasses.replace(tiny, epochs=1), whole, tmp_path / "whole")
    assert rundir.read_config(tmp_path / "whole").dataset == "cifar10"
    own = dataclasses.replace(whole, spec=dataclasses.replace(few.spec, name="pets"))
    loop.fit(dataclasses.replace(tiny, epochs=1), own, tmp_path / "own")
    assert rundir.read_config(tmp_path / "own").dataset == "pets"
    small = dataclasses.replace(data.open_dataset("sample", image_size=16), is_sample=False)
    loop.fit(dataclasses.replace(tiny, epochs=1), small, tmp_path / "small")
    assert rundir.read_config(tmp_path / "small").dataset == "cifar10"  # of another size; that is a name to open
    watching = dataclasses.replace(tiny, plateau_monitor="test_loss")
    with pytest.raises(UserError, match="--plateau-monitor is test_loss, and there are no test images"):
        loop.fit(watching, few.without_test(), tmp_path / "none")


@pytest.mark.parametrize("monitor", ["val_loss", "test_loss"])
def test_plateau_can_watch_other_losses(monitor, tiny, few, tmp_path, capsys):
    config = dataclasses.replace(
        tiny, plateau_monitor=monitor, val_size=40, plateau_threshold=0.999, plateau_cooldown=0, epochs=4
    )
    rows = loop.fit(config, few, tmp_path / "run")
    assert rows[0]["val_total"] == 40 and rows[0]["train_total"] == 160
    # Warm-up (epoch 1) is not shown to the plateau; epoch 2 is its first value, the best so far.
    assert [row["learning_rate"] / tiny.learning_rate for row in rows] == pytest.approx([0.75, 1, 1, 0.5])
    assert ("lets the test set steer" in capsys.readouterr().out) == (monitor == "test_loss")


def test_a_run_that_leaves_the_test_set_alone_has_no_test_figure(tiny, few, tmp_path, capsys):
    config = dataclasses.replace(tiny, val_size=40, epochs=1, test=False)
    rows = loop.fit(config, few, tmp_path / "run")
    assert rows[0]["val_total"] == 40 and not any(name.startswith("test") for name in rows[0])
    assert "test" not in capsys.readouterr().out.lower().replace(str(tmp_path).lower(), "")


@pytest.fixture(scope="module")
def program_and_data(tiny, few):
    program = build_program(tiny, 200)
    split = program.place(DeviceSplit(few.train.images, few.train.labels))
    return program, split, program.place(DeviceSplit(few.test.images, few.test.labels))


def test_nothing_is_compiled_after_the_first_epoch(program_and_data, tiny):
    _, train, test = program_and_data
    program = build_program(dataclasses.replace(tiny, seed=5), 200)
    compiled = {1: 0, 2: 0, 3: 0}
    epoch = 1

    def listen(event, *_, **__):
        compiled[epoch] += "backend_compile" in event

    jax.monitoring.register_event_duration_secs_listener(listen)
    state = program.create_state()
    for epoch in compiled:
        state, sums = train_epoch(program, state, train, epoch)
        program.evaluate(state.ema_params, test)
        state = program.advance_plateau(state, float(sums.loss_sum))
    jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled[1] > 0 and compiled[2] == compiled[3] == 0


@pytest.mark.parametrize("eval_batch_size", [1, 7, 150, 1000])
def test_evaluation_does_not_depend_on_batch_size(eval_batch_size, program_and_data, tiny):
    program, _, test = program_and_data
    params = program.create_state().params
    other = build_program(dataclasses.replace(tiny, eval_batch_size=eval_batch_size), 200)
    ours, theirs = other.evaluate(params, test), program.evaluate(params, test)
    assert (ours.correct, ours.count) == (theirs.correct, theirs.count) == (theirs.correct, 150)
    np.testing.assert_allclose(ours.loss_sum, theirs.loss_sum, rtol=1e-5)


@pytest.mark.parametrize("steps_at_once", [2, 3, 50])
def test_steps_at_once_are_the_same_epoch(steps_at_once, program_and_data, tiny):
    """As an accelerator takes them, in chunks, and as a CPU does, one by one; both from the middle of an epoch too."""
    program, train, _ = program_and_data
    at_once = build_program(tiny, 200, program.execution._replace(steps_at_once=steps_at_once))
    looped, looped_sums = train_epoch(program, program.create_state(), train, 1)
    scanned, scanned_sums = train_epoch(at_once, at_once.create_state(), train, 1)
    assert looped_sums.count == scanned_sums.count == 200
    np.testing.assert_allclose(looped_sums.loss_sum, scanned_sums.loss_sum, rtol=1e-4)
    chex.assert_trees_all_close(looped.params, scanned.params, rtol=1e-2, atol=1e-4)


def test_a_chunk_of_steps_goes_on_from_the_middle_of_an_epoch(program_and_data, tiny):
    program, train, _ = program_and_data
    at_once = build_program(tiny, 200, program.execution._replace(steps_at_once=2))
    _, state, sums = next(program.train_steps(program.create_state(), program.place(Metrics.empty()), train, 2, 0))
    ends = [steps for steps, state, sums in at_once.train_steps(state, sums, train, 2, 1)]
    assert ends == [3, 4]


@pytest.mark.parametrize("steps_at_once", [1, 4])
def test_nothing_crosses_between_host_and_device_within_a_chunk(steps_at_once, program_and_data, tiny):
    """Beyond the epoch's number and that of the first step. On a GPU this covers what comes back as well."""
    program, train, _ = program_and_data
    program = build_program(tiny, 200, program.execution._replace(steps_at_once=steps_at_once))
    state, sums = program.create_state(), program.place(Metrics.empty())
    _, state, sums = next(program.train_steps(state, sums, train, 1, 0))  # compiled
    with jax.transfer_guard_device_to_device("disallow"), jax.transfer_guard_device_to_host("disallow"):
        assert next(program.train_steps(state, sums, train, 1, 0))[0] == steps_at_once


@NEEDS_TWO_DEVICES
def test_two_devices_train_as_one_does(program_and_data, tiny, monkeypatch):
    program, train, _ = program_and_data
    assert program.execution.mesh.size == 2
    single = build_program(tiny, 200, resolve("float32", tiny.batch_size, num_devices=1))
    assert single.execution.mesh.size == 1
    ours, our_sums = train_epoch(program, program.create_state(), train, 1)
    data = single.place(jax.device_get(train))
    theirs, their_sums = train_epoch(single, single.create_state(), data, 1)
    np.testing.assert_allclose(our_sums.loss_sum, their_sums.loss_sum, rtol=1e-4)
    chex.assert_trees_all_close(jax.device_get(ours.params), jax.device_get(theirs.params), rtol=1e-2, atol=1e-4)


def blank(few):
    """A data set of as many training images as CIFAR-10's, which take no memory."""
    images = np.broadcast_to(np.uint8(0), (50_000, 32, 32, 3))
    return dataclasses.replace(few, train=data.whole_split(images, np.zeros(50_000, int)), is_sample=False)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about CPU-only machines")
def test_resnet18_on_a_cpu_is_told_what_it_costs(few, tmp_path):
    """In hours that shrink with what is done, and with the small network as the way out."""

    dataset = blank(few)

    def told(epochs: int) -> str:
        progress = Progress({}, {}, 0, [{}] * epochs)
        return list(messages.greeting(config, dataset, layers, program.execution, tmp_path, progress))[-1]

    config = PRESETS["resnet18"]
    program = build_program(config, 50_000)
    layers = layer_table(program.model)
    hours = [float(re.search(r"about ([\d.]+) hours", told(epochs))[1]) for epochs in (0, 20)]
    assert hours[0] == pytest.approx(2 * hours[1], rel=0.1) and 1 < hours[1] < 100
    assert "`--preset compact`" in told(0)


def test_tensorboard_events_are_written_on_request(tiny, few, tmp_path):
    loop.fit(dataclasses.replace(tiny, epochs=1), few, tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_resumed_run_keeps_its_precision_and_says_what_is_another(tiny, few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(execution, "has_bfloat16", lambda device: True)
    config = dataclasses.replace(tiny, epochs=1, precision="bfloat16")
    loop.fit(config, few, tmp_path / "run")
    program = build_program(dataclasses.replace(tiny, precision="float32"), 200)
    assert "precision" not in capsys.readouterr().out
    # As if `auto` had meant bfloat16 there, and means float32 here.
    for path in [tmp_path / "run" / "config.json", *(tmp_path / "run" / "checkpoints").glob("*/config.json")]:
        path.write_text(path.read_text().replace('"bfloat16"', '"auto"'))
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    record = json.loads((newest / "execution.json").read_text())
    (newest / "execution.json").write_text(json.dumps(record | {"devices": 8, "jax": "0.1"}))
    (newest / "manifest.json").unlink()
    checkpoint.write_manifest(newest)
    loop.fit(dataclasses.replace(config, epochs=2, precision="auto"), few, tmp_path / "run", resume=True)
    output = capsys.readouterr().out
    assert f"devices 8, now {program.execution.mesh.size}; jax 0.1, now {jax.__version__}" in output
    newest = checkpoint.find(tmp_path / "run" / "checkpoints")[-1]
    assert checkpoint.read_execution(newest)["precision"] == "bfloat16"


def test_a_program_does_not_mind_x64(tiny):
    """A weak or untyped number in a step would be float64, and a scan would refuse it."""
    with jax.enable_x64(True):
        program = build_program(tiny, 200)
        program = build_program(tiny, 200, program.execution._replace(steps_at_once=4))
        state, sums = jax.eval_shape(program.create_state), jax.eval_shape(Metrics.empty)
        split = DeviceSplit(jax.ShapeDtypeStruct((200, 32, 32, 3), np.uint8), jax.ShapeDtypeStruct((200,), np.int32))
        program.lower(state, sums, split)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about a CPU's memory")
def test_a_batch_that_memory_cannot_hold_is_refused_before_the_first_step(few, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 24 * 10**9)
    config = dataclasses.replace(PRESETS["resnet18"], batch_size=200)
    program = build_program(config, 200)
    beginning.require_memory(config, layer_table(program.model), program.execution)
    config = dataclasses.replace(config, batch_size=8192)
    with pytest.raises(
        UserError, match=r"--batch-size 8192 needs about 1\d\d GB of memory .* there are 24: choose 1\d{3}"
    ):
        loop.fit(config, blank(few), tmp_path / "run")


def test_a_run_is_in_float32_where_bfloat16_is_wrong(tiny, few, tmp_path, monkeypatch, capsys):
    """As on a CPU that says it multiplies in bfloat16, and does so wrongly."""
    monkeypatch.setattr(execution, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(machine, "place_of_note", lambda what: None)
    for error, expected in ((1e-3, "bfloat16"), (np.nan, "float32"), (3.0, "float32")):
        monkeypatch.setattr(cpu, "largest_error", lambda shapes, batch, options, error=error: error)
        loop.fit(dataclasses.replace(tiny, epochs=1, precision="auto"), few, tmp_path / str(error))
        newest = checkpoint.find(tmp_path / str(error) / "checkpoints")[-1]
        assert checkpoint.read_execution(newest)["precision"] == expected
        assert ("are wrong" in capsys.readouterr().out) == (expected == "float32")


def test_a_teachers_convolutions_are_checked_too(tiny, few, finished, tmp_path, monkeypatch):
    """It has other shapes than the student, which may be those that are wrong."""
    monkeypatch.setattr(execution, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(machine, "place_of_note", lambda what: None)
    teachers = cpu.convolutions(build_program(rundir.read_config(finished[0]), 200).model)
    monkeypatch.setattr(cpu, "largest_error", lambda shapes, batch, options: 3.0 if shapes == teachers else 1e-3)
    config = dataclasses.replace(tiny, epochs=1, precision="auto", widths=(6,), teacher=str(finished[0]))
    begun = beginning.begin(config, few, tmp_path, num_devices=0, job=ALONE, say=print)
    assert begun.program.execution.precision == "float32"


def test_a_run_is_taught_by_another(tiny, few, finished, tmp_path, capsys):
    folder, _ = finished
    config = dataclasses.replace(tiny, epochs=1, widths=(6,), teacher=str(folder))
    rows = loop.fit(config, few, tmp_path / "taught")
    alone = loop.fit(dataclasses.replace(config, teacher=""), few, tmp_path / "alone")
    assert rows[0]["train_loss"] != alone[0]["train_loss"]
    digest = trained.load(folder).digest
    assert rundir.read_config(tmp_path / "taught").teacher_digest == digest
    assert f"Teacher: {folder}, SHA-256 {digest[:12]}" in capsys.readouterr().out
    again = dataclasses.replace(rundir.read_config(tmp_path / "taught"), epochs=2)
    assert len(loop.fit(again, few, tmp_path / "taught", resume=True)) == 2
    other = dataclasses.replace(again, epochs=3, teacher=str(tmp_path / "alone"))
    with pytest.raises(UserError, match="is another network than when this run began"):
        loop.fit(other, few, tmp_path / "taught", resume=True)


def test_what_is_held_out_is_of_all_classes_whatever_the_order_of_the_files(few):
    """Pictures in folders come class by class; CIFAR-10's own order is random, and stays."""
    assert beginning.in_random_order(few) is few
    by_class = few.train.take(np.argsort(few.train.labels, kind="stable"))
    spec = dataclasses.replace(few.spec, name="pictures", digest="0" * 16)
    mixed = beginning.in_random_order(dataclasses.replace(few, spec=spec, train=by_class)).train
    assert len(set(by_class.labels[-40:])) <= 3 and len(set(mixed.labels[-40:])) >= 8
    order = np.argsort(mixed.indices)
    for ours, theirs in zip(mixed.take(order), few.train.take(np.isin(few.train.indices, mixed.indices)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_network_that_begins_with_other_colours_says_so(tiny, few, tmp_path, capsys):
    spec = dataclasses.replace(few.spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    once = dataclasses.replace(tiny, epochs=1)
    loop.fit(once, dataclasses.replace(few, spec=spec), tmp_path / "first")
    loop.fit(dataclasses.replace(once, init=str(tmp_path / "first")), few, tmp_path / "second")
    assert "has seen images normalised by mean (0.0, 0.0, 0.0)" in capsys.readouterr().out
