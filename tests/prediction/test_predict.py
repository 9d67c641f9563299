"""Predictions: figures of a traced step on a device that is not here, its floating-point operations, and what fits."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import capsbench
from capsbench.devices import GPUS, gpu_of
from capsbench.errors import ConfigurationError
from capsbench.models.front import CHUNKS, FORWARD
from capsbench.options import DEEPEST
from capsbench.prediction import axis_fit, predict
from capsbench.prediction.depth_fit import CHECKED, DEEPEST_TRACED
from capsbench.prediction.fit import largest_fit
from capsbench.prediction.predict import Prediction, predict_cell
from capsbench.prediction.search import neighbours
from capsbench.records import Cell, Configuration, Record
from capsbench.routing import compiled, route, route_and_vjp
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.tracing.flops import votes_flops
from capsbench.tracing.follow import following
from capsbench.tracing.step_trace import trace_step
from helpers.made import MIB, make_configuration
from helpers.pretended import prediction_of, pretend_steps

SMALL = ("--depth", "1", "--batch-size", "2", "--capsules", "4")
OWN_SMALL = ("--depth", "1,2", "--batch-size", "4")
EXACT = ("state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "retained_requested_bytes")

MLP = """
from torch import nn


def make(in_shape, num_classes, blocks):
    layers = [layer for _ in range(blocks) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), *layers, nn.Linear(64, num_classes))
