"""What the benchmarks compare with does the same work: `benchmarks/peers.py`."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e . --group bench")

import peers
import speed
import turns

from cifar_flax.config import PRESETS, for_images
from cifar_flax.data import CIFAR10, augment
from cifar_flax.network import model

COMPACT = for_images(PRESETS["compact"], 32)


def test_normalisation(sample):
    ours = CIFAR10.normalize(sample.test.images[:4])
    theirs = peers.normalize(peers.to_device(sample.test.images[:4])).cpu().numpy()
    np.testing.assert_allclose(theirs.transpose(0, 2, 3, 1), ours, atol=1e-5)


def test_crop_and_rotation(images, rng):
    shifts, degrees = rng.integers(-4, 5, (len(images), 2)), np.float32(rng.uniform(-5, 5, len(images)))
    ours = augment.shift_and_rotate(jnp.asarray(images), jnp.asarray(shifts), jnp.asarray(degrees))
    pixels = torch.tensor(images, device=peers.DEVICE).permute(0, 3, 1, 2)
    theirs = peers.shift_and_rotate(pixels, torch.tensor(shifts).to(pixels), torch.tensor(degrees).to(pixels))
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1).cpu(), ours, atol=1e-3)


def test_cutout_covers_as_much():
    config = dataclasses.replace(COMPACT, crop_padding=0, rotate_degrees=0.0)
    pixels = torch.ones(2000, 3, 32, 32, device=peers.DEVICE)
    augmented = peers.augment(pixels, config)
    sides = [min(c + 8, 32) - max(c - 8, 0) for c in range(32)]
    assert float((augmented == 0).all(1).float().mean()) == pytest.approx((np.mean(sides) / 32) ** 2, abs=0.02)


def test_network(make_pair, sample):
    pair = make_pair("compact", "float32")
    ours = model.forward(pair.model, pair.params, CIFAR10.normalize(sample.test.images[:8]))
    module = peers.network(COMPACT, pair.params)
    theirs = module(peers.normalize(peers.to_device(sample.test.images[:8]))).detach().cpu().numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-3)


def test_a_step_changes_every_parameter(sample, monkeypatch):
    """All of an epoch runs: augmentation, clipping, optimizer, averaging."""
    modules, build = [], peers.network

    def noted(*arguments):
        modules.append(build(*arguments))
        return modules[-1]

    monkeypatch.setattr(peers, "network", noted)
    step = peers.train_steps(COMPACT, sample.train.images[:64], sample.train.labels[:64], compiled=False)
    before = [parameter.detach().clone() for parameter in modules[0].parameters()]
    step()
    assert all(bool((a != b).any()) for a, b in zip(before, modules[0].parameters(), strict=True))


def test_arithmetic_is_counted_as_by_hand():
    """ResNet-18: 1.916 GFLOP an image forward, 5.745 in training, two a multiply-add."""
    network = model.ResNet()
    assert speed.forward_flops(network) == pytest.approx(1.916e9, rel=1e-3)
    assert speed.train_flops(network) == pytest.approx(5.745e9, rel=1e-3)


def test_candidates_take_turns(monkeypatch):
    calls = []

    @contextlib.contextmanager
    def served(name, checkout=None):
        def ask(line):
            calls.append((name, line))
            return {name: True} if line == "facts" else 6.0

        yield ask

    monkeypatch.setattr(turns, "served", served)
    benchmark = turns.Benchmark({"a": None, "b": None}, warm_up=1, repeats=3)
    times, facts = turns.take_turns(benchmark, turns=2, processes=2)
    assert calls == ([("a", "turn"), ("b", "turn")] * 3 + [("a", "facts"), ("b", "facts")]) * 2
    assert times == {"a": [2.0] * 4, "b": [2.0] * 4} and facts == {"a": True, "b": True}


def test_another_version_is_timed_beside_ours(tmp_path):
    """In its own folder, with its own package, by the script of the same name, and without a flag it may not know."""
    (tmp_path / "cifar_flax.py").write_text("VERSION = 'theirs'\n")
    (tmp_path / "benchmarks").mkdir()
    other = tmp_path / "benchmarks" / "speed.py"
    other.write_text(
        "import json, sys, cifar_flax\n"
        "assert '--beside' not in sys.argv, sys.argv\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'version': cifar_flax.VERSION} if line == 'facts\\n' else 9.0), flush=True)\n"
    )
    command = [sys.executable, speed.__file__, "maps", "--turns", "1", "--beside", str(tmp_path)]
    out = tmp_path / "found.json"
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, text=True)
    found = json.loads(out.read_text())
    ours, theirs = found["seconds"].values()
    assert theirs == [9.0] and ours != [9.0]
    assert found["version"] == "theirs"


def test_benchmark_runs(tmp_path):
    command = [sys.executable, speed.__file__, "maps", "--turns", "1", "--out", str(tmp_path / "found.json")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert {len(seconds) for seconds in found["seconds"].values()} == {1}
    assert all(name in text for name in found["seconds"])


@pytest.mark.parametrize(
    ("precision", "has_it", "expected"),
    [("auto", True, True), ("auto", False, False), ("float32", True, False), ("bfloat16", False, True)],
)
@pytest.mark.skipif(peers.DEVICE.type == "cuda", reason="asks the card, not the processor")
def test_autocast_is_used_where_the_config_means_bfloat16(monkeypatch, precision, has_it, expected):
    monkeypatch.setattr(peers.machine, "cpu_has_bfloat16", lambda: has_it)
    assert peers.multiplies_bfloat16(dataclasses.replace(PRESETS["resnet18"], precision=precision)) is expected
