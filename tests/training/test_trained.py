"""A trained network is what was saved, wherever it was saved, or one line says why not."""

import dataclasses
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from cifar_flax import execution
from cifar_flax.commands import explain, export
from cifar_flax.config import PRESETS, for_images
from cifar_flax.data import CIFAR10
from cifar_flax.errors import UserError
from cifar_flax.execution import resolve
from cifar_flax.explaining.network import prepare
from cifar_flax.network import model, weights
from cifar_flax.network.build import build_model
from cifar_flax.training import loop, trained
from cifar_flax.training.trained import Trained

ROOT = Path(__file__).parents[2]
CONFIG = dataclasses.replace(PRESETS["compact"], widths=(4, 6), strides=(2, 2))


@pytest.fixture(scope="module")
def network():
    architecture = build_model(CONFIG)
    params = jax.device_get(model.init_params(architecture, jax.random.key(0)))
    return Trained("a network", params, CONFIG, CIFAR10, [])


def save(path, network, params=None):
    weights.save_weights(
        path, network.params if params is None else params, network.config, {"metrics": [{"epoch": 1}]}
    )


def test_network_of_a_file_is_the_one_that_was_saved(network, tmp_path):
    save(tmp_path / "a.safetensors", network)
    loaded = trained.load(tmp_path / "a.safetensors")
    assert (loaded.digest, loaded.config, loaded.history) == (network.digest, network.config, [{"epoch": 1}])
    chex.assert_trees_all_equal(loaded.params, network.params)


def test_parameters_that_are_not_the_configs_are_named(network, tmp_path):
    params = {name: value for name, value in network.params.items() if name != "linear"}
    save(tmp_path / "a.safetensors", network, params)
    with pytest.raises(UserError, match=r"linear\.bias is missing; linear\.kernel is missing"):
        trained.load(tmp_path / "a.safetensors")
    wide = network.params["norm"] | {"scale": np.ones(7, np.float32)}
    save(tmp_path / "a.safetensors", network, network.params | {"norm": wide})
    with pytest.raises(UserError, match=r"norm\.scale is \(7,\), expected \(4,\)"):
        trained.load(tmp_path / "a.safetensors")


def test_a_network_here_comes_before_a_published_one_of_its_name_and_another_folder_does_not(
    network, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compact").mkdir()
    assert trained.load("compact").name == "published compact network"
    save(tmp_path / "compact" / "model.safetensors", network)
    assert trained.load("compact").digest == network.digest


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "checkpoints" / "3"):
        with pytest.raises(UserError, match="is no checkpoint"):
            trained.load(path)


