"""Calls in processes of their own, several at a time."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from capsbench.errors import ConfigurationError
from capsbench.prediction import apart
from helpers.answering import answered
from helpers.made import make_configuration


@pytest.fixture
def two_cores(monkeypatch):
    apart.close()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(apart, "Cores", lambda: SimpleNamespace(capacity=2.0))
    yield
    apart.close()


def asked(*batches):
    return [(make_configuration(batch_size=batch), "depth") for batch in batches]


def wait_and_interrupt(arguments):
    """Wait for the first call, and raise what Ctrl-C raises while the others run."""
    with apart.answers_to(answered, arguments) as answers:
        next(iter(answers))()
        raise KeyboardInterrupt


@pytest.mark.slow  # two servers import the package
def test_many_calls_run_side_by_side_answer_in_order_and_are_not_waited_for_by_an_interrupted_caller(two_cores):
    with apart.answers_to(answered, asked(200, 1, 13, 3, 200, 4)) as answers:
        first, second, refused, *rest = answers
        with pytest.raises(ConfigurationError, match="thirteen"):
            refused()  # an error of one call is its own
        found = [answer() for answer in (first, second, *rest)]
    assert [batch for _, batch, _ in found] == [200, 1, 3, 200, 4]
    assert {what for *_, what in found} == {"depth"}
    assert len({parent for parent, *_ in found}) == 2, "two servers"
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wait_and_interrupt(asked(1, 60_000, 60_000, 60_000))
    assert time.monotonic() - began < 60, "a call takes two minutes"


def test_few_calls_of_a_built_in_network_run_here():
    with apart.answers_to(answered, asked(1, 2)) as answers:
        assert {answer()[0] for answer in answers} == {os.getppid()}
