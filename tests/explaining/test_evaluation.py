"""The whole evaluation on few images; the embedded network is its subject."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import spearmanr

from cifar_flax.config import PRESETS
from cifar_flax.errors import UserError
from cifar_flax.explaining import cam, evaluation, measures, tables
from cifar_flax.explaining.network import load, prepare
from cifar_flax.network import init_params
from cifar_flax.network.build import build_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network():
    """The embedded network in float32, so that one figure by two programs differs by no rounding to bfloat16."""
    return load("compact", precision="float32")


@pytest.fixture(scope="module")
def test(sample):
    return sample.test.take(slice(120))


@pytest.fixture(scope="module")
def predictions(network, test):
    return network.predict(test.images, test.labels)


@pytest.fixture(scope="module")
def evaluate(network, test, predictions):
    def run(seed=0):
        return evaluation.evaluate(
            network,
            test,
            predictions,
            stage="stage4",
            method="grad-cam",
            title="test",
            count=100,
            seed=seed,
            sizes=evaluation.Sizes(faithful=10, randomised=4, seeds=2, grids=2),
        )

    return run


@pytest.fixture(scope="module")
def evaluated(evaluate):
    return evaluate()


def test_equal_seeds_give_equal_figures(evaluate, evaluated):
    assert json.dumps(evaluate().figures) == json.dumps(evaluated.figures)


def test_a_subset_is_drawn_by_the_seed(evaluated, predictions):
    found = evaluated.figures
    chosen = np.sort(np.random.default_rng(0).permutation(120)[:100])
    right = predictions.correct[chosen].sum()
    assert found["images"] == 100
    assert [found["whole"][kind]["count"] for kind in ("right", "wrong")] == [right, 100 - right]


def test_methods_that_are_one_map_are_shown_as_one(evaluated):
    found = evaluated.figures
    methods = ["grad-cam = hires-cam = xgrad-cam", "grad-cam++", "layer-cam", "eigen-cam"]
    for fill in ("mean", "road"):
        assert list(found["faithfulness"][fill]) == [*methods, *measures.BASELINES]


def test_the_reference_that_looks_at_the_answer_is_best_and_chance_is_none(evaluated):
    gains = {name: row["all"]["srg"] for name, row in evaluated.figures["faithfulness"]["mean"].items()}
    assert max(gains, key=gains.get) == "occlusion"
    assert abs(gains["random"]) < 0.15


def test_all_weighs_wrong_and_right_as_they_occur(evaluated):
    row, accuracy = evaluated.figures["faithfulness"]["mean"]["centre"], evaluated.figures["accuracy"]
    expected = accuracy * row["right"]["srg"] + (1 - accuracy) * row["wrong"]["srg"]
    assert row["all"]["srg"] == pytest.approx(expected)
    assert row["all"]["interval"][0] <= row["all"]["srg"] <= row["all"]["interval"][1]


def test_parameters_initialised_anew_from_either_end_are_the_same_in_the_end(evaluated):
    found = evaluated.figures["randomisation"]
    assert found["from the head"]["to stem"] == found["from the stem"]["to head"]
    assert list(found["from the head"]) == ["to head", "to stage4", "to stage3", "to stage2", "to stage1", "to stem"]


@pytest.mark.parametrize(("order", "to"), [("from the head", "stage1"), ("from the stem", "stage2")])
def test_parts_are_initialised_anew_one_after_the_other(network, test, order, to):
    """Against each part replaced by hand, SciPy's rank correlation, and the mean over images and seeds."""
    images, classes = test.images[:4], test.labels[:4]
    found = measures.measure_randomisation(network, images, classes, "stage4", [3, 4])
    names = ["conv", "norm", "stage1", "stage2", "stage3", "stage4", "linear"]
    kept = {"stage1": names[:2], "stage2": names[4:]}[to]
    ask = functools.partial(network.maps, images, classes[:, None], stage="stage4", methods=["grad-cam"])
    original, expected = ask()[:, 0, 0], []
    for seed in (3, 4):
        fresh = init_params(network.model, jax.random.key(seed))
        mixed = {x: (network.params if x.split("_")[0] in kept else fresh)[x] for x in fresh}
        pairs = zip(original, ask(params=mixed)[:, 0, 0], strict=True)
        expected.append(np.mean([spearmanr(a.ravel(), b.ravel())[0] for a, b in pairs]))
    row = found[order][f"to {to}"]["grad-cam = hires-cam = xgrad-cam"]
    assert row["mean"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert row["range"] == pytest.approx([min(expected), max(expected)], abs=1e-3)


@pytest.mark.parametrize("temperature", [1, 3], ids=["sure", "unsure"])
def test_grids_are_of_each_classs_surest_right_predictions_however_sure_these_are(
    network, test, predictions, temperature
):
    predictions = dataclasses.replace(predictions, logits=predictions.logits / temperature)
    found = measures.measure_pointing(network, test.images, predictions, count=2, seed=0)
    p = softmax(predictions.logits.astype(float), axis=1)
    right = p.argmax(axis=1) == test.labels
    surest = [np.sort(p[right & (test.labels == label)].max(axis=1))[::-1] for label in np.unique(test.labels[right])]
    surest = [of_class[: -(-len(of_class) // 10)] for of_class in surest]
    assert found["grids"] == 2 and found["drawn_from"] == sum(map(len, surest))
    assert found["smallest_probability"] == pytest.approx(min(of_class[-1] for of_class in surest))


def test_what_is_not_measured_says_why(network, test, predictions, evaluated):
    few = predictions.take(np.flatnonzero(predictions.true < 3))
    found = measures.measure_pointing(network, test.images[predictions.true < 3], few, count=2, seed=0)
    assert found == {"grids": 0}
    told = json.loads(json.dumps(evaluated.figures)) | {"pointing": found}
    (table,) = [table for table in tables.of_evaluation(told) if table.title.startswith("Grid pointing")]
    assert table.text.startswith("Not measured: it needs four classes") and not table.rows


def test_mean_maps_are_those_of_their_images(network, test, predictions, evaluated):
    (true, predicted, count), maps = evaluated.confused.pairs[0], evaluated.confused.maps[0]
    guesses = predictions.logits.argmax(axis=1)
    chosen = (test.labels == true) & (guesses == predicted)
    assert chosen.sum() == count
    raw = network.maps(test.images[chosen], guesses[chosen, None], stage="stage4", methods=["grad-cam"])[:, 0, 0]
    positive = np.maximum(raw, 0)
    expected = (positive / positive.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(maps[0], expected, rtol=1e-4, atol=1e-7)


def test_identical_maps_are_found_and_no_others(rng):
    maps = rng.normal(size=(3, len(cam.METHODS), 4, 4))
    maps[:, 4] = maps[:, 0] * (1 + 1e-6)
    found = measures.distinct(maps)
    assert len(found) == 5 and found["grad-cam = xgrad-cam"] == 0


def test_tables_hold_every_figure_as_text(evaluated):
    found = evaluated.figures
    found_tables = tables.of_evaluation(json.loads(json.dumps(found)))
    assert len(found_tables) == 6
    for table in found_tables:
        assert all(len(row) == len(table.columns) and all(isinstance(x, str) for x in row) for row in table.rows)
        assert "Measured on" in table.text


def test_maps_of_a_single_place_are_refused_before_anything_is_measured(network, test):
    config = dataclasses.replace(PRESETS["smoke"], widths=(2,) * 5, strides=(2,) * 5)
    params = init_params(build_model(config), jax.random.key(0))
    narrow = prepare(dataclasses.replace(network.trained, config=config, params=params))
    predictions = narrow.predict(test.images, test.labels)
    with pytest.raises(UserError, match="--stage stage5 has maps of a single place: choose an earlier one"):
        evaluation.evaluate(narrow, test, predictions, stage="stage5", method="grad-cam", title="test")
