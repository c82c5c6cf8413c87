import dataclasses
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from cifar_flax import commands, interop
from cifar_flax.config import PRESETS
from cifar_flax.data import CIFAR10
from cifar_flax.errors import UserError
from cifar_flax.explaining import measures
from cifar_flax.explaining.network import load
from cifar_flax.interop import convert
from cifar_flax.network import model, weights
from cifar_flax.network.build import build_model
from cifar_flax.training import loop, trained


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


def with_batch_norm(params, rng):
    """The state dict with statistics for each norm, as BatchNorm has them."""
    found = interop.to_state_dict(params)
    for name in [name for name in found if name.endswith(".bias") and name != "linear.bias"]:
        norm, shape = name.removesuffix(".bias"), found[name].shape
        found |= {f"{norm}.running_mean": rng.normal(size=shape), f"{norm}.running_var": rng.uniform(0.5, 2, shape)}
        found[f"{norm}.num_batches_tracked"] = np.array(9)
    return found


def test_batch_norm_becomes_a_scale_and_a_bias(compact, rng):
    found = with_batch_norm(compact, rng)
    params, config = interop.from_state_dict(found)
    assert (config.norm, config.strides) == ("affine", (1, 2, 2, 1))  # its last shortcut is no projection
    weight, bias, mean, var = (found[f"layer1.0.bn2.{x}"] for x in ("weight", "bias", "running_mean", "running_var"))
    x = rng.normal(size=(7, 24))
    ours = x * params["stage1_block1"]["norm2"]["scale"] + params["stage1_block1"]["norm2"]["bias"]
    np.testing.assert_allclose(ours, (x - mean) / np.sqrt(var + 1e-5) * weight + bias, atol=1e-5)
    np.testing.assert_array_equal(params["conv"]["kernel"], compact["conv"]["kernel"])
    assert interop.from_state_dict(found, (1, 3, 2, 1))[1].strides == (1, 3, 2, 1)


def test_torchvisions_names_are_known(compact):
    theirs = {
        name.replace("shortcut", "downsample").replace("linear", "fc"): tensor
        for name, tensor in interop.to_state_dict(compact).items()
    }
    assert {"layer2.0.downsample.1.bias", "fc.weight"} <= theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, interop.from_state_dict(theirs)[0], compact)


@pytest.mark.parametrize(("blocks", "expected"), [((3, 1), (3, 1)), ((2, 2), ())])
def test_depth_and_number_of_classes_are_those_of_the_tensors(blocks, expected):
    network = model.ResNet((4, 6), (1, 2), blocks, spec=convert.numbered(37))
    params = jax.device_get(model.init_params(network, jax.random.key(0)))
    imported, config = interop.from_state_dict(interop.to_state_dict(params), (1, 2))
    jax.tree.map(np.testing.assert_array_equal, imported, params)
    assert config.blocks == expected and imported["linear"]["bias"].shape == (37,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1.weight": np.zeros((24, 3, 7, 7))}, "the first convolution is 7x7, for large images as ImageNet's"),
        ({"layer1.0.conv3.weight": np.zeros((96, 24, 1, 1))}, r"layer1\.0\.conv3\.weight is of a Bottleneck block"),
        ({"fc.weight": np.zeros((1, 40)), "fc.bias": np.zeros(1)}, "the last layer has 1 output"),
        ({"layer1.0.bn1.running_mean": np.zeros(3)}, r"running_mean is \(3,\), expected \(24,\)"),
        ({"layer1.0.bn1.running_var": -np.ones(24)}, r"layer1\.0\.bn1\.bias has 24 numbers of 24 .* not finite"),
        ({"layer1.0.bn1.running_var": np.full(24, np.inf)}, r"running_var has 24 numbers of 24 .* not finite"),
        ({"layer1.0.bn1.running_var": None}, r"layer1\.0\.bn1\.running_var is missing"),
    ],
)
def test_another_architecture_is_refused_in_a_line(changes, message, compact, rng):
    found = {name: x for name, x in (with_batch_norm(compact, rng) | changes).items() if x is not None}
    with pytest.raises(UserError, match=message):
        interop.from_state_dict(found)


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


def run(capsys, *words):
    code = commands.main([str(word) for word in words])
    return code, capsys.readouterr()


