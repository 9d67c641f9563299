"""`--memory` of networks that nobody here wrote: layers of their longest list keep less, predicted to the byte."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capsbench import Case
from capsbench.errors import ConfigurationError
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.options import Configuration
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.records import MemoryFigures
from capsbench.reversible import keep_less
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.workload import Workload
from helpers import networks_of_others as others
from helpers.comparing import assert_all_close

FIGURES = ("state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "peak_allocated_bytes", "inference_peak_bytes")
NETWORKS = ("gpt2", "llama", "bert", "t5", "vit", "swin", "timm_vit", "transformer", "deep")
MORE_BLOCKS = 3
OWN = ("deep", "classifier", "bypassing", "with_own")


class Block(nn.Module):
    """A block with dropout and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.drop, self.down = nn.Linear(16, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.drop(torch.relu(self.norm(self.up(x)))))


def deep(blocks=2, batch_size=8):
    module = nn.Sequential(nn.Linear(16, 16), nn.Sequential(*(Block() for _ in range(blocks))))
    return Case(module, torch.rand(batch_size, 16), loss=Tensor.sum)


def classifier(in_shape, num_classes, blocks):
    pixels = in_shape[0] * in_shape[1] * in_shape[2]
    layers = nn.Sequential(*(Block() for _ in range(blocks)))
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), layers, nn.Linear(16, num_classes))


class OwnMethod(Block):
    """A block that its network computes by another method than forward."""

    def run(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Bypassing(nn.Module):
    """A network that calls another method of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OwnMethod() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.run(x)
        return x


def bypassing():
    return Case(Bypassing(), torch.rand(8, 16), loss=Tensor.sum)


def with_own(in_shape, num_classes, blocks, memory="checkpoint"):
    """A classifier that checkpoints its layers by itself unless an argument turns that off."""
    made = classifier(in_shape, num_classes, blocks)
    keep_less(made[2], memory)
    return made


def configured(name: str, memory: str | None, blocks: int = MORE_BLOCKS, device: str = "cpu", **options: Any) -> Configuration:
    """The configuration of a network, with a memory strategy."""
    if name in others.PACKAGES:
        pytest.importorskip(others.PACKAGES[name])
    model = f"{__name__ if name in OWN else others.__name__}:{name}"
    usual = {"threads": 1} if device == "cpu" else {}
    (cell,) = expand(Sweep((model,), [blocks], device, memory=memory, **usual | options))
    return cell.configuration


def figures(configuration: Configuration) -> tuple[MemoryFigures, MemoryFigures]:
    """The measured and the predicted figures."""
    predicted = predict_memory(configuration, trace_for(configuration, inference=True)).memory
    return memory_figures(probed_step(configuration)), predicted


def trained(configuration: Configuration) -> list[Tensor]:
    """Gradients, buffers and the next random number after two steps of a network."""
    load = Workload(configuration)
    load.train_step()
    load.backward(load.forward())
    gradients = [one.grad for one in load.model.parameters()]
    return [*gradients, *(buffer.double() for buffer in load.model.buffers() if buffer.numel()), torch.rand(1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_checkpoints_keep_less_to_the_byte_and_compute_the_same_bits(name):
    stored, plain = configured(name, None), configured(name, "stored")
    assert stored == plain
    checkpoint = configured(name, "checkpoint")
    assert_all_close(trained(checkpoint), trained(stored), relative=0)
    before, (measured, predicted) = memory_figures(probed_step(stored)), figures(checkpoint)
    assert {one: getattr(predicted, one) for one in FIGURES} == {one: getattr(measured, one) for one in FIGURES}
    assert measured.retained_bytes < before.retained_bytes
    assert measured.inference_peak_bytes == before.inference_peak_bytes


def test_a_note_names_the_layers():
    load = Workload(configured("deep", "checkpoint"))
    assert load.notes() == ["memory 'checkpoint' is that of the layers 3 of '1'"]


def test_a_classifier_has_it_too():
    before = memory_figures(probed_step(configured("classifier", None, batch_size=8)))
    measured, predicted = figures(configured("classifier", "checkpoint", batch_size=8))
    assert measured.retained_bytes == predicted.retained_bytes < before.retained_bytes


def test_offloading_keeps_less_on_a_gpu_and_nothing_less_on_a_cpu():
    stored, offloaded = (memory_figures(probed_step(configured("deep", memory))).retained_bytes for memory in (None, "offload"))
    assert stored == offloaded
    gpu = {"device": "cuda:predicted", "gpu": "h100"}
    stored, offloaded = (trace_for(configured("deep", memory, **gpu)).retained_bytes for memory in (None, "offload"))
    assert offloaded < stored


@pytest.mark.parametrize(
    ("memory", "words"), [("reversible", "capsbench.MomentumStack"), ("checkpoint-sqrt", "stored, checkpoint, offload")]
)
def test_other_strategies_are_refused(memory, words):
    with pytest.raises(ConfigurationError) as raised:
        configured("deep", memory)
    assert f"`memory` {memory} " in raised.value.what
    assert words in raised.value.hint


def test_a_network_without_layers_is_refused():
    with pytest.raises(ConfigurationError, match="finds no list of layers in UNet"):
        Workload(configured("unet", "checkpoint", depths_chosen=False))


def test_layers_that_are_not_called_are_refused_after_a_step():
    Workload(configured("bypassing", "stored", depths_chosen=False)).train_step()
    load = Workload(configured("bypassing", "checkpoint", depths_chosen=False))
    with pytest.raises(ConfigurationError, match="no layer OwnMethod is called"):
        load.train_step()


def test_a_classifier_with_an_argument_memory_is_given_every_strategy():
    retained = {
        memory: memory_figures(probed_step(configured("with_own", memory, batch_size=8))).retained_bytes
        for memory in (None, "stored", "checkpoint", "offload")
    }
    assert retained[None] == retained["checkpoint"] < retained["stored"] == retained["offload"]
    assert configured("with_own", "stored").memory == "stored"
    assert configured("with_own", None).memory is configured("classifier", "stored").memory is None