"""


def predicted(model: str = "rescapsnet", blocks: int = 1, **fields: Any) -> Configuration:
    """A small network for a GPU."""
    usual = {"device": "cuda:predicted", "gpu": "h100", "threads": None, "batch_size": 2, "capsules": 4, "kernel": "triton"}
    return make_configuration(model, blocks, **(usual | fields))


def record_of(**fields: Any) -> Record:
    """The record of a small network."""
    return predict_cell(Cell(configuration=predicted(**fields)))


# Figures


@pytest.fixture(scope="module")
def on_gpu() -> Record:
    return record_of()


@pytest.mark.slow
def test_the_figures_of_a_prediction_fit_together(on_gpu):
    memory = on_gpu.memory
    assert (on_gpu.status, on_gpu.kind, memory.probe) == ("ok", "predicted", "trace")
    assert memory.peak_allocated_bytes == max(memory.peak_forward_bytes, memory.peak_backward_bytes, memory.peak_allocated_bytes)
    assert memory.peak_allocated_bytes % 512 == 0
    assert memory.peak_reserved_bytes >= memory.peak_allocated_bytes
    assert memory.peak_reserved_bytes % (2 * MIB) == 0
    assert memory.process_bytes == memory.peak_reserved_bytes + memory.context_bytes
    assert memory.at_peak.total() == memory.peak_allocated_bytes
    assert memory.gradient_bytes == on_gpu.memory.state_bytes
    assert sum(on_gpu.step.retained_by_module.values()) == memory.retained_bytes
    # Requested bytes are those of the tensors, of which the allocator makes multiples of 512, and more.
    assert memory.retained_requested_bytes == memory.retained_bytes <= on_gpu.step.retained_bytes
    assert 0.98 * memory.peak_allocated_bytes < memory.peak_requested_bytes < memory.peak_allocated_bytes
    # Earlier steps leave a cache behind.
    assert memory.peak_allocated_bytes <= memory.step_reserved_bytes <= memory.peak_reserved_bytes


def test_every_figure_says_how_sure_it_is(on_gpu):
    memory = on_gpu.memory
    said = {name for name, value in memory.model_dump().items() if value is not None} - {"probe", "certainty", "scratch"}
    assert set(memory.certainty) == said
    assert {memory.certainty[name] for name in EXACT} == {"exact"}
    assert memory.certainty["peak_reserved_bytes"] == "modelled"
    assert memory.certainty["context_bytes"] == memory.certainty["process_bytes"] == "guessed"


@pytest.mark.slow
def test_a_cpu_has_no_reserved_memory_and_no_context():
    record = predict_cell(Cell(configuration=make_configuration(capsules=4, batch_size=2, device="cpu:predicted")))
    memory = record.memory
    of_cuda = ("peak_reserved", "step_reserved", "retained_requested", "peak_requested", "context", "process")
    assert {getattr(memory, f"{name}_bytes") for name in of_cuda} == {None}
    assert not {f"{name}_bytes" for name in of_cuda} & set(memory.certainty)


@pytest.mark.slow
def test_the_library_of_matrix_products_takes_its_workspace_once():
    free, taking = (trace_step(predicted(), workspace_bytes=nbytes) for nbytes in (0, 7 * MIB))
    peaks = [max(phase.peak for phase in step.trace.phases().values()) for step in (free, taking)]
    assert peaks[1] - peaks[0] == 7 * MIB
    assert free.retained_bytes == taking.retained_bytes


@pytest.mark.slow
def test_offload_keeps_less_on_a_gpu_than_stored():
    stored, offloaded = (record_of(memory=memory, blocks=3).memory for memory in ("stored", "offload"))
    assert offloaded.retained_bytes < stored.retained_bytes


def test_a_prediction_needs_the_name_of_a_gpu():
    record = record_of(gpu=None)
    assert record.status == "error"
    assert "`gpu`" in record.message


@pytest.mark.slow
def test_a_device_that_is_too_small_is_out_of_memory():
    context = gpu_of("h100").context_bytes
    record = record_of(capacity=context + 40 * MIB)
    assert (record.status, record.memory) == ("oom", None)
    assert record.message
    assert record.step is not None
    enough = record_of().memory.process_bytes
    assert record_of(capacity=enough).status == "ok"
    assert record_of(capacity=enough // 2).status == "oom"


@pytest.mark.slow
def test_a_cpu_is_full_beyond_its_peak():
    def on_cpu(capacity: int | None) -> Record:
        return predict_cell(
            Cell(configuration=make_configuration(capsules=4, batch_size=2, device="cpu:predicted", capacity=capacity))
        )

    peak = on_cpu(None).memory.peak_allocated_bytes
    assert on_cpu(peak).status == "ok"
    assert on_cpu(peak - 1).status == "oom"
    assert "takes 1 byte more than" in on_cpu(peak - 1).message


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_is_found_by_its_name(name):
    assert gpu_of(name.upper()).memory_bytes > 8 * 2**30


def test_an_unknown_gpu():
    with pytest.raises(ConfigurationError, match="'h900'") as raised:
        gpu_of("h900")
    assert "h100" in raised.value.hint


# Floating-point operations

BATCH, INPUTS, OUTPUTS, IN_DIM, DIM = 3, 5, 4, 2, 6
NEEDED = {"sda": ("bias",), "em": ("bias", "beta_u", "beta_a")}


def routing_flops(kernel: str, routing: str, kind: str) -> tuple[int, int]:
    """Operations of forward alone, and of forward and backward."""
    with following(kind, inside=False) as follow:
        options = {"requires_grad": True, "device": follow.blocks.device}
        inputs, weight = torch.empty(BATCH, INPUTS, IN_DIM, **options), torch.empty(INPUTS, IN_DIM, OUTPUTS, DIM, **options)
        shapes = {"bias": (OUTPUTS, DIM), "beta_u": (OUTPUTS,), "beta_a": (OUTPUTS,)}
        more = {name: torch.empty(shapes[name], **options) for name in NEEDED.get(routing, ())}
        out = route(inputs, weight, **more, algorithm=routing, kernel=kernel)
        forward = follow.flops
        out.sum().backward()
        return forward, follow.flops


VOTES = 2 * BATCH * INPUTS * IN_DIM * OUTPUTS * DIM


def test_one_evaluation_of_votes():
    assert votes_flops((BATCH, INPUTS, IN_DIM), (INPUTS, IN_DIM, OUTPUTS, DIM)) == VOTES


@pytest.mark.parametrize("routing", ["rba", "sda"])
@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("triton", "cuda"),
        pytest.param("compiled", "cpu", marks=pytest.mark.skipif(not compiled.available(), reason="no compiler")),
    ],
)
def test_opaque_kernels_count_each_evaluation_of_votes(kernel, kind, routing):
    """Three rounds of `rba`; `sda` measures distances in a pass of its own between two. Then votes and two gradients."""
    forward = {"rba": 3, "sda": 5}[routing]
    assert routing_flops(kernel, routing, kind) == (forward * VOTES, (forward + 3) * VOTES)


@pytest.mark.skipif(not compiled.available(), reason="no compiler")
@pytest.mark.parametrize(("routing", "evaluations"), [("rba", 2 + 3), ("sda", 4 + 4)])
def test_a_value_with_its_gradients_counts_each_evaluation_of_votes(routing, evaluations):
    """Two rounds of `rba` (`sda`: and their distances); then votes and two gradients, for which `sda` needs the votes again."""
    with following("cpu", inside=False) as follow:
        inputs, weight = torch.empty(BATCH, INPUTS, IN_DIM), torch.empty(INPUTS, IN_DIM, OUTPUTS, DIM)
        route_and_vjp(inputs, weight, torch.empty(BATCH, OUTPUTS, DIM), algorithm=routing, kernel="compiled")
    assert follow.flops == evaluations * VOTES


def test_the_reference_evaluates_votes_once():
    """Sums and agreements are products of matrices to torch's counter: 3 and 2 of 1/K of the votes, and 1 in backward."""
    one_sum = VOTES // IN_DIM
    forward = VOTES + 5 * one_sum
    assert routing_flops("reference", "rba", "cpu") == (forward, forward + 2 * VOTES + one_sum)


