"""The child's side of cells that take turns: `python -m capsbench.measure.turns` builds all, and steps each once in every round.

The parent says which cells a round has, and in which order; nothing is decided here. The request is a line of JSON on standard
input, and all messages after it are lines of JSON on a socket. Ends at once when standard input closes: the parent is gone.
"""

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from capsbench.errors import CapsbenchError, error_line
from capsbench.measure.clock import clock_for
from capsbench.measure.edges import Edges, Structure, edges_cost, growing_modules, recorded
from capsbench.measure.limits import is_out_of_memory
from capsbench.measure.noise import machine_noise
from capsbench.measure.processes import other_processes, refuse_others, unknown_others
from capsbench.measure.timing import WARMUP_STEPS, Yardstick
from capsbench.measure.watch import Watch
from capsbench.measure.worker import LONGEST_MESSAGE, check_threads, end_with_parent, prepare_process
from capsbench.records import Configuration, Round, Status, Turn
from capsbench.workload import Workload, without_effect


class TurnsRequest(BaseModel):
    """The cells that are to take turns."""

    model_config = ConfigDict(extra="forbid")

    cells: dict[str, Configuration]
    """Configurations by the keys of their cells. All have one device and one number of threads."""
    data_directory: Path | None = None
    strict: bool = False
    """True if nothing is to be measured beside other processes on a CUDA device."""
    channel: int
    """Descriptor of the socket to the parent."""
    process: int
    """Number of this process in the report."""


class RoundRequest(BaseModel):
    """A round to take."""

    number: int
    cells: list[str]
    """Keys of the cells, in the order of their turns."""


class Built(BaseModel):
    """A cell that is ready."""

    cell: str
    data_source: str | None
    notes: list[str]


class Failed(BaseModel):
    """A cell that cannot take turns."""

    cell: str
    status: Status
    message: str


class Message(BaseModel):
    """A message to the parent; one of its fields is filled."""

    model_config = ConfigDict(extra="forbid")

    active: str | None = None
    """Key of the cell that is being built, or has its turn."""
    built: Built | None = None
    failed: Failed | None = None
    ready: bool = False
    """True once all cells are built, and after each round without a turn."""
    round: Round | None = None


