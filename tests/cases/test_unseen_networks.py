"""Networks with operators of which torch's shapes know less than a device: predicted to the byte, or refused in two lines."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import capsbench
from capsbench import Case
from capsbench.errors import ConfigurationError
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.tracing.operator_calls import Call
from capsbench.tracing.scratch import scratch_bytes
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


def largest_of_squares():
    """An optimizer that steps all parameters at once, and reads the number of its steps."""
    module = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    return Case(
        module, torch.rand(7, 24), loss=Tensor.sum, optimizer=lambda own: torch.optim.AdamW(own, foreach=True, amsgrad=True)
    )


def hooked():
    """Hooks of gradients that make others, and groups of the optimizer by an attribute that parameters were given."""
    module = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    for parameter in module.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-1, 1))
        parameter.decays = parameter.dim() > 1

    def by_decay(own: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [{"params": [one for one in own if one.decays is decays], "momentum": 0.9 * decays} for decays in (True, False)]
        return torch.optim.SGD(groups, 0.1)

    return Case(module, torch.rand(7, 24), loss=Tensor.sum, optimizer=by_decay)


class Counted(nn.Module):
    """A product with whole numbers, which a CPU first copies into the type of the other factor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        return (self.layer(x) * counts).square().mean()


def counted():
    return Case(Counted(), (torch.rand(8, 16), torch.ones(8, 16, dtype=torch.long)))


def encoded():
    """An input that the loss holds, too."""
    given = torch.rand(7, 24)
    return Case(nn.Linear(24, 24), given, loss=lambda out: F.mse_loss(out, given))


class Spectral(nn.Module):
    """Frequencies that are multiplied by complex weights (a Fourier neural operator)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Conv1d(1, 4, 1), nn.Parameter(torch.randn(4, 4, 3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(self.first(x))
        kept = torch.einsum("bim,iom->bom", found[..., :3], self.weight)
        return torch.fft.irfft(nn.functional.pad(kept, (0, found.shape[-1] - 3)), n=x.shape[-1]).square().mean()


def spectral():
    """Complex parameters, of which torch has no fused Adam."""
    return Case(Spectral(), torch.randn(2, 1, 16))


class Derived(nn.Module):
    """A network whose loss has its derivative along a direction."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        found, along = torch.func.jvp(self.layers, (x,), (torch.ones_like(x),))
        return found.square().mean() + along.square().mean()


def derived():
    return Case(Derived(), torch.rand(4, 24))


class Steps(nn.Module):
    """An equation that is integrated step by step, each step evaluated again in backward, numbers included."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))

    def step(self, y: Tensor, width: float) -> Tensor:
        middle = y + width / 2 * self.field(y)
        return y + width * self.field(middle)

    def forward(self, y: Tensor) -> Tensor:
        for _ in range(4):
            y = checkpoint(self.step, y, 0.25, use_reentrant=False)
        return y.square().mean()


def steps():
    return Case(Steps(), torch.randn(4, 8))


def deformed():
    from torchvision.ops import DeformConv2d

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shifts, self.layer = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, self.shifts(x)).square().mean()

    return Case(Deformed(), torch.rand(2, 3, 16, 16))


def traced_by_script():
    """A part of TorchScript that was traced, which keeps the input that it was traced with."""
    part = torch.jit.trace(nn.Sequential(nn.Linear(24, 24), nn.Tanh()), torch.rand(7, 24))
    return Case(nn.Sequential(nn.Linear(24, 24), part), torch.rand(7, 24), loss=Tensor.sum)


def mean_of_squares():
    return Case(nn.Linear(24, 240), torch.rand(7, 24), loss=nn.MSELoss(), targets=torch.rand(7, 240))


def normalised_sums():
    return Case(nn.Linear(24, 240), torch.rand(7, 24), loss=lambda out: out.logsumexp(-1).sum())


def enlarged():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Upsample(scale_factor=8, mode="bilinear"))
    return Case(module, torch.rand(2, 1, 4, 4), loss=Tensor.sum)


class Counting(nn.Module):
    """A mean over what a mask leaves, which is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x).sum() / mask.sum()


def counting():
    return Case(Counting(), (torch.rand(2, 2), torch.ones(900, dtype=torch.bool)))


def root_mean_squares():
    return Case(nn.RMSNorm(64), torch.rand(7, 64), loss=Tensor.sum)


MAKERS = (
    experts, bags, normed, speech, slow_optimizer, largest_of_squares, hooked, counted, encoded, spectral, derived, steps,
    deformed, traced_by_script, mean_of_squares, normalised_sums, enlarged,
)  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_predicted_bytes_are_those_that_were_measured(make):
    if make is deformed:
        pytest.importorskip("torchvision")
    found = measured(configured(named(make)))
    # At the peak, a CPU's library may have a gradient in another place than that in which it ends.
    assert found.differing().keys() <= {"at_peak"}
    assert (found.traced.notes, found.traced.unsure) == ((), ())
    assert found.predicted.certainty["retained_bytes"] == "exact"