def test_a_plain_step_counts_what_torchs_own_counter_does():
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    step = trace_step(make_configuration("own:make", 1), build=lambda: net)
    with FlopCounterMode(display=False) as counter:
        real = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
        real(torch.rand(4, 1, 28, 28)).sum().backward()
    assert step.flops == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
def test_the_chunked_front_evaluates_its_first_convolution_again(inside):
    batch = CHUNKS["cpu"] + 2
    plain, chunked = (
        trace_step(make_configuration(capsules=4, front=front, batch_size=batch), inside=inside).flops
        for front in ("plain", "chunked")
    )
    assert chunked - plain == 2 * batch * 256 * 20 * 20 * 9 * 9


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_larger_chunks_in_forward_take_no_more_of_a_gpu(dataset, monkeypatch):
    """The peak is in backward, whose chunks are as they were."""
    peaks = []
    for chunks in (1, 2):
        monkeypatch.setitem(FORWARD, "cuda", chunks)
        report = capsbench.predict(
            ["rescapsnet"], depths=[1], gpu="h100", batch_size=128, dataset=dataset, kernel="triton", front="chunked"
        )
        peaks.append(report.frame.iloc[0][["peak_forward_bytes", "peak_backward_bytes", "peak_allocated_bytes"]])
    before, after = peaks
    assert after["peak_forward_bytes"] > before["peak_forward_bytes"], "forward takes as much at a time as before"
    assert after["peak_backward_bytes"] <= before["peak_backward_bytes"]
    assert after["peak_allocated_bytes"] <= before["peak_allocated_bytes"]


# What fits


@pytest.mark.parametrize("room", [*range(100, 400, 37), 99, 0, 1_000])
def test_the_deepest_that_is_traced_fits_and_the_next_does_not(room, monkeypatch):
    pretend_steps(monkeypatch, lambda blocks: 90 + 10 * blocks + blocks**2, room)
    found = largest_fit(make_configuration(), "depth")
    expected = max((blocks for blocks in range(CHECKED[-1]) if 90 + 10 * blocks + blocks**2 <= room), default=0)
    assert found.value == expected
    assert found.bounded
    assert found.traced
    assert "it is full" in found.reason


