"""What several processes agree on, with a service that is a dictionary and processes that are threads."""

import argparse
import concurrent.futures
import threading

import pytest

from cifar_flax import distributed
from cifar_flax.distributed import ALONE, Job, Settings
from cifar_flax.errors import UserError


class Service:
    """JAX's key-value store, as far as a job uses it."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            assert key not in self._values
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, milliseconds / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED: too late")
            return self._values[key]


def in_each(function, processes=3, limit=10):
    """What `function` returns for the job of each process, or the error that it raises there."""
    service = Service()

    def run(process):
        try:
            return function(Job(service, process, processes, limit))
        except (UserError, RuntimeError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        return list(pool.map(run, range(processes)))


def test_what_is_shared_comes_in_the_order_of_the_processes():
    assert in_each(lambda job: [job.share({"I am": job.process}), job.share(None)]) == 3 * [
        [[{"I am": 0}, {"I am": 1}, {"I am": 2}], [None, None, None]]
    ]


def test_only_the_first_calls_what_is_of_the_first():
    calls = []

    def call(job):
        return job.of_first(lambda: calls.append(job.process) or ["told", 1.5])

    assert in_each(call) == 3 * [["told", 1.5]] and calls == [0]


@pytest.mark.parametrize("failing", [[0], [2], [1, 2]])
def test_what_fails_in_one_fails_in_all(failing):
    def fail(job):
        def function():
            if job.process in failing:
                raise UserError(f"no disk in {job.process}")
            return job.process

        return job.together(function)

    errors = in_each(fail)
    assert all(isinstance(error, UserError) for error in errors)
    assert [str(e) for e in errors] == [f"no disk in {i if i in failing else failing[0]}" for i in range(3)]
    assert in_each(lambda job: job.together(lambda: job.process)) == [0, 1, 2]


def test_another_value_is_named_in_all():
    def compare(job):
        job.require_equal({"a": 1, "b": [2, 3]})
        job.require_equal({"a": 1, "b": 5} if job.process == 2 else {"a": 1})

    errors = in_each(compare)
    line = "process 2 has another b than process 0 (5 against none): start all 3 processes alike"
    assert [str(error) for error in errors] == 3 * [line]


def test_a_wait_for_one_that_does_not_come_has_an_end():
    errors = in_each(lambda job: job.share(0) if job.process else None, limit=0.1)
    assert errors[0] is None and all("too late" in str(error) for error in errors[1:])


def test_alone_nothing_is_asked_of_anyone():
    assert ALONE.is_first and ALONE.share(1) == [1] and ALONE.of_first(lambda: 2) == 2
    assert ALONE.agreed(15) == 15 and ALONE.agreed(None) is None
    tree = {"a": object()}
    assert ALONE.broadcast(tree) is tree
    with distributed.joined(None) as job:
        assert job is ALONE
    with pytest.raises(UserError, match="no disk"):
        ALONE.together(lambda: (_ for _ in ()).throw(UserError("no disk")))


def test_the_watchdog_ends_what_does_not_get_on_and_nothing_else(monkeypatch):
    ends = []
    monkeypatch.setattr(distributed, "leave", lambda message, code: ends.append((message, code)))
    job = Job(None, 0, 2, limit=0.4)
    with distributed.watchdog(job):
        for _ in range(10):
            threading.Event().wait(0.08)
            job.beat()
        assert not ends
        threading.Event().wait(1)
    assert "--step-timeout" in ends[0][0] and ends[0][1] == 75


def test_flags_say_whether_this_is_one_of_several():
    def parse(words):
        parser = argparse.ArgumentParser()
        distributed.add_flags(parser)
        flags = vars(parser.parse_args(words.split()))
        settings = distributed.from_flags(flags)
        assert not flags
        return settings

    assert parse("") is None
    with pytest.raises(UserError, match="--step-timeout is for several processes: leave it out, or --distributed"):
        parse("--step-timeout 5")
    assert parse("--distributed") == Settings()
    by_hand = parse("--coordinator [::1]:80 --num-processes 2 --process-id 1 --heartbeat-timeout 7")
    assert by_hand == Settings("[::1]:80", 2, 1, heartbeat_timeout=7)
    assert parse("--process-id 0") == Settings(process_id=0)


def test_the_version_of_the_code_names_what_computes():
    version = distributed.code_version()
    assert version == distributed.code_version()
    assert version.keys() == {"code of cifar_flax", "jax", "jaxlib", "flax", "optax"} and all(version.values())
