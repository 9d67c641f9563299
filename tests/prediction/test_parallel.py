"""Steps of several processes, predicted as one of them takes it: parts of a network, bytes by their number, what is refused."""

import contextlib
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp._fully_shard import _fsdp_common

from capsbench.errors import ConfigurationError
from capsbench.models import CapsNet, MoCapsNet
from capsbench.parallel import check_parallel, parts_of
from capsbench.prediction.predict import predict_memory, predicted_here, trace_for
from capsbench.records import Cell, Configuration, MemoryFigures
from capsbench.reversible import MomentumStack
from capsbench.sweep.plan import Sweep, expand
from capsbench.tracing import fake_group
from capsbench.tracing.step_trace import trace_step
from capsbench.tracing.trace import CATEGORIES
from capsbench.workload import Workload
from helpers import ranks
from helpers.measured import configured
from helpers.ranks import Encoder, configuration_of


def predicted(name: str, parallel: str, count: int) -> MemoryFigures:
    """The figures of the first of several processes."""
    configuration = configuration_of(name, parallel, count)
    return predict_memory(configuration, trace_for(configuration)).memory


# Parts


def test_the_members_of_the_longest_list_are_parts():
    network = Encoder(3, 8, 16)
    assert parts_of(network) == [[layer] for layer in network.layers]


def test_a_block_whose_layers_are_called_one_by_one_is_one_part():
    network = CapsNet((1, 28, 28), 10, 2, capsules=4)
    assert parts_of(network) == [list(block) for block in network.blocks.blocks]


def test_a_reversible_stack_is_one_part_and_a_stored_one_has_parts():
    reversible, stored = (MoCapsNet((1, 28, 28), 10, 2, capsules=4, memory=memory) for memory in ("reversible", "stored"))
    assert parts_of(reversible) == [[reversible.blocks]]
    assert parts_of(stored) == [[layer] for layer in stored.blocks.functions]


def test_a_network_that_is_a_reversible_stack_has_no_parts():
    assert parts_of(MomentumStack([nn.Linear(4, 4) for _ in range(3)])) == []


def test_a_layer_that_shares_a_parameter_belongs_to_the_rest():
    network = Encoder(3, 8, 16)
    network.layers[1].linear1.bias = network.layers[2].linear1.bias
    assert parts_of(network) == [[network.layers[0]]]
    network.layers[0].norm1.weight = network.norm.weight
    assert parts_of(network) == []


def test_layers_without_parameters_are_no_parts():
    assert parts_of(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.ReLU(), nn.ReLU()]))) == []


# Bytes


def own_bytes(shape: tuple[int, ...], count: int) -> int:
    """Bytes of the first process's part of a parameter, which all processes hold as many of."""
    return 4 * math.ceil(shape[0] / count) * math.prod(shape[1:])


@pytest.mark.parametrize("count", [1, 3, 64])
def test_fsdp_holds_a_part_of_every_parameter_gradient_and_state(count):
    memory = predicted("encoder", "fsdp", count)
    network = Encoder(2, 64, 193)
    parameters = sum(own_bytes(tuple(one.shape), count) for one in network.parameters())
    buffers = sum(one.nbytes for one in network.buffers())
    assert memory.state_bytes == parameters + buffers
    assert memory.gradient_bytes == parameters
    # Adam's two moments, and the number of its steps for each parameter.
    assert memory.optimizer_bytes == 2 * parameters + 4 * len(list(network.parameters()))


def test_ddp_holds_everything_and_buckets_of_all_gradients():
    alone, memory = (predicted("encoder", parallel, 4) for parallel in ("none", "ddp"))
    for name in ("state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes"):
        assert getattr(memory, name) == getattr(alone, name)
    assert alone.at_peak.communication_bytes is None
    assert memory.at_peak.communication_bytes >= memory.gradient_bytes
    assert memory.at_peak.total() == memory.peak_allocated_bytes


def test_what_a_process_of_fsdp_holds_falls_with_their_number():
    two, many = (predicted("encoder", "fsdp", count) for count in (2, 32))
    assert many.state_bytes < two.state_bytes / 4
    # Whole parameters of the rest are alive when backward begins, however many processes there are, each made up to a multiple.
    assert two.retained_bytes <= many.retained_bytes < 1.2 * two.retained_bytes
    assert many.at_peak.communication_bytes > 0


def test_gathered_parameters_and_buffers_are_a_category_of_their_own():
    step = trace_step(configuration_of("encoder", "fsdp", 2))
    assert set(step.trace.stacked()) == {*CATEGORIES, "communication"}
    assert step.trace.stacked()["communication"].max() > 0
    assert sum(step.retained_by_module.values()) == step.retained_bytes
    alone = trace_step(configuration_of("encoder", "none", 2))
    assert tuple(alone.trace.stacked()) == CATEGORIES


