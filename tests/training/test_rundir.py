import hypothesis
import pytest
from hypothesis import strategies as st

from cifar_flax import config
from cifar_flax.errors import UserError
from cifar_flax.training import rundir


def test_claim_makes_a_directory_and_refuses_one_that_holds_a_run(tmp_path):
    folder = tmp_path / "a" / "b"
    rundir.claim(folder, resume=False)
    rundir.claim(folder, resume=False)  # nothing but an empty log is there
    rundir.write_config(folder, config.PRESETS["smoke"])
    with pytest.raises(UserError, match="already holds a run"):
        rundir.claim(folder, resume=False)
    rundir.claim(folder, resume=True)


def test_claim_refuses_a_path_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be written"):
            rundir.claim(folder, resume=False)
    assert (tmp_path / "file").read_text() == "precious"


def test_config_is_read_back(tmp_path):
    rundir.write_config(tmp_path, config.PRESETS["compact"])
    assert rundir.read_config(tmp_path) == config.PRESETS["compact"]


def test_missing_or_broken_config_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        rundir.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not a config"):
        rundir.read_config(tmp_path)


def test_rows_are_appended_read_and_written_anew(tmp_path):
    assert rundir.read_rows(tmp_path) == []
    rows = [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2, 3)]
    for row in rows:
        rundir.append_row(tmp_path, row)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "train_lo')  # a process died here
    assert rundir.read_rows(tmp_path) == rows
    rundir.write_rows(tmp_path, rows[:2])
    assert rundir.read_rows(tmp_path) == rows[:2]


@hypothesis.given(st.binary(max_size=100))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_no_metrics_or_config_raises_anything_but_a_user_error(tmp_path, content):
    for name, read in (("metrics.jsonl", rundir.read_rows), ("config.json", rundir.read_config)):
        (tmp_path / name).write_bytes(content + b"\n")
        try:
            read(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
