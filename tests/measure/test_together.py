"""Real processes of cells that take turns, and the ways in which they end."""

import os
import socket
from itertools import product

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from capsbench.measure.together import Together
from capsbench.measure.turn_messages import TurnsRequest
from capsbench.measure.turns import THREADS_SLEPT, Turns
from capsbench.timed_rounds import times_of
from helpers.forked import in_fork
from helpers.made import make_configuration
from helpers.turns import PATIENCE, take_rounds, take_shared_round

# A network of linear layers that does as its depth says in its third step.
FAULTY = """
import os, signal, time, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, pixels, classes, blocks):
        super().__init__()
        self.stem, self.head = nn.Linear(pixels, 8), nn.Linear(8, classes)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
        self.blocks, self.steps = blocks, 0

    def forward(self, x):
        self.steps += self.training
        if self.steps > 6:
            {fault}
        x = self.stem(x.flatten(1))
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)

def make(in_shape, num_classes, blocks):
    return Net(in_shape[0] * in_shape[1] * in_shape[2], num_classes, blocks)
"""


def faulty(own_model, fault, depths=(1, 2, 3)):
    name = own_model(FAULTY.format(fault=fault))
    return {f"cell {blocks}": make_configuration(name, blocks) for blocks in depths}


@pytest.mark.slow
def test_networks_of_the_package_take_turns():
    cells = {
        f"{model} {blocks}": make_configuration(model, blocks, batch_size=2)
        for model in ("rescapsnet", "mocapsnet")
        for blocks in (1, 2)
    }
    rounds, failed, ended = in_fork(take_rounds, cells)
    assert (failed, ended) == ({}, None)
    for number, (order, one) in enumerate(rounds):
        assert (one.number, one.process, one.clock) == (number, 4, "monotonic")
        assert [turn.cell for turn in one.turns] == order
        assert one.modules == {cell: ["blocks"] for cell in cells}
        assert 0 <= one.edges_seconds < 0.01
        for turn in one.turns:
            assert 0 < turn.growing_forward_seconds < turn.growing_train_step_seconds < turn.train_step_seconds
            assert 0 < turn.growing_inference_seconds < turn.inference_seconds
            assert turn.growing_forward_seconds < turn.forward_seconds < turn.train_step_seconds
    turns = [turn for _, one in rounds for turn in one.turns]
    # Other processes may delay any one of them.
    assert min(turn.inference_seconds for turn in turns) < min(turn.train_step_seconds for turn in turns)


def test_networks_of_a_user_take_turns(own_model):
    rounds, failed, ended = in_fork(take_rounds, faulty(own_model, "pass"))
    assert (failed, ended) == ({}, None)
    assert rounds[0][1].modules == {f"cell {blocks}": ["layers"] for blocks in (1, 2, 3)}
    assert all(turn.growing_train_step_seconds for _, one in rounds for turn in one.turns)


WIDE = """
import torch
from torch import nn
from capsbench import Case

class Net(nn.Module):
    def __init__(self, inner, blocks):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, inner), nn.Linear(inner, 8)) for _ in range(blocks))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x).square().mean()

def make(inner=4, blocks=2, batch_size=2):
    return Case(Net(inner, blocks), torch.rand(batch_size, 8))
"""