@pytest.mark.slow
def test_an_edited_config_is_not_believed(tiny, few, tmp_path, capsys):
    """Strides change no shape: the network would be another one, of the same parameters."""
    folder = tmp_path / "run"
    loop.fit(dataclasses.replace(tiny, epochs=1), few, folder)
    path = folder / "config.json"
    content = path.read_text()
    path.write_text(content.replace('"strides": [\n    2\n  ]', '"strides": [\n    1\n  ]'))
    assert path.read_text() != content
    for command, words in ((explain, ["--ckpt", str(folder)]), (export, ["--ckpt", str(folder)])):
        out = ["--out", str(tmp_path / "x.safetensors")]
        assert command.main([*words, *out]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: config.json was changed since checkpoint ") and said.count("\n") == 1
        assert "strides ((1,) against (2,)); put it back" in said
    assert not (tmp_path / "x.safetensors").exists()
    path.write_text(content.replace('"epochs": 1', '"epochs": 9'))  # which a resumption may
    assert trained.load(folder).config.epochs == 1


def test_a_network_that_is_not_finite_is_refused_by_its_tensor(network, tmp_path, sample):
    params = jax.tree.map(np.copy, network.params)
    params["linear"]["bias"][3] = np.nan
    save(tmp_path / "a.safetensors", network, params)
    with pytest.raises(UserError, match=r"linear\.bias has 1 numbers of 10 that are not finite"):
        trained.load(tmp_path / "a.safetensors")
    huge = dataclasses.replace(network, params=jax.tree.map(lambda x: x * np.float32(1e30), network.params))
    with pytest.raises(UserError, match="logits are not finite for 3 of 3 images"):
        prepare(huge).predict(sample.test.images[:3])


@pytest.mark.slow
def test_network_of_a_run_is_its_averaged_parameters(tiny, few, tmp_path):
    loop.fit(dataclasses.replace(tiny, epochs=2), few, tmp_path / "run")
    newest = trained.load(tmp_path / "run")
    assert newest.name.endswith("epoch 2") and len(newest.history) == 2
    first = trained.load(tmp_path / "run" / "checkpoints" / "1")
    assert first.name.endswith("epoch 1") and len(first.history) == 1
    assert first.digest != newest.digest
    correct = prepare(newest).predict(few.test.images, few.test.labels).correct.sum()
    assert correct == newest.history[-1]["test_correct"]
    with pytest.raises(UserError, match="no checkpoint of epoch 7: it has 1, 2"):
        trained.load(tmp_path / "run" / "checkpoints" / "7")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "card", "size"),
    [("resnet18", "model-card-resnet18.md", 11_173_962), ("compact", "model-card.md", 172_002)],
)
def test_a_published_network_is_what_its_card_says(name, card, size, sample):
    """And it is right on as many of 500 test images as of all 10,000, but for chance."""
    published = trained.load(name)
    taught_by = {key: getattr(published.config, key) for key in ("teacher", "teacher_digest")}
    assert published.config == for_images(dataclasses.replace(PRESETS[name], **taught_by), 32)
    assert published.precision == "bfloat16"  # of the accelerator that trained it
    assert sum(leaf.size for leaf in jax.tree.leaves(published.params)) == size
    assert [row["epoch"] for row in published.history] == list(range(1, 41))
    text = (ROOT / "docs" / card).read_text()
    chex.assert_tree_all_finite(published.params)
    last = published.history[-1]
    accuracy, correct = last["test_accuracy"], f"({last['test_correct']} of 10,000)"
    for said in (
        f"**{100 * accuracy:.2f}%** {correct}",
        published.digest[:12],
        taught_by["teacher_digest"][:12],
        f"{size:,}",
    ):
        assert said in text
    predictions = prepare(published).predict(sample.test.images[::2], sample.test.labels[::2])
    assert abs(predictions.accuracy - accuracy) < 0.02


def test_the_network_that_needs_no_name_is_the_compact_one():
    assert trained.load(None).digest == trained.load("compact").digest


@pytest.mark.slow
def test_a_run_may_be_named_by_a_number_and_an_epoch_from_where_it_is(tiny, few, tmp_path, monkeypatch):
    loop.fit(dataclasses.replace(tiny, epochs=1), few, tmp_path / "runs" / "7")
    monkeypatch.chdir(tmp_path)
    run = trained.load(Path("runs/7"))
    assert (run.name, run.folder) == ("runs/7, epoch 1", Path("runs/7"))
    monkeypatch.chdir(tmp_path / "runs")
    assert trained.load(Path("7")).folder == Path("7")
    monkeypatch.chdir(tmp_path / "runs" / "7" / "checkpoints")
    epoch = trained.load(Path("1"))
    assert (epoch.digest, epoch.folder.resolve()) == (run.digest, (tmp_path / "runs" / "7").resolve())


@pytest.mark.slow
def test_a_network_keeps_the_precision_that_it_was_trained_in(tiny, few, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "has_bfloat16", lambda device: True)
    loop.fit(dataclasses.replace(tiny, epochs=1, precision="bfloat16"), few, tmp_path / "run")
    network = trained.load(tmp_path / "run")
    trained.export(network, tmp_path / "a.safetensors")
    for loaded in (network, trained.load(tmp_path / "a.safetensors")):
        assert loaded.precision == "bfloat16"
        assert prepare(loaded).model == build_model(network.config, resolve("bfloat16", 1))
