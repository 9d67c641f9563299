"""Networks with operators of which torch's shapes know less than a device: predicted to the byte, or refused in two lines."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

import capsbench
from capsbench import Case
from capsbench.errors import ConfigurationError
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.workload import Workload
from helpers.measured import configured, measured


def named(make: Any) -> str:
    return f"{__name__}:{make.__name__}"


class Experts(nn.Module):
    """Experts whose tokens are multiplied by one operator, as in Hugging Face's mixtures."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([4, 4, 10], dtype=torch.int32, device=x.device)
        return torch._grouped_mm(x, self.weight, offs=ends).square().mean()


def experts():
    return Case(Experts(), torch.rand(10, 16))


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.EmbeddingBag(50, 16, mode="mean"), nn.Linear(16, 3)

    def forward(self, words: Tensor, starts: Tensor) -> Tensor:
        return self.last(self.words(words, starts)).square().mean()


def bags():
    return Case(Bags(), (torch.randint(50, (20,)), torch.arange(4) * 5))


def normed():
    """Statistics of batches, whose backward pass is the highest point of a step and sums in buffers of its own."""
    module = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    return Case(module, torch.rand(4, 3, 12, 12), loss=Tensor.sum)


def speech():
    """Lengths that the loss makes itself, and shorter labels than there is room for."""
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10), nn.LogSoftmax(-1))

    def loss(out: Tensor, labels: Tensor) -> Tensor:
        return F.ctc_loss(out.transpose(0, 1), labels, torch.full((3,), 20), torch.tensor([5, 3, 4]))

    return Case(module, torch.randn(3, 20, 8), loss=loss, targets=torch.randint(1, 10, (3, 6)))


def slow_optimizer():
    """An optimizer that multiplies by Python's numbers, each of which is a tensor for a moment."""
    module = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    return Case(module, torch.rand(7, 24), loss=Tensor.sum, optimizer=lambda own: torch.optim.AdamW(own, fused=False))


def deformed():
    from torchvision.ops import DeformConv2d

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shifts, self.layer = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, self.shifts(x)).square().mean()

    return Case(Deformed(), torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("make", [experts, bags, normed, speech, slow_optimizer, deformed], ids=lambda make: make.__name__)
def test_predicted_bytes_are_those_that_were_measured(make):
    if make is deformed:
        pytest.importorskip("torchvision")
    found = measured(configured(named(make)))
    # At the peak, a CPU's library may have a gradient in another place than that in which it ends.
    assert found.differing().keys() <= {"at_peak"}
    assert (found.traced.notes, found.traced.unsure) == ((), ())
    assert found.predicted.certainty["retained_bytes"] == "exact"


@pytest.mark.parametrize("make", [bags, slow_optimizer], ids=lambda make: make.__name__)
def test_a_peak_of_inference_is_that_which_was_measured(make):
    configuration = configured(named(make))
    expected = memory_figures(probed_step(configuration))
    predicted = predict_memory(configuration, trace_for(configuration, inference=True)).memory
    assert predicted.inference_peak_bytes == expected.inference_peak_bytes


def margins():
    return Case(nn.Linear(24, 3), torch.rand(7, 24), loss=nn.MultiMarginLoss(), targets=torch.randint(3, (7,)))


@pytest.mark.parametrize("make", [margins, experts, speech], ids=lambda make: make.__name__)
def test_an_operator_without_a_form_for_cuda_is_counted_as_on_a_cpu_and_said_to_be(make):
    found = capsbench.estimate(make(), gpu="a100")
    assert found.retained_bytes > 0
    assert any("counted as on a CPU" in note for note in found.notes)
    assert found.certainty["retained_bytes"] == found.certainty["peak_bytes"] == "guessed"


def test_lazy_statistics_of_a_live_network_are_made():
    module = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    lazy = capsbench.estimate(module, torch.rand(4, 3, 12, 12), loss=Tensor.sum, device="cpu")
    assert isinstance(module[1].running_mean, nn.UninitializedBuffer)
    sized = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(800, 3))
    usual = capsbench.estimate(sized, torch.rand(4, 3, 12, 12), loss=Tensor.sum, device="cpu")
    for name in ("retained_bytes", "peak_bytes", "state_bytes", "optimizer_bytes"):
        assert getattr(lazy, name) == getattr(usual, name)