@pytest.mark.parametrize(
    ("axes", "along"),
    [
        (("inner",), {"inner"}),
        (("batch_size",), set()),
        (("inner", "batch_size"), {"inner"}),
        (("batch_size", "inner"), {"inner"}),
        (("blocks", "batch_size"), {"blocks"}),
    ],
)
def test_parts_that_grow_are_looked_for_along_each_axis(own_model, axes, along):
    name = own_model(WIDE)
    cells = {}
    for place in product((2, 4), repeat=len(axes)):
        values = {"inner": 4, "blocks": 2, "batch_size": 2} | dict(zip(axes, place, strict=True))
        fields = {"dataset": "own", "batch_size": values["batch_size"], "settings": {"inner": values["inner"]}}
        cells[str(place)] = make_configuration(name, values["blocks"], **fields)
    rounds, failed, ended = in_fork(take_rounds, cells, axes=axes)
    assert (failed, ended) == ({}, None)
    for _, one in rounds:
        assert one.modules == ({key: ["layers"] for key in cells} if along else {})
        assert set(one.growing_along.values()) == along
        times = times_of([one], next(iter(cells)))
        assert (times.growing is None) == (not along)
        assert not along or {times.growing.axis} == along


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("if self.blocks == 2: raise ValueError('no more')", "error", "ValueError: no more"),
        ("if self.blocks == 2: raise MemoryError('full')", "oom", "MemoryError: full"),
        ("if self.blocks == 2: torch.set_num_threads(2)", "error", "sets torch's threads to 2"),
    ],
)
def test_a_cell_that_fails_in_its_turn_leaves_the_others(own_model, fault, status, said):
    rounds, failed, ended = in_fork(take_rounds, faulty(own_model, fault), 6)
    assert ended is None
    assert failed.keys() == {"cell 2"}
    assert failed["cell 2"].status == status
    assert said in failed["cell 2"].message
    assert {turn.cell for turn in rounds[-1][1].turns} == {"cell 1", "cell 3"}


def test_a_cell_that_fails_while_edges_are_tried_leaves_the_others(own_model):
    # The first step builds, the second is recorded; the third is the first with edges.
    source = FAULTY.replace("self.steps > 6", "self.steps > 2")
    name = own_model(source.format(fault="if self.blocks == 2: raise ValueError('early')"))
    rounds, failed, ended = in_fork(take_rounds, {f"cell {blocks}": make_configuration(name, blocks) for blocks in (1, 2, 3)})
    assert ended is None
    assert failed.keys() == {"cell 2"}
    assert {turn.cell for turn in rounds[-1][1].turns} == {"cell 1", "cell 3"}
    assert all(turn.growing_train_step_seconds for turn in rounds[-1][1].turns)


# Networks that set flags of torch: one in its constructor, one in its forward, and one that expects those of a fresh process.
FLAGS = """
import torch
from torch import nn

torch.backends.cudnn.benchmark_limit = 3  # when it is imported, for all

def flags():
    return [
        torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(), torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.get_num_threads(),
    ]

def change():
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)

class Net(nn.Module):
    def __init__(self, pixels, classes, blocks, how):
        super().__init__()
        self.before, self.how = flags(), how
        assert self.before == [False, 3, False, False, "highest", torch.float32, False, True, 1], self.before
        self.stem, self.head = nn.Linear(pixels, 8), nn.Linear(8, classes)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
        if how == "constructor":
            change()
        self.expected = flags()

    def forward(self, x):
        if self.training:  # inference has no gradients
            assert flags() == self.expected, flags()
        if self.how == "forward":
            change()
            self.expected = flags() if self.training else self.expected
        x = self.stem(x.flatten(1))
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)

def maker(how):
    return lambda in_shape, num_classes, blocks: Net(in_shape[0] * in_shape[1] * in_shape[2], num_classes, blocks, how)

make, constructor, forward = map(maker, ("", "constructor", "forward"))
"""


def test_flags_that_a_network_sets_are_its_own(own_model):
    module = own_model(FLAGS).partition(":")[0]
    cells = {
        f"{name} {blocks}": make_configuration(f"{module}:{name}", blocks)
        for name in ("constructor", "make", "forward")
        for blocks in (1, 2)
    }
    rounds, failed, ended = in_fork(take_rounds, cells)
    assert (failed, ended) == ({}, None)
    assert all({turn.cell for turn in one.turns} == cells.keys() for _, one in rounds)