@pytest.mark.parametrize(
    ("dataset", "room", "reason"),
    [
        ("own", 195, "11 do not: it is full"),
        ("own", None, "no more than 100,000 were looked at"),
        ("sample", 195, "11 do not: it is full"),
    ],
)
def test_the_reason_for_the_largest_batch_names_the_next_one(dataset, room, reason, monkeypatch):
    pretend_steps(monkeypatch, lambda batch: 90 + 10 * batch, room, name="batch_size")
    found = largest_fit(make_configuration(dataset=dataset), "batch")
    assert (found.value, found.bounded) == ((10, True) if room else (100_000, False))
    assert found.reason == reason


@pytest.mark.parametrize("room", [1_000, 1_009, 1_010, 123_456])
def test_depth_beyond_what_is_checked_is_extrapolated_and_looked_at_where_it_can_be(room, monkeypatch):
    asked = pretend_steps(monkeypatch, lambda blocks: 90 + 10 * blocks, room)
    found = largest_fit(make_configuration(), "depth")
    deepest = (room - 90) // 10
    assert (found.value, found.bounded, found.traced) == (deepest, True, deepest < 256)
    assert found.memory_bytes == 90 + 10 * found.value
    # One more was found not to fit; what is extrapolated was not looked at.
    assert max(asked) == (deepest + 1 if found.traced else found.looked_at)
    assert found.looked_at <= DEEPEST_TRACED
    assert "10 bytes" in found.reason


def test_what_was_extrapolated_and_does_not_fit_is_not_said_to(monkeypatch):
    """The allocator wastes more than it was seen to."""
    pretend_steps(monkeypatch, lambda blocks: 90 + 10 * blocks + 300 * (blocks > 64), 1_000)
    found = largest_fit(make_configuration(), "depth")
    assert 90 + 10 * found.value + 300 * (found.value > 64) <= 1_000


def test_a_phase_that_is_not_yet_the_highest_bounds_the_depth(monkeypatch):
    """The peak lies in backward at first, and grows slowly; that of forward grows faster, and is the higher one in the end."""

    def forward(blocks: int) -> int:
        return 100 + 40 * blocks

    def step(blocks: int) -> dict[str, int]:
        return {"peak_allocated_bytes": max(forward(blocks), 2_000 + 10 * blocks), "peak_forward_bytes": forward(blocks)}

    pretend_steps(monkeypatch, step, 100_000)
    found = largest_fit(make_configuration(), "depth")
    assert (found.value, found.traced, found.memory_bytes) == (2_497, False, forward(2_497))
    assert "40 bytes" in found.reason
    pretend_steps(monkeypatch, step, 4_000)
    found = largest_fit(make_configuration(), "depth")
    assert (found.value, found.traced, found.memory_bytes) == (97, True, forward(97))
    # Far below the room all the time.
    pretend_steps(
        monkeypatch,
        lambda blocks: {"peak_allocated_bytes": 8_000 + 10 * blocks, "peak_forward_bytes": forward(blocks)},
        10_000,
    )
    found = largest_fit(make_configuration(), "depth")
    assert (found.value, found.traced, found.memory_bytes) == (200, True, 10_000)


def trained_by(parallel: str | None) -> Configuration:
    """A configuration of one process, or of eight."""
    return make_configuration().model_copy(update={"parallel": parallel, "world_size": 8 if parallel else None})


@pytest.mark.parametrize(("parallel", "looked_at"), [(None, 147), ("fsdp", 32)])
def test_a_peak_that_begins_to_grow_by_what_is_kept_is_extrapolated(parallel, looked_at, monkeypatch):
    """Each block keeps 40 bytes. From 139 blocks on these are forward's highest point, and from 250 on the step's."""

    def step(blocks: int) -> dict[str, int]:
        forward, peak = (max(start + 2 * blocks, 500 + 40 * blocks) for start in (5_800, 10_000))
        return {"peak_allocated_bytes": peak, "peak_forward_bytes": forward, "retained_bytes": 40 * blocks}

    pretend_steps(monkeypatch, step, 100_000)
    found = largest_fit(trained_by(parallel), "depth")
    assert found.looked_at == looked_at
    assert not found.traced
    assert 2_200 < found.value <= 2_487, "never more than fit"
    assert "40 bytes" in found.reason