class Ensemble(nn.Module):
    """Networks that are evaluated together, by the code of one whose own weights have no memory."""

    def __init__(self) -> None:
        super().__init__()
        networks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
        self.code = [copy.deepcopy(networks[0]).to("meta")]
        self.weights = nn.ParameterList(stack_module_state(networks)[0].values())

    def forward(self, x: Tensor) -> Tensor:
        names = dict(self.code[0].named_parameters())
        return torch.vmap(lambda *own: functional_call(self.code[0], dict(zip(names, own, strict=True)), (x,)))(*self.weights)


def ensemble():
    return Case(Ensemble(), torch.rand(4, 8), loss=Tensor.mean)


def test_weights_on_meta_beside_others_take_no_memory_in_an_estimate():
    expected = memory_figures(probed_step(configured(named(ensemble))))
    found = capsbench.estimate(ensemble(), device="cpu")
    assert (found.retained_bytes, found.peak_bytes) == (expected.retained_bytes, expected.peak_allocated_bytes)
    # All weights of a network that lies there have memory in the step that is estimated.
    meta = capsbench.estimate(nn.Linear(8, 8, device="meta"), torch.rand(4, 8), loss=Tensor.sum, device="cpu")
    assert meta.state_bytes == 4 * (8 * 8 + 8)


def with_closure():
    return Case(nn.Linear(8, 8), torch.rand(4, 8), loss=Tensor.sum, optimizer=torch.optim.LBFGS)


def sparse():
    module = nn.Sequential(nn.Embedding(50, 16, sparse=True), nn.Flatten(), nn.Linear(48, 1))
    return Case(module, torch.randint(50, (4, 3)), loss=Tensor.sum, optimizer=lambda own: torch.optim.SGD(own, 0.1))


@pytest.mark.parametrize(
    ("function", "make", "words"),
    [
        (Workload, with_closure, "its optimizer, LBFGS, calls forward and backward itself"),
        (trace_for, with_closure, "its optimizer, LBFGS, calls forward and backward itself"),
        (trace_for, sparse, "there is a tensor of a sparse kind, whose bytes a trace does not know"),
    ],
)
def test_what_cannot_be_done_is_said_in_two_lines(function, make, words):
    with pytest.raises(ConfigurationError) as error:
        function(configured(named(make)))
    what, hint = str(error.value).splitlines()
    assert words in what
    assert hint


# Wrong use


def with_a_graph():
    given = torch.rand(4, 8, requires_grad=True)
    return Case(nn.Linear(8, 8), 2 * given, loss=Tensor.sum)


def without_a_loss():
    return Case(nn.Linear(8, 8), torch.rand(4, 8))


@pytest.mark.parametrize("function", [Workload, trace_for])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_a_graph, "inputs have a tensor of shape [4, 8] that was computed from another one that needs a gradient"),
        (without_a_loss, "its output is a tensor of shape [4, 8], which is not a loss"),
    ],
)
def test_inputs_and_outputs_that_make_no_step_are_named(function, make, words):
    def step(configuration: Any) -> None:
        found = function(configuration)
        if isinstance(found, Workload):
            found.train_step()

    with pytest.raises(ConfigurationError) as error:
        step(configured(named(make)))
    what, hint = str(error.value).splitlines()
    assert words in what
    assert hint


def needs_an_argument(width):
    return Case(nn.Linear(width, 8), torch.rand(4, width), loss=Tensor.sum)


def takes_anything(*args, **options):
    return Case(nn.Linear(8, 8), torch.rand(4, 8), loss=Tensor.sum)


def widths(sizes=(8, 8)):
    return Case(nn.Linear(*sizes), torch.rand(4, sizes[0]), loss=Tensor.sum)


def test_a_function_of_other_arguments_is_refused_before_anything_is_measured():
    with pytest.raises(ConfigurationError) as error:
        configured(named(needs_an_argument))
    what, hint = str(error.value).splitlines()
    assert "takes (width), which is neither a classifier's nor a case's" in what
    assert "all with defaults" in hint


def test_a_case_of_the_arguments_of_a_classifier_says_so():
    with pytest.raises(ConfigurationError, match="returned a Case, but takes the arguments of a classifier"):
        Workload(configured(named(takes_anything), batch_size=2))


def test_a_case_may_have_a_tuple_as_its_first_default():
    assert trace_for(configured(named(widths))).state_bytes == 4 * (8 * 8 + 8)
    with pytest.raises(ConfigurationError, match="cannot be set"):
        configured(named(widths), settings={"sizes": 8})


def test_an_estimate_of_inputs_that_do_not_fit_prints_nothing(capfd):
    with pytest.raises(ConfigurationError, match="fails in a step"):
        capsbench.estimate(nn.Linear(8, 8), torch.rand(4, 9), loss=Tensor.sum)
    assert capfd.readouterr() == ("", "")
