"""Out of the house: StableHLO that JAX alone runs, and a model card that the Hugging Face Hub's library reads."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from cifar_flax import commands
from cifar_flax.explaining.network import load
from cifar_flax.interop import card
from cifar_flax.training import trained

ALONE = """
import sys
from pathlib import Path
import jax, numpy as np
images = np.load("images.npy")
network = jax.export.deserialize(bytearray(Path("net.stablehlo").read_bytes()))
assert network.platforms == ("cpu", "cuda", "tpu")
np.save("logits.npy", np.concatenate([network.call(part) for part in (images[:5], images[5:])]))
assert not {"flax", "cifar_flax"} & set(sys.modules)
"""


@pytest.mark.slow
def test_jax_alone_runs_it_for_any_number_of_images(tmp_path, sample, monkeypatch):
    pytest.importorskip("flatbuffers", reason="needs flatbuffers: the extra export")
    monkeypatch.chdir(tmp_path)
    assert commands.main(["export", "--format", "stablehlo", "--out", "net.stablehlo"]) == 0
    np.save("images.npy", sample.test.images[:20])
    process = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    expected = load(None, precision="float32").predict(sample.test.images[:20]).logits
    np.testing.assert_allclose(np.load("logits.npy"), expected, rtol=1e-4, atol=1e-4)


def test_the_card_is_read_by_the_hub_and_its_figures_are_the_runs(tmp_path, capsys):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface-hub: the group test")
    assert commands.main(["publish", str(tmp_path / "card")]) == 0
    network = trained.load(None)
    read = hub.ModelCard.load(tmp_path / "card" / card.CARD)
    found = {result.metric_type: result.metric_value for result in read.data.eval_results}
    assert found["accuracy"] == pytest.approx(network.history[-1]["test_accuracy"], abs=1e-4)
    assert found["loss"] == pytest.approx(network.history[-1]["test_loss"], abs=1e-4)
    assert read.data.license is None and read.data.eval_results[0].dataset_split == "test"
    assert (
        network.digest in read.text and f"| `muon_learning_rate` | {network.config.muon_learning_rate} |" in read.text
    )
    assert trained.load(tmp_path / "card").digest == network.digest


def test_a_full_disk_leaves_no_cut_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("flatbuffers", reason="needs flatbuffers: the extra export")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    assert commands.main(["export", "--format", "stablehlo", "--out", str(tmp_path / "net")]) == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_line_of_the_card_is_the_runs():
    """Of a run whose best epoch is not its last, and which held images out."""
    network = trained.load(None)
    rows = [
        {
            "epoch": epoch,
            **{
                f"{split}_{name}": value
                for split, right in (("train", 4000), ("val", 300), ("test", 800))
                for name, value in (
                    ("loss", 3 / right + epoch),
                    ("accuracy", (right + changed) / 10_000),
                    ("correct", right + changed),
                    ("total", 10_000),
                )
            },
        }
        for epoch, changed in ((1, 5), (2, 70), (3, 20))
    ]
    config = dataclasses.replace(network.config, dataset="cifar10", val_size=10_000)
    lines = card.text(dataclasses.replace(network, history=rows, config=config)).splitlines()
    size = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    assert f"# cifar_flax compact, {size:,} parameters" in lines and "At the last epoch, 3:" in lines
    assert f"| training, augmented | {3 / 4000 + 3:.3f} | 40.20% (4,020 of 10,000) |" in lines
    assert f"| held out of training | {3 / 300 + 3:.3f} | 3.20% (320 of 10,000) |" in lines
    assert f"| test | {3 / 800 + 3:.3f} | 8.20% (820 of 10,000) |" in lines
    assert "The best epoch, 2, has 8.70%: it is chosen on the test set." in lines
    assert "    - {type: accuracy, value: 0.0820, name: test accuracy of the last epoch}" in lines
    assert f"    - {{type: loss, value: {3 / 800 + 3:.4f}, name: test loss of the last epoch}}" in lines
    assert '    dataset: {type: uoft-cs/cifar10, name: "CIFAR-10", split: test}' in lines
    for name, value in dataclasses.asdict(config).items():
        assert f"| `{name}` | {json.dumps(value)} |" in lines
    sample = card.text(dataclasses.replace(network, config=dataclasses.replace(config, dataset="sample")))
    assert "trained on the embedded sample of CIFAR-10, 1,000 training and 1,000 test images in JAX" in sample


def test_a_card_without_figures_claims_none():
    text = card.text(dataclasses.replace(trained.load(None), history=[]))
    assert "model-index" not in text and "without their training's figures" in text


def test_the_card_of_an_imported_network_claims_no_training(tmp_path, capsys):
    names = {name: str(tmp_path / f"{name}.safetensors") for name in ("torch", "ours", "again")}
    assert commands.main(["export", "--format", "pytorch", "--out", names["torch"]]) == 0
    assert commands.main(["import", names["torch"], "--out", names["ours"]]) == 0
    assert commands.main(["export", "--ckpt", names["ours"], "--out", names["again"]]) == 0
    for name in ("ours", "again"):
        lines = card.text(trained.load(names[name]))
        assert "trained elsewhere, on CIFAR-10, and imported from torch.safetensors" in lines
        assert "| `widths` | [24, 32, 40, 40] |" in lines and "muon" not in lines and "| `seed`" not in lines


@pytest.mark.parametrize(
    ("given", "expected"), [("/data/sample", "./sample"), ("/x/pets", "pets"), ("sample", "sample")]
)
def test_the_card_names_a_folder_so_that_it_is_no_other_data_set(given, expected, tmp_path):
    network = trained.load(None)
    card.write(tmp_path / "a", dataclasses.replace(network, config=dataclasses.replace(network.config, dataset=given)))
    assert trained.load(tmp_path / "a").config.dataset == expected
    assert ("embedded sample" in (tmp_path / "a" / card.CARD).read_text()) == (given == "sample")


def test_rows_of_an_earlier_version_have_no_counts(tmp_path):
    row = {"epoch": 1, **{f"{x}_{y}": 0.5 for x in ("train", "test") for y in ("loss", "accuracy")}}
    card.write(tmp_path / "a", dataclasses.replace(trained.load(None), history=[row]))
    assert "| test | 0.500 | 50.00% |" in (tmp_path / "a" / card.CARD).read_text()


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "net").write_text("mine")
    assert commands.main(["publish", str(tmp_path)]) == 2
    assert commands.main(["export", "--format", "stablehlo", "--out", str(tmp_path / "net")]) == 2
    assert commands.main(["export"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "holds a README.md" in errors[0] and "exists" in errors[1] and "--out" in errors[2]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