SEVEN = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (10, "", CIFAR10),
        (10, "--std 0.2,0.2,0.3", dataclasses.replace(CIFAR10, std=(0.2, 0.2, 0.3))),
        (10, "--mean 0,0.5,1 --name mine", dataclasses.replace(CIFAR10, name="mine", mean=(0, 0.5, 1))),
        (10, "--image-size 48", dataclasses.replace(convert.numbered(10), name="net", image_size=48)),
        (7, "", dataclasses.replace(convert.numbered(7), name="net")),
        (7, "--classes names.txt", dataclasses.replace(CIFAR10, name="net", class_names=SEVEN)),
        (
            7,
            "--classes ant,bee,cow,dog,eel,fox,gnu --name zoo",
            dataclasses.replace(CIFAR10, name="zoo", class_names=SEVEN),
        ),
    ],
)
def test_what_is_said_of_the_data_set_travels_along(count, words, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(SEVEN) + "\n\n")
    network = model.ResNet((4, 6), (1, 2), spec=convert.numbered(count))
    state_dict = interop.to_state_dict(model.init_params(network, jax.random.key(0)))
    interop.write_state_dict(tmp_path / "net.safetensors", state_dict)
    code, output = run(capsys, "import", "net.safetensors", "--strides=1,2", "--out", "x.safetensors", *words.split())
    assert code == 0, output.err
    assert f"{count} classes of {expected.name}\n" in output.out
    assert trained.load("x.safetensors").spec == expected


@pytest.mark.slow
def test_a_network_with_batch_norm_is_not_trained(tmp_path, capsys, compact, rng, few, tiny, monkeypatch):
    """Its maps, its table and new parameters are had, and it teaches; no card and no PyTorch module is."""
    monkeypatch.chdir(tmp_path)
    found = {name: np.asarray(x, np.float32) for name, x in with_batch_norm(compact, rng).items()}
    safetensors.numpy.save_file(found, "torch.safetensors")
    code, output = run(capsys, "import", "torch.safetensors", "--out", "ours.safetensors")
    assert code == 0 and "strides 1,2,2,1 (assumed; else give --strides), BatchNorm as scale and bias" in output.out
    network = load("ours.safetensors")
    assert network.explain(few.test.images[:3]).raw.shape == (3, 8, 8)
    assert [row.kind for row in model.layer_table(network.model)].count("Affine") == 19
    fresh = model.init_params(network.model, jax.random.key(0))
    assert (fresh["norm"]["scale"] == 1).all() and (fresh["norm"]["bias"] == 0).all()
    trust = measures.measure_randomisation(network, few.test.images[:2], few.test.labels[:2], "stage4", [0, 1])
    assert all(np.isfinite(x["mean"]) for x in trust["from the head"]["to stem"].values())
    words = ("export", "--format", "pytorch", "--out", "x.safetensors"), ("publish", "x.safetensors")
    for command, message in zip(words, ("is for networks with LayerNorm", "had BatchNorm"), strict=True):
        code, output = run(capsys, *command, "--ckpt", "ours.safetensors")
        assert code == 2 and message in output.err
    rows = loop.fit(dataclasses.replace(tiny, teacher="ours.safetensors", epochs=1), few, tmp_path / "taught")
    assert np.isfinite(rows[0]["train_loss"])
    with pytest.raises(UserError, match="with BatchNorm is explained, not trained"):
        loop.fit(network.trained.config, few, tmp_path / "run")
    with pytest.raises(UserError, match=r"ours\.safetensors had BatchNorm: it is explained, not trained"):
        begun = dataclasses.replace(network.trained.config, norm="layer", init="ours.safetensors", batch_size=50)
        loop.fit(begun, few, tmp_path / "begun")
    assert not (tmp_path / "run").exists() and not (tmp_path / "x.safetensors").exists()


def test_exported_and_imported_again_by_the_commands(tmp_path, capsys, compact):
    code, output = run(capsys, "export", "--format", "pytorch", "--out", tmp_path / "torch.safetensors")
    assert code == 0 and "ResNet(widths=(24, 32, 40, 40), strides=(1, 2, 2, 1))" in output.out
    code, output = run(capsys, "import", tmp_path / "torch.safetensors", "--out", tmp_path / "ours.safetensors")
    assert code == 0 and "172,002 parameters" in output.out
    network = trained.load(tmp_path / "ours.safetensors")
    assert network.precision == "float32"  # no PyTorch file tells another
    jax.tree.map(np.testing.assert_array_equal, network.params, compact)