@pytest.mark.parametrize("exchanged", [0, 100])
def test_what_processes_exchange_becomes_the_highest_point(exchanged, monkeypatch):
    """Each block keeps 40 bytes and exchanges some, of which the step's highest point shows nothing up to 96 blocks."""

    def step(blocks: int) -> dict[str, int]:
        peak = max(10_000 + 2 * blocks, 500 + (40 + exchanged) * blocks)
        return {"peak_allocated_bytes": peak, "retained_bytes": 40 * blocks, "communication_bytes": exchanged * blocks}

    pretend_steps(monkeypatch, step, 10**6)
    found = largest_fit(trained_by("fsdp"), "depth")
    last = (10**6 - 500) // (40 + exchanged)
    assert found.looked_at == 32
    assert 0.98 * last < found.value <= last, "never more than fit"


@pytest.mark.parametrize("parallel", [None, "fsdp"])
@pytest.mark.parametrize("retained", [lambda blocks: 100 * blocks**2, lambda blocks: 10**6 * blocks + 1_000 * blocks**2])
def test_blocks_that_keep_more_and_more_are_not_extrapolated(parallel, retained, monkeypatch):
    """Blocks whose input is all that the blocks before them returned, as in DenseNet, keep so much."""
    pretend_steps(
        monkeypatch,
        lambda blocks: {"peak_allocated_bytes": retained(blocks) + 1_000, "retained_bytes": retained(blocks)},
        10**10,
    )
    found = largest_fit(trained_by(parallel), "depth")
    assert (found.value, found.bounded, found.traced) == (DEEPEST_TRACED, False, True)
    assert "each block adds more than the one before" in found.reason


def test_a_jump_of_reserved_memory_between_few_blocks_is_no_growth(monkeypatch):
    """Reserved memory grows by a segment of 2 MiB for each two blocks, and by a large one between 16 and 32."""
    segment = 2 * 2**20

    def step(blocks: int) -> dict[str, int]:
        peak = blocks * segment // 2
        return {"peak_allocated_bytes": peak, "process_bytes": peak + (10 * segment if blocks > 20 else 0)}

    pretend_steps(monkeypatch, step, 2**37)
    found = largest_fit(trained_by("fsdp"), "depth")
    last = (2**37 - 10 * segment) * 2 // segment
    assert 32 < found.looked_at < 128
    assert 0.7 * last < found.value <= last


def test_depth_that_costs_nothing_ends_at_the_limit(monkeypatch):
    pretend_steps(monkeypatch, lambda _: 90, 1_000)
    found = largest_fit(make_configuration(), "depth")
    assert (found.value, found.bounded) == (DEEPEST, False)


def test_depth_that_costs_more_and_more_is_traced_and_not_extrapolated(monkeypatch):
    pretend_steps(monkeypatch, lambda blocks: blocks**2, 10**9)
    found = largest_fit(make_configuration(), "depth")
    assert (found.value, found.bounded, found.traced) == (DEEPEST_TRACED, False, True)
    assert "each block adds more than the one before" in found.reason


AXES = {
    "length": lambda length: 1_000 + 7 * length + length**2,
    "line": lambda length: 1_000 + 70 * length,
    "flat": lambda length: 1_000,
}


def own_case(**settings: int | float | str) -> Configuration:
    """The configuration of a case with these settings."""
    fields = {"dataset": "own", "settings": settings, "capsules": None, "kernel": None, "batch_size": None}
    return make_configuration("own:make", 0, **fields)


