"""Modelled seconds: the work of a step's operators, and the roofline over it."""

import pytest
import torch
from torch import Tensor, nn

from capsbench import Case, estimate
from capsbench.devices import GPUS
from capsbench.options import Configuration
from capsbench.prediction import seconds
from capsbench.prediction.apart import call
from capsbench.prediction.seconds import LAUNCH_SECONDS, DeviceSpeed, calibrated_speed, modelled_seconds, speed_of
from capsbench.tracing.step_trace import TracedStep
from capsbench.tracing.work import Work


def traced(module: nn.Module, *shapes: tuple[int, ...], optimizer=torch.optim.SGD) -> TracedStep:
    """The traced step of a network on a GPU, with the sum of its output as loss."""
    return estimate(Case(module, tuple(torch.rand(shape) for shape in shapes), loss=Tensor.sum, optimizer=optimizer))._step


def test_the_time_of_an_operator_is_the_larger_of_two_and_a_launch():
    speed = DeviceSpeed(flops=1e3, half_flops=1e4, bandwidth=100, launch_seconds=0.5)
    assert speed.seconds([]) == 0
    assert speed.seconds([Work(5000, 100, half=False)]) == 5 + 0.5
    assert speed.seconds([Work(5000, 100, half=True)]) == 1 + 0.5
    assert speed.seconds([Work(0, 300, half=False)] * 2) == 2 * 3.5


def test_the_work_of_a_linear_layer():
    work = traced(nn.Linear(64, 32), (16, 64)).work
    forward, backward, optimizer = work["forward"], work["backward"], work["optimizer"]
    (product,) = [one for one in forward if one.flops]
    assert product == Work(2 * 16 * 64 * 32, 4 * (16 * 64 + 64 * 32 + 32 + 16 * 32), half=False)
    (sum_of_all,) = [one for one in forward if not one.flops]
    assert sum_of_all.nbytes == 4 * (16 * 32 + 1)
    # The gradient of the weight alone; the inputs need none.
    assert [one.flops for one in backward if one.flops] == [2 * 16 * 64 * 32]
    assert sum(one.nbytes for one in optimizer) == 4 * 3 * (64 * 32 + 32), (
        "each parameter is read, with its gradient, and written"
    )


def test_views_and_rows():
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(1000, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.words(x.long()).transpose(0, 1).unsqueeze(0)[0]

    forward = traced(Rows(), (4, 8)).work["forward"]
    nbytes = [one.nbytes for one in forward]
    assert nbytes[:2] == [4 * 8 * (4 + 8), 4 * 8 * (8 + 2 * 64 * 4)], "the cast, and some rows of the table"
    assert len(nbytes) == 3, "views move nothing, and the sum is the last"


def test_half_precision():
    module = nn.Linear(64, 32).bfloat16()
    found = estimate(module, torch.rand(16, 64).bfloat16(), Tensor.sum, torch.optim.SGD)
    assert [one.half for one in found._step.work["forward"] if one.flops] == [True]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_has_seconds_on_a_device(device):
    found = estimate(nn.Linear(512, 512), torch.rand(512, 512), Tensor.sum, device=device)
    modelled = modelled_seconds(found.configuration, found._step.work)
    assert modelled.keys() == {"forward", "backward", "optimizer"}
    assert 1e-6 < sum(modelled.values()) < 10
    if device == "cuda":
        assert modelled["forward"] >= 2 * 512**3 / GPUS["h100"].flops + 2 * LAUNCH_SECONDS


def test_a_cpu_is_calibrated_once_for_each_number_of_threads(monkeypatch):
    measured: list[int] = []

    def measure() -> DeviceSpeed:
        measured.append(torch.get_num_threads())
        return DeviceSpeed(flops=measured[-1], half_flops=2, bandwidth=3, launch_seconds=4)

    monkeypatch.setattr(seconds, "_measured_speed", measure)
    monkeypatch.setenv(seconds._SPEEDS, "{}")
    before = torch.get_num_threads()
    assert [calibrated_speed(count).flops for count in (3, 2, 3, None, 2)] == [3, 2, 3, before, 2]
    assert measured == list(dict.fromkeys([3, 2, before]))
    assert torch.get_num_threads() == before
    configuration = Configuration(model="rescapsnet", blocks=1, dataset="sample", batch_size=2, device="cpu:predicted", threads=3)
    assert modelled_seconds(configuration, {"forward": [Work(6, 0, half=False)]}) == {"forward": 6 / 3 + 4}
    assert len(measured) == len(set(measured))


def test_other_processes_take_the_same_speeds(monkeypatch):
    monkeypatch.setenv(seconds._SPEEDS, "{}")
    here = calibrated_speed(1)
    assert call(calibrated_speed, 1) == here
    assert call(seconds._measured_speed) != here, "another measurement differs"


def test_every_gpu_has_plausible_speeds():
    for gpu in GPUS.values():
        speed = speed_of(gpu)
        assert 2e11 < speed.bandwidth < 1e13, gpu.name
        assert 5e12 < speed.flops < speed.half_flops < 5e15, gpu.name
