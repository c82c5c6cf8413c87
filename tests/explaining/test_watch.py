"""The page of a run that trains."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import cifar_flax
from cifar_flax import commands
from cifar_flax.explaining import watch
from cifar_flax.training import loop

TRAIN = ["train", "--preset", "smoke", "--dataset", "sample", "--epochs", "2"]


def content(path):
    text = (path / watch.NAME).read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


@pytest.mark.slow
def test_the_page_is_of_the_run(tmp_path, sample, show, violations):
    out = tmp_path / "run"
    assert commands.main([*TRAIN, "--watch", "--out", str(out)]) == 0
    found = content(out)
    network = cifar_flax.load(out)
    assert found["rows"] == network.history and found["seconds"] is None
    test = sample.test
    predictions = network.predict(test.images, test.labels)
    wrong = {int(test.indices[i]): i for i in np.flatnonzero(~predictions.correct)}
    sure = [error["confidence"] for error in found["errors"]]
    assert len(sure) == 24 and sure == sorted(sure, reverse=True)
    for error in found["errors"]:
        i = wrong[error["index"]]
        assert (error["true"], error["predicted"]) == (test.labels[i], predictions.predicted[i])
        assert error["confidence"] == pytest.approx(predictions.confidence[i], abs=2e-4)
        picture = Image.open(io.BytesIO(base64.b64decode(error["picture"].split(",")[1])))
        np.testing.assert_array_equal(np.asarray(picture), test.images[i])
    page = show((out / watch.NAME).read_text(encoding="utf-8"), "#curves svg")
    assert page.title() == "Epoch 2 of 2" and "The run is complete." in page.locator("#what").inner_text()
    assert f"test {network.history[-1]['test_acc']:.2f}%" in page.locator("#what").inner_text()
    titles = [svg.get_attribute("aria-label") for svg in page.locator("#curves svg").all()]
    expected = ["loss", "accuracy, %", "learning rate", "step relative to the kernels", "norm of the kernels"]
    assert titles == expected
    assert page.locator("#errors figure").count() == 24 and violations(page) == []
    page.close()


@pytest.mark.slow
def test_the_page_is_loaded_again_while_the_run_trains(tmp_path, sample, show, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.3)
    config = dataclasses.replace(cifar_flax.PRESETS["smoke"], epochs=2, test=False)
    write, texts = watch.watching(tmp_path / "run", config, sample), []

    def on_epoch(progress):
        write(progress)
        texts.append((tmp_path / "run" / watch.NAME).read_text(encoding="utf-8"))

    loop.fit(config, sample, tmp_path / "run", on_epoch=on_epoch)
    page = show(texts[0], "#curves svg")
    assert page.title() == "Epoch 1 of 2" and page.locator("#errors").is_hidden()  # no test image is looked at
    page.evaluate("window.old = true")
    page.wait_for_function("!window.old")
    page.close()


def test_several_processes_have_no_such_page(capsys):
    several = ["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "0"]
    assert commands.main([*TRAIN, "--watch", *several]) == 2
    assert "--watch is of one process" in capsys.readouterr().err
