"""Every field of the config reaches its place, with its value: what the parts of a run are called with."""

import dataclasses
import functools
import inspect
import re

import jax
import numpy as np
import optax
import pytest

from cifar_flax import execution, machine
from cifar_flax.commands import train
from cifar_flax.config import Config, for_images, validate
from cifar_flax.data import augment, decode_batch, encode_batch
from cifar_flax.distributed import ALONE
from cifar_flax.execution import resolve
from cifar_flax.network import model, weights
from cifar_flax.training import beginning, loop, optim, rundir, step
from cifar_flax.training.metrics import Metrics
from cifar_flax.training.program import DeviceSplit, build_program

NUM_TRAIN = 100
# No value is another field's, or its own default.
GIVEN = validate(
    Config(
        preset="smoke",
        dataset="sample",
        val_size=40,
        test=True,
        widths=(4, 6),
        strides=(2, 3),
        blocks=(1, 3),
        norm="affine",
        crop_padding=3,
        rotate_degrees=7.0,
        cutout_size=5,
        random_flip=True,
        epochs=2,
        batch_size=48,
        eval_batch_size=22,
        learning_rate=0.31,
        warmup_epochs=4,
        momentum=0.85,
        nesterov=False,
        weight_decay=0.011,
        muon_learning_rate=0.045,
        muon_weight_decay=0.023,
        sam_rho=0.062,
        clip_norm=1.7,
        label_smoothing=0.13,
        teacher="teacher",
        teacher_weight=0.61,
        teacher_temperature=2.7,
        ema_decay=0.97,
        plateau_patience=6,
        plateau_factor=0.55,
        plateau_threshold=0.037,
        plateau_cooldown=8,
        plateau_min_scale=0.0042,
        plateau_monitor="val_loss",
        on_nan="skip",
        precision="float32",
        seed=12345,
    )
)
# Tested elsewhere: what they do is no argument of a part.
ELSEWHERE = {
    "preset",
    "dataset",
    "image_size",
    "on_nan",
    "precision",
    "deterministic",
    "teacher",
    "teacher_digest",
    "skip_broken",
}
IN_THE_RUN = {"val_size", "test", "init", "epochs", "plateau_monitor"}


def spy(monkeypatch, module, name):
    """The arguments of each call of a function, by their names; the function itself is called all the same."""
    function, calls = getattr(module, name), []

    def noted(*arguments, **options):
        bound = inspect.signature(function).bind(*arguments, **options)
        bound.apply_defaults()
        calls.append(bound.arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, noted)
    return calls


@pytest.fixture(scope="module")
def seen():
    """What each part is called with as a program of `GIVEN` is built, its step traced and an evaluation run."""
    parts = {
        "augment": (augment, "augment"),
        "optimizer": (optim, "build_optimizer"),
        "plateau": (optim, "build_plateau"),
        "train_step": (step, "train_step"),
        "state": (step, "create_state"),
        "eval_step": (step, "eval_step"),
    }
    with pytest.MonkeyPatch.context() as patch:
        calls = {name: spy(patch, *place) for name, place in parts.items()}
        built = build_program(GIVEN, NUM_TRAIN)
        state, sums = jax.eval_shape(built.create_state), jax.eval_shape(Metrics.empty)
        images, labels = (
            jax.ShapeDtypeStruct((NUM_TRAIN, 3072), np.uint8),
            jax.ShapeDtypeStruct((NUM_TRAIN,), np.int32),
        )
        built.lower(state, sums, DeviceSplit(images, labels))
        few = DeviceSplit(np.zeros((30, 32, 32, 3), np.uint8), np.zeros(30, np.int32))
        assert int(built.evaluate(built.create_state().params, built.place(few)).count) == 30
    return {name: found[0] for name, found in calls.items()}


def test_every_field_has_a_value_of_its_own_here():
    values = [value for name, value in dataclasses.asdict(GIVEN).items() if isinstance(value, float | int | tuple)]
    numbers = [value for value in values if not isinstance(value, bool)]
    assert len(set(numbers)) == len(numbers)
    names = {field.name for field in dataclasses.fields(Config)} - ELSEWHERE - {"init"}
    assert all(getattr(GIVEN, name) != getattr(Config(), name) for name in names - {"test"})


