"""Functions of other packages that build a network for images: which are recognised, how they are called, and wrong use."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capsbench.cases.builders import Builder, builder_of
from capsbench.cases.factories import build_model
from capsbench.errors import ConfigurationError
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.options import Configuration
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.sweep.asked import Sweep
from capsbench.sweep.checks import checked_facts
from capsbench.sweep.plan import expand
from capsbench.workload import Workload

pytestmark = pytest.mark.usefixtures("warm")

WARM = ("torchvision.models", "timm")
HERE = __name__
EXACT = ("state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "inference_kept_bytes")
Heads = namedtuple("Heads", ["scores", "aux", "more"])


def configured(name: str, **fields: Any) -> Configuration:
    """The configuration of a function that builds a network, as a sweep makes it for one thread."""
    settings = fields.pop("settings", None)
    usual = {"threads": 1, "batch_size": 2, "image_shape": "3x32x32", "classes": 7}
    (cell,) = expand(Sweep((name,), [1], "cpu", depths_chosen=False, settings=settings, **usual | fields))
    return cell.configuration


class Plain(nn.Module):
    """A network that pools images to class scores."""

    def __init__(self, num_classes: int = 10, channels: int = 3, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.layer = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Any:
        scores = self.layer(images.mean((2, 3)))
        if self.heads == 1 or not self.training:
            return scores
        return Heads(scores, 2 * scores, None)


def named(num_classes: int = 3) -> Plain:
    return Plain(num_classes)


def handing_on(**kwargs: Any) -> nn.Module:
    return Plain(**kwargs)


def without_classes(**kwargs: Any) -> nn.Module:
    if "num_classes" in kwargs:
        raise TypeError("Other.__init__() got an unexpected keyword argument 'num_classes'")
    return Plain(7, **kwargs)


def in_words() -> "nn.Module":
    return Plain()


def of_a_name(model_name: str, width: int = 3) -> nn.Module:
    assert model_name == "plain"
    return Plain(7, width)


def of_unknown_annotations(num_classes: "Nowhere" = 3) -> Plain:  # noqa: F821
    return Plain(num_classes)


def says_nothing(num_classes=3):
    return Plain(num_classes)


def of_a_shape(shape=(1, 28, 28), classes=10) -> nn.Module:
    return Plain(classes)


def of_three(shape, classes: int, depth: int) -> nn.Module:
    return Plain(classes)


def classifier(in_shape=(1, 28, 28), num_classes: int = 10, blocks: int = 1) -> nn.Module:
    return Plain(num_classes)


def of_any(*args: Any) -> nn.Module:
    return Plain(*args)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (Plain, Builder(("num_classes", "channels", "heads"), (), False)),
        (named, Builder(("num_classes",), (), False)),
        (handing_on, Builder((), (), True)),
        (in_words, Builder((), (), False)),
        (of_a_name, Builder(("model_name", "width"), ("model_name",), False)),
        (nn.Linear, Builder(("in_features", "out_features", "bias", "device", "dtype"), ("in_features", "out_features"), False)),
        (says_nothing, None),
        (of_a_shape, None),
        (of_three, None),
        (classifier, None),
        (of_any, None),
        (configured, None),
        (dict, None),
        (nn.Sequential, None),
    ],
)
def test_functions_that_build_networks_are_told_from_others(factory, expected):
    assert builder_of(factory) == expected


@pytest.mark.parametrize(
    ("name", "settings", "features"),
    [
        ("Plain", None, (7, 3)),
        ("named", None, (7, 3)),
        ("named", {"num_classes": 7}, (7, 3)),
        ("handing_on", {"channels": 3}, (7, 3)),
        ("without_classes", None, (7, 3)),
        ("of_a_name", {"model_name": "plain"}, (7, 3)),
        ("of_unknown_annotations", None, (7, 3)),
    ],
)
def test_they_are_called_with_what_they_take(name, settings, features):
    made = build_model(configured(f"{HERE}:{name}", settings=settings))
    assert (made.layer.out_features, made.layer.in_features) == features


def test_settings_multiply_a_sweep_and_are_in_the_record():
    settings = {"heads": [1, 2], "num_classes": 10}
    cells = expand(Sweep((f"{HERE}:Plain",), [1], "cpu", depths_chosen=False, image_shape="3x8x8", settings=settings))
    assert [dict(cell.configuration.settings) for cell in cells] == [
        {"heads": 1, "num_classes": 10}, {"heads": 2, "num_classes": 10}
    ]  # fmt: skip
    assert {(cell.configuration.dataset, cell.configuration.batch_size) for cell in cells} == {("sample", 128)}
    (plain,) = expand(Sweep((f"{HERE}:Plain",), [1], "cpu", depths_chosen=False, image_shape="3x8x8"))
    assert plain.configuration.settings is None
    assert plain.source is not None


def test_the_loss_is_the_cross_entropy_of_every_head():
    load = Workload(configured(f"{HERE}:Plain", settings={"heads": 2}))
    loss = load.forward()
    scores, labels = load.model(load.case.inputs)[:2], load.case.targets[1]
    expected = sum(nn.functional.cross_entropy(one, labels, reduction="sum") for one in scores)
    assert loss.item() == pytest.approx(expected.item())


REFUSED = {
    "no such setting": ("Plain", {"width": 3}, {}, ["takes no width", "num_classes, channels, heads"]),
    "no such setting further on": ("handing_on", {"width": 3}, {}, ["takes no width"]),
    "a setting that is missing": ("of_a_name", {}, {}, ["needs model_name", "--set"]),
    "other images": ("Plain", {}, {"shape": "1x28x28"}, ["fails on images of shape 1x28x28", "--shape", "capsbench.Case"]),
    "other classes": ("Plain", {"num_classes": 5}, {}, ["returned a tensor of shape [2, 5]", "[2, 7]"]),
    "no class scores": ("Pixels", {}, {}, ["returned a tensor of shape [2, 3, 32, 32]", "capsbench.Case"]),
    "a function that says nothing": ("says_nothing", {}, None, ["returned Plain", "-> torch.nn.Module"]),
}


class Pixels(nn.Module):
    """A network whose output is another image."""

    def __init__(self, num_classes: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["run", "predict"])
@pytest.mark.parametrize(("name", "settings", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_wrong_use_is_two_clear_lines(capsbench, verb, name, settings, options, words):
    usual = {} if options is None else {"shape": "3x32x32", "classes": 7, "batch_size": 2} | options
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in usual.items()]
    flags += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    # By its file, which processes of a measurement can import.
    found = capsbench(verb, "--models", f"{__file__}:{name}", *flags, "--device", "cpu")
    assert found.status != 0
    text = " ".join((found.stdout + found.stderr).split())
    for word in words:
        assert word in text, text


class OfBlocks(nn.Module):
    def __init__(self, blocks: int = 2, width: int = 8) -> None:
        super().__init__()


def test_blocks_of_a_network_for_images_are_no_axis():
    sweep = Sweep((f"{__name__}:OfBlocks",), [1], "cpu", depths_chosen=False, vary={"blocks": (1, 2)})
    with pytest.raises(ConfigurationError, match=r"OfBlocks' builds a network for images, of which blocks is no axis\n.*Case"):
        checked_facts(sweep)


# Networks of torchvision and timm

OF_TORCHVISION = {
    "resnet18": {}, "resnet50": {"width_per_group": 16}, "squeezenet1_1": {}, "densenet121": {}, "googlenet": {"size": 64},
    "mobilenet_v2": {}, "mobilenet_v3_small": {}, "shufflenet_v2_x0_5": {}, "efficientnet_b0": {}, "regnet_y_400mf": {},
    "swin_t": {}, "mnasnet0_5": {},
}  # fmt: skip
"""Networks of torchvision, each with its settings and the side of its images."""
OF_TIMM = {
    "timm.models:resnet18": {}, "timm.models:convnext_atto": {}, "timm.models:vit_tiny_patch16_224": {"img_size": 32},
    "timm:create_model": {"model_name": "mobilenetv3_small_050"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"), [*((f"torchvision.models:{name}", given) for name, given in OF_TORCHVISION.items()), *OF_TIMM.items()]
)
def test_networks_of_others_are_measured_and_predicted_as_they_are(name, settings):
    pytest.importorskip(name.partition(".")[0].partition(":")[0])
    given = dict(settings)
    side = given.pop("size", 32)
    configuration = configured(name, settings=given, image_shape=f"3x{side}x{side}")
    measured = memory_figures(probed_step(configuration))
    predicted = predict_memory(configuration, trace_for(configuration, inference=True)).memory
    assert {one: getattr(predicted, one) for one in EXACT} == {one: getattr(measured, one) for one in EXACT}
    assert measured.inference_kept_bytes == 2 * 7 * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["detection:ssdlite320_mobilenet_v3_large", "segmentation:lraspp_mobilenet_v3_large", "optical_flow:raft_small"]
)
def test_networks_that_take_more_than_images_point_to_a_case(name):
    pytest.importorskip("torchvision")
    with pytest.raises(ConfigurationError, match=r"capsbench\.Case"):
        Workload(configured(f"torchvision.models.{name}", image_shape="3x64x64")).forward()
