"""Files of PyTorch's own, and what may be in them."""

import os
import runpy

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e . --group bench")

from cifar_flax import commands, interop
from cifar_flax.config import PRESETS
from cifar_flax.errors import UserError
from cifar_flax.training import trained


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_exported_file_loads_strictly_and_comes_back_bit_for_bit(suffix, tmp_path, capsys):
    path = tmp_path / f"net{suffix}"
    assert commands.main(["export", "--format", "pytorch", "--out", str(path)]) == 0
    network = runpy.run_path(str(interop.MODULE))["ResNet"](PRESETS["compact"].widths, PRESETS["compact"].strides)
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert commands.main(["import", str(path), "--out", str(tmp_path / "ours.safetensors")]) == 0
    ours = trained.load(tmp_path / "ours.safetensors").params
    jax.tree.map(np.testing.assert_array_equal, ours, trained.load(None).params)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_state_dict_is_found_in_what_training_scripts_save(key, tmp_path):
    tensors = {f"module.{name}": torch.tensor([1.5]) for name in ("a", "b")}
    torch.save({key: tensors, "epoch": 40, "acc": 89.4}, tmp_path / "x.pth")
    assert list(interop.read_state_dict(tmp_path / "x.pth")) == ["module.a", "module.b"]


def test_parameters_that_ask_for_gradients_are_read(tmp_path, capsys):
    """`torch.save(dict(model.named_parameters()))`, as scripts save them that know no state dict."""
    network = runpy.run_path(str(interop.MODULE))["ResNet"](PRESETS["compact"].widths, PRESETS["compact"].strides)
    torch.save(dict(network.named_parameters()), tmp_path / "x.pth")
    read = interop.read_state_dict(tmp_path / "x.pth")
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("i-was-here",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Hostile(), "cannot be read with weights_only=True"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (torch.nn.Linear(2, 2), "Save the state dict alone"),
    ],
)
def test_other_content_is_refused_and_not_run(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "x.pth")
    with pytest.raises(UserError, match=message):
        interop.read_state_dict(tmp_path / "x.pth")
    assert not (tmp_path / "i-was-here").exists()


@pytest.mark.parametrize("damage", [lambda content: b"nothing good", lambda content: content[: len(content) // 2]])
def test_a_damaged_file_is_said_to_be_damaged(damage, tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(damage((tmp_path / "x.pt").read_bytes()))
    with pytest.raises(UserError, match="cannot be read: it is damaged"):
        interop.read_state_dict(tmp_path / "x.pt")


def test_a_file_that_the_system_does_not_give_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.pt").write_bytes(b"")
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        interop.read_state_dict(tmp_path / "x.pt")
