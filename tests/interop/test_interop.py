import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from cifar_flax import commands, interop
from cifar_flax.config import PRESETS
from cifar_flax.data import CIFAR10
from cifar_flax.errors import UserError
from cifar_flax.interop import convert
from cifar_flax.network import model, weights
from cifar_flax.network.build import build_model
from cifar_flax.training import trained


@pytest.fixture(scope="module")
def compact():
    return weights.load_weights(trained.PUBLISHED["compact"]).params


@pytest.fixture(scope="module")
def resnet18():
    return jax.device_get(model.init_params(build_model(PRESETS["resnet18"]), jax.random.key(3)))


@pytest.mark.parametrize("preset", ["compact", "resnet18"])
def test_import_of_export_is_the_same_bit_for_bit(preset, request):
    params = request.getfixturevalue(preset)
    imported, config = interop.from_state_dict(interop.to_state_dict(params))
    jax.tree.map(np.testing.assert_array_equal, imported, params)
    assert config == PRESETS[preset]


def test_names_are_those_of_the_common_pytorch_resnet(resnet18):
    names = set(interop.to_state_dict(resnet18))
    assert len(names) == 62
    assert {"conv1.weight", "bn1.bias", "layer2.0.shortcut.0.weight", "layer4.1.bn2.weight", "linear.bias"} <= names
    assert interop.to_state_dict(resnet18)["layer2.0.conv1.weight"].shape == (128, 64, 3, 3)


def test_prefix_of_data_parallel_is_dropped(compact):
    state_dict = {f"module.{name}": tensor for name, tensor in interop.to_state_dict(compact).items()}
    jax.tree.map(np.testing.assert_array_equal, interop.from_state_dict(state_dict)[0], compact)


def test_batch_norm_is_refused_by_name(compact):
    state_dict = interop.to_state_dict(compact) | {"bn1.running_mean": np.zeros(16), "bn1.running_var": np.ones(16)}
    with pytest.raises(UserError, match=r"BatchNorm \(bn1.running_mean and 1 more\)"):
        interop.from_state_dict(state_dict)


def test_every_wrong_tensor_is_listed(compact):
    state_dict = interop.to_state_dict(compact) | {"layer9.weight": np.zeros(1), "linear.weight": np.zeros((10, 41))}
    del state_dict["layer3.1.bn2.bias"]
    with pytest.raises(UserError) as error:
        interop.from_state_dict(state_dict)
    assert "layer3.1.bn2.bias is missing" in str(error.value)
    assert "layer9.weight is left over" in str(error.value)
    assert "linear.weight is (10, 41), expected (10, 40)" in str(error.value)


def test_unknown_widths_need_strides():
    params = model.init_params(model.ResNet((8, 12), (1, 2)), jax.random.key(0))
    with pytest.raises(UserError, match="give them with --strides"):
        interop.from_state_dict(interop.to_state_dict(params))
    assert interop.from_state_dict(interop.to_state_dict(params), (1, 2))[1].strides == (1, 2)


@pytest.mark.parametrize("state_dict", [{}, {"x": np.zeros(3)}, {"layer1.0.conv1.weight": np.zeros(())}])
def test_a_foreign_state_dict_is_refused(state_dict):
    with pytest.raises(UserError):
        interop.from_state_dict(state_dict)


def test_another_deviation_moves_into_the_first_kernel(compact, sample):
    """Images divided by other deviations give the same logits in the rescaled network."""
    network = build_model(PRESETS["compact"])
    std = (0.2023, 0.1994, 0.2010)
    kernel = convert.rescale_input(compact["conv"]["kernel"], std)
    images = CIFAR10.normalize(sample.test.images[:16])
    theirs = model.forward(
        network, compact, images * np.float32([[[CIFAR10.std]]]) / np.float32(std)[None, None, None]
    )
    ours = model.forward(network, compact | {"conv": {"kernel": kernel}}, images)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def run(capsys, *words):
    code = commands.main([str(word) for word in words])
    return code, capsys.readouterr()


def test_exported_and_imported_again_by_the_commands(tmp_path, capsys, compact):
    code, output = run(capsys, "export", "--format", "pytorch", "--out", tmp_path / "torch.safetensors")
    assert code == 0 and "ResNet(widths=(24, 32, 40, 40), strides=(1, 2, 2, 1))" in output.out
    code, output = run(capsys, "import", tmp_path / "torch.safetensors", "--out", tmp_path / "ours.safetensors")
    assert code == 0 and "172,002 parameters" in output.out
    network = trained.load(tmp_path / "ours.safetensors")
    assert network.precision == "float32"  # no PyTorch file tells another
    jax.tree.map(np.testing.assert_array_equal, network.params, compact)


def test_half_precision_is_read(tmp_path, compact):
    half = {name: tensor.astype(np.float16) for name, tensor in interop.to_state_dict(compact).items()}
    safetensors.numpy.save_file(half, tmp_path / "half.safetensors")
    imported, _ = interop.from_state_dict(interop.read_state_dict(tmp_path / "half.safetensors"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16)), imported, compact)


def test_module_is_printed(capsys):
    code, output = run(capsys, "export", "--show-module")
    assert code == 0
    compile(output.out, "module", "exec")
    assert "nn.GroupNorm(1, channels)" in output.out


def test_without_pytorch_its_files_are_refused_with_a_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"")
    code, output = run(capsys, "import", tmp_path / "x.pth", "--out", tmp_path / "y.safetensors")
    assert code == 2 and "a .pth file needs PyTorch; install it, or use .safetensors" in output.err
    code, output = run(capsys, "export", "--format", "pytorch", "--out", tmp_path / "z.pt")
    assert code == 2 and "needs PyTorch" in output.err and not (tmp_path / "z.pt").exists()
