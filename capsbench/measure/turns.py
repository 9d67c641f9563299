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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict

from capsbench.cases.factories import resolve_model
from capsbench.cases.foreign import keeping_threads, module_of, step_error
from capsbench.errors import CapsbenchError, error_line, one_line
from capsbench.measure.clock import clock_for
from capsbench.measure.compiling import compilations
from capsbench.measure.device_time import device_seconds
from capsbench.measure.edges import Edges, Structure, edges_cost, growing_modules, hooks_change, optimizer_share, recorded
from capsbench.measure.limits import is_out_of_memory
from capsbench.measure.noise import machine_noise
from capsbench.measure.processes import other_processes, refuse_others, unknown_others
from capsbench.measure.timing import WARMUP_STEPS, Laps, Yardstick, warm_up
from capsbench.measure.torch_flags import Flags, read_flags, set_flags
from capsbench.measure.watch import Watch
from capsbench.measure.worker import LONGEST_MESSAGE, check_threads, end_with_parent, prepare_process
from capsbench.records import Configuration, Round, Status, Turn
from capsbench.system.paths import starting_here
from capsbench.tf32 import allows_tf32
from capsbench.workload import Workload, without_effect

T = TypeVar("T")


THREADS_SLEPT = (
    "threads slept while they waited for each other, since other work had much of the cores when times were first taken"
)
"""Note on a cell whose process was started with `SLEEPING`."""