def test_a_record_says_whose_bytes_it_has():
    record = predicted_here(
        Cell(configuration=configuration_of("encoder", "fsdp", 8).model_copy(update={"device": "cpu:predicted"}))
    )
    assert record.status == "ok"
    assert "bytes are those of the first of 8 processes, each with a whole batch" in record.notes
    assert record.step.floor_bytes > record.memory.state_bytes


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_step_for_a_gpu(parallel):
    configuration = configured("helpers.ranks:layers", parallel=parallel, world_size=8)
    on_gpu = configuration.model_copy(update={"device": "cuda:predicted", "gpu": "h100", "threads": None})
    memory, on_cpu = (predict_memory(one, trace_for(one)).memory for one in (on_gpu, configuration))
    assert (memory.state_bytes, memory.gradient_bytes) == (on_cpu.state_bytes, on_cpu.gradient_bytes)
    assert memory.certainty["state_bytes"] == "exact"
    assert memory.certainty["peak_reserved_bytes"] == ("guessed" if parallel == "fsdp" else "modelled")


@pytest.mark.parametrize(
    ("shape", "count", "dim"), [((7, 3), 4, 0), ((1, 5), 8, 0), ((8, 2), 2, 0), ((3, 6), 4, 1), ((5,), 1, 0), ((2,), 9, 0)]
)
def test_the_first_part_is_cut_as_fsdp_cuts_it(shape, count, dim):
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    cut, own = _fsdp_common._chunk_with_empty(tensor, count, dim), fake_group._first_of_parts(tensor, count, dim)
    assert len(own) == len(cut) == count
    assert torch.equal(own[0], cut[0])
    assert own[0].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("count", [3, 64])
def test_cutting_one_part_alone_changes_no_figure(count, monkeypatch):
    own = predicted("mocapsnet", "fsdp", count)
    monkeypatch.setattr(fake_group, "_own_parts_alone", contextlib.nullcontext)
    assert predicted("mocapsnet", "fsdp", count) == own


def test_a_trace_of_many_processes_follows_no_parts_of_the_others():
    """The operators that are followed do not become more with the number of processes."""
    made = [trace_step(configuration_of("encoder", "fsdp", count), by_module=False).trace.blocks.max() for count in (64, 4096)]
    assert made[1] < 1.1 * made[0]


def test_a_trace_leaves_no_group_behind():
    trace_step(configuration_of("encoder", "fsdp", 2))
    assert not dist.is_initialized()


# Refusals


def expanded(**options: object) -> list[Configuration]:
    return [cell.configuration for cell in expand(Sweep((ranks.OWN,), [1], "cpu", depths_chosen=False, threads=1, **options))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": "fsdp"}, "`parallel` fsdp needs the number of processes\ngive `world_size`"),
        ({"world_size": 4}, "`world_size` 4 has no effect on one process\ngive `parallel`"),
        ({"parallel": "ddp", "world_size": 0}, "`world_size` 0 is too small\ngive 1 or more"),
        ({"parallel": "zero", "world_size": 2}, "`parallel` 'zero' is not known\n"),
        ({"parallel": "ddp", "world_size": 2, "optimizer_step": "backward"}, "`optimizer_step` backward is not possible with"),
        ({"parallel": "fsdp", "world_size": 2, "compile": "default"}, "`compile` default is not possible with `parallel` fsdp: "),
        ({"parallel": "fsdp", "world_size": 2, "precision": "fp16"}, "`precision` fp16 is not possible with `parallel` fsdp: "),
    ],
)
def test_what_makes_no_step_is_refused(options, message):
    with pytest.raises(ConfigurationError) as refused:
        expanded(**options)
    assert str(refused.value).startswith(message)


def test_one_process_is_a_cell_beside_several():
    cells = expanded(parallel=["none", "ddp", "fsdp"], world_size=[2, 4])
    found = {(it.parallel, it.world_size) for it in cells}
    assert found == {(None, None), ("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4)}
    assert len(cells) == len(found)


def test_the_number_of_processes_is_an_axis():
    cells = expanded(parallel="fsdp", vary={"world-size": "1,2,4"})
    assert [it.position("world_size") for it in cells] == [1, 2, 4]
    assert len({it.series("world_size") for it in cells}) == 1


def test_nothing_is_checked_of_one_process():
    check_parallel(None, None, optimizer_step="backward", compilation="default", precision="fp16")


def test_a_step_outside_a_group_is_refused():
    with pytest.raises(ConfigurationError, match="needs a group of 2 processes, and this process is in none"):
        Workload(configuration_of("encoder", "ddp", 2))


def test_a_prediction_inside_a_group_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with pytest.raises(ConfigurationError, match="this process is in one already"):
            trace_step(configuration_of("encoder", "fsdp", 2))
    finally:
        dist.destroy_process_group()
