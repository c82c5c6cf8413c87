"""Every field of the config reaches what a run does."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from cifar_flax import machine
from cifar_flax.config import Config, validate
from cifar_flax.data import decode_batch, encode_batch
from cifar_flax.execution import resolve
from cifar_flax.network import weights
from cifar_flax.training import checkpoint, loop
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import Split, build_program

pytestmark = pytest.mark.slow

NUM_TRAIN = 128
# Everything is on, and the plateau falls at every chance it gets.
BASE = validate(
    Config(
        data="sample",
        widths=(4,),
        strides=(2,),
        zero_init_residual=False,
        batch_size=64,
        eval_batch_size=64,
        epochs=1,
        warmup_epochs=0,
        muon_learning_rate=0.05,
        muon_weight_decay=0.1,
        weight_decay=0.1,
        clip_norm=0.1,
        patience=1,
        cooldown=0,
        factor=0.5,
        rtol=0.5,
        min_scale=0.4,
        monitor="test_loss",
        precision="float32",
    )
)
# What the steps, the plateau or the evaluation must show of each field.
IN_THE_PROGRAM = {
    "widths": (6,),
    "strides": (1,),
    "zero_init_residual": True,
    "crop_padding": 0,
    "rotate_degrees": 0.0,
    "cutout_size": 0,
    "random_flip": True,
    "batch_size": 32,
    "learning_rate": 0.1,
    "warmup_epochs": 1,
    "momentum": 0.5,
    "nesterov": False,
    "weight_decay": 0.0,
    "muon_learning_rate": 0.1,
    "muon_weight_decay": 0.0,
    "sam_rho": 0.05,
    "clip_norm": 0.2,
    "label_smoothing": 0.0,
    "ema_decay": 0.05,  # its first steps are nearer to the mean than any larger one says
    "patience": 2,
    "factor": 0.7,
    "rtol": 0.01,
    "cooldown": 2,
    "min_scale": 0.0,
    "seed": 1,
}
# What the run must show of each: its rows or its last state.
IN_THE_LOOP = {"val_size": 64, "epochs": 2, "monitor": "train_loss", "init": "weights.safetensors", "test": False}
# `preset` is a name; `data` is tested in test_misuse.py, `on_nan` and `eval_batch_size` in test_loop.py.
TEACHING = {"teacher", "teacher_digest", "teacher_weight", "teacher_temperature"}  # tested in test_loop.py
WITHOUT_EFFECT = {"preset": "smoke", "data": "full", "on_nan": "skip", "deterministic": True}


def digest(*trees) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(trees))
    parts = [f"{path}{np.shape(leaf)}".encode() + np.asarray(leaf).tobytes() for path, leaf in leaves]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def outcome(config: Config, sample) -> str:
    """A digest of two epochs, the rates and plateaus after them and an evaluation."""
    program = build_program(config, NUM_TRAIN)
    train = program.place(Split(sample.train_images[:NUM_TRAIN], sample.train_labels[:NUM_TRAIN]))
    test = program.place(Split(sample.test_images[:50], sample.test_labels[:50]))
    state = program.create_state()
    told = []
    for epoch, value in enumerate((2.0, 1.9, 1.8, 1.7), start=1):
        if epoch <= 2:
            *_, (_, state, sums) = program.train_steps(state, program.place(Metrics.empty()), train, epoch, 0)
            told.append(jax.device_get((sums, program.learning_rate(state))))
        state = program.advance_plateau(state, value)
        told.append(jax.device_get(state.plateau_state))
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return digest(state, told, program.evaluate(state.ema_params, test))


@pytest.fixture(scope="module")
def reference(sample):
    return outcome(BASE, sample)


def test_precision_reaches_the_program():
    """On a CPU it is that of wide convolutions alone; so their program is looked at, not their numbers."""

    def text(precision: str) -> str:
        config = dataclasses.replace(BASE, widths=(128,), precision=precision)
        program = build_program(config, NUM_TRAIN)
        state, sums = jax.eval_shape(program.create_state), jax.eval_shape(Metrics.empty)
        images = jax.ShapeDtypeStruct((NUM_TRAIN, 32, 32, 3), np.uint8)
        return program.lower(state, sums, Split(images, jax.ShapeDtypeStruct((NUM_TRAIN,), np.int32))).as_text()

    assert "bf16" in text("bfloat16") and "bf16" not in text("float32")


def test_every_field_is_listed():
    names = {field.name for field in dataclasses.fields(Config)}
    assert (
        IN_THE_PROGRAM.keys()
        | IN_THE_LOOP.keys()
        | WITHOUT_EFFECT.keys()
        | TEACHING
        | {"precision", "eval_batch_size"}
        == names
    )


def test_an_outcome_is_a_function_of_the_config(sample, reference):
    assert outcome(BASE, sample) == reference


def test_the_devices_of_a_cpu_share_the_images(sample):
    images = decode_batch(encode_batch(sample.train_images, sample.train_labels))[0]
    placed = build_program(BASE, NUM_TRAIN).place(Split(images, sample.train_labels)).images
    assert len(placed.addressable_shards) > 1
    assert {shard.data.unsafe_buffer_pointer() for shard in placed.addressable_shards} == {images.ctypes.data}


def test_kept_memory_is_limited_after_each_step_and_batch(sample, monkeypatch):
    calls = []
    monkeypatch.setattr(machine, "keep_large_blocks", lambda num_devices: lambda: calls.append(num_devices))
    outcome(BASE, sample)
    assert calls == [resolve("auto", BASE.batch_size).mesh.size] * (2 * NUM_TRAIN // BASE.batch_size + 1)


@pytest.mark.parametrize("name", IN_THE_PROGRAM)
def test_a_field_reaches_the_program(name, sample, reference):
    changed = validate(dataclasses.replace(BASE, **{name: IN_THE_PROGRAM[name]}))
    assert outcome(changed, sample) != reference


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_field_changes_no_number(name, sample, reference):
    assert outcome(dataclasses.replace(BASE, **{name: WITHOUT_EFFECT[name]}), sample) == reference


@pytest.mark.parametrize("name", IN_THE_LOOP)
def test_a_field_reaches_the_run(name, few, tmp_path):
    def state_and_rows(config, folder):
        rows = loop.fit(config, few, folder)
        like = jax.eval_shape(build_program(config, NUM_TRAIN).create_state)
        progress = checkpoint.restore(checkpoint.find(folder / "checkpoints")[-1], like)
        state = dataclasses.replace(progress.state, key=jax.random.key_data(progress.state.key))
        return digest(state, [{k: v for k, v in row.items() if not k.startswith(("sec", "images"))} for row in rows])

    value = IN_THE_LOOP[name]
    if name == "init":
        value = str(tmp_path / value)
        params = build_program(dataclasses.replace(BASE, seed=7), NUM_TRAIN).create_state().params
        weights.save_weights(tmp_path / "weights.safetensors", params, BASE, {})
    base = dataclasses.replace(BASE, monitor="train_loss") if name == "test" else BASE
    changed = validate(dataclasses.replace(base, **{name: value}))
    assert state_and_rows(base, tmp_path / "base") != state_and_rows(changed, tmp_path / "changed")
