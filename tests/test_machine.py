import os

import jax
import pytest

from cifar_flax import machine


@pytest.fixture
def cache_dir(monkeypatch, tmp_path):
    """Where JAX would keep compiled programs, with a home of its own and no choice in the environment."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    yield lambda: getattr(jax.config, names[0])
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_home_directory_by_processor(cache_dir, tmp_path):
    machine.keep_compiled_programs()
    (folder,) = (tmp_path / "home/.cache/cifar_flax/compiled").iterdir()
    assert cache_dir() == str(folder)


def test_a_home_that_cannot_be_written_keeps_nothing(cache_dir, tmp_path):
    (tmp_path / "home").write_text("a file")
    machine.keep_compiled_programs()
    assert cache_dir() is None


def test_a_choice_in_the_environment_stands(cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    machine.keep_compiled_programs()
    assert cache_dir() is None and not (tmp_path / "home").exists()


def test_a_limit_on_waiting_in_the_environment_stands(monkeypatch):
    name = "--xla_cpu_collective_call_terminate_timeout_seconds"
    monkeypatch.setenv("XLA_FLAGS", "--other=1")
    machine.set_up_cpu()
    assert os.environ["XLA_FLAGS"] == f"--other=1 {name}=86400"
    monkeypatch.setenv("XLA_FLAGS", f"{name}=7")
    machine.set_up_cpu()
    assert os.environ["XLA_FLAGS"] == f"{name}=7"
