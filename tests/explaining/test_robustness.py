"""What is measured on corrupted images, computed anew from what a network says of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from scipy.special import softmax

from cifar_flax.data import CIFAR10
from cifar_flax.explaining import corruptions, robustness, tables
from cifar_flax.explaining.predictions import Predictions

SEED = 3
MADE = np.random.default_rng(1).normal(size=(32 * 32 * 3, 10))


def logits_of(images):
    return (images.reshape(len(images), -1) / 255 - 0.5) @ MADE / 8


class Fake:
    """A network that is a matrix."""

    name, spec = "fake", CIFAR10

    def predict(self, images, labels, on_batch):
        on_batch(len(images))
        return Predictions(logits_of(images), self.spec.class_names, labels)


@pytest.fixture(scope="module")
def test_set(sample):
    return sample.test.take(slice(60))


@pytest.fixture(scope="module")
def counted():
    return []


@pytest.fixture(scope="module")
def measured(test_set, counted):
    def progress(what, total):
        counted.append((what, total))
        return counted.append

    return robustness.measure(Fake(), test_set, seed=SEED, progress=progress)


@pytest.mark.parametrize("name", ["clean", "mirrored", "grey", "gaussian noise", "glass blur", "jpeg compression"])
@pytest.mark.parametrize("severity", [1, 4])
def test_every_figure_is_that_of_the_predictions(name, severity, measured, test_set):
    row, images, labels = robustness.NAMES.index(name), test_set.images, test_set.labels
    if name == "mirrored":
        images = images[:, :, ::-1]
    elif name == "grey":
        images = corruptions.grey(images)
    elif name != "clean":
        images = corruptions.corrupt(name, images, severity, np.random.default_rng([SEED, row, severity]))
    p = softmax(logits_of(images), axis=1)
    guesses, sure = p.argmax(axis=1), p.max(axis=1)
    right = guesses == labels
    place = row, severity - 1
    assert measured.accuracy[place] == pytest.approx(right.mean())
    bins = [(sure >= low / 15) & (sure < (low + 1) / 15) for low in range(15)]
    ece = sum(chosen.mean() * abs(right[chosen].mean() - sure[chosen].mean()) for chosen in bins if chosen.any())
    assert measured.ece[place] == pytest.approx(ece)
    for label in range(10):
        assert measured.accuracy_by_class[place][label] == pytest.approx(right[labels == label].mean())
        assert measured.errors_become[place][label] == pytest.approx((guesses[~right] == label).mean())


def test_all_images_are_counted_once_in_each_way(measured, test_set, counted):
    assert counted[0] == ("corruptions, fake", 60 * (3 + 15 * 5)) and sum(counted[1:]) == counted[0][1]
    assert (measured.right.sum(axis=-1) + measured.wrong.sum(axis=-1) == 60).all()
    np.testing.assert_array_equal(measured.count, np.bincount(test_set.labels, minlength=10))


def test_the_seed_alone_decides(measured, test_set):
    again, other = (robustness.measure(Fake(), test_set, seed=seed) for seed in (SEED, SEED + 1))
    np.testing.assert_array_equal(again.wrong, measured.wrong)
    assert (other.wrong != measured.wrong).any()
    np.testing.assert_array_equal(other.wrong[:3], measured.wrong[:3])


def test_the_mean_is_over_what_follows_the_recipe(measured):
    rows = [i for i, name in enumerate(robustness.NAMES) if i >= 3 and "stand-in" not in name]
    assert len(rows) == 14
    np.testing.assert_allclose(robustness.mean(measured.accuracy), measured.accuracy[rows].mean(axis=0))
    figures = measured.figures()
    assert figures["mean of 14"]["accuracy"] == pytest.approx(measured.accuracy[rows].mean())
    assert figures["mean of 14"]["ece"] == pytest.approx(measured.ece[rows].mean())


def test_the_file_has_each_figure_once(measured):
    found = json.loads(json.dumps(measured.figures()))
    row = robustness.NAMES.index("snow")
    assert found["images"] == 60 and found["seed"] == SEED
    assert len(found["accuracy"]["clean"]) == 1 and list(found["accuracy"]) == list(robustness.NAMES)
    np.testing.assert_allclose(found["accuracy"]["snow"], measured.accuracy[row], atol=1e-6)
    np.testing.assert_allclose(found["ece"]["snow"], measured.ece[row], atol=1e-6)
    for place, name in enumerate(CIFAR10.class_names):
        for key in ("accuracy_by_class", "errors_become"):
            np.testing.assert_allclose(found[key][name]["snow"], getattr(measured, key)[row, :, place], atol=1e-6)


def test_heat_maps_hold_the_figures_as_text(measured):
    other = dataclasses.replace(measured, right=np.minimum(measured.count, measured.right + 1))
    found = tables.of_robustness(measured, other)
    (by_severity, by_class), (ece, errors), (gain, gain_by_class) = found.values()
    assert by_severity.rows == [*robustness.NAMES, "mean of 14"] and by_severity.columns == list("12345")
    assert errors.columns == list(CIFAR10.class_names) == by_class.columns == gain_by_class.columns
    snow, frog = robustness.NAMES.index("snow"), 6
    assert by_severity.cells[0] == ["", "", f"{100 * measured.accuracy[0, 0]:.0f}", "", ""]
    assert by_severity.cells[snow] == [f"{100 * x:.0f}" for x in measured.accuracy[snow]]
    assert by_severity.cells[-1][1] == f"{100 * robustness.mean(measured.accuracy)[1]:.0f}"
    assert ece.cells[snow] == [f"{100 * x:.0f}" for x in measured.ece[snow]]
    for grid, values in ((by_class, measured.accuracy_by_class), (errors, measured.errors_become)):
        assert grid.cells[snow][frog] == f"{100 * values[snow, :, frog].mean():.0f}"
    assert gain.cells[snow][4] == f"{100 * (other.accuracy - measured.accuracy)[snow, 4]:+.0f}"
    for grid in (by_severity, by_class, ece, errors, gain, gain_by_class):
        assert grid.shades.shape == (19, len(grid.columns)) and abs(grid.shades).max() <= 1
        assert all(len(row) == len(grid.columns) for row in grid.cells)
    np.testing.assert_allclose(by_severity.shades[:-1], 1 - measured.accuracy)  # the worse the darker
    assert gain.shades.min() == -1 and gain.shades.max() <= 0  # all of it is good


def test_a_class_without_images_and_a_network_without_errors(measured):
    count, right = measured.count.copy(), measured.right.copy()
    count[4] = right[:, :, 4] = 0
    found = dataclasses.replace(measured, count=count, right=right)
    assert {row[4] for row in tables.of_robustness(found, found)["accuracy"][1].cells} == {""}
    assert "deer" not in found.figures()["accuracy_by_class"]
    perfect = dataclasses.replace(measured, right=np.tile(measured.count, (18, 5, 1)), wrong=0 * measured.wrong)
    assert json.dumps(perfect.figures(), allow_nan=False)
    assert all((grid.shades[:, 0] == 0).all() for grid in tables.of_robustness(perfect, None)["accuracy"])


def test_words_say_what_costs_most(measured):
    accuracy = measured.right * 0 + 0
    accuracy[:] = measured.count
    accuracy[3 + 4, 0] = 0  # glass blur, severity 1
    accuracy[3 + 1, 4] = 0  # shot noise, severity 5
    wrong = measured.wrong * 0
    wrong[3 + 1, 4, 6] = 60
    made = dataclasses.replace(measured, right=accuracy, wrong=wrong)
    found, how = tables.about_robustness(made, None, "some images")
    assert f"Of clean images 100.0% are right, of corrupted ones {100 * 68 / 70:.1f}%. " in found
    assert "At severity 1 glass blur costs most, 100.0 points." in found
    assert "At severity 5 shot noise does: 0.0% are right, and 100% of the errors say frog." in found
    assert how.startswith(f"Measured on 60 images, some images, seed {SEED};") and "by up to 12.7 points" in how
    assert "(the other network: 100.0% and 97.1%)" in tables.about_robustness(made, made, "some images")[0]


@pytest.mark.slow
def test_the_images_are_those_of_the_evaluation(sample, monkeypatch):
    """Of a subset, the same are drawn for both; a second network sees the same corruptions."""
    from cifar_flax.explaining import analysis, evaluation
    from cifar_flax.explaining.network import load, prepare

    network, asked = load("compact"), []
    other = dataclasses.replace(network.trained, params=jax.tree.map(lambda x: x * 1.01, network.params))
    few = dataclasses.replace(sample, test=sample.test.take(slice(90)))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: "evaluated")
    monkeypatch.setattr(robustness, "measure", lambda *given, **options: asked.append((*given, options["seed"])))
    options = analysis.EvaluationOptions(num_images=20, seed=5, corruptions=True)
    found = analysis.analyse(network, few, compare_with=prepare(other), evaluate=options)
    assert found.evaluation == "evaluated" and len(asked) == 2
    chosen = evaluation.draw_images(90, 20, np.random.default_rng(5))
    assert len(set(chosen.tolist())) == 20
    for _, images, seed in asked:
        np.testing.assert_array_equal(images.indices, few.test.indices[chosen])
        assert seed == 5
    options = dataclasses.replace(options, corruptions=False)
    assert analysis.analyse(network, few, evaluate=options).robustness is None and len(asked) == 2
