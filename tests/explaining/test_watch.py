"""The page of a run that trains."""

import base64
import dataclasses
import io
import json
import re
import types

import numpy as np
import pytest
from PIL import Image

import cifar_flax
from cifar_flax import commands
from cifar_flax.errors import Interrupted
from cifar_flax.execution import resolve
from cifar_flax.explaining import watch
from cifar_flax.explaining.network import prepare
from cifar_flax.training import loop
from cifar_flax.training.beginning import Beginning
from cifar_flax.training.checkpoint import Progress

DATA = r'id="data">(.*?)</script>'
TRAIN = ["train", "--preset", "smoke", "--dataset", "sample", "--epochs", "2"]
TRAIN += ["--widths", "8", "--strides", "2", "--precision", "float32"]


def content(path):
    return json.loads(re.search(DATA, (path / watch.NAME).read_text(encoding="utf-8"))[1])


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
    assert f"test {100 * network.history[-1]['test_accuracy']:.2f}%" in page.locator("#what").inner_text()
    titles = [svg.get_attribute("aria-label") for svg in page.locator("#curves svg").all()]
    expected = ["loss", "accuracy, %", "learning rate", "step relative to the kernels", "norm of the kernels"]
    assert titles == expected
    assert page.locator("#errors figure").count() == 24 and violations(page) == []
    page.close()


@pytest.mark.slow
def test_the_page_is_loaded_again_while_the_run_trains(tmp_path, tiny, sample, show, monkeypatch):
    """From before the first step on; a run that goes on, or is complete, has its page at once."""
    monkeypatch.setattr(watch, "SECONDS", 3)  # long enough to read it in
    folder = tmp_path / "run"
    config = dataclasses.replace(tiny, epochs=2, test=False)
    write, texts = watch.watching(folder, sample), []

    def on_progress(state):
        write(state)
        texts.append((folder / watch.NAME).read_text(encoding="utf-8"))

    loop.fit(config, sample, folder, on_progress=on_progress)
    page = show(texts[0], "#headline")
    page.wait_for_function("document.title === 'Training begins'")
    assert page.locator("#training").is_hidden() and "at the end of the first epoch" in page.content()
    page.close()
    page = show(texts[1], "#curves svg")
    assert page.title() == "Epoch 1 of 2" and page.locator("#errors").is_hidden()  # no test image is looked at
    assert page.locator("#curves circle").count() == 5
    page.wait_for_event("load")  # by itself
    page.close()
    (folder / watch.NAME).unlink()
    loop.fit(config, sample, folder, resume=True, on_progress=write)
    assert content(folder)["seconds"] is None and len(content(folder)["rows"]) == 2
    loop.fit(dataclasses.replace(config, epochs=3), sample, folder, resume=True, on_progress=on_progress)
    assert [len(json.loads(re.search(DATA, text)[1])["rows"]) for text in texts] == [0, 1, 2, 2, 3]


def test_the_page_evaluates_as_the_run_does(tmp_path, sample, monkeypatch):
    """In its precision: errors are those that its test accuracy counts."""
    used = []
    monkeypatch.setattr(watch, "prepare", lambda trained: used.append(trained.precision) or prepare(trained))
    for precision in ("float32", "bfloat16"):
        execution = resolve("float32", 1)._replace(precision=precision)
        program = types.SimpleNamespace(execution=execution)
        config = cifar_flax.PRESETS["compact"]
        state = types.SimpleNamespace(ema_params=cifar_flax.load("compact").params)
        begun = Beginning(config, program, Progress(state, None, 0, []), None, {})
        watch.watching(tmp_path, sample)(begun)
    assert used == ["float32", "bfloat16"]


def test_what_goes_on_is_watched_as_well(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted(15)

    monkeypatch.setattr(loop, "fit", interrupted)
    assert commands.main([*TRAIN, "--watch", "--out", str(tmp_path / "run")]) == 143
    said = capsys.readouterr()
    assert " --resume --watch --out " in said.err and f"Watch: open {tmp_path / 'run' / watch.NAME};" in said.out


def test_several_processes_have_no_such_page(capsys):
    several = ["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "0"]
    assert commands.main([*TRAIN, "--watch", *several]) == 2
    assert "--watch is of one process" in capsys.readouterr().err
