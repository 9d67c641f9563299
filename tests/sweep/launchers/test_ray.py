"""A sweep on Ray: a cluster of several nodes on this machine, whose stations measure nothing but in the first test."""

import os
import threading
import time

import pytest

from capsbench.errors import ConfigurationError
from capsbench.records import Cell
from capsbench.report import Report
from capsbench.sweep.launchers.belongings import packed
from helpers.engines import FAKE_STATION, drive, figures, here_and_there, plan, with_tests
from helpers.made import make_configuration

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SMALL = {"object_store_memory": 80 * 2**20}
"""Memory of a node for objects; by default it takes a third of the machine's."""

SOON = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
"""Settings with which a cluster knows after a second that a node was killed; by default after 15. A node that lives has as long
to answer as ever."""


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, and two nodes with two."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = with_tests()
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": SOON, **SMALL}
    )
    try:
        for _ in range(2):
            made.add_node(num_cpus=2, **SMALL)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class After:
    """An observer that acts once so many cells have their records."""

    def __init__(self, count, act):
        self.left, self.act = count, act

    def started(self, cell):
        pass

    def finished(self, record):
        self.left -= 1
        if self.left == 0:
            self.act()


def engine(**options):
    from capsbench.sweep.launchers.ray import RayEngine

    return RayEngine(packed([]), module=FAKE_STATION, **options)


def test_a_user_s_function_has_the_records_that_it_has_locally(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, there = here_and_there(launcher="ray")
    assert figures(here) == figures(there)
    assert [record.status for record in there.records] == ["ok", "ok"]
    assert set(there.environments) == {record.environment for record in there.records}
    assert set(there.environments) == set(here.environments)


def test_workers_are_reused_and_nodes_share_the_work(cluster, tmp_path):
    report = drive(plan(16), tmp_path / "report", engine())
    assert [record.status for record in report.records] == ["ok"] * 16
    assert 1 < len({record.notes[0] for record in report.records}) <= 4


def test_a_gpu_that_no_node_has_is_said_at_once(cluster, tmp_path):
    with pytest.raises(ConfigurationError, match=r"^`device` cuda needs a GPU, and no node of the Ray cluster has one\n"):
        drive(plan(1, device="cuda:0", threads=None), tmp_path / "report", engine())


def test_a_station_that_ends_is_a_lost_worker(cluster, tmp_path):
    (record,) = drive(plan(1, model="tests:ends"), tmp_path / "report", engine()).records
    assert record.status == "error"
    assert record.message.startswith(
        "3 workers were lost while they measured it, the last one because StationEnded: ended with status 7"
    )


def test_times_may_have_a_node_for_themselves(cluster, tmp_path):
    report = drive(plan(4, capacity=2**34, passes=["time"]), tmp_path / "report", engine(exclusive_node=True))
    assert len(report.records) == 4


def test_a_node_that_dies_costs_only_what_was_in_flight(cluster, tmp_path):
    extra = cluster.add_node(num_cpus=2, **SMALL)
    used, begun = engine(), threading.Event()

    def kill():
        cluster.remove_node(extra, allow_graceful=False)
        begun.set()

    report = drive(plan(40), tmp_path / "report", used, observers=[After(4, kill)])
    assert begun.is_set()
    assert [record.status for record in report.records] == ["ok"] * 40
    assert len(report.path.read_text().splitlines()) == 40


WITHOUT_THE_PACKAGE = """
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "capsbench":
            raise ModuleNotFoundError("No module named 'capsbench'", name="capsbench")


sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def odd_node(cluster):
    """A function that adds a node with other variables to the cluster, for this test alone."""
    nodes = []
    yield lambda **variables: nodes.append(cluster.add_node(num_cpus=2, env_vars=variables, **SMALL))
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)


def test_cells_that_are_compared_are_measured_on_nodes_with_the_same_torch(odd_node, tmp_path):
    odd_node(FAKE_TORCH="1.0")
    texts = []
    report = drive(plan(12), tmp_path / "report", engine(), notify=texts.append)
    assert [record.status for record in report.records] == ["ok"] * 12
    assert len({record.environment for record in report.records}) == 1
    assert texts == []


def test_a_node_without_the_package_ends_the_sweep_in_two_lines(odd_node, tmp_path):
    # Ray's workers look for modules where the driver found them, too.
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_THE_PACKAGE)
    odd_node(PYTHONPATH=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"cannot measure: capsbench is not installed\ninstall the driver's version"):
        drive(plan(4), tmp_path / "report", engine())


def test_nodes_may_all_die_if_others_come(cluster, tmp_path):
    def kill():
        for node in list(cluster.worker_nodes):
            cluster.remove_node(node, allow_graceful=False)

    texts = []

    def notify(text):
        texts.append(text)
        if len(texts) == 1:  # their loss is known
            for _ in range(2):
                cluster.add_node(num_cpus=2, wait=False, **SMALL)

    report = drive(plan(24), tmp_path / "report", engine(), observers=[After(4, kill)], notify=notify)
    assert [record.status for record in report.records] == ["ok"] * 24
    assert "measured again, since a worker was lost" in texts[0]


def test_ctrl_c_ends_what_is_being_measured(cluster, tmp_path):
    planned = plan(2)
    planned = planned.model_copy(update={"cells": [*planned.cells, Cell(configuration=make_configuration("tests:sleeps", 1))]})

    def interrupt():
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        drive(planned, tmp_path / "report", engine(), observers=[After(2, interrupt)])
    assert time.monotonic() - began < 500
    assert len(Report(tmp_path / "report").records) == 2
    # The worker that slept is gone, so that all cores of the cluster can be had again.
    assert len(drive(plan(8), tmp_path / "next", engine()).records) == 8
