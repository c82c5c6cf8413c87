"""Sweeps: what is done is kept, what is not is gone on with, and the table is of all of it."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from cifar_flax import commands
from cifar_flax.config import PRESETS
from cifar_flax.training import loop, rundir, sweep

ROOT = Path(__file__).parents[2]
TINY = [
    *("--preset", "smoke", "--widths", "8", "--strides", "2", "--epochs", "1", "--precision", "float32"),
    *("--rotate-degrees", "0", "--crop-padding", "0", "--cutout-size", "0"),
]


def test_seeds_are_read():
    assert sweep.read_seeds("0-2,7") == [0, 1, 2, 7]
    for text in ("", "1-", "2-1", "1,1", "0-2,1", "-1", "a", "0-99999"):
        with pytest.raises(ValueError):
            sweep.read_seeds(text)


def test_an_interval_is_students():
    """Of 1, 2, 3: the deviation is 1, and a two-sided t test against either end has p = 0.05."""
    summary = sweep.summarize({0: 1.0, 1: 2.0, 2: 3.0})
    assert (summary.mean, summary.deviation) == (2.0, 1.0)
    assert summary.half_width is not None
    test = scipy.stats.ttest_1samp([1.0, 2.0, 3.0], 2.0 - summary.half_width)
    assert math.isclose(test.pvalue, 0.05)
    assert sweep.summarize({5: 1.0}) == sweep.Summary({5: 1.0}, 1.0, None, None)


def test_trials_have_folders_of_their_own():
    names = ["--a 1", "--a -1", "--a 0.1", "--init x/y", "--no-b"]
    assert len({sweep.folder_name(name) for name in names}) == len(names)
    assert not any("/" in sweep.folder_name(name) or sweep.folder_name(name).startswith(".") for name in names)


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")


@pytest.mark.slow
def test_a_run_is_done_when_its_last_checkpoint_is_intact(tmp_path, tiny, few):
    run = sweep.Run("t", dataclasses.replace(tiny, epochs=2), tmp_path / "t-0", [])
    assert not run.is_done()
    loop.fit(run.config, few, run.folder)
    assert run.is_done() and not run._replace(config=dataclasses.replace(tiny, epochs=3)).is_done()
    last = run.folder / "checkpoints" / "2"
    (file,) = last.glob("progress.json")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b" ")
    assert not run.is_done() and len(run.rows()) == 2
    file.write_bytes(content)
    assert run.is_done()
    shutil.rmtree(last)
    assert not run.is_done()


@pytest.mark.slow
def test_the_table_is_of_the_last_of_several_epochs(tmp_path, tiny, few):
    """Mean, deviation and interval by NumPy and SciPy, of what the runs themselves wrote."""
    config = dataclasses.replace(tiny, epochs=2)
    trials = {"--a": config, "--b": dataclasses.replace(config, learning_rate=0.02)}
    runs = [
        sweep.Run(trial, dataclasses.replace(given, seed=seed), tmp_path / f"{trial[2:]}-{seed}", [])
        for trial, given in trials.items()
        for seed in (3, 4)
    ]
    ends = {}
    for run in runs:
        loop.fit(run.config, few, run.folder)
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        assert rows[0]["train_loss"] != rows[1]["train_loss"]
        ends.setdefault(run.trial, {})[run.config.seed] = rows[1]["train_loss"]
    found = sweep.summaries(runs, "train_loss")
    means = {trial: np.mean(list(by_seed.values())) for trial, by_seed in ends.items()}
    assert list(found) == sorted(means, key=lambda trial: -means[trial])
    lines = sweep.table(found, "train_loss").splitlines()
    content = json.loads(sweep.to_json(runs, found, "train_loss", ["a command"]))
    assert (content["figure"], content["command"]) == ("train_loss", ["a command"])
    for trial, line in zip(found, lines[1:], strict=True):
        values = np.array(list(ends[trial].values()))
        deviation = np.std(values, ddof=1)
        half = scipy.stats.t.ppf(0.975, 1) * deviation / np.sqrt(2)
        summary = found[trial]
        assert summary.values == ends[trial] and summary.mean == pytest.approx(values.mean())
        assert (summary.deviation, summary.half_width) == pytest.approx((deviation, half))
        shown = [trial, f"{values.mean():.4f}", f"{deviation:.4f}"]
        assert line.split() == [*shown, f"{values.mean() - half:.4f}", "-", f"{values.mean() + half:.4f}", "2"]
        assert content["trials"][trial]["values"] == {str(seed): value for seed, value in ends[trial].items()}
    assert [(run["trial"], run["folder"], run["config"]["seed"]) for run in content["runs"]] == [
        ("--a", "a-3", 3),
        ("--a", "a-4", 4),
        ("--b", "b-3", 3),
        ("--b", "b-4", 4),
    ]
    assert all(len(run["rows"]) == 2 for run in content["runs"])


@pytest.mark.slow
def test_a_second_call_skips_what_is_done_and_does_the_rest(tmp_path, capsys, alone):
    words = ["sweep", "--out", str(tmp_path / "s"), *TINY]
    assert commands.main([*words, "--seeds", "0"]) == 0
    rows = (tmp_path / "s" / "smoke-0" / rundir.METRICS).read_bytes()
    (tmp_path / "s" / "smoke-1").mkdir()  # begun, and killed before its first checkpoint
    config = (tmp_path / "s" / "smoke-0" / rundir.CONFIG).read_text()
    (tmp_path / "s" / "smoke-1" / rundir.CONFIG).write_text(config.replace('"seed": 0', '"seed": 1'))
    (tmp_path / "s" / "smoke-1" / rundir.METRICS).write_bytes(rows)  # the disk was full when it was to be saved
    capsys.readouterr()
    assert commands.main([*words, "--seeds", "0-1", "--at-once", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 1 of them done before" in said and "begun: smoke-0" not in said and "begun: smoke-1" in said
    assert (tmp_path / "s" / "smoke-0" / rundir.METRICS).read_bytes() == rows
    found = json.loads((tmp_path / "s" / "sweep.json").read_text())
    values = [run["rows"][-1]["test_accuracy"] for run in found["runs"]]
    assert all(list(row) == sweep.figures(PRESETS["smoke"]) for run in found["runs"] for row in run["rows"])
    assert found["figure"] == "test_accuracy" and list(found["trials"]["smoke"]["values"].values()) == values
    assert math.isclose(found["trials"]["smoke"]["mean"], sum(values) / 2)
    before = (tmp_path / "s" / "sweep.json").read_bytes()
    assert commands.main([*words, "--seeds", "0"]) == 2  # the other seed would be lost from it
    assert "has the run smoke-1, which would be lost from it" in capsys.readouterr().err
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before


@pytest.mark.slow
def test_trials_may_leave_the_test_set_alone(tmp_path, alone):
    words = ["sweep", "--out", str(tmp_path / "s"), *TINY, "--val-size", "200", "--trial", "--no-test"]
    assert commands.main(words) == 0
    found = json.loads((tmp_path / "s" / "sweep.json").read_text())
    config = dataclasses.replace(PRESETS["smoke"], val_size=200, test=False)
    assert list(found["runs"][0]["rows"][0]) == sweep.figures(config)
    assert found["figure"] == "val_accuracy" and found["runs"][0]["config"]["test"] is False
    output = (tmp_path / "s" / "no-test-0.output").read_text().replace(str(tmp_path), "").lower()
    assert "held-out images" in output and "test" not in output.replace("no-test", "")


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_and_is_reported(tmp_path, capsys, alone):
    trials = ["--trial=--init=nowhere", "--trial=--label-smoothing=0.1"]
    assert commands.main(["sweep", "--out", str(tmp_path / "s"), *TINY, *trials]) == 1
    out, errors = capsys.readouterr()
    assert errors.startswith("error: 1 of 2 runs are not done: init_nowhere-0; ") and errors.count("\n") == 1
    assert "label-smoothing=0.1 " in out.splitlines()[-1]
    assert "--init nowhere is no checkpoint" in (tmp_path / "s" / "init_nowhere-0.output").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_ends_the_runs_with_a_checkpoint(tmp_path, alone):
    words = [sys.executable, "-m", "cifar_flax", "sweep", "--out", str(tmp_path / "s"), *TINY, "--epochs", "500"]
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 120
        while not rundir.read_rows(tmp_path / "s" / "smoke-0") and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert "interrupted: go on with" in (tmp_path / "s" / "smoke-0.output").read_text()
