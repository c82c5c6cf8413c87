import json

import numpy as np
import pytest

from cifar_flax.errors import UserError
from cifar_flax.explaining import people
from cifar_flax.explaining.people import DISPUTED, OTHERWISE, SHARED, UNANIMOUS, People
from cifar_flax.explaining.predictions import Predictions

LABELS = np.array([0, 0, 0, 0, 1])
PREDICTIONS = Predictions(np.eye(3)[[1, 1, 1, 1, 1]], ("a", "b", "c"), LABELS)
COUNTS = np.array([[50, 0, 0], [45, 5, 0], [46, 4, 0], [40, 10, 0], [0, 50, 0]])
DISPUTES = np.array([False, False, False, True, True])


def counts():
    made = np.zeros((10_000, 10), int)
    made[:, 0] = 50
    return made


def entry(**changed):
    votes = {"given": 2, "guessed": 3, "neither": 0, "both": 0}
    return {"id": 7, "given_original_label": 0, "our_guessed_label": 1, "mturk": votes} | changed


def test_badges_are_those_of_the_definitions():
    assert people.judge(People(COUNTS, DISPUTES), PREDICTIONS) == [UNANIMOUS, SHARED, OTHERWISE, DISPUTED, None]
    assert people.judge(People(COUNTS, None), PREDICTIONS) == [UNANIMOUS, SHARED, OTHERWISE, SHARED, None]
    assert people.judge(People(None, DISPUTES), PREDICTIONS) == [None, None, None, DISPUTED, None]


def test_summary_counts_by_confidence_and_where_people_agree():
    said = People(COUNTS, DISPUTES)
    # Of class 1: 0.95, 0.91, exactly 0.5, 0.34 and 1.
    logits = np.log([[0.02, 0.95, 0.03], [0.04, 0.91, 0.05], [1e-300, 1, 1], [0.33, 0.34, 0.33], [1e-300, 1, 1e-300]])
    predictions = Predictions(logits, ("a", "b", "c"), LABELS)
    found = people.summarise(said, predictions, people.judge(said, predictions))
    assert [found[kind] for kind in ("wrong", DISPUTED, SHARED, UNANIMOUS, OTHERWISE)] == [4, 1, 1, 1, 1]
    assert [row["wrong"] for row in found["by_confidence"]] == [2, 0, 1, 1]
    assert found["by_confidence"][0][SHARED] == 1
    assert found["accuracy"]["all images"] == {"count": 5, "accuracy": 0.2}
    assert found["accuracy"]["all people chose the label"] == {"count": 2, "accuracy": 0.5}
    assert found["accuracy"]["label not disputed"] == {"count": 3, "accuracy": 0.0}


def test_published_counts_are_read(tmp_path):
    np.save(tmp_path / "a.npy", counts())
    np.testing.assert_array_equal(people.read_counts(tmp_path / "a.npy"), counts())


def test_two_of_five_votes_dispute_a_label_three_do_not(tmp_path):
    upheld = {"given": 3, "guessed": 0, "neither": 0, "both": 2}
    (tmp_path / "a.json").write_text(json.dumps([entry(), entry(id=9, mturk=upheld)]))
    assert np.flatnonzero(people.read_disputed(tmp_path / "a.json", np.zeros(10_000, int))).tolist() == [7]


BROKEN_COUNTS = {
    "too short": (counts()[:9999], "has the shape (9999, 10)"),
    "shares": (counts() / 50 * 0.9, "holds numbers that are no counts"),
    "negative": (-counts(), "holds numbers that are no counts"),
    "not finite": (np.full((10_000, 10), np.nan), "holds numbers that are no counts"),
    "text": (np.full((10_000, 10), "a"), "holds <U1"),
    "nobody": (0 * counts(), "nobody labelled image 0"),
}


@pytest.mark.parametrize("made, message", BROKEN_COUNTS.values(), ids=BROKEN_COUNTS)
def test_counts_that_are_none_are_refused(tmp_path, made, message):
    np.save(tmp_path / "a.npy", made)
    with pytest.raises(UserError) as error:
        people.read_counts(tmp_path / "a.npy")
    assert message in str(error.value)


BROKEN_VOTES = {
    "no list": ({}, "is no list"),
    "empty": ([], "is no list"),
    "no object": ([3], "entry 0: expected id"),
    "a field less": ([entry(mturk={"given": 3})], "entry 0: expected id"),
    "index": ([entry(), entry(id=10_000)], "entry 1: expected counts, and an id below 10,000"),
    "negative": ([entry(id=-1)], "entry 0: expected counts"),
    "type": ([entry(id="7")], "entry 0: expected counts"),
    "label": ([entry(given_original_label=3)], "image 7 is of class 0, not 3"),
}


@pytest.mark.parametrize("made, message", BROKEN_VOTES.values(), ids=BROKEN_VOTES)
def test_votes_that_are_none_are_refused(tmp_path, made, message):
    (tmp_path / "a.json").write_text(json.dumps(made))
    with pytest.raises(UserError) as error:
        people.read_disputed(tmp_path / "a.json", np.zeros(10_000, int))
    assert message in str(error.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff{")
    for path in (tmp_path / "a", tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=r"cannot be read as|none is not there"):
            people.read_counts(path)
        with pytest.raises(UserError, match=r"cannot be read as|none is not there"):
            people.read_disputed(path, np.zeros(10_000, int))


def test_counts_in_another_order_are_refused():
    made = counts()
    people.check_order(made, np.zeros(10_000, int))
    with pytest.raises(UserError, match="official order"):
        people.check_order(made, np.ones(10_000, int))
