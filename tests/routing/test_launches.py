"""Launches and waits on CUDA, counted without a device, and the committed table of them."""

import pytest
import torch

from capsbench.cases.configured import classifier_case
from capsbench.cases.factories import build_model
from capsbench.data.preprocess import Batch
from capsbench.tracing import fake_cuda
from capsbench.tracing.fakes import made_fake
from capsbench.tracing.known import Values
from capsbench.workload import Workload
from helpers import ROOT
from helpers.made import make_configuration

pytestmark = pytest.mark.skipif(not fake_cuda.can_follow(), reason=fake_cuda.reason_not_followed())


@pytest.fixture
def launches(monkeypatch):
    """benchmarks/launches.py."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import launches

    return launches


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x: x + 1, 1),
        (lambda x: x.add_(1), 1),
        (lambda x: x.zero_(), 1),
        (lambda x: torch.zeros_like(x), 1),
        (lambda x: (x * 2).sum(0).clone(), 3),
        (lambda x: torch.nn.functional.linear(x, x), 1),
        (lambda x: x.to(torch.float64), 1),
        (lambda x: x.to("cpu"), 1),
        (lambda x: x.view(12), 0),
        (lambda x: x.mT.flatten(0).detach()[:0], 1),
        (lambda x: x.reshape(12).unflatten(0, (4, 3)), 0),
        (lambda x: x.contiguous().to(x.device), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: torch.ones(3), 0),
    ],
)
def test_a_launch_is_an_operator_that_computes_on_the_device(launches, run, expected):
    with launches.counting() as counts:
        x = torch.empty(3, 4, device="cuda")
        run(x)
    assert counts.launches.total() == expected, counts.launches


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.to("cpu"), 1),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: torch.empty(4).copy_(x), 1),
        (lambda x: torch.empty(4).copy_(x, True), 0),
        (lambda x: x.to("cpu").sum().item(), 1),
        (lambda x: bool(x.isnan().any()), 1),
        (lambda x: x + 1, 0),
        (lambda x: torch.ones(3).sum().item(), 0),
    ],
)
def test_a_wait_is_a_read_from_the_device(launches, run, expected):
    with launches.counting() as counts:
        x = torch.empty(4, device="cuda")
        run(x)
    assert counts.waits == expected


@pytest.mark.parametrize(("layer", "forward", "backward"), [("block", 1, [2, 3, 3]), ("first", 6, [2, 8, 4])])
def test_launches_of_a_layer(launches, layer, forward, backward):
    """Three rounds of RBA."""
    found = [launches.of_layer(layer, "rba", way) for way in ("stored", "reversible", "kept")]
    assert [way.forward for way in found] == [forward] * 3
    assert [way.backward for way in found] == backward
    assert not any(way.forward_waits or way.backward_waits for way in found)


@pytest.mark.parametrize(("layer", "forward", "backward"), [("block", 10, [3, 13, 5]), ("first", 10, [3, 13, 5])])
def test_launches_of_a_layer_with_distances(launches, layer, forward, backward):
    """Three rounds of SDA: two kernels for each, and two for each temperature between them."""
    found = [launches.of_layer(layer, "sda", way) for way in ("stored", "reversible", "kept")]
    assert [way.forward for way in found] == [forward] * 3
    assert [way.backward for way in found] == backward
    assert not any(way.forward_waits or way.backward_waits for way in found)


@pytest.mark.parametrize("inverse", ["float", "segmented"])
@pytest.mark.parametrize("rule", ["", ", published rule"])
def test_no_check_of_the_drift_waits(launches, inverse, rule, monkeypatch):
    """The published rule has a stack, and with it a check, in every block."""
    started = []
    monkeypatch.setattr(launches.drift._Unsettled, "start", lambda *given: started.append(given))
    monkeypatch.setattr(launches.drift, "settle", lambda **_: None)
    found = launches.of_stack(f"MoCapsNet, {inverse}{rule}", 2)
    assert (found.forward_waits, found.backward_waits) == (0, 0)
    # `segmented` has nothing to check in so short a stack but the v at its start.
    assert bool(started) or inverse == "segmented"


def test_a_check_that_is_awaited_is_counted(launches, monkeypatch):
    monkeypatch.setattr(launches.drift, "_is_awaited", lambda _: False)
    assert launches.of_stack("MoCapsNet, float", 2).backward_waits == 1
    assert launches.of_stack("MoCapsNet, float, published rule", 2).backward_waits == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5)),
        lambda: torch.nn.BatchNorm1d(8),
        lambda: torch.nn.BatchNorm1d(8).eval(),
    ],
)
def test_functions_with_draws_or_buffers_do_not_wait(launches, function):
    found = launches.of_functions([function() for _ in range(4)])
    assert found.forward > 0
    assert (found.forward_waits, found.backward_waits) == (0, 0)


@pytest.mark.slow
def test_the_table_is_counted_anew(launches):
    assert launches.TABLE.read_text(encoding="utf-8") == "\n".join(launches.tables()) + "\n", "write the table anew"


@pytest.mark.parametrize("optimizer_step", [None, "backward"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_step_that_is_measured_waits_for_nothing(launches, precision, optimizer_step):
    """Loss, scaler, optimizer and the batch, around a network that waits for nothing itself."""
    if (precision, optimizer_step) == ("fp16", "backward"):
        pytest.skip("refused: the scaler needs all gradients")
    asked = make_configuration(device="cuda", precision=precision, kernel="triton", optimizer_step=optimizer_step, threads=None)
    with launches.counting() as counts:
        images, pixels = (torch.empty(4, 1, 28, 28, device="cuda") for _ in range(2))
        batch = Batch(images, torch.empty(4, dtype=torch.int64, device="cuda"), pixels)
        model = made_fake(build_model(asked), launches.DEVICE, Values())
        workload = Workload(asked, case=classifier_case(asked, model, batch))
        workload.train_step()
        counts.waits = 0
        workload.train_step()
        with workload.evaluating():
            workload.inference()
        assert counts.waits == 0
        # A wait would be counted.
        images.sum().item()
        assert counts.waits == 1