def pretend_lengths(monkeypatch: pytest.MonkeyPatch, kind: str, room: int | None, *, valid: Callable[[int], bool]) -> list[int]:
    """A device on which a step of a length takes what `AXES` says, if the length makes a network."""
    asked: list[int] = []

    def trace(configuration: Configuration, **_: bool) -> int:
        length = dict(configuration.settings)["length"]
        asked.append(length)
        if not valid(length):
            raise ConfigurationError(f"model 'own:make' fails at {length}", "choose another")
        return length

    monkeypatch.setattr(axis_fit, "trace_for", trace)
    monkeypatch.setattr(axis_fit, "predict_memory", lambda _, length: prediction_of(AXES[kind](length), room))
    return asked


@pytest.mark.parametrize("stride", [1, 4, 12])
@pytest.mark.parametrize("start", [12, 48, 1200])
@pytest.mark.parametrize("room", [900, 5_000, 100_000, 3_000_000])
@pytest.mark.parametrize("kind", ["length", "line"])
def test_the_largest_value_of_any_axis(kind, room, start, stride, monkeypatch):
    """Exact up to a hundred steps, within 1 % beyond; of values that make a network, and never one that does not fit."""
    asked = pretend_lengths(monkeypatch, kind, room, valid=lambda length: length % stride == 0)
    found = largest_fit(own_case(length=start, width=3), "length")
    every = [length for length in range(stride, 60_000, stride) if AXES[kind](length) <= room]
    best = every[-1] if every else 0
    step = {1: 1, 4: 4, 12: start}[stride]
    assert found.value <= best
    assert best - found.value < max(step, found.value // 100 + stride)
    assert found.memory_bytes == (AXES[kind](found.value) if found.value else None)
    assert found.bounded
    assert "it is full" in found.reason
    assert (f"because no network can be made with length {start + 1:,}" in found.reason) == (stride > 1)
    assert len(asked) == len(set(asked)) < 50


STEEP_AT_FIRST = {
    "chunks": (lambda size: 400 * min(size, 100) + 2 * size, 5000),
    "pieces": (lambda size: 1000 + 37 * size // 2048 * 2048, 1328),
    "roots": (lambda size: 1000 * size**0.5, 2500),
}


@pytest.mark.parametrize(("growth", "best"), STEEP_AT_FIRST.values(), ids=STEEP_AT_FIRST)
@pytest.mark.parametrize("first", [1, 4])
def test_a_search_takes_few_looks_where_the_first_sizes_add_most(growth, best, first):
    asked = set()

    def at(size: int) -> Prediction:
        asked.add(size)
        return prediction_of(int(growth(size)), 50_000)

    assert neighbours(at, 100_000, first=first, share=0) == (best, best + 1)
    assert len(asked) <= 20


@pytest.mark.parametrize(("start", "room", "best"), [(1, 1_000, 0), (1, 1_100, 1), (3, 1_100, 1), (3, 1_300, 3), (1, 2_000, 13)])
def test_odd_values_are_searched_from_the_smallest(start, room, best, monkeypatch):
    pretend_lengths(monkeypatch, "line", room, valid=lambda length: length % 2 == 1)
    assert largest_fit(own_case(length=start), "length").value == best


@pytest.mark.parametrize(("room", "best"), [(2_000, 8), (20_000, 256), (1_060, 0), (1_080, 1)])
def test_values_that_double_are_searched_by_doubling(room, best, monkeypatch):
    pretend_lengths(monkeypatch, "line", room, valid=lambda length: length.bit_count() == 1)
    found = largest_fit(own_case(length=64), "length")
    assert found.value == best
    assert "only values that double were tried, because no network can be made with length 192" in found.reason
    assert f"{2 * best or 1:,} does not: it is full" in found.reason


def test_values_that_make_no_network_end_an_axis(monkeypatch):
    pretend_lengths(monkeypatch, "line", None, valid=lambda length: length <= 1024)
    found = largest_fit(own_case(length=100), "length")
    assert 1014 <= found.value <= 1024
    assert re.search(r"no network can be made with length 1,\d+: model 'own:make' fails at", found.reason)


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("length", "`fit` length: it changes nothing of the memory of model 'own:make'\nsearch for one that does: length, width"),
        ("tokens", "`fit` tokens: model 'own:make' takes no whole number of this name\nsearch for one of length, width"),
        ("lenght", "of this name\ndid you mean length? If not, search for one of length, width"),
        ("rate", "`fit` rate: model 'own:make' takes no whole number of this name"),
        ("kind", "`fit` kind: model 'own:make' takes no whole number of this name"),
        ("image_size", "`fit` image_size: model 'own:make' takes no whole number of this name"),
    ],
)
def test_axes_that_cannot_be_searched(axis, words, monkeypatch):
    pretend_lengths(monkeypatch, "flat", 2_000, valid=lambda _: True)
    with pytest.raises(ConfigurationError) as raised:
        largest_fit(own_case(length=16, width=8, rate=0.5, kind="mean"), axis)
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2