def odds():
    return Case(
        nn.Sequential(nn.Linear(24, 2400), nn.Sigmoid()), torch.rand(70, 24), loss=nn.BCELoss(), targets=torch.rand(70, 2400)
    )


@pytest.mark.parametrize("make", [mean_of_squares, normalised_sums, enlarged, counting, odds], ids=lambda make: make.__name__)
def test_a_peak_of_forward_has_the_buffers_of_losses_and_sums(make):
    found = measured(configured(named(make)))
    assert found.predicted.peak_forward_bytes == found.measured.peak_forward_bytes


@pytest.mark.parametrize(
    "make", [bags, slow_optimizer, normalised_sums, enlarged, counting, root_mean_squares], ids=lambda make: make.__name__
)
def test_a_peak_of_inference_is_that_which_was_measured(make):
    configuration = configured(named(make))
    expected = memory_figures(probed_step(configuration))
    predicted = predict_memory(configuration, trace_for(configuration, inference=True)).memory
    assert predicted.inference_peak_bytes == expected.inference_peak_bytes


def test_what_is_repeated_beyond_memory_is_not_tried():
    """A trial of it would take 64 GiB."""
    call = Call(torch.ops.aten.repeat.default, (torch.empty(64, 64), [2**22, 1]), {})
    assert scratch_bytes(call) is None


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


def test_the_input_that_a_script_was_traced_with_is_alive_in_an_estimate():
    expected = memory_figures(probed_step(configured(named(traced_by_script))))
    found = capsbench.estimate(traced_by_script(), device="cpu")
    assert (found.retained_bytes, found.peak_bytes) == (expected.retained_bytes, expected.peak_allocated_bytes)


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


def without_its_loss():
    return Case(nn.Linear(8, 8), torch.rand(4, 8), targets=torch.rand(4, 8))


def with_the_class_of_a_loss():
    return Case(nn.Linear(8, 8), torch.rand(4, 8), loss=nn.MSELoss, targets=torch.rand(4, 8))


def with_the_class_of_a_network():
    return Case(nn.Identity, torch.rand(4, 8))


@pytest.mark.parametrize(
    ("make", "words", "right"),
    [
        (without_its_loss, "has targets, but no loss", "or leave them out"),
        (with_the_class_of_a_loss, "loss is the class MSELoss", "give loss=MSELoss()"),
        (with_the_class_of_a_network, "module is the class Identity", "Case(module, inputs)"),
        (lambda: capsbench.predict(encoded()), "`models` has Case, not a function", "capsbench.estimate"),
        (lambda: capsbench.predict(nn.Linear(8, 8)), "`models` has Linear, not a function", "capsbench.estimate"),
        (lambda: capsbench.predict([3]), "`models` has int, not a function", "give the function"),
        (lambda: capsbench.predict("mocapsnet", depth=[1, 2]), "takes no argument `depth`", "did you mean depths?"),
        (lambda: capsbench.estimate(nn.Linear(8, 8), torch.rand(4, 8), gpu=3), "`gpu` '3' is not known", "h100"),
    ],
)
def test_wrong_use_in_python_is_said_in_two_lines(make, words, right):
    with pytest.raises(ConfigurationError) as error:
        make()
    what, hint = str(error.value).splitlines()
    assert words in what
    assert right in hint


def with_closure():
    return Case(nn.Linear(8, 8), torch.rand(4, 8), loss=Tensor.sum, optimizer=torch.optim.LBFGS)


def sparse():
    return Case(nn.Linear(8, 8), torch.eye(8).to_sparse(), loss=Tensor.sum)


@pytest.mark.parametrize(
    ("function", "make", "words"),
    [
        (Workload, with_closure, "its optimizer, LBFGS, calls forward and backward itself"),
        (trace_for, with_closure, "its optimizer, LBFGS, calls forward and backward itself"),
        (trace_for, sparse, "whose bytes a trace does not know"),
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


class SecondDerivatives(nn.Module):
    """The second derivatives of a network's output by each sample."""

    def __init__(self, second: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self.second(lambda one: self.layers(one).sum()))(x)


def test_second_derivatives_are_followed_in_reverse_mode_and_refused_in_forward_mode():
    def reverse(function):
        return torch.func.jacrev(torch.func.jacrev(function))

    x = torch.rand(3, 6)
    found = capsbench.estimate(SecondDerivatives(reverse), x, loss=Tensor.mean)
    assert found.certainty["retained_bytes"] == "exact"
    with pytest.raises(ConfigurationError, match=r"no derivatives in forward mode.*\n.*jacrev\(jacrev\(f\)\)"):
        capsbench.estimate(SecondDerivatives(torch.func.hessian), x, loss=Tensor.mean)
