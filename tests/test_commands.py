"""`cifar-flax` and its help."""

import dataclasses
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

import cifar_flax
from cifar_flax import cli, commands
from cifar_flax.commands import common, figure
from cifar_flax.config import NOTED, Config
from cifar_flax.explaining import cam, drawing, figures, predictions

COMMANDS = (
    "train",
    "explain",
    "compare",
    "evaluate",
    "figure",
    "pictures",
    "sweep",
    "data",
    "export",
    "publish",
    "import",
)


def helped(capsys, *words):
    with pytest.raises(SystemExit) as raised:
        commands.main(list(words))
    assert raised.value.code == 0
    return capsys.readouterr().out


def test_version_and_usage(capsys):
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"cifar-flax {cifar_flax.__version__} (jax ")
    for words in ([], ["--help"]):
        assert commands.main(words) == 0
        usage = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +\w", usage, re.MULTILINE) for name in COMMANDS)


def test_a_word_that_is_no_command_is_one_line(capsys):
    assert commands.main(["trian"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: trian is no command: did you mean train? expected one of train, ")
        and error.count("\n") == 1
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_number_in_the_help_is_the_default(name, monkeypatch):
    """In parentheses at the end, as "random seed (0)"."""
    found = []

    def parse_args(self, *_):
        found.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(cli.Parser, "parse_args", parse_args)
    with pytest.raises(SystemExit):
        commands.main([name])
    for action in found[0]._actions:  # argparse has no public list of them
        said = re.search(r"\(([\d.]+)(, [^()]*)?\)$", action.help or "")
        if isinstance(action.default, float | int) and not isinstance(action.default, bool):
            assert float(said[1]) == action.default if said else not action.default, action.option_strings


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = helped(capsys, name, "--help")
    assert text.startswith(f"usage: cifar-flax {name}") and len(text.splitlines()) <= 40


def test_all_of_the_help_has_every_field(capsys):
    text = helped(capsys, "train", "--help-all")
    assert {field.name for field in dataclasses.fields(Config)} - {*NOTED} <= {
        flag.replace("-", "_") for flag in re.findall(r"^  --([\w-]+)", text, re.MULTILINE)
    }


def test_an_error_holds_no_control_character(capsys, tmp_path):
    """Of a file's name, say: it would colour the terminal, or be no character at all."""
    name = "\x1b[31mred\udcff"
    assert commands.main(["explain", "--ckpt", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert r"\x1b[31mred\udcff is no checkpoint" in said and said.count("\n") == 1 and "\x1b" not in said


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_answered_without_jax(name):
    answer = f"import sys; from cifar_flax import commands\ntry: commands.main(['{name}', '--help'])\n"
    code = answer + "except SystemExit: pass\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_choices_in_the_help_are_those_there_are():
    assert tuple(cam.METHODS) == common.METHODS and common.SORTS == predictions.SORTS
    assert (figure.MAPS, figure.CMAPS) == (figures.MAPS, drawing.CMAPS)


def test_waiting_shows_the_time_on_a_terminal_and_nothing_elsewhere(monkeypatch, capsys):
    def wait():
        with cli.waiting("preparing"):
            time.sleep(0.7)
        return capsys.readouterr().err

    assert wait() == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert re.search(r"preparing: 00:0\d", wait())


def test_a_device_out_of_memory_is_one_line(capsys):
    """2**49 bytes are more than any; other errors of the runtime are shown whole."""
    assert cli.run(lambda: jax.block_until_ready(jnp.zeros(2**49, jnp.int8))) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: a device is out of memory, or of another resource (RESOURCE_EXHAUSTED: ")
    assert said.count("\n") == 1

    def fail():
        raise RuntimeError("INTERNAL: a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        cli.run(fail)