def test_a_network_that_cannot_be_made_ends_the_search_with_its_error(monkeypatch):
    pretend_lengths(monkeypatch, "line", 2_000, valid=lambda length: length != 16)
    with pytest.raises(ConfigurationError, match="fails at 16"):
        largest_fit(own_case(length=16), "length")


BATCHES = {
    "line": lambda size: 1_000 + 70 * size,
    "steps": lambda size: 1_000 + 7_000 * (size // 100 + 1),
    "chunks": lambda size: 1_000 + 70 * min(size, 64) + 20 * size,
    "square": lambda size: size**2,
}


@pytest.mark.parametrize("room", [1_100, 9_000, 100_000, 2_500_000])
@pytest.mark.parametrize("kind", BATCHES)
def test_the_largest_batch(kind, room, monkeypatch):
    """Exact up to a hundred images, within 1 % beyond; and never one that does not fit."""
    taken = BATCHES[kind]
    asked = pretend_steps(monkeypatch, taken, room, name="batch_size")
    found = largest_fit(make_configuration(dataset="mnist"), "batch")
    fitting = [size for size in range(1, 60_001) if taken(size) <= room]
    best = fitting[-1] if fitting else 0
    assert found.value <= best
    assert best - found.value <= (found.value // 100 if found.value >= 100 else 0)
    assert found.memory_bytes == (taken(found.value) if found.value else None)
    assert len(set(asked)) < 40
    assert len(asked) == len(set(asked))


def test_more_memory_never_fits_less(monkeypatch):
    found = []
    for room in range(1_000, 60_000, 3_100):
        pretend_steps(monkeypatch, BATCHES["line"], room, name="batch_size")
        found.append(largest_fit(make_configuration(dataset="mnist"), "batch").value)
    assert found == sorted(found)


def test_a_batch_ends_with_the_training_set(monkeypatch):
    pretend_steps(monkeypatch, lambda _: 1, None, name="batch_size")
    found = largest_fit(make_configuration(dataset="mnist"), "batch")
    assert (found.value, found.bounded) == (60_000, False)
    assert "60,000" in found.reason


@pytest.mark.slow
def test_a_batch_in_earnest():
    configuration = predicted(capacity=gpu_of("h100").context_bytes + 200 * MIB, front="chunked")
    found = largest_fit(configuration, "batch")
    assert found.bounded
    for size, fits in ((found.value, True), (found.value + max(1, found.value // 100), False)):
        changed = configuration.model_copy(update={"batch_size": size})
        assert predict.predict_memory(changed, predict.trace_for(changed)).fits == fits


AWAY = """
import os, torch
from capsbench import Case

def make(width=4):
    os.chdir("/")
    return Case(torch.nn.Linear(width, width), torch.rand(2, width), loss=torch.Tensor.sum)
"""


def test_a_network_that_goes_to_another_folder_is_found_again(tmp_path, monkeypatch):
    """The path of its file begins in the folder of the command, and the network is made twice."""
    (tmp_path / "goes_away.py").write_text(AWAY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (cell,) = expand(Sweep(("goes_away.py:make",), [1], "cpu", depths_chosen=False))
    record = predict_cell(cell)
    assert (record.status, record.message) == ("ok", None)
