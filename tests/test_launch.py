"""The files of launch/ are read by what reads them, as far as that is at hand; their flags are flags of `train`."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cifar_flax.commands import train

LAUNCH = Path(__file__).parents[1] / "launch"
FILES = sorted(LAUNCH.iterdir())
SHELL = [path for path in FILES if path.suffix != ".yaml"]


def commands():
    """The shell text of each file, that within YAML too."""
    for path in SHELL:
        yield path.name, path.read_text()
    *_, jobset = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    yield "jobset.yaml", pod["containers"][0]["args"][0]
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    yield "skypilot.yaml setup", task["setup"]
    yield "skypilot.yaml run", task["run"]


@pytest.mark.parametrize(("name", "text"), [pytest.param(*found, id=found[0]) for found in commands()])
def test_shell_is_read_by_bash_and_gives_flags_that_there_are(name, text):
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    joined = text.replace("\\\n", " ")
    for line in re.findall(r"(?:train\.py|cifar-flax train) (.*)", joined):
        for flag in re.findall(r"(?<!\S)(--[a-z-]+)", line):
            assert flag in train.build_parser("train")._option_string_actions, flag


def test_a_jobset_has_as_many_pods_as_processes():
    documents = list(yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["ServiceAccount", "Role", "RoleBinding", "JobSet"]
    job = documents[-1]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    assert job["template"]["spec"]["serviceAccountName"] == documents[0]["metadata"]["name"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_says_whether_it_has_been_run(path):
    top = "".join(line for line in path.read_text().splitlines(keepends=True)[:7] if line.startswith("#"))
    assert re.search(r"Run with|Never run", top)
