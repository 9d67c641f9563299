"""Environment variables of the processes that measure."""

import pytest

from capsbench.measure import cell
from capsbench.measure.variables import QUIET_MALLOC, SLEEPING, SPINNING_BRIEFLY, variables_of, wait_is_chosen
from capsbench.measure.worker import Request
from capsbench.records import Configuration

GIVEN = {"PATH": "/usr/bin"}


def test_threads_sleep_where_bytes_are_counted_and_spin_briefly_where_times_are_taken():
    assert variables_of("memory", GIVEN) == GIVEN | SLEEPING
    assert variables_of("time", GIVEN) == GIVEN | SPINNING_BRIEFLY | QUIET_MALLOC
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


@pytest.mark.parametrize(("what", "wait"), [("memory", SLEEPING), ("time", SPINNING_BRIEFLY)])
def test_a_measuring_process_is_started_with_them(what, wait, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)

    def started(*_, env, **__):
        raise Started(env)

    monkeypatch.setattr(cell.subprocess, "Popen", started)
    configuration = Configuration(model="rescapsnet", blocks=1, dataset="sample", batch_size=1, device="cpu")
    with pytest.raises(Started) as caught:
        cell.run_pass(Request(configuration=configuration, what=what, samples=1), 1)
    assert wait.items() <= caught.value.args[0].items()
    assert (QUIET_MALLOC.items() <= caught.value.args[0].items()) == (what == "time")