# A network of transformer layers, which in inference runs one operator for a whole layer, unless something has a hook.
TRANSFORMER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, pixels, classes, blocks):
        super().__init__()
        self.stem, self.head = nn.Linear(pixels, 8), nn.Linear(8, classes)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(blocks))

    def forward(self, x):
        x = self.stem(x.flatten(1))[:, None]
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])

def make(in_shape, num_classes, blocks):
    return Net(in_shape[0] * in_shape[1] * in_shape[2], num_classes, blocks)
"""


class Operators(TorchDispatchMode):
    """A list of the operators that are run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_timing_runs_the_operators_that_a_network_runs_without_it(own_model):
    name = own_model(TRANSFORMER)
    cells = {str(blocks): make_configuration(name, blocks) for blocks in (1, 3)}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        turns = Turns(TurnsRequest(cells=cells, channel=0, process=0), theirs)
        turns._import_networks()
        for key in cells:
            turns._build(key, [])
        turns._place_edges()
        for key, configuration in cells.items():
            with Operators() as without:
                workload = turns._participants[key].workload
                workload.train_step()
                with workload.evaluating():
                    workload.inference()
            with Operators() as in_turn:
                turn = turns._turn(key)
            assert in_turn.names == without.names
            fast = sum("_transformer_encoder_layer_fwd" in one for one in without.names)
            assert fast == configuration.blocks
            assert turns._participants[key].modules == ["layers"]
            assert turn.growing_train_step_seconds > 0
            assert turn.growing_inference_seconds is None


def test_rounds_of_threads_that_sleep_are_marked(own_model):
    cells = faulty(own_model, "pass", (1,))
    noise, notes = in_fork(take_shared_round, cells)
    assert noise.count("load") == 1
    assert THREADS_SLEPT not in notes, "a thread alone waits for none"
    two = {key: configuration.model_copy(update={"threads": 2}) for key, configuration in cells.items()}
    assert THREADS_SLEPT in in_fork(take_shared_round, two)[1]


def test_a_round_in_which_nothing_is_left_is_none(own_model):
    rounds, failed, ended = in_fork(take_rounds, faulty(own_model, "raise ValueError('all')", (1,)), 6)
    assert ended is None
    assert failed.keys() == {"cell 1"}
    assert rounds[-1][1] is None


def test_a_cell_that_cannot_be_built_is_told_of(own_model):
    cells = {"good": make_configuration(own_model(FAULTY.format(fault="pass")), 1)}
    cells["bad"] = make_configuration(own_model("def make(in_shape, num_classes, blocks): raise KeyError('never')"), 1)
    rounds, failed, _ = in_fork(take_rounds, cells)
    assert "never" in failed["bad"].message
    assert [turn.cell for turn in rounds[0][1].turns] == ["good"]


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("if self.blocks == 2: os.kill(os.getpid(), signal.SIGSEGV)", "error", "SIGSEGV"),
        ("if self.blocks == 2: os._exit(3)", "error", "status 3"),
        # A process that it has started holds the socket, and lives on for a while.
        ("if self.blocks == 2: os.fork() or time.sleep(20); os._exit(4)", "error", "status 4"),
    ],
)
def test_the_end_of_the_process_is_laid_at_the_cell_that_had_its_turn(own_model, fault, status, said):
    _, _, ended = in_fork(take_rounds, faulty(own_model, fault), 6)
    assert ended[0] == status
    assert said in ended[1]
    assert ended[2] == "cell 2"


@pytest.mark.slow
def test_a_turn_that_takes_too_long_ends_the_process(own_model):
    _, _, ended = in_fork(take_rounds, faulty(own_model, "if self.blocks == 2: time.sleep(600)"), 6, 5)
    assert (ended[0], ended[2]) == ("timeout", "cell 2")
    assert "5 s" in ended[1]


@pytest.mark.slow
def test_the_process_is_gone_afterwards(own_model):
    def started():
        request = TurnsRequest(cells=faulty(own_model, "pass", (1,)), channel=0, process=0)
        with Together(request, PATIENCE) as process:
            return process._process.pid

    pid = started()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
