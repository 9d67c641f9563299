"""A station, and the attendant that keeps it: tasks of a driver in a process of a worker."""

import json
import os
import sys
from types import SimpleNamespace

import psutil
import pytest

from capsbench.cases.fingerprint import package_digest
from capsbench.measure.together import ProcessEnded
from capsbench.records import Cell, Plan
from capsbench.sweep import group_rounds
from capsbench.sweep.launchers import attendant, station
from capsbench.sweep.launchers.attendant import StationEnded, attend, identity_of
from capsbench.sweep.launchers.belongings import packed
from capsbench.sweep.launchers.protocol import Findings, Task
from helpers.engines import FAKE_STATION, with_tests
from helpers.made import make_configuration, make_record


def task(*cells, **fields):
    usual = {"number": 1, "plan": Plan(command="", cells=list(cells) or [cell()], passes=["memory"]), "package": package_digest()}
    return Task(**(usual | fields))


def cell(blocks=1, model="rescapsnet", **fields):
    return Cell(configuration=make_configuration(model, blocks, **fields))


def test_each_cell_of_a_task_is_measured_with_its_passes_and_limits(monkeypatch):
    asked = []

    def measure(one, plan, **options):
        asked.append((one, plan.passes, options["environment"]))
        return make_record(one.configuration.model, one.configuration.blocks)

    monkeypatch.setattr(station, "measure_cell", measure)
    found = Findings.model_validate_json(station.findings_of(task(cell(1), cell(2)).model_dump_json()))
    assert asked == [(cell(1), ["memory"], found.environment), (cell(2), ["memory"], found.environment)]
    assert [record.status for record in found.records] == ["ok", "ok"]
    assert found.description["packages"]["torch"]


def test_bytes_are_counted_by_forks_whose_process_ends_before_times_are_taken(monkeypatch):
    asked, closed = [], []

    def measure(one, plan, **options):
        asked.append(options["forks"])
        return make_record(one.configuration.model, one.configuration.blocks)

    forks = SimpleNamespace(close=lambda: closed.append(len(asked)))
    monkeypatch.setattr(station, "measure_cell", measure)
    monkeypatch.setattr(station, "_FORKS", forks)
    station.measured(task())
    assert (asked, closed) == ([forks], [])
    station.measured(task(plan=Plan(command="", cells=[cell()], passes=["time"])))
    assert (asked, closed) == ([forks, None], [1])


@pytest.mark.parametrize("changed", [{"package": "another"}, {"schema_version": 1}])
def test_another_capsbench_is_refused_whatever_it_sends(changed):
    sent = json.loads(task().model_dump_json()) | changed | {"field_of_another_version": 3}
    found = Findings.model_validate_json(station.findings_of(json.dumps(sent)))
    assert found.records == []
    assert len(found.refusal) == 2
    assert "the driver" in found.refusal[0]
    assert found.refusal[1].startswith("install the driver's version")


def test_a_task_without_passes_asks_for_the_environment_alone():
    plan = Plan(command="", cells=[cell()], passes=[])
    found = station.measured(task(plan=plan))
    assert found.environment
    assert found.records == []


class Process:
    """A process of cells in turn that ends at once."""

    def __init__(self, request, timeout_seconds):
        self.request = request

    def __enter__(self):
        raise ProcessEnded("error", "it ended", None)

    def __exit__(self, *_):
        pass


def test_cells_that_take_turns_are_timed_in_a_folder_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(group_rounds, "Together", Process)
    monkeypatch.setattr(group_rounds, "cores_are_shared", lambda: False)
    cells = [cell(blocks) for blocks in (1, 2)]
    known = [make_record("rescapsnet", blocks, threads=1).model_copy(update={"time": None}) for blocks in (1, 2)]
    plan = Plan(command="", cells=cells)
    found = station.measured(task(plan=plan, in_turn=True, known=known, folder=tmp_path))
    assert [(record.status, record.message, record.memory is not None) for record in found.records] == [
        ("error", "it ended", True)
    ] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_station_is_kept_for_the_next_task_and_started_anew_for_another_gpu(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", with_tests())
    monkeypatch.setattr(attendant, "identity_of", lambda gpu: f"GPU-{gpu}")
    belongings = packed([])

    def notes(gpu=None, **fields):
        found = Findings.model_validate_json(attend(task(**fields).model_dump_json(), belongings, module=FAKE_STATION, gpu=gpu))
        return found.records[0].notes[0].split(" ")

    try:
        first, second, other = notes(), notes(number=2), notes("3", number=3)
        assert first == second
        assert first[0] != other[0]
        assert (first[1], other[1]) == ("", "GPU-3")
        assert not psutil.pid_exists(int(first[0]))
        with pytest.raises(StationEnded, match="ended with status 7"):
            notes("3", plan=Plan(command="", cells=[cell(model="tests:ends")], passes=["memory"]))
        again = notes("3", number=5)
        assert again[0] not in (first[0], other[0])
    finally:
        attendant._STATION.close()
    assert not psutil.pid_exists(int(again[0]))


def test_a_station_may_take_its_time_but_must_show_that_it_lives(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", with_tests())
    monkeypatch.setattr(attendant, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(attendant, "_MOST_BEATS_MISSED", 4)
    belongings = packed([])
    try:
        assert attend("a task", belongings, module="helpers.mute_station") == "7"  # after more than four beats
        process = attendant._STATION._process
        with pytest.raises(StationEnded, match=r"^no sign of life from the station in 0\.8 s$"):
            attend("another", belongings, module="helpers.mute_station")
        assert process.poll() is not None
    finally:
        attendant._STATION.close()


def test_a_machine_on_which_no_station_starts_refuses_every_task():
    found = Findings.model_validate_json(attend("a task", packed([]), module="helpers.no_such_station"))
    assert found.refusal[0].partition(" cannot measure: ")[2].startswith("the process of its cells ended with status 1: ")
    assert "no_such_station" in found.refusal[0]
    assert attendant._STATION._process is None


def test_a_station_shows_that_it_lives_while_it_measures(monkeypatch):
    monkeypatch.setattr(station, "BEAT_SECONDS", 0.01)
    source, answers = os.pipe()
    with os.fdopen(source) as lines, os.fdopen(answers, "w") as written:
        with station._beating(written):
            assert [next(lines), next(lines)] == ["\n", "\n"]
        written.close()
        lines.read()


def test_a_gpu_is_known_by_its_identity(monkeypatch):
    def fail():
        raise OSError("no driver")

    fake = SimpleNamespace(
        nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-of-{handle}",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert identity_of("3") == "GPU-of-3"
    assert identity_of("GPU-0123") == "GPU-0123"
    assert identity_of("MIG-0123") == "MIG-0123"
    fake.nvmlInit = fail
    assert identity_of("3") == "3"