def test_what_is_augmented_and_how(seen):
    names = ("crop_padding", "rotate_degrees", "cutout_size", "random_flip")
    assert {name: seen["augment"][name] for name in names} == {name: getattr(GIVEN, name) for name in names}


def test_what_the_optimizer_is_built_of(seen):
    given = seen["optimizer"]
    for name in ("momentum", "nesterov", "weight_decay", "muon_weight_decay", "clip_norm"):
        assert given[name] == getattr(GIVEN, name), name
    steps = GIVEN.warmup_epochs * 3  # of 48 images of 100
    for name, rate in (("learning_rate", GIVEN.learning_rate), ("muon_learning_rate", GIVEN.muon_learning_rate)):
        rates = [float(given[name](i)) for i in (0, steps - 1, steps, 10 * steps)]
        np.testing.assert_allclose(rates, [rate / (steps + 1), rate * steps / (steps + 1), rate, rate], rtol=1e-5)


def test_without_muons_rate_there_is_no_muon(monkeypatch):
    calls = spy(monkeypatch, optim, "build_optimizer")
    build_program(dataclasses.replace(GIVEN, muon_learning_rate=0.0), NUM_TRAIN)
    assert calls[0]["muon_learning_rate"] is None


def test_what_the_plateau_is_built_of(seen):
    assert dict(seen["plateau"]) == {
        "patience": GIVEN.plateau_patience,
        "factor": GIVEN.plateau_factor,
        "threshold": GIVEN.plateau_threshold,
        "cooldown": GIVEN.plateau_cooldown,
        "min_scale": GIVEN.plateau_min_scale,
    }


def test_what_a_step_is_made_of(seen):
    given, model = seen["train_step"], seen["train_step"]["model"]
    assert given["label_smoothing"] == GIVEN.label_smoothing and given["ema_decay"] == GIVEN.ema_decay
    for name in ("sam_rho", "teacher_weight", "teacher_temperature"):
        assert given[name] == getattr(GIVEN, name), name
    assert given["images"].shape == (GIVEN.batch_size, 32, 32, 3)
    assert (model.widths, model.strides, model.blocks_per_stage) == ((4, 6), (2, 3), (1, 3))
    assert model.norm_kind == GIVEN.norm == "affine"
    assert seen["state"]["model"] == model == seen["eval_step"]["model"]


def test_an_evaluation_is_of_batches_that_the_devices_share(seen):
    size = seen["eval_step"]["images"].shape[0]
    assert GIVEN.eval_batch_size <= size < GIVEN.eval_batch_size + jax.device_count()


def test_the_seed_is_that_of_the_run():
    key = build_program(GIVEN, NUM_TRAIN).create_state().key
    expected = jax.random.split(jax.random.key(12345))[1]
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(expected))


