"""The whole evaluation on few images; the embedded network is its subject."""

import json

import numpy as np
import pytest

from cifar_flax import data
from cifar_flax.execution import resolve
from cifar_flax.explaining import cam, evaluation, explanation, measures, trust_tables
from cifar_flax.explaining.explanation import TestSet as Images
from cifar_flax.training import trained
from cifar_flax.training.program import build_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network():
    """The embedded network in float32, so that one figure by two programs differs by no rounding to bfloat16."""
    embedded = trained.load_network(None)
    return embedded._replace(model=build_model(embedded.config, resolve("float32", 1)), precision="float32")


@pytest.fixture(scope="module")
def test(sample):
    return Images("test", sample.test_images[:120], sample.test_labels[:120], np.arange(120), data.CLASS_NAMES)


@pytest.fixture(scope="module")
def logits(network, test):
    return explanation.predict(network, test.images)


@pytest.fixture(scope="module")
def evaluate(network, test, logits):
    def run(seed=0, count=None):
        return evaluation.evaluate(
            network,
            test,
            logits,
            stage="stage4",
            method="grad-cam",
            count=count,
            seed=seed,
            progress=measures.quiet,
            sizes=evaluation.Sizes(faithful=10, randomised=8, seeds=2, grids=6),
        )

    return run


@pytest.fixture(scope="module")
def evaluated(evaluate):
    return evaluate()


def test_equal_seeds_give_equal_figures(evaluate, evaluated):
    assert json.dumps(evaluate()[0]) == json.dumps(evaluated[0])


def test_a_subset_is_drawn_by_the_seed(evaluate):
    found = evaluate(count=50)[0]
    assert found["images"] == 50 and found["whole"]["wrong"]["count"] + found["whole"]["right"]["count"] == 50


def test_methods_that_are_one_map_are_shown_as_one(evaluated):
    found = evaluated[0]
    methods = ["grad-cam = hires-cam = xgrad-cam", "grad-cam++", "layer-cam", "eigen-cam"]
    for fill in ("mean", "road"):
        assert list(found["faithfulness"][fill]) == [*methods, *measures.BASELINES]


def test_the_reference_that_looks_at_the_answer_is_best_and_chance_is_none(evaluated):
    gains = {name: row["all"]["srg"] for name, row in evaluated[0]["faithfulness"]["mean"].items()}
    assert max(gains, key=gains.get) == "occlusion"
    assert abs(gains["random"]) < 0.15


def test_all_weighs_wrong_and_right_as_they_occur(evaluated):
    row, accuracy = evaluated[0]["faithfulness"]["mean"]["centre"], evaluated[0]["accuracy"]
    expected = accuracy * row["right"]["srg"] + (1 - accuracy) * row["wrong"]["srg"]
    assert row["all"]["srg"] == pytest.approx(expected)
    assert row["all"]["interval"][0] <= row["all"]["srg"] <= row["all"]["interval"][1]


def test_parameters_initialised_anew_from_either_end_are_the_same_in_the_end(evaluated):
    found = evaluated[0]["randomisation"]
    assert found["from the head"]["to stem"] == found["from the stem"]["to head"]
    assert list(found["from the head"]) == ["to head", "to stage4", "to stage3", "to stage2", "to stage1", "to stem"]


@pytest.mark.parametrize("top", [1.0, 0.6], ids=["sure", "unsure"])
def test_grids_are_of_each_classs_surest_right_predictions_however_sure_these_are(network, test, logits, top):
    p = top * explanation.probabilities(logits)
    found = measures.measure_pointing(network, test.images, test.labels, p, count=2, seed=0)
    right = p.argmax(axis=1) == test.labels
    surest = [np.sort(p[right & (test.labels == label)].max(axis=1))[::-1] for label in np.unique(test.labels[right])]
    surest = [of_class[: -(-len(of_class) // 10)] for of_class in surest]
    assert found["grids"] == 2 and found["drawn_from"] == sum(map(len, surest))
    assert found["smallest_probability"] == pytest.approx(min(of_class[-1] for of_class in surest))


def test_mean_maps_are_those_of_their_images(network, test, logits, evaluated):
    (true, predicted, count), maps = evaluated[1].pairs[0], evaluated[1].pair_maps[0]
    chosen = (test.labels == true) & (logits.argmax(axis=1) == predicted)
    assert chosen.sum() == count
    guesses = logits.argmax(axis=1)[chosen]
    raw = explanation.explain(
        network, test.images[chosen], test.labels[chosen], guesses, stage="stage4", method="grad-cam"
    )
    positive = np.maximum(raw[:, predicted], 0)
    expected = (positive / positive.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(maps[0], expected, rtol=1e-4, atol=1e-7)


def test_identical_maps_are_found_and_no_others(rng):
    maps = rng.normal(size=(3, len(cam.METHODS), 4, 4))
    maps[:, 4] = maps[:, 0] * (1 + 1e-6)
    found = measures.distinct(maps)
    assert len(found) == 5 and found["grad-cam = xgrad-cam"] == 0


def test_tables_hold_every_figure_as_text(evaluated):
    found = evaluated[0]
    tables = trust_tables.build(json.loads(json.dumps(found)))
    assert len(tables) == 6
    for table in tables:
        assert all(len(row) == len(table.columns) and all(isinstance(x, str) for x in row) for row in table.rows)
        assert "Measured on" in table.text
