"""The engine of `launcher` ray: tasks wait in Ray's queue, and Ray's workers measure them.

Ray places tasks: each has one GPU, or as many cores as its cells have threads. Ray's workers are reused, and keep a station
each (`attendant`). A task that Ray has lost is reported as such, and never tried again by Ray itself.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from capsbench.errors import ConfigurationError, error_line
from capsbench.sweep.launchers.attendant import STATION
from capsbench.sweep.launchers.protocol import Done, Findings, Lost, Task

_SURVEY_SECONDS = 120.0
"""Longest time that tasks wait for the first nodes to describe themselves; tasks for which its kind matters wait for no other."""

_GRACE_SECONDS = 60.0
"""Seconds for which no node may be able to take the tasks that are in the queue, since a lost node may come back."""

_NODE_COUNTS = 0.25
"""Part of a try that a node costs which has died: nodes that are rented for less are taken back while they work."""

_LONGEST_REASON = 200


class RayEngine:
    """Ray, as an engine of a sweep.

    Args:
        belongings: what workers need of this machine, as `belongings.packed` made it.
        address: address of the cluster; None for the one that this machine belongs to, or else a new one on this machine.
        exclusive_node: give a task that takes times all of its node.
        module: the module that stations run.

    Raises:
        ConfigurationError: no cluster answers there.
    """

    def __init__(
        self, belongings: str, *, address: str | None = None, exclusive_node: bool = False, module: str = STATION
    ) -> None:
        import ray

        self._ray: Any = ray
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            # A Ray that starts here would let its workers give way to all other processes, which times must not.
            os.environ.setdefault("RAY_worker_niceness", "0")
            try:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                with suppress(Exception):
                    ray.shutdown()
                where = "on this machine" if address is None else f"at `address` {address}"
                raise ConfigurationError(
                    f"Ray cannot be reached {where}: {error_line(error, _LONGEST_REASON)}",
                    "start it there with 'ray start --head', or leave `address` out to use this machine alone",
                ) from None
            self._ray._private.worker._worker_logs_enabled = False  # it would print to standard output that a node has died
        self._module, self._exclusive = module, exclusive_node
        self._belongings = ray.put(belongings)
        # Ray ends a worker after each task with a GPU by default, in case it holds memory there, which none of ours does.
        self._function = ray.remote(max_calls=0, max_retries=0)(_carried_out())
        self._refs: dict[Any, Task] = {}
        """Tasks that Ray has, by their references."""
        self._nodes: dict[Any, frozenset[str]] = {}
        """The nodes on which a task may run, by its reference; all are allowed for one that is not here."""
        self._queue: list[Task] = []
        """Tasks that wait for a node of their own, or, after all nodes were lost, for any."""
        self._had_nodes = set[bool]()
        """The kinds of tasks for which there was ever a node: without a GPU (False), and with one (True)."""
        self._kinds: dict[bool, dict[str, str]] = {}
        """Key of the environment of each node, with or without a GPU for the task; empty until the node has answered."""
        self._questions: dict[Any, tuple[bool, str]] = {}
        """Nodes that have been asked for it, by references to their answers."""
        self._stuck_since: float | None = None
        self._looked, self._found = -math.inf, dict[str, dict[str, float]]()

    def kinds(self, sample: Task) -> Mapping[str, float]:
        """Return the number of tasks that each kind of machine can take at once."""
        nodes = self._able(sample)
        found: dict[str, float] = {}
        for node, kind in self._surveyed(sample).items() if len(nodes) > 1 else ():
            if node in nodes:
                found[kind] = found.get(kind, 0.0) + _room(nodes[node], sample)
        return found

    def room(self, sample: Task) -> float:
        """Return the number of tasks that the cluster can take at once."""
        return sum(_room(has, sample) for has in self._able(sample).values())

    def left_behind(self) -> list[tuple[Task, Findings]]:
        """Return nothing, since Ray ends all tasks of a driver that has died."""
        return []

    def submit(self, tasks: Sequence[Task]) -> None:
        """Add tasks to the end of the queue.

        Raises:
            ConfigurationError: no node can take one of them.
        """
        for task in tasks:
            if self._able(task):
                self._had_nodes.add(task.needs_gpu())
            elif task.needs_gpu() not in self._had_nodes:
                raise self._unable(task)
        self._queue += tasks
        self._fill()

    def wait(self, seconds: float) -> list[Done | Lost]:
        """Return tasks that have ended, as soon as there is one, or nothing after this time."""
        refs = list(self._refs)
        if not refs:
            time.sleep(min(1.0, seconds) if self._queue else 0)
        ready = self._ray.wait(refs, num_returns=1, timeout=seconds)[0] if refs else []
        if ready:
            ready = self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        outcomes = [self._outcome(ref, self._forget(ref)) for ref in ready]
        if not outcomes:
            outcomes = self._unreachable()
        self._fill()
        return outcomes

    def cancel(self, numbers: Sequence[int]) -> None:
        """Take tasks out of the queue, and end those that are being measured."""
        self._queue = [task for task in self._queue if task.number not in numbers]
        for ref in [ref for ref, task in self._refs.items() if task.number in numbers]:
            self._forget(ref)
            self._end(ref)

    def close(self) -> None:
        """End all tasks, and leave the cluster."""
        self.cancel([task.number for task in (*self._queue, *self._refs.values())])
        for ref in self._questions:
            self._end(ref)
        if self._is_ours:
            self._ray.shutdown()

    # Tasks

    def _forget(self, ref: Any) -> Task:
        self._nodes.pop(ref, None)
        return self._refs.pop(ref)

    def _end(self, ref: Any) -> None:
        with suppress(Exception):  # it may have ended, or its node may be gone
            self._ray.cancel(ref, force=True)

    def _outcome(self, ref: Any, task: Task) -> Done | Lost:
        try:
            return Done(number=task.number, findings=Findings.model_validate_json(self._ray.get(ref)))
        except self._ray.exceptions.TaskUnschedulableError as error:
            return Lost(number=task.number, why=error_line(error, _LONGEST_REASON), counts=0)
        except self._ray.exceptions.OutOfMemoryError as error:
            return Lost(number=task.number, why=error_line(error, _LONGEST_REASON), status="oom")
        except (self._ray.exceptions.NodeDiedError, self._ray.exceptions.LocalRayletDiedError) as error:
            return Lost(number=task.number, why=_why(error), counts=_NODE_COUNTS)
        except self._ray.exceptions.RayError as error:
            return Lost(number=task.number, why=_why(error))

    def _fill(self) -> None:
        """Hand tasks to Ray, but for those that wait for a node of their own, or for any node."""
        waiting = []
        for task in self._queue:
            nodes = self._able(task)
            allowed, alone = self._of_kind(task, nodes), self._exclusive and task.takes_times()
            if alone:
                taken = {node for ref, others in self._nodes.items() if self._refs[ref].takes_times() for node in others}
                allowed = [node for node in allowed if node not in taken][:1]
            if allowed:
                self._begin(task, nodes, allowed, alone=alone)
            else:
                waiting.append(task)
        self._queue = waiting

    def _begin(self, task: Task, nodes: Mapping[str, Mapping[str, float]], allowed: Sequence[str], *, alone: bool) -> None:
        """Hand a task to Ray, for one of some nodes, which it may have alone."""
        most = {name: max(nodes[node][name] for node in allowed) for name in ("CPU", "GPU")}
        wanted = most if alone else {"CPU": 1 if task.needs_gpu() else min(task.threads(), most["CPU"]), "GPU": task.needs_gpu()}
        options: dict[str, Any] = {"num_cpus": wanted["CPU"], "num_gpus": int(wanted["GPU"])}
        chosen = alone or len(allowed) < len(nodes)
        options |= {"label_selector": {"ray.io/node-id": f"in({','.join(allowed)})"}} if chosen else {}
        ref = self._function.options(**options).remote(task.model_dump_json(), self._belongings, self._module)
        self._refs[ref] = task
        if chosen:
            self._nodes[ref] = frozenset(allowed)

    # Nodes

    def _able(self, task: Task) -> dict[str, dict[str, float]]:
        """The cores and GPUs of each living node that has what a task needs."""
        least = 1 if task.needs_gpu() else 0
        return {node: has for node, has in self._living().items() if has["CPU"] >= 1 and has["GPU"] >= least}

    def _living(self) -> dict[str, dict[str, float]]:
        """The cores and GPUs of each living node, as they were a second ago at most."""
        now = time.monotonic()
        if now - self._looked > 1:
            living = {one["NodeID"]: one["Resources"] for one in self._ray.nodes() if one["Alive"]}
            self._found = {node: {name: float(has.get(name, 0)) for name in ("CPU", "GPU")} for node, has in living.items()}
            self._looked = now
        return self._found

    def _of_kind(self, task: Task, nodes: Collection[str]) -> list[str]:
        """The nodes that are of the kind that a task must be measured on; all, if none is."""
        if task.kind is None:
            return sorted(nodes)
        kinds = self._kinds.get(task.needs_gpu(), {})
        return sorted(node for node in nodes if kinds.get(node) == task.kind) or sorted(nodes)

    def _unable(self, task: Task) -> ConfigurationError:
        """The error of a task that no node can take."""
        if task.needs_gpu():
            return ConfigurationError(
                "`device` cuda needs a GPU, and no node of the Ray cluster has one",
                "add a node with a GPU, or choose `device` cpu",
            )
        return ConfigurationError(
            "a cell needs a core, and no node of the Ray cluster offers one", "add a node, or start one with more than 0 cores"
        )

    def _unreachable(self) -> list[Done | Lost]:
        """Tasks that wait for nodes that are all dead; they were never begun."""
        waiting = [*self._refs.values(), *self._queue]
        if not waiting:
            return []
        if self._able(waiting[0]):
            self._stuck_since = None
        else:
            self._stuck_since = self._stuck_since or time.monotonic()
            if time.monotonic() - self._stuck_since > _GRACE_SECONDS:
                raise self._unable(waiting[0])
        living = self._living()
        found: list[Done | Lost] = []
        for ref in [ref for ref, nodes in self._nodes.items() if nodes.isdisjoint(living)]:
            self._end(ref)
            found.append(Lost(number=self._forget(ref).number, why="all nodes of its kind have died", counts=0))
        return found

    def _surveyed(self, sample: Task) -> Mapping[str, str]:
        """The kind of each node that has answered. New nodes are asked, and only the first ones are waited for.

        Raises:
            ConfigurationError: a node lacks this package, or has another version.
        """
        gpu = sample.needs_gpu()
        known = self._kinds.setdefault(gpu, {})
        until = time.monotonic() + (0.0 if known else _SURVEY_SECONDS)
        question = sample.model_copy(update={"plan": sample.plan.model_copy(update={"passes": []}), "known": [], "rounds": []})
        for node in self._able(sample):
            if node not in known:
                known[node] = ""
                options = {"num_cpus": 0, "num_gpus": int(gpu), "label_selector": {"ray.io/node-id": node}}
                remote = self._function.options(**options)
                self._questions[remote.remote(question.model_dump_json(), self._belongings, self._module)] = gpu, node
        while self._questions:
            living, seconds = self._living(), min(1.0, until - time.monotonic())
            for ref in [ref for ref, (_, node) in self._questions.items() if node not in living]:
                self._end(ref)
                del self._questions[ref]
            answered = self._ray.wait(list(self._questions), timeout=max(0.0, seconds))[0] if self._questions else []
            for ref in answered:
                of_gpu, node = self._questions.pop(ref)
                outcome = self._outcome(ref, question)
                if isinstance(outcome, Done) and outcome.findings.refusal:
                    raise ConfigurationError(*outcome.findings.refusal)
                if isinstance(outcome, Done):
                    self._kinds[of_gpu][node] = outcome.findings.environment
            if not answered and seconds <= 0:
                break
        return {node: kind for node, kind in known.items() if kind}


def _room(node: Mapping[str, float], sample: Task) -> float:
    """The number of tasks like this one that a node can take at once."""
    return node["GPU"] if sample.needs_gpu() else max(1.0, node["CPU"] // sample.threads())


def _why(error: BaseException) -> str:
    """The reason that Ray gives for a lost task, in a line."""
    cause = getattr(error, "cause", None) or error
    return error_line(cause, _LONGEST_REASON)


def _carried_out() -> Callable[[str, str, str], str]:
    """The function that Ray's workers run. It is sent by value, so that a worker without this package can say so."""

    def carried_out(task: str, belongings: str, module: str) -> str:
        import json
        import socket

        import ray

        try:
            from capsbench.sweep.launchers.attendant import attend
        except ImportError as error:
            missing = f"{error.name or error} is not installed" if error.name != "capsbench" else "capsbench is not installed"
            if (error.name or "").startswith("capsbench."):
                missing = "capsbench is an older version than the driver's"
            hint = "install the driver's version of capsbench on every node; all that was measured is kept: add `resume`"
            return json.dumps({"refusal": [f"{socket.gethostname()} cannot measure: {missing}", hint]})
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU") or [None]
        return attend(task, belongings, module=module, gpu=gpus[0])

    return carried_out
