"""What only a CUDA device can show."""

import pytest
import torch
from conftest import MIB, make_configuration

from capsbench import CapsuleLoss, MoCapsNet
from capsbench.measure.cell import measure_cell
from capsbench.measure.memory import CudaProbe
from capsbench.records import Cell, Plan
from capsbench.routing import kernels, route

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def random_routing(batch, inputs, in_dim, outputs, out_dim, dtype):
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(batch, inputs, in_dim, generator=generator, dtype=dtype)
    weight = 0.1 * torch.randn(inputs, in_dim, outputs, out_dim, generator=generator, dtype=dtype)
    return [it.cuda().requires_grad_() for it in (u, weight)]


@pytest.mark.parametrize("shape", [(4, 32, 8, 32, 8), (3, 37, 5, 7, 9), (1, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("kernel", [name for name in kernels() if name != "reference"])
def test_kernels_agree_with_the_reference(kernel, shape):
    found = []
    for name in ("reference", kernel):
        u, weight = random_routing(*shape, torch.float64)
        out = route(u, weight, kernel=name)
        found.append((out, *torch.autograd.grad((out * out.detach().cos()).sum(), (u, weight))))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", ["paper", "published"])
def test_a_reversible_stack_has_the_gradients_of_the_stored_one(rule):
    gradients = []
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)).cuda()
    labels = torch.arange(4).cuda()
    for memory in ("stored", "reversible"):
        torch.manual_seed(0)
        net = MoCapsNet((1, 28, 28), 10, 2, memory=memory, rule=rule).double().cuda()
        CapsuleLoss()(net(images.double(), labels), labels, images.double()).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for stored, reversible in zip(*gradients, strict=True):
        scale = stored.abs().max().item()
        torch.testing.assert_close(reversible, stored, rtol=1e-6, atol=1e-6 * scale)


def test_the_probe_counts_what_is_allocated():
    with CudaProbe(torch.device("cuda")) as probe, probe.phase("step"):
        kept = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        passing = torch.empty(5 * MIB, dtype=torch.uint8, device="cuda")
        del passing
    step = probe.phases()["step"]
    assert step.end - step.start == kept.nbytes
    assert step.peak - step.start == 8 * MIB
    assert probe.peak_reserved() >= step.peak


def measure(model="mocapsnet", blocks=2, **fields):
    cell = Cell(configuration=make_configuration(model, blocks, device="cuda", threads=None, **fields))
    return measure_cell(cell, Plan(command="", cells=[cell]), environment="abcd")


def test_a_cell_has_all_figures():
    record = measure(batch_size=16)
    assert record.status == "ok", record.message
    assert record.memory.probe == "cuda"
    assert record.time.clock == "cuda events"
    # NVML does not say everywhere (containers, some drivers).
    missing = {name for name, value in record.memory if value is None}
    assert missing <= {"process_bytes"}
    assert record.memory.peak_allocated_bytes <= record.memory.peak_reserved_bytes
    if record.memory.process_bytes is not None:
        assert record.memory.process_bytes > record.memory.peak_reserved_bytes
    for samples in (record.time.train_step_seconds, record.time.forward_seconds, record.time.inference_seconds):
        assert len(samples) >= 5
        assert min(samples) > 0


def test_the_same_cell_has_the_same_bytes():
    one, two = (measure(batch_size=16).memory.model_dump(exclude={"process_bytes"}) for _ in range(2))
    assert one == two


def test_a_block_of_mocapsnet_retains_nothing():
    one, three = (measure(blocks=blocks, batch_size=16).memory.retained_bytes for blocks in (1, 3))
    assert one == three


def test_a_published_block_retains_what_the_published_code_does():
    one, two = (measure("rescapsnet", blocks, batch_size=128, kernel="published").memory.retained_bytes for blocks in (1, 2))
    assert (two - one) / MIB == pytest.approx(73.8, rel=0.02)


def test_a_capacity_that_does_not_suffice_is_out_of_memory():
    record = measure("rescapsnet", 1, batch_size=128, kernel="published", capacity=1024 * MIB)
    assert record.status == "oom", record.message
    assert record.memory is None