class Turns:
    """Workloads that take turns in this process.

    Args:
        request: cells.
        channel: socket to the parent.
    """

    def __init__(self, request: TurnsRequest, channel: socket.socket) -> None:
        self._request = request
        self._channel = channel.makefile("rw", encoding="utf-8")
        self._device = torch.device(next(iter(request.cells.values())).device)
        self._clock = clock_for(self._device)
        self._yardstick = Yardstick(self._device, self._clock)
        self._workloads: dict[str, Workload] = {}
        self._edges: dict[str, Edges] = {}
        self._modules: dict[str, list[str]] = {}
        self._edges_seconds = 0.0

    def run(self, notes: Sequence[str]) -> None:
        """Build all cells, then take rounds until the parent wants no more.

        Args:
            notes: notes on the device for every cell.
        """
        structures: dict[str, Structure] = {}
        for key in self._request.cells:
            with self._attempted(key):
                structures |= self._build(key, notes)
        self._place_edges(structures)
        for key in list(self._workloads):
            with self._attempted(key):
                for _ in range(WARMUP_STEPS - 1):
                    self._turn(key)
        self._yardstick.warm_up()
        self._watch = Watch(self._device)
        self._send(Message(ready=True))
        for line in self._channel:
            self._take(RoundRequest.model_validate_json(line))

    def _build(self, key: str, notes: Sequence[str]) -> dict[str, Structure]:
        """Build a cell, step it once, and return its structure; nothing where that cannot be recorded."""
        configuration = self._request.cells[key]
        workload = Workload(configuration, self._request.data_directory)
        workload.train_step()
        self._workloads[key] = workload
        notes = [*notes, *without_effect(configuration), *workload.notes]
        self._send(Message(built=Built(cell=key, data_source=workload.data_source, notes=notes)))
        try:
            with recorded(workload.model) as found:
                workload.forward()
        except Exception:  # a compiled network may refuse to be watched, and is timed as a whole
            traceback.print_exc()
        return dict.fromkeys([key], found[0]) if found else {}

    def _place_edges(self, structures: Mapping[str, Structure]) -> None:
        """Put edges round the modules that grow within each series."""
        of_series: dict[str, list[str]] = {}
        for key in structures:
            of_series.setdefault(self._request.cells[key].series(), []).append(key)
        for keys in of_series.values():
            for modules in growing_modules([structures[key] for key in keys]):
                # A cell that fails here is dropped, and says nothing of the others' edges.
                alive = [key for key in keys if key in self._workloads]
                edges = {key: Edges(self._workloads[key].model, modules, structures[key], self._clock) for key in alive}
                self._edges |= edges
                for key in alive:
                    with self._attempted(key):
                        self._turn(key)
                if all(one.were_met for key, one in edges.items() if key in self._workloads):
                    self._modules |= dict.fromkeys(alive, modules)
                    break
                for key in alive:
                    edges[key].remove()
                    self._edges.pop(key, None)
        if self._modules:
            self._edges_seconds = edges_cost(self._clock, self._device, max(map(len, self._modules.values())))

    def _take(self, asked: RoundRequest) -> None:
        """Take a round and report it."""
        self._yardstick.seconds.clear()
        if self._yardstick.is_due():
            self._yardstick.measure()
            self._watch.look()
        turns: list[Turn] = []
        for key in asked.cells:
            if key in self._workloads:
                with self._attempted(key):
                    turns.append(self._turn(key))
        if not turns:
            self._send(Message(ready=True))
            return
        self._send(
            Message(
                round=Round(
                    number=asked.number,
                    process=self._request.process,
                    clock=self._clock.name,
                    warmup_steps=WARMUP_STEPS,
                    turns=turns,
                    yardstick_seconds=list(self._yardstick.seconds),
                    yardstick_flops=self._yardstick.flops if self._yardstick.seconds else None,
                    noise=machine_noise(self._watch.seen()),
                    modules={turn.cell: self._modules[turn.cell] for turn in turns if turn.cell in self._modules},
                    edges_seconds=self._edges_seconds,
                )
            )
        )

    def _turn(self, key: str) -> Turn:
        """Take one training step and one inference of a cell."""
        workload, clock, edges = self._workloads[key], self._clock, self._edges.get(key)
        clock.mark()
        with edges.forward(training=True) if edges else nullcontext():
            loss = workload.forward()
        clock.mark()
        workload.backward(loss)
        clock.mark()
        workload.optimize()
        clock.mark()
        del loss
        forward, backward, optimizer = clock.laps()
        check_threads(workload.configuration)
        in_training = edges.seconds() if edges else None
        with workload.evaluating():
            with edges.forward(training=False) if edges else nullcontext():
                clock.mark()
                workload.inference()
                clock.mark()
            (inference,) = clock.laps()
        in_inference = edges.seconds() if edges else None
        turn = Turn(
            cell=key, train_step_seconds=forward + backward + optimizer, forward_seconds=forward, inference_seconds=inference
        )
        if in_training is None or in_inference is None:
            return turn
        growing = {
            "growing_train_step_seconds": sum(in_training) + optimizer,
            "growing_forward_seconds": in_training[0],
            "growing_inference_seconds": in_inference[0],
        }
        return turn.model_copy(update=growing)

    @contextmanager
    def _attempted(self, key: str) -> Iterator[None]:
        """Build or step a cell in the body; if that fails the cell is dropped, and the parent learns why."""
        self._send(Message(active=key))
        try:
            yield
            return
        except CapsbenchError as error:
            failed = Failed(cell=key, status="error", message=" - ".join(str(error).splitlines()))
        except BaseException as error:  # a user's model may raise anything
            traceback.print_exc()
            status: Literal["oom", "error"] = "oom" if is_out_of_memory(error) else "error"
            failed = Failed(cell=key, status=status, message=error_line(error, LONGEST_MESSAGE))
        self._workloads.pop(key, None)
        self._edges.pop(key, None)
        with contextlib.suppress(RuntimeError):  # marks of an unfinished turn are not the next one's
            self._clock.laps()
        if (threads := self._request.cells[key].threads) is not None:
            torch.set_num_threads(threads)  # the others', which it may have changed
        self._send(Message(failed=failed))

    def _send(self, message: Message) -> None:
        self._channel.write(message.model_dump_json(exclude_defaults=True) + "\n")
        self._channel.flush()


def main() -> None:
    """Read the request, let the cells take turns, end."""
    request = TurnsRequest.model_validate_json(sys.stdin.readline())
    os.dup2(2, 1)  # a network may print
    threading.Thread(target=end_with_parent, daemon=True).start()
    first = next(iter(request.cells.values()))
    prepare_process(first)
    device = torch.device(first.device)
    found = other_processes(device)
    unknown = [] if found else unknown_others(device)
    if request.strict:
        refuse_others(found, unknown)
    with contextlib.suppress(BrokenPipeError, ConnectionError), socket.socket(fileno=request.channel) as channel:
        Turns(request, channel).run([*found, *unknown])
    sys.stderr.flush()
    # This skips the interpreter's own ending: the measured process has nothing that needs an orderly shutdown.
    os._exit(0)


if __name__ == "__main__":
    main()
