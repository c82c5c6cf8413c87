"""What is chosen of a network's predictions, and what is refused before anything is computed."""

import dataclasses

import numpy as np
import pytest

from cifar_flax.data import open_dataset
from cifar_flax.errors import UserError
from cifar_flax.explaining import analysis
from cifar_flax.explaining.analysis import EvaluationOptions, Selection, analyse
from cifar_flax.explaining.predictions import Predictions


@pytest.fixture(scope="module")
def few():
    sample = open_dataset("sample")
    return dataclasses.replace(sample, test=sample.test.take(slice(200)))


def test_classes_are_named_or_numbered(network, few):
    named = analyse(network, few, Selection(true="cat", predicted="dog", num_wrong=2))
    numbered = analyse(network, few, Selection(true=3, predicted=np.int64(5), num_wrong=2))
    np.testing.assert_array_equal(named.wrong, numbered.wrong)
    assert len(named.wrong) and (few.test.labels[named.wrong] == 3).all()
    assert (named.predictions.predicted[named.wrong] == 5).all() and (few.test.labels[named.correct] == 3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(selection=Selection(true="kitten")), "true kitten is no class of CIFAR-10: expected one of airplane"),
        (dict(selection=Selection(predicted=10)), "predicted 10 is no class"),
        (dict(selection=Selection(sort="size")), "sort size is not known"),
        (dict(selection=Selection(num_wrong=0)), "num_wrong is 0: expected 1 or more"),
        (dict(selection=Selection(indices=[3, 3])), "indices names an image twice"),
        (dict(selection=Selection(neighbours=2.5)), "neighbours is 2.5: expected 0 to 50, a whole number"),
        (dict(selection=Selection(num_wrong="3")), "num_wrong is '3': expected 1 or more"),
        (dict(selection=Selection(indices=[])), "indices is .*: expected the numbers of one or more"),
        (dict(selection=Selection(stage="stage9")), "stage stage9 is not known"),
        (dict(selection=Selection(method="cam")), "method cam is not known"),
        (dict(evaluate=EvaluationOptions(num_images=0)), "num_images is 0: expected 2 to 200"),
        (dict(evaluate=EvaluationOptions(num_images=201)), "num_images is 201: expected 2 to 200"),
        (dict(compare_with="resnet18"), "'resnet18' is no network: expected what cifar_flax.load returns"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(network, few, options, message, monkeypatch):
    monkeypatch.setattr(type(network), "in_batches", None)
    with pytest.raises(UserError, match=message):
        analyse(network, few, **options)


def test_one_image_is_not_enough_to_fit_a_temperature_on_half(network, few):
    one = dataclasses.replace(few, test=few.test.take(slice(1)))
    with pytest.raises(UserError, match="num_images is 1: expected 2"):
        analyse(network, one, evaluate=EvaluationOptions())


def test_images_that_lie_class_by_class_are_taken_from_all_classes():
    """The first 20 would be of the first class; elsewhere the first ones are taken as they come."""
    labels = np.repeat(np.arange(10), 30)
    predictions = Predictions(np.eye(10)[(labels + 1) % 10], tuple("abcdefghij"), labels)
    chosen = analysis.first_of_each(np.arange(300), 20, predictions)
    assert len(chosen) == 20 and (np.diff(chosen) > 0).all() and set(labels[chosen]) == set(range(10))
    np.testing.assert_array_equal(analysis.first_of_each(np.arange(7), 20, predictions), np.arange(7))
    mixed = predictions.take(np.random.default_rng(0).permutation(300))
    np.testing.assert_array_equal(analysis.first_of_each(np.arange(300), 20, mixed), np.arange(20))
