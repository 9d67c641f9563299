"""Engines that measure nothing: what tasks find, in which order they come back and which are lost is a test's choice."""

import os
from pathlib import Path

from torch import nn

import capsbench
from capsbench.errors import ConfigurationError
from capsbench.records import Cell, Plan, Record
from capsbench.report import Report
from capsbench.sweep.launchers.driver import Driver
from capsbench.sweep.launchers.protocol import Done, Findings, Lost
from capsbench.sweep.local import Sources
from helpers.made import make_configuration, make_record

FAKE_STATION = "helpers.fake_station"
"""The module of a station that measures nothing."""


def with_tests() -> str:
    """The folders of modules of this process, with that of the helpers, as PYTHONPATH has them."""
    earlier = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(Path(__file__).parents[1]), *([earlier] if earlier else [])])


HERE = {"cpu": {"model": "a CPU"}, "packages": {"torch": "2.9"}}


class FakeEngine:
    """An engine whose tasks end one by one, in the order of `order`, with what `outcomes` has for their cells.

    Args:
        outcomes: by model and blocks, a status, a list of them for one try after the other (`lost` among them), or an exception,
            which the wait for it raises.
        order: function that chooses the next of the tasks in flight; by default the first.
        at_once: number of tasks that come back together.
        nodes: environments of the machines, which take turns.
    """

    def __init__(self, outcomes=None, *, order=lambda tasks: tasks[0], at_once=1, nodes=("abcd",), kinds=None, behind=(), gpus=0):
        self.outcomes, self.order, self.at_once, self.nodes = outcomes or {}, order, at_once, nodes
        self.machines, self.behind = kinds or {}, list(behind)
        self.queue, self.submitted, self.cancelled, self.tries = [], [], [], {}
        self.taken, self.closed, self.gpus = 0, False, gpus

    def kinds(self, sample):
        return self.machines

    def room(self, sample):
        return float(self.gpus) if sample.needs_gpu() else 4.0

    def left_behind(self):
        return self.behind

    def submit(self, tasks):
        if any(task.needs_gpu() for task in tasks):
            raise ConfigurationError("`device` cuda needs a GPU", "choose `device` cpu")
        self.queue += tasks
        self.submitted += tasks

    def wait(self, seconds):
        found = []
        while self.queue and len(found) < self.at_once:
            task = self.order(self.queue)
            self.queue.remove(task)
            found.append(self._outcome(task))
        return found

    def cancel(self, numbers):
        self.cancelled += numbers
        self.queue = [task for task in self.queue if task.number not in numbers]

    def close(self):
        self.closed = True

    def _outcome(self, task):
        node = task.kind or self.nodes[self.taken % len(self.nodes)]
        self.taken += 1
        records = []
        for cell in task.cells():
            outcome = self._chosen(cell)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome == "refused":
                return Done(number=task.number, findings=Findings(refusal=["node7 cannot measure", "install it"]))
            if outcome in ("lost", "node lost", "unreached", "full"):
                status, counts = "oom" if outcome == "full" else "error", {"node lost": 0.25, "unreached": 0}.get(outcome, 1)
                return Lost(number=task.number, why="node7 died", counts=counts, status=status)
            records.append(self.record(task, cell, outcome, node))
        return Done(number=task.number, findings=Findings(records=records, environment=node, description=HERE, node=node))

    def _chosen(self, cell):
        it = cell.configuration
        outcome = self.outcomes.get((it.model, it.blocks), "ok")
        if isinstance(outcome, list):
            tries = self.tries[cell.key()] = self.tries.get(cell.key(), 0) + 1
            return outcome[min(tries, len(outcome)) - 1]
        return outcome

    def record(self, task, cell, status, node) -> Record:
        made = make_record(cell.configuration.model, cell.configuration.blocks, status=status, replicate=cell.replicate)
        parts = {"time": made.time if "time" in task.plan.passes else None}
        return made.model_copy(update={"cell": cell, "environment": node} | parts)


def plan(count, model="rescapsnet", passes=("memory",), **fields):
    """A plan of cells with 1 to `count` blocks."""
    cells = [Cell(configuration=make_configuration(model, blocks, **fields)) for blocks in range(1, count + 1)]
    return Plan(command="", cells=cells, passes=list(passes))


def drive(planned, folder, used, **options):
    """Drive a sweep to its end on an engine that is closed then, and return its report."""
    report = Report(folder)
    folder.mkdir(exist_ok=True)
    try:
        Driver(planned, report, used, Sources(planned.model_copy(update={"cells": []})), **options).run()
    finally:
        used.close()
    return report


def here_and_there(**launching):
    """Reports of a user's function that was measured by this process, and by a launcher, into the folders here and there."""

    def mine(in_shape, num_classes, blocks):
        body = [nn.Linear(16, 16) for _ in range(blocks)]
        return nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, 16), *body, nn.Linear(16, num_classes))

    options = {"depths": [1, 2], "batch_size": 4, "device": "cpu", "threads": 1, "only": "memory"}
    return capsbench.run(mine, out="here", **options), capsbench.run(mine, out="there", **options, **launching)


def figures(report):
    """The memory figures of each cell, but for the resident set, which is never the same twice."""
    return {record.cell.key(): record.memory.model_copy(update={"process_bytes": None}) for record in report.records}
