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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

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
from capsbench.measure.torch_flags import FlagsInTurn
from capsbench.measure.turn_messages import Built, Failed, Message, RoundRequest, TurnsRequest
from capsbench.measure.watch import Watch
from capsbench.measure.worker import LONGEST_MESSAGE, check_threads, end_with_parent, prepare_process
from capsbench.records import Round, Turn
from capsbench.system.paths import starting_here
from capsbench.tf32 import allows_tf32
from capsbench.workload import Workload, without_effect

THREADS_SLEPT = (
    "threads slept while they waited for each other, since other work had much of the cores when times were first taken"
)
"""Note on a cell whose process was started with `SLEEPING`."""


@dataclass
class Participant:
    """A cell that takes turns."""

    workload: Workload
    structure: Structure | None = None
    """The structure of its network; None if the clock is not to be read inside, or it cannot be recorded."""
    edges: Edges | None = None
    edges_in_inference: Edges | None = None
    modules: list[str] = field(default_factory=list)
    """The modules with edges, which grow along an axis; the rest of the step does not."""
    growing_along: str = ""
    """Name of this axis."""
    optimizer_share: float = 0.0
    """Share of the optimizer's parameters that lie in these modules."""
    early_turns: int = 0
    """Number of turns that it has taken while edges were placed."""
    device_train_seconds: list[float] = field(default_factory=list)
    device_inference_seconds: list[float] = field(default_factory=list)
    """Seconds of the device alone, as in `TimeFigures`."""


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
        self._participants: dict[str, Participant] = {}
        """The cells that can take turns, by their keys."""
        self._edges_seconds = 0.0
        self._warmup_steps = 1
        """Steps of each cell before its first turn that counts; building takes the first one."""
        self._flags = FlagsInTurn()
        self._notes_of_import: dict[str, list[str]] = {}

    def run(self, notes: Sequence[str]) -> None:
        """Build all cells, then take rounds until the parent wants no more.

        Args:
            notes: notes on the device for every cell.
        """
        self._import_networks()
        for key in self._request.cells:
            with self._attempted(key):
                self._build(key, notes)
        before = compilations()
        self._place_edges()
        if compilations() == before:  # a turn that compiled is followed by others until none does
            self._warmup_steps += min((one.early_turns for one in self._participants.values()), default=0)
        if self._warmup_steps < WARMUP_STEPS or self._device.type == "cuda":  # whose clock takes its time
            self._warmup_steps += warm_up(self._turn_each, self._device, fewest=max(WARMUP_STEPS - self._warmup_steps, 1))
        for key in list(self._participants):
            with self._attempted(key):
                self._time_device(key)
        self._yardstick.warm_up()
        self._watch = Watch(self._device)
        self._send(Message(ready=True))
        for line in self._channel:
            self._take(RoundRequest.model_validate_json(line))

    def _turn_each(self) -> None:
        """Let each cell take a turn."""
        for key in list(self._participants):
            with self._attempted(key):
                self._turn(key)

    def _time_device(self, key: str) -> None:
        """Time the device alone, which needs no rounds: nothing disturbs it but its own clock."""
        one = self._participants[key]
        one.device_train_seconds = device_seconds(one.workload.train_step, self._device)
        with one.workload.evaluating():
            one.device_inference_seconds = device_seconds(one.workload.inference, self._device)

    def _import_networks(self) -> None:
        """Import the networks' modules: flags that one sets when it is imported hold for all of its networks, and no other."""
        for key, configuration in self._request.cells.items():
            model = configuration.model
            if model not in self._notes_of_import:
                self._send(Message(active=key))
                with self._flags.importing(_module(model)):
                    with keeping_threads(model) as notes, contextlib.suppress(CapsbenchError):
                        resolve_model(model)
                    self._notes_of_import[model] = notes

    def _build(self, key: str, notes: Sequence[str]) -> None:
        """Build a cell, step it once, and record its structure where the clock may be read inside."""
        configuration = self._request.cells[key]
        workload = Workload(configuration, self._request.data_directory)
        workload.train_step()
        one = self._participants[key] = Participant(workload)
        notes = [
            *notes,
            *[THREADS_SLEPT] * (self._request.shared and configuration.threads != 1),
            *without_effect(configuration),
            *self._notes_of_import[configuration.model],
            *workload.notes(),
        ]
        tf32 = allows_tf32() if self._device.type == "cuda" else None
        self._send(Message(built=Built(cell=key, data_source=workload.data_source, tf32=tf32, notes=notes)))
        if not workload.is_plain() or configuration.compile is not None:
            return  # it may come to an edge several times, or to none
        try:
            with recorded(workload.model) as found:
                workload.forward()
        except Exception:  # a compiled network may refuse to be watched, and is timed as a whole
            traceback.print_exc()
        one.structure = found[0] if found else None

    def _place_edges(self) -> None:
        """Put edges round the modules that grow within each series, along the first axis along which there are any."""
        for axis in self._request.axes:
            series: dict[str, dict[str, Structure]] = {}
            for key, one in self._participants.items():
                if one.structure is not None and not one.modules:
                    series.setdefault(self._request.cells[key].series(axis), {})[key] = one.structure
            for structures in series.values():
                for modules in growing_modules(list(structures.values())):
                    if self._try_edges(modules, structures, axis):
                        break
        if most := max((len(one.modules) for one in self._participants.values()), default=0):
            self._edges_seconds = edges_cost(self._clock, self._device, most)

    def _try_edges(self, modules: list[str], structures: Mapping[str, Structure], axis: str) -> bool:
        """Put edges round these modules, and leave them there if every cell meets them in a training step.

        A cell that fails meanwhile is dropped, and the others keep their edges. In inference there are none if it does not
        meet them too, or if their hooks would change what it runs.
        """
        keys = [key for key in structures if key in self._participants]
        for key in keys:
            one = self._participants[key]
            one.edges = one.edges_in_inference = Edges(one.workload.model, modules, structures[key], self._clock)
            one.optimizer_share = optimizer_share(one.workload.model, modules, one.workload.optimizer)
        turns: list[Turn] = []
        for key in keys:
            with self._attempted(key):
                turns.append(self._turn(key))
                self._participants[key].early_turns += 1
        found = all(turn.growing_train_step_seconds is not None for turn in turns)
        in_inference = found and all(turn.growing_inference_seconds is not None for turn in turns)
        in_inference = in_inference and not self._hooks_change_inference(keys)
        for one in (self._participants[key] for key in keys if key in self._participants):
            one.edges, one.edges_in_inference = one.edges if found else None, one.edges if in_inference else None
            if found:
                one.modules, one.growing_along = modules, axis
        return found

    def _hooks_change_inference(self, keys: Iterable[str]) -> bool:
        """Return whether hooks change the operators of inference, by the first cell of a series that is left."""
        for key in keys:
            one = self._participants.get(key)
            if one is not None and one.edges is not None:
                with self._attempted(key), one.workload.evaluating():
                    return hooks_change(one.workload.model, one.workload.inference, one.edges)
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
            if key in self._participants:
                with self._attempted(key):
                    turns.append(self._turn(key))
        if not turns:
            self._send(Message(ready=True))
            return
        took = {turn.cell: self._participants[turn.cell] for turn in turns}
        growing = {key: one for key, one in took.items() if one.modules}
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
                    device_train_step_seconds={key: known for key, one in took.items() if (known := one.device_train_seconds)},
                    device_inference_seconds={key: known for key, one in took.items() if (known := one.device_inference_seconds)},
                    noise=self._noise(),
                    modules={key: one.modules for key, one in growing.items()},
                    growing_along={key: one.growing_along for key, one in growing.items()},
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
        one, clock = self._participants[key], self._clock
        workload, edges, edges_in_inference = one.workload, one.edges, one.edges_in_inference
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
            "growing_train_step_seconds": sum(in_training) + one.optimizer_share * optimizer,
            "growing_forward_seconds": in_training[0],
            "growing_inference_seconds": None if in_inference is None else in_inference[0],
        }
        return turn.model_copy(update=growing)

    @contextmanager
    def _attempted(self, key: str) -> Iterator[None]:
        """Build or step a cell in the body, under the flags that it has set; if that fails, drop it and report why."""
        self._send(Message(active=key))
        model = self._request.cells[key].model
        try:
            with self._flags.of(key, _module(model)):
                yield
            return
        except CapsbenchError as error:
            failed = Failed(cell=key, status="error", message=one_line(error))
        except BaseException as error:  # a user's model may raise anything
            traceback.print_exc()
            if is_out_of_memory(error):
                failed = Failed(cell=key, status="oom", message=error_line(error, LONGEST_MESSAGE))
            else:
                failed = Failed(cell=key, status="error", message=one_line(step_error(model, error, most=LONGEST_MESSAGE)))
        self._participants.pop(key, None)
        with contextlib.suppress(RuntimeError):  # marks of an unfinished turn are not the next one's
            self._clock.laps()
        self._send(Message(failed=failed))

    def _send(self, message: Message) -> None:
        self._channel.write(message.model_dump_json(exclude_defaults=True) + "\n")
        self._channel.flush()


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