class TurnsRequest(BaseModel):
    """The cells that are to take turns."""

    model_config = ConfigDict(extra="forbid")

    cells: dict[str, Configuration]
    """Configurations by the keys of their cells. All have one device and one number of threads."""
    axes: tuple[str, ...] = ("blocks",)
    """Axes along which the parts that grow are looked for, the most important first."""
    data_directory: Path | None = None
    strict: bool = False
    """True if nothing is to be measured while other processes use the CUDA device."""
    channel: int
    """Descriptor of the socket to the parent."""
    process: int
    """Number of this process in the report."""
    shared: bool = False
    """True if other work had much of the cores before: threads of this process sleep while they wait, and rounds are marked."""


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
    tf32: bool | None = None
    """True if the step was allowed to use TF32; None on a CPU."""


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
        self._edges_in_inference: dict[str, Edges] = {}
        self._modules: dict[str, list[str]] = {}
        self._growing_along: dict[str, str] = {}
        """The axis along which these modules grow, and the rest of the step does not."""
        self._optimizer_shares: dict[str, float] = {}
        """Share of the optimizer's parameters that lie in the modules with edges, by the key of the cell."""
        self._edges_seconds = 0.0
        self._warmup_steps = 1
        """Steps of each cell before its first turn that counts; building takes the first one."""
        self._turns_of: Counter[str] = Counter()
        """Number of turns that each cell has taken while edges were placed."""
        self._device_train: dict[str, list[float]] = {}
        self._device_inference: dict[str, list[float]] = {}
        self._flags: Flags = {}
        """Flags of torch before any network was imported."""
        self._flags_of_import: dict[str, Flags] = {}
        """Flags after the import of each module of networks, by its name."""
        self._flags_of: dict[str, Flags] = {}
        """Flags after each cell's last turn, by its key."""
        self._notes_of_import: dict[str, list[str]] = {}

    def run(self, notes: Sequence[str]) -> None:
        """Build all cells, then take rounds until the parent wants no more.

        Args:
            notes: notes on the device for every cell.
        """
        self._import_networks()
        structures: dict[str, Structure] = {}
        for key in self._request.cells:
            with self._attempted(key):
                structures |= self._build(key, notes)
        before = compilations()
        self._place_edges(structures)
        if compilations() == before:  # a turn that compiled is followed by others until none does
            self._warmup_steps += min((self._turns_of[key] for key in self._workloads), default=0)
        if self._warmup_steps < WARMUP_STEPS or self._device.type == "cuda":  # whose clock takes its time
            self._warmup_steps += warm_up(self._turn_each, self._device, fewest=max(WARMUP_STEPS - self._warmup_steps, 1))
        for key in list(self._workloads):
            with self._attempted(key):
                self._time_device(key)
        self._yardstick.warm_up()
        self._watch = Watch(self._device)
        self._send(Message(ready=True))
        for line in self._channel:
            self._take(RoundRequest.model_validate_json(line))

    def _turn_each(self) -> None:
        """Let each cell take a turn."""
        for key in list(self._workloads):
            with self._attempted(key):
                self._turn(key)

    def _time_device(self, key: str) -> None:
        """Time the device alone, which needs no rounds: nothing disturbs it but its own clock."""
        workload = self._workloads[key]
        if found := device_seconds(workload.train_step, self._device):
            self._device_train[key] = found
        with workload.evaluating():
            if found := device_seconds(workload.inference, self._device):
                self._device_inference[key] = found

    def _import_networks(self) -> None:
        """Import the networks' modules: flags that one sets when it is imported hold for all of its networks, and no other."""
        self._flags = read_flags()
        for key, configuration in self._request.cells.items():
            if configuration.model not in self._notes_of_import:
                self._send(Message(active=key))
                with keeping_threads(configuration.model) as notes, contextlib.suppress(CapsbenchError):
                    resolve_model(configuration.model)
                self._notes_of_import[configuration.model] = notes
                # A module is imported once, for all of its networks.
                self._flags_of_import.setdefault(_module(configuration.model), read_flags())
                set_flags(self._flags)

    def _build(self, key: str, notes: Sequence[str]) -> dict[str, Structure]:
        """Build a cell, step it once, and return its structure; nothing where that cannot be recorded."""
        configuration = self._request.cells[key]
        workload = Workload(configuration, self._request.data_directory)
        workload.train_step()
        self._workloads[key] = workload
        notes = [
            *notes,
            *[THREADS_SLEPT] * self._request.shared,
            *without_effect(configuration),
            *self._notes_of_import[configuration.model],
            *workload.notes(),
        ]
        tf32 = allows_tf32() if self._device.type == "cuda" else None
        self._send(Message(built=Built(cell=key, data_source=workload.data_source, tf32=tf32, notes=notes)))
        if not workload.is_plain() or configuration.compile is not None:
            return {}  # it may come to an edge several times, or to none
        try:
            with recorded(workload.model) as found:
                workload.forward()
        except Exception:  # a compiled network may refuse to be watched, and is timed as a whole
            traceback.print_exc()
        return dict.fromkeys([key], found[0]) if found else {}

    def _place_edges(self, structures: Mapping[str, Structure]) -> None:
        """Put edges round the modules that grow within each series, along the first axis along which there are any."""
        for axis in self._request.axes:
            of_series: dict[str, list[str]] = {}
            for key in structures:
                if key not in self._modules:
                    of_series.setdefault(self._request.cells[key].series(axis), []).append(key)
            for keys in of_series.values():
                for modules in growing_modules([structures[key] for key in keys]):
                    there = {key: structures[key] for key in keys if key in self._workloads}
                    if self._try_edges(modules, there):
                        self._growing_along |= dict.fromkeys(there, axis)
                        break
        if self._modules:
            self._edges_seconds = edges_cost(self._clock, self._device, max(map(len, self._modules.values())))

    def _try_edges(self, modules: list[str], structures: Mapping[str, Structure]) -> bool:
        """Put edges round these modules, and leave them there if every cell meets them in a training step.

        A cell that fails meanwhile is dropped, and the others keep their edges. In inference there are none if it does not
        meet them too, or if their hooks would change what it runs.
        """
        turns: list[Turn] = []
        for key, structure in structures.items():
            edges = Edges(self._workloads[key].model, modules, structure, self._clock)
            self._edges[key] = self._edges_in_inference[key] = edges
            self._optimizer_shares[key] = optimizer_share(self._workloads[key].model, modules, self._workloads[key].optimizer)
        for key in structures:
            with self._attempted(key):
                turns.append(self._turn(key))
                self._turns_of[key] += 1
        found = all(turn.growing_train_step_seconds is not None for turn in turns)
        in_inference = found and all(turn.growing_inference_seconds is not None for turn in turns)
        if not in_inference or self._hooks_change_inference(structures):
            for key in structures:
                self._edges_in_inference.pop(key, None)
        if found:
            self._modules |= dict.fromkeys(structures, modules)
        else:
            for key in structures:
                self._edges.pop(key, None)
        return found

    def _hooks_change_inference(self, keys: Iterable[str]) -> bool:
        """Return whether hooks change the operators of inference, by the first cell of a series that is left."""
        for key in keys:
            if key in self._workloads:
                workload = self._workloads[key]
                with self._attempted(key), workload.evaluating():
                    return hooks_change(workload.model, workload.inference, self._edges[key])
        return False

    def _take(self, asked: RoundRequest) -> None:
        """Take a round and report it."""
        self._yardstick.seconds.clear()
        self._yardstick.launch_seconds.clear()
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
                    warmup_steps=self._warmup_steps,
                    turns=turns,
                    yardstick_seconds=list(self._yardstick.seconds),
                    yardstick_flops=self._yardstick.flops if self._yardstick.seconds else None,
                    launch_yardstick_seconds=list(self._yardstick.launch_seconds),
                    device_train_step_seconds=_of_cells(self._device_train, turns),
                    device_inference_seconds=_of_cells(self._device_inference, turns),
                    noise=self._noise(),
                    modules=_of_cells(self._modules, turns),
                    growing_along=_of_cells(self._growing_along, turns),
                    edges_seconds=self._edges_seconds,
                )
            )
        )

    def _noise(self) -> list[str]:
        """Names of `NOISES` that hold for a round."""
        seen = machine_noise(self._watch.seen())
        # Threads that sleep are woken in every step, so that its time is not one of a quiet machine even if the load has gone.
        return ["load", *seen] if self._request.shared and "load" not in seen else seen

    def _turn(self, key: str) -> Turn:
        """Take one training step and one inference of a cell."""
        workload, clock = self._workloads[key], self._clock
        edges, edges_in_inference = self._edges.get(key), self._edges_in_inference.get(key)
        workload.train_step(Laps(clock, edges))
        forward, backward, optimizer = clock.laps()
        check_threads(workload.configuration)
        in_training = edges.seconds() if edges else None
        with workload.evaluating():
            with edges_in_inference.forward(training=False) if edges_in_inference else nullcontext():
                clock.mark()
                workload.inference()
                clock.mark()
            (inference,) = clock.laps()
        in_inference = edges_in_inference.seconds() if edges_in_inference else None
        turn = Turn(
            cell=key, train_step_seconds=forward + backward + optimizer, forward_seconds=forward, inference_seconds=inference
        )
        if in_training is None:
            return turn
        growing = {
            "growing_train_step_seconds": sum(in_training) + self._optimizer_shares[key] * optimizer,
            "growing_forward_seconds": in_training[0],
            "growing_inference_seconds": None if in_inference is None else in_inference[0],
        }
        return turn.model_copy(update=growing)

    @contextmanager
    def _attempted(self, key: str) -> Iterator[None]:
        """Build or step a cell in the body, under the flags that it has set; if that fails, drop it and report why."""
        self._send(Message(active=key))
        imported = self._flags_of_import.get(_module(self._request.cells[key].model), self._flags)
        set_flags(self._flags_of.get(key, imported))
        try:
            yield
            return
        except CapsbenchError as error:
            failed = Failed(cell=key, status="error", message=one_line(error))
        except BaseException as error:  # a user's model may raise anything
            traceback.print_exc()
            if is_out_of_memory(error):
                failed = Failed(cell=key, status="oom", message=error_line(error, LONGEST_MESSAGE))
            else:
                failure = step_error(self._request.cells[key].model, error, most=LONGEST_MESSAGE)
                failed = Failed(cell=key, status="error", message=one_line(failure))
        finally:
            self._flags_of[key] = read_flags()
            set_flags(self._flags)
        self._workloads.pop(key, None)
        self._edges.pop(key, None)
        self._edges_in_inference.pop(key, None)
        with contextlib.suppress(RuntimeError):  # marks of an unfinished turn are not the next one's
            self._clock.laps()
        self._send(Message(failed=failed))

    def _send(self, message: Message) -> None:
        self._channel.write(message.model_dump_json(exclude_defaults=True) + "\n")
        self._channel.flush()


def _of_cells(known: Mapping[str, T], turns: Sequence[Turn]) -> dict[str, T]:
    """The values of the cells that had these turns, as far as there are any."""
    return {turn.cell: known[turn.cell] for turn in turns if turn.cell in known}


def _module(model: str) -> str:
    """Name of the module of a network, or the network's own where it names none."""
    return module_of(model) or model


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
    lost = contextlib.suppress(BrokenPipeError, ConnectionError)
    with lost, socket.socket(fileno=request.channel) as channel, starting_here():  # a network may go to another folder
        Turns(request, channel).run([*found, *unknown])
    sys.stderr.flush()
    # This skips the interpreter's own ending: the measured process has nothing that needs an orderly shutdown.
    os._exit(0)


if __name__ == "__main__":
    main()
