"""Environment variables of the processes that measure."""

import pytest

from capsbench.measure import cell
from capsbench.measure.messages import Request
from capsbench.measure.variables import QUIET_MALLOC, SLEEPING, variables_of, wait_is_chosen
from capsbench.records import Configuration

GIVEN = {"PATH": "/usr/bin"}


def test_threads_sleep_where_bytes_are_counted_and_where_cores_are_shared():
    assert variables_of("memory", GIVEN) == GIVEN | SLEEPING
    assert variables_of("time", GIVEN) == GIVEN | QUIET_MALLOC
    assert variables_of("time", GIVEN, shared=True) == GIVEN | SLEEPING | QUIET_MALLOC


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
@pytest.mark.parametrize("what", ["memory", "time"])
def test_a_wait_that_a_user_has_chosen_is_kept(what, name):
    given = GIVEN | {name: "7"}
    assert wait_is_chosen(given)
    for shared in (False, True):
        assert variables_of(what, given, shared=shared) == given | (QUIET_MALLOC if what == "time" else {})


class Started(Exception):
    """A process was to be started."""


@pytest.mark.parametrize("what", ["memory", "time"])
def test_a_measuring_process_is_started_with_them(what, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)

    def started(*_, env, **__):
        raise Started(env)

    monkeypatch.setattr(cell.subprocess, "Popen", started)
    configuration = Configuration(model="rescapsnet", blocks=1, dataset="sample", batch_size=1, device="cpu")
    with pytest.raises(Started) as caught:
        cell.run_pass(Request(configuration=configuration, what=what, samples=1), 1)
    (variables,) = caught.value.args
    assert (SLEEPING.items() <= variables.items()) == (what == "memory")
    assert (QUIET_MALLOC.items() <= variables.items()) == (what == "time")
