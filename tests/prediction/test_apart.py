"""Calls in processes of their own, several at a time."""

import os
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
    # What fits has three arguments, of which the last may be any object that can be sent.
    return [(make_configuration(batch_size=batch), "depth", Path("announced")) for batch in batches]


def interrupt(arguments, *, wait_first):
    """Raise what Ctrl-C raises while calls run, perhaps after the first of them has answered."""
    with apart.answers_to(answered, arguments) as answers:
        if wait_first:
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
    for wait_first in (True, False):  # at once, servers may still be starting
        with pytest.raises(KeyboardInterrupt):
            interrupt(asked(1, 300_000, 300_000, 300_000), wait_first=wait_first)
        assert not apart._SERVERS.processes(), "a call takes ten minutes"


def test_few_calls_of_a_built_in_network_run_here():
    with apart.answers_to(answered, asked(1, 2)) as answers:
        assert {answer()[0] for answer in answers} == {os.getppid()}
