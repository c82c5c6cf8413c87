import argparse
import dataclasses
import json
import re
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from cifar_flax import config
from cifar_flax.errors import UserError

ROOT = Path(__file__).parents[1]


def parse(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    config.add_flags(parser)
    return config.from_flags(vars(parser.parse_args(words)))


@pytest.mark.parametrize("preset", config.PRESETS)
def test_presets_are_valid_and_named_by_their_key(preset):
    assert config.validate(config.PRESETS[preset]).preset == preset
    assert parse("--preset", preset) == config.PRESETS[preset]


@pytest.mark.parametrize("preset", ["compact"])
def test_presets_are_those_of_the_published_runs(preset):
    """A published figure is of the preset as it is now; ResNet-18's preset is newer than its published run."""
    published = (ROOT / "docs" / "results" / f"{preset}-h200" / "seed-0" / "config.json").read_text()
    assert config.from_json(published) == config.for_images(config.PRESETS[preset], 32)


def test_default_is_the_assignment():
    run = config.for_images(parse(), 32)
    assert (run.preset, run.epochs, run.crop_padding, run.rotate_degrees, run.cutout_size) == (
        "resnet18",
        40,
        4,
        5,
        16,
    )
    assert not run.random_flip
    assert run.plateau_monitor == "train_loss"


def test_augmentation_is_sized_to_the_image():
    """A quarter of the image is cut out, and an eighth is what it moves by; what is given is left as it is."""
    for size, padding, cut in ((8, 1, 4), (28, 3, 14), (32, 4, 16), (64, 8, 32)):
        run = config.for_images(parse(), size)
        assert (run.crop_padding, run.cutout_size) == (padding, cut)
    assert config.for_images(parse("--crop-padding", "2", "--cutout-size", "0"), 64).crop_padding == 2


def test_flags_change_their_preset():
    run = parse("--preset", "compact", "--epochs", "3", "--widths", "8,8", "--strides", "1,2", "--random-flip")
    expected = dataclasses.replace(
        config.PRESETS["compact"], epochs=3, widths=(8, 8), strides=(1, 2), random_flip=True
    )
    assert run == expected


def test_every_field_has_a_flag_with_help():
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    text = parser.format_help()
    for field in dataclasses.fields(config.Config):
        assert ("--" + field.name.replace("_", "-") in text) == (field.name not in config.NOTED)


def test_a_network_is_called_by_its_shape():
    """An imported network has the preset of its recipe, and need not be that preset's network."""
    compact = config.PRESETS["compact"]
    assert config.architecture(dataclasses.replace(compact, epochs=3, blocks=(2, 2, 2, 2))) == "compact"
    other = dataclasses.replace(compact, blocks=(3, 4, 6, 3), norm="affine")
    said = "ResNet-34 with BatchNorm, widths 24,32,40,40, strides 1,2,2,1"
    assert config.architecture(other) == said
    assert config.architecture(dataclasses.replace(compact, strides=(1, 1, 2, 1))).startswith("ResNet-18 with LayerN")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 0", "--epochs is 0: expected 1 or more"),
        ("--epochs -3", "--epochs is -3: expected 1 or more"),
        ("--batch-size 0", "--batch-size is 0"),
        ("--batch-size 50001", "at most the 50000 training images"),
        ("--preset smoke --batch-size 1001", "at most the 1000 training images"),
        ("--val-size 49900", "at most the 100 training images"),
        ("--val-size 50000", "fewer than the 50000 training images"),
        ("--val-size -1", "0 or more"),
        (
            "--plateau-monitor test_loss --no-test",
            "--plateau-monitor is test_loss: expected train_loss or val_loss with --no-test",
        ),
        ("--plateau-monitor val_loss", "--val-size is 0: expected 1 or more for --plateau-monitor val_loss"),
        ("--learning-rate 0", "a finite number above 0"),
        ("--learning-rate nan", "a finite number above 0"),
        ("--learning-rate inf", "a finite number above 0"),
        ("--momentum 1", r"a number in [0, 1)"),
        ("--momentum 0", "--no-nesterov where --momentum is 0"),
        ("--weight-decay -1", "0 or more"),
        ("--clip-norm nan", "0 or more"),
        ("--label-smoothing 1", r"a number in [0, 1)"),
        ("--ema-decay 1", r"a number in [0, 1)"),
        ("--plateau-patience -1", "--plateau-patience is -1: expected 0 or more"),
        ("--plateau-factor 1", r"a number in (0, 1)"),
        ("--plateau-threshold 0", r"a number in (0, 1)"),
        ("--plateau-cooldown -1", "0 or more"),
        ("--plateau-min-scale 1", r"a number in [0, 1)"),
        ("--rotate-degrees 181", r"an angle in [0, 180]"),
        ("--crop-padding -2", "0 or more, or -1"),
        ("--cutout-size -2", "0 or more, or -1"),
        ("--warmup-epochs -1", "0 or more"),
        ("--seed -1", "0 or more"),
        ("--seed 4294967296", "a number below 2**32"),
        ("--eval-batch-size 0", "1 or more"),
        ("--widths 0,8,8,8", "1 or more each"),
        ("--widths 8", "one for each of 1 --widths"),
        ("--strides 1,2", "one for each of 4 --widths"),
    ],
)
def test_values_out_of_range_are_named(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(*words.split())


def test_json_round_trip():
    for run in config.PRESETS.values():
        assert config.from_json(config.to_json(run)) == run


def test_a_config_of_an_earlier_version_is_read_by_what_it_meant():
    """Its names were others, its patience was one more than PyTorch's, and what it had no field for was off."""
    earlier = {"data": "full", "monitor": "test_loss", "patience": 3, "factor": 0.7, "rtol": 0.1, "cooldown": 2}
    found = config.from_json(json.dumps(earlier | {"min_scale": 0.01, "zero_init_residual": False}))
    assert found == config.Config(
        dataset="cifar10",
        plateau_monitor="test_loss",
        plateau_patience=2,
        plateau_factor=0.7,
        plateau_threshold=0.1,
        plateau_cooldown=2,
        plateau_min_scale=0.01,
        muon_learning_rate=0.0,
        muon_weight_decay=0.0,
        sam_rho=0.0,
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"epochs": "40"}', '{"epochs": 4.5}', '{"unknown": 1}', '{"widths": ["a"]}']
)
def test_text_that_is_no_config_is_refused(text):
    with pytest.raises(UserError):
        config.from_json(text)


@hypothesis.given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_value_in_a_field_is_a_config_or_a_user_error(value):
    for field in dataclasses.fields(config.Config):
        try:
            config.from_json(json.dumps({field.name: value}))
        except UserError:
            continue


def test_resuming_may_raise_the_epochs_and_nothing_else():
    old = config.PRESETS["compact"]
    assert config.resumed(old, {"epochs": 60, "preset": "compact"}) == dataclasses.replace(old, epochs=60)
    with pytest.raises(UserError, match=r"cannot change --learning-rate from 0\.2 to 0\.1"):
        config.resumed(old, {"learning_rate": 0.1})
    with pytest.raises(UserError, match="cannot change --preset"):
        config.resumed(old, {"preset": "smoke"})


def test_a_run_that_weighed_a_teacher_that_it_had_not_is_still_read():
    values = json.loads(config.to_json(config.PRESETS["smoke"])) | {"teacher_weight": 0.5}
    assert config.from_json(json.dumps(values)) == config.PRESETS["smoke"]