def test_llvms_level_changes_no_bit_of_what_is_drawn(tiny):
    lowered = build_program(tiny, 200).create_state.lower()
    quick, slow = (lowered.compile(compiler_options={"xla_backend_optimization_level": level})() for level in (2, 3))
    for a, b in zip(jax.tree.leaves(quick.params), jax.tree.leaves(slow.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_rate_is_what_the_step_before_was_taken_at():
    built = build_program(GIVEN, NUM_TRAIN)
    state = dataclasses.replace(built.create_state(), step=np.int32(7))  # of which two were skipped
    state = dataclasses.replace(state, opt_state=optax.tree.set(state.opt_state, count=np.int32(5)))
    state = dataclasses.replace(state, plateau_state=state.plateau_state._replace(scale=np.float32(0.5)))
    expected = 0.5 * float(optim.warmup_schedule(0.31, 12)(4))
    assert built.learning_rate(state) == pytest.approx(expected)


def test_every_field_is_tested():
    here = inspect.getsource(inspect.getmodule(test_every_field_is_tested))
    named = {field.name for field in dataclasses.fields(Config)} - ELSEWHERE - IN_THE_RUN
    body = here[here.index("def test_what_is_augmented") :]
    missing = {name for name in named if f'"{name}"' not in body and f"GIVEN.{name}" not in body}
    assert missing <= {"widths", "strides", "blocks", "seed"}  # in test_what_a_step_is_made_of, by value


@pytest.mark.slow
def test_fields_of_the_run_reach_it(few, tiny, tmp_path, monkeypatch):
    """Which images, how often, from which weights, and what the plateau is told."""
    told, begun = [], []
    build = beginning.build_program

    def noted(*arguments, **options):
        built = build(*arguments, **options)

        def steps(state, *others):
            begun.append(jax.device_get(state.params))
            yield from built.train_steps(state, *others)

        def advance(state, value):
            told.append(value)
            return built.advance_plateau(state, value)

        return built._replace(train_steps=steps, advance_plateau=advance)

    monkeypatch.setattr(beginning, "build_program", noted)
    params = jax.device_get(build(dataclasses.replace(tiny, seed=7), 200).create_state().params)
    weights.save_weights(tmp_path / "weights.safetensors", params, tiny, {})
    changes = {"epochs": 2, "val_size": 40, "plateau_monitor": "val_loss", "warmup_epochs": 0, "test": False}
    config = validate(dataclasses.replace(tiny, init=str(tmp_path / "weights.safetensors"), **changes))
    rows = loop.fit(config, few, tmp_path / "run")
    assert [(row["epoch"], row["train_total"], row["val_total"]) for row in rows] == [(1, 160, 40), (2, 160, 40)]
    assert told == [row["val_loss"] for row in rows] and not any("test_loss" in row for row in rows)
    jax.tree.map(np.testing.assert_array_equal, begun[0], params)
    assert rundir.read_config(tmp_path / "run") == for_images(config, 32)


def test_determinism_reaches_what_the_program_runs_on(few, tiny, tmp_path):
    for chosen in (True, False):
        config = dataclasses.replace(tiny, deterministic=chosen)
        assert build_program(config, 200).execution.deterministic is chosen
        begun = beginning.begin(config, few, tmp_path, num_devices=0, job=ALONE, say=print)
        assert begun.program.execution.deterministic is chosen


def test_the_layer_table_is_of_the_data_set_that_is_named(tmp_path, capsys):
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 2, 0])
    np.savez(tmp_path / "three.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert train.main(["--preset", "smoke", "--summary", "--dataset", str(tmp_path / "three.npz")]) == 0
    assert re.search(r"linear +Linear +\(3,\)", capsys.readouterr().out)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_precision_reaches_the_network(precision, monkeypatch):
    """What its activations are made of, and that its logits are float32 always."""
    monkeypatch.setattr(execution, "has_bfloat16", lambda device: True)
    built = build_program(dataclasses.replace(GIVEN, precision=precision), NUM_TRAIN)
    params, images = jax.eval_shape(built.create_state).params, jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    found = [
        jax.eval_shape(lambda p, x, part=part: part(p, x), params, images).dtype.name
        for part in (
            functools.partial(model.features, built.model, stage="stage1"),
            functools.partial(model.forward, built.model),
        )
    ]
    assert found == [precision, "float32"]


def test_the_devices_of_a_cpu_share_the_images(sample, tiny):
    images = decode_batch(encode_batch(sample.train.images, sample.train.labels))[0]
    placed = build_program(tiny, NUM_TRAIN).place(DeviceSplit(images, sample.train.labels)).images
    assert len(placed.addressable_shards) > 1
    assert {shard.data.unsafe_buffer_pointer() for shard in placed.addressable_shards} == {images.ctypes.data}


@pytest.mark.slow
def test_kept_memory_is_limited_after_each_step_and_batch(sample, tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(machine, "keep_large_blocks", lambda num_devices: lambda: calls.append(num_devices))
    built = build_program(tiny, 128)
    train_split = built.place(DeviceSplit(sample.train.images[:128], sample.train.labels[:128]))
    test_split = built.place(DeviceSplit(sample.test.images[:50], sample.test.labels[:50]))
    *_, (_, state, _) = built.train_steps(built.create_state(), built.place(Metrics.empty()), train_split, 1, 0)
    built.evaluate(state.ema_params, test_split)
    assert calls == [resolve("auto", tiny.batch_size).mesh.size] * (128 // tiny.batch_size + 1)