def test_an_export_says_what_its_images_are(tmp_path, capsys, compact):
    """No tensor tells it, and a network that is given images of another mean answers otherwise."""
    digits = dataclasses.replace(
        convert.numbered(10), name="digits", image_size=48, mean=(0.1, 0.1, 0.1), std=(0.3, 0.3, 0.3), digest="0" * 16
    )
    trained.export(dataclasses.replace(trained.load(None), spec=digits), tmp_path / "ours.safetensors")
    words = ("--ckpt", tmp_path / "ours.safetensors", "--format", "pytorch", "--out", tmp_path / "torch.safetensors")
    code, output = run(capsys, "export", *words)
    assert code == 0 and "mean 0.1000, 0.1000, 0.1000, deviation 0.3000, 0.3000, 0.3000" in output.out
    for words, expected in (
        ((), digits),
        (("--std", "0.2,0.2,0.2"), dataclasses.replace(digits, std=(0.2, 0.2, 0.2), digest="")),
    ):
        out = tmp_path / f"again-{len(words)}.safetensors"
        code, output = run(capsys, "import", tmp_path / "torch.safetensors", "--out", out, *words)
        assert code == 0 and trained.load(out).spec == expected


def test_many_classes_are_named_with_commas(tmp_path, capsys):
    names = [f"class-{i}" for i in range(100)]  # longer than a file's name may be
    network = model.ResNet((4,), (1,), spec=convert.numbered(100))
    state_dict = interop.to_state_dict(model.init_params(network, jax.random.key(0)))
    interop.write_state_dict(tmp_path / "net.safetensors", state_dict, (1,))
    out = tmp_path / "ours.safetensors"
    code, output = run(capsys, "import", tmp_path / "net.safetensors", "--out", out, "--classes", ",".join(names))
    assert code == 0, output.err
    assert trained.load(out).spec.class_names == tuple(names)


def test_exported_strides_are_imported(tmp_path, capsys, compact):
    """No tensor tells them, so the file does; what is no list of strides in it is as none."""
    state_dict, config = interop.to_state_dict(compact), PRESETS["compact"]
    for name, strides, expected in (("a", (1, 2, 4, 1), (1, 2, 4, 1)), ("b", ("x",), config.strides)):
        interop.write_state_dict(tmp_path / f"{name}.safetensors", state_dict, strides)
        out = tmp_path / f"{name}-ours.safetensors"
        code, output = run(capsys, "import", tmp_path / f"{name}.safetensors", "--out", out)
        assert code == 0 and ("assumed" in output.out) == (expected == config.strides)
        assert trained.load(out).config.strides == expected


@pytest.mark.parametrize("blocks", [(1, 3), (2, 2)])
def test_blocks_are_said_where_they_are_not_two(blocks, tmp_path, capsys):
    network = model.ResNet((4, 6), (1, 2), blocks, spec=convert.numbered(3))
    state_dict = interop.to_state_dict(model.init_params(network, jax.random.key(0)))
    interop.write_state_dict(tmp_path / "net.safetensors", state_dict)
    words = ("--strides", "1,2", "--out", tmp_path / "x.safetensors")
    code, output = run(capsys, "import", tmp_path / "net.safetensors", *words)
    assert code == 0, output.err
    said = ", blocks 1,3" if blocks == (1, 3) else ""
    assert f" parameters, widths 4,6, strides 1,2{said}, 3 classes of net\n" in output.out


def test_a_data_set_that_nothing_names_is_asked_for(tmp_path, capsys, compact):
    """Nothing of CIFAR-10 is looked for when an imported network is of other classes."""
    params = {**compact, "linear": jax.tree.map(lambda x: x[..., :7], compact["linear"])}
    interop.write_state_dict(tmp_path / "net.safetensors", interop.to_state_dict(params))
    ours = tmp_path / "ours.safetensors"
    assert run(capsys, "import", tmp_path / "net.safetensors", "--name", "zoo", "--out", ours)[0] == 0
    code, output = run(capsys, "explain", "--ckpt", ours, "--data-dir", tmp_path / "none")
    assert code == 2 and output.err.endswith("was trained on zoo: say where that is with --dataset\n")


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
