"""Axes of a sweep: their values, the cells along them, and what makes none."""

import numpy as np
import pytest
import torch
from torch import nn

import capsbench
from capsbench import Case
from capsbench.errors import ConfigurationError
from capsbench.frame import along, to_frame
from capsbench.models.front import CHUNKS
from capsbench.options import value_in_words
from capsbench.records import Plan, axes_of
from capsbench.report import Report
from capsbench.stats.slopes import series_of
from capsbench.sweep.asked import Sweep, axis_values
from capsbench.sweep.machine import machine_options
from capsbench.sweep.plan import axes_asked, axis_lacked, expand
from capsbench.sweep.session import begin, check_data
from capsbench.workload import Workload
from helpers.made import make_record

pytestmark = pytest.mark.usefixtures("warm")


def case(blocks=2, length=16, batch_size=4, width=8, tied=False, kind="mean"):
    layers = [nn.Linear(width, width) for _ in range(blocks)]
    return Case(nn.Sequential(*layers), torch.rand(batch_size, length, width), loss=lambda out: out.square().mean())


def classifier(in_shape, num_classes, blocks):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


CASE, CLASSIFIER = f"{__name__}:case", f"{__name__}:classifier"


def sweep(models, vary, depths=(1, 2), *, depths_chosen=False, **fields):
    models = (models,) if isinstance(models, str) else models
    return Sweep(models, depths, "cpu", depths_chosen=depths_chosen, vary=vary, threads=1, **fields)


def configurations(models, vary, **fields):
    return [cell.configuration for cell in expand(sweep(models, vary, **fields))]


def refused(models, vary, **fields):
    """The error of a sweep, in two lines."""
    with pytest.raises(ConfigurationError) as raised:
        expand(sweep(models, vary, **fields))
    what, hint = str(raised.value).splitlines()
    assert hint
    return f"{what}\n{hint}"


@pytest.mark.parametrize(
    ("name", "given", "values"),
    [
        ("length", [256, 128, 256], (128, 256)),
        ("length", range(1, 4), (1, 2, 3)),
        ("length", np.arange(3), (0, 1, 2)),
        ("length", torch.tensor(7), (7,)),
        ("length", np.float64(0.5), (0.5,)),
        ("length", 128, (128,)),
        ("length", "128-512:128", (128, 256, 384, 512)),
        ("gamma", "0.5,0.9", (0.5, 0.9)),
        ("blocks", "1-3,8", (1, 2, 3, 8)),
        ("shape", "3x64x64,3x32x32", ("3x32x32", "3x64x64")),
        ("shape", (3, 32, 48), ("3x32x48",)),
        ("shape", [(3, 64, 64), "3x32x32"], ("3x32x32", "3x64x64")),
    ],
)
def test_values_of_an_axis_ascend(name, given, values):
    assert axis_values(name, given) == values


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("length", [], "`vary` length [] has no value"),
        ("length", "", "`vary` length '' has no value"),
        ("length", "128,,256", "has no value"),
        ("length", "short", "`vary` length 'short' is not a number"),
        ("length", None, "`vary` length None has no value"),
        ("length", {"length": 128}, "`vary` length {'length': 128} is not a number"),
        ("length", b"12", "`vary` length b'12' is not a number"),
        ("length", torch.Tensor, "`vary` length <class 'torch.Tensor'> is not a number"),
        ("length", [[1, 2]], "`vary` length [1, 2] is not a number"),
        ("length", float("nan"), "`vary` length: nan is not finite"),
        ("length", [1, float("inf")], "`vary` length: inf is not finite"),
        ("length", [10**400], "`vary` length: a number of 401 digits is too large"),
        ("length", [True], "`vary` length True is not a number"),
        ("length", range(2000), "`vary` length has 2,000 values"),
        ("blocks", [0], "`vary` blocks 0 is not a number of blocks"),
        ("blocks", [1.5], "`vary` blocks 1.5 is not a number of blocks"),
        ("image_size", [0], "`vary` image_size 0 is not a number of pixels"),
        ("shape", "3x32", "`vary`: shape '3x32' is not that of an image"),
    ],
)
def test_values_that_make_no_axis(name, given, words):
    with pytest.raises(ConfigurationError) as raised:
        axis_values(name, given)
    assert words in raised.value.what
    assert raised.value.hint


def test_a_setting_of_a_case_is_an_axis():
    found = configurations(CASE, {"length": [32, 16]})
    assert [dict(it.settings)["length"] for it in found] == [16, 32]
    assert {(it.blocks, it.batch_size, dict(it.settings)["width"]) for it in found} == {(2, 4, 8)}, "the case's own defaults"
    assert len({it.series("length") for it in found}) == 1


def plain(num_classes: int = 3, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, num_classes))


def without_blocks(width=8):
    return case(1, width=width)


def open_ended(blocks=1, width=None, rate=0.5):
    return case(blocks)


BUILDER, OPEN_ENDED = f"{__name__}:plain", f"{__name__}:open_ended"

ODD = {
    "None": (None, "`settings` width has no value"),
    "nothing": ([], "`settings` width has no value"),
    "None among others": ([8, None], "`settings` width: None is no number, text or flag"),
    "a class": (int, "`settings` width: <class 'int'> is no number, text or flag"),
    "a dictionary": ({"a": 1}, "`settings` width: {'a': 1} is no number, text or flag"),
    "bytes": (b"8", "`settings` width: b'8' is no number, text or flag"),
    "a function": (max, "`settings` width: <built-in function max> is no number"),
    "a network": (nn.Linear(2, 2), "`settings` width: Linear(in_features=2"),
    "several numbers": ([[1, 2]], "`settings` width: [1, 2] is no number"),
    "no number": (float("nan"), "`settings` width: nan is not finite"),
    "infinity": (-float("inf"), "`settings` width: -inf is not finite"),
    "too much": (10**400, "`settings` width: a number of 401 digits is too large"),
    "an imaginary number": (1j, "`settings` width: 1j is no number"),
}


@pytest.mark.parametrize(("value", "words"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("model", [CASE, BUILDER])
def test_settings_that_no_record_can_hold_are_refused(model, value, words):
    assert words in refused(model, None, settings={"width": value})


@pytest.mark.parametrize("given", [[("width", 8)], "width=8", {8: "width"}, 8])
@pytest.mark.parametrize("field", ["settings", "vary"])
def test_settings_without_names_are_refused(field, given):
    fields = {"vary": None} | {field: given}
    assert f"`{field}` {given!r} is no dictionary" in refused(CASE, **fields)


@pytest.mark.parametrize(
    "value", [np.int64(8), torch.tensor(8), np.array(8), torch.tensor([8]), (8,), {8}, range(8, 9)], ids=repr
)
@pytest.mark.parametrize("model", [CASE, BUILDER])
def test_numbers_of_numpy_and_torch_are_settings(model, value):
    (one,) = configurations(model, None, depths=(2,) if model == CASE else (1,), settings={"width": value})
    assert dict(one.settings)["width"] == 8
    assert type(dict(one.settings)["width"]) is int


@pytest.mark.parametrize("name", ["batch_size", "memory", "gamma", "dataset"])
@pytest.mark.parametrize("value", [[], {}, [[1]], int, float("nan"), b"1", 10**400], ids=repr)
def test_options_of_odd_values_are_refused(name, value):
    assert f"`{name}`" in refused("mocapsnet", None, **{name: value})


def test_an_argument_whose_default_no_record_can_hold_is_named():
    for fields in ({"vary": {"width": [8]}}, {"vary": None, "settings": {"width": 8}}):
        assert "`width` of model" in refused(OPEN_ENDED, **fields)
        assert "cannot be set: its default is no number" in refused(OPEN_ENDED, **fields)
    (one,) = configurations(OPEN_ENDED, None, depths=(1,), settings={"rate": 1})
    assert dict(one.settings) == {"rate": 1.0}


@pytest.mark.parametrize("models", [None, [], 5, [5], [None], {}], ids=repr)
def test_models_that_are_none_are_refused(models):
    with pytest.raises(ConfigurationError, match="`models`") as raised:
        capsbench.predict(models)
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize("depths", [[], {}, 1.5, [None], float("nan"), object], ids=repr)
def test_depths_that_are_none_are_refused(depths):
    with pytest.raises(ConfigurationError, match="`depth`") as raised:
        capsbench.predict("mocapsnet", depths=depths)
    assert len(str(raised.value).splitlines()) == 2


def test_a_network_without_the_axis_is_measured_once():
    found = configurations((CASE, BUILDER, "mocapsnet"), {"length": [16, 32, 64]})
    assert [(it.model, it.position("length")) for it in found] == [
        (BUILDER, None), ("mocapsnet", None), (CASE, 16), (CASE, 32), (CASE, 64)
    ]  # fmt: skip
    cells = expand(sweep((CASE, BUILDER), {"width": [8, 16], "length": [16, 32]}))
    assert axes_of(cells, axes_asked(["width", "length"])) == ("width", "length")
    assert axis_lacked(cells, "width") == []
    assert axis_lacked(cells, "length") == [f"model '{BUILDER}' takes no length: it has no slope, and is drawn as a level"]
    assert [dict(it.configuration.settings)["width"] for it in cells if it.configuration.model == BUILDER] == [8, 16]


@pytest.mark.parametrize("fields", [{"vary": {"blocks": [1, 2]}}, {"vary": None, "depths_chosen": True}], ids=["vary", "depth"])
def test_blocks_are_lacked_as_any_other_axis_is(fields):
    lacking = (f"{__name__}:without_blocks", BUILDER, "capsnet-1conv")
    models = (CASE, "mocapsnet", *lacking)
    found = configurations(models, **fields)
    assert sorted((it.model, it.position("blocks")) for it in found if it.model not in lacking) == [
        ("mocapsnet", 1), ("mocapsnet", 2), (CASE, 1), (CASE, 2)
    ]  # fmt: skip
    assert {it.model: it.position("blocks") for it in found if it.model in lacking} == dict.fromkeys(lacking)
    assert len(found) == len(models) + 2, "each that lacks blocks is measured once"
    cells = expand(sweep(models, **fields))
    assert len(axis_lacked(cells, "blocks")) == len(lacking)
    words = f"model '{BUILDER}' takes no blocks: it has no slope, and is drawn as a level"
    assert words in axis_lacked(cells, "blocks")
    for alone in lacking[:2]:
        assert f"model '{alone}' takes no blocks\nit takes " in refused(alone, **fields)


def test_nobody_is_said_to_lack_what_is_not_varied():
    cells = expand(sweep((f"{__name__}:without_blocks", "capsnet-1conv"), None))
    assert axes_of(cells, axes_asked([])) == ("blocks",)
    assert axis_lacked(cells, "blocks") == []


def test_an_axis_that_no_network_has_is_refused():
    words = refused((CASE, BUILDER), {"lenght": [16]})
    assert (
        f"`vary` lenght: model '{CASE}' takes no lenght\ndid you mean length? If not, it takes blocks, length, batch_size, width"
        in words
    )
    assert "`vary` tied: its default False" in refused((BUILDER, CASE), {"tied": [0, 1]})


def test_images_of_other_channels_are_another_series():
    """No slope joins those of a report that holds both."""
    cells = [
        cell
        for shape in ("1x24x24", "3x24x24", "1x32x32", "3x32x32")
        for cell in expand(sweep("rescapsnet", None, depths=(1,), dataset="mnist", image_shape=shape))
    ]
    assert len({cell.key() for cell in cells}) == 4
    series = [cell.configuration.series("image_shape") for cell in cells]
    assert series[0] == series[2] != series[1] == series[3]
    assert cells[0].configuration.without("image_shape").image_shape is None
    placed = along(
        to_frame([("", make_record(dataset="mnist", image_shape=cell.configuration.image_shape)) for cell in cells]),
        "image_shape",
    )
    assert [len(rows) for _, rows in series_of(placed)] == [2, 2]
    assert value_in_words("image_shape", placed["image_shape"].iloc[1]) == "3 channels"
    svhn = [
        expand(sweep("rescapsnet", None, depths=(1,), dataset="svhn", image_shape=shape))[0].configuration
        for shape in (None, "3x24x24", "1x24x24")
    ]
    assert svhn[0].series("image_shape") == svhn[1].series("image_shape") != svhn[2].series("image_shape")


def test_two_axes_are_a_grid():
    found = configurations(CASE, {"length": [16, 32], "batch-size": "1-3"}, depths=(5,), depths_chosen=True)
    assert [(dict(it.settings)["length"], it.batch_size, it.blocks) for it in found] == [
        (length, size, 5) for length in (16, 32) for size in (1, 2, 3)
    ]


def test_blocks_are_an_axis_like_any_other():
    vary = {"blocks": "1-3", "length": [16, 32]}
    assert [(it.blocks, dict(it.settings)["length"]) for it in configurations(CASE, vary)] == [
        (blocks, length) for blocks in (1, 2, 3) for length in (16, 32)
    ]
    assert expand(sweep("mocapsnet", {"blocks": [1, 2]})) == expand(Sweep(("mocapsnet",), (1, 2), "cpu", threads=1))


def test_without_a_depth_a_case_has_its_own_and_any_other_network_one_block():
    found = configurations((CASE, "rescapsnet", CLASSIFIER), {"batch_size": [1, 2]}, depths=range(1, 9))
    assert {(it.model, it.blocks) for it in found} == {(CASE, 2), ("rescapsnet", 1), (CLASSIFIER, 1)}
    assert [it.batch_size for it in found] == [1, 1, 1, 2, 2, 2], "models interleave"


@pytest.mark.parametrize(
    ("vary", "axis", "positions"),
    [
        ({"capsules": [8, 16]}, "capsules", [8, 16]),
        ({"iterations": "1-3"}, "iterations", [1, 2, 3]),
        ({"classes": [10, 196]}, "classes", [10, 196]),
        ({"image-size": [32, 48]}, "image_shape", [1024, 2304]),
        ({"image-size": [32, 48, 64]}, "image_shape", [1024, 2304, 4096]),
        ({"image_size": "32,48,64"}, "image_shape", [1024, 2304, 4096]),
        ({"shape": ["3x32x32", "3x32x64"]}, "image_shape", [1024, 2048]),
    ],
)
def test_options_of_built_in_networks_are_axes(vary, axis, positions):
    cells = expand(sweep("mocapsnet", vary))
    assert [cell.configuration.position(axis) for cell in cells] == positions
    assert len({cell.configuration.series(axis) for cell in cells}) == 1
    assert axes_of(cells, axes_asked(vary)) == (axis,)


def test_square_images_have_the_channels_of_the_data_set():
    found = configurations("mocapsnet", {"image_size": [32]}, dataset=["mnist", "cifar10"])
    assert [(it.dataset, it.image_shape) for it in found] == [("mnist", "1x32x32"), ("cifar10", "3x32x32")]
    (one,) = configurations("mocapsnet", None, depths=(1,), image_shape=(3, 40, 41), classes=5)
    assert (one.image_shape, one.spec().shape, one.spec().classes) == ("3x40x41", (3, 40, 41), 5)


def test_what_auto_stands_for_is_one_for_a_series():
    few, many = CHUNKS["cpu"], CHUNKS["cpu"] + 1
    assert {it.front for it in configurations("mocapsnet", {"batch_size": [few, many]})} == {"chunked"}
    assert {it.front for it in configurations("mocapsnet", {"batch_size": [1, few]})} == {"plain"}
    deep = configurations("mocapsnet", {"blocks": [1, 100]})
    assert {it.inverse for it in deep} == {it.inverse for it in configurations("mocapsnet", {"blocks": [100]})}


@pytest.mark.parametrize(
    ("models", "vary", "words"),
    [
        (
            "mocapsnet",
            {"length": [1]},
            "`vary` length: model 'mocapsnet' takes no length\nit takes blocks, batch_size, iterations, ",
        ),
        (
            CASE,
            {"capsules": [1]},
            f"`vary` capsules: model '{CASE}' takes no capsules\nit takes blocks, length, batch_size, width",
        ),
        (CASE, {"image_size": [32]}, "takes no image_size"),
        (CASE, {"tied": [0, 1]}, "`vary` tied: its default False in model"),
        (CASE, {"kind": [1]}, "`vary` kind: its default 'mean' in model"),
        (CASE, {"length": [0.5]}, "length 0.5 is not of the type of its default 16"),
        (CLASSIFIER, {"capsules": [8]}, f"`vary` capsules: model '{CLASSIFIER}' takes no capsules"),
        ("capsnet-1conv", {"blocks": [1, 2]}, "model 'capsnet-1conv' takes no blocks"),
        ("mocapsnet", {"kernel": [1]}, "model 'mocapsnet' takes no kernel"),
        ("mocapsnet", {"capsules": [0, 8]}, "`capsules` 0 is too small"),
        ("mocapsnet", {"capsules": [1.5]}, "`capsules` 1.5 is not a whole number"),
        ("mocapsnet", {"shape": "3x32x32", "image_size": [32]}, "`vary` image_size: its values are given by `vary` too"),
    ],
)
def test_axes_that_make_no_sense_are_refused(models, vary, words):
    assert words in refused(models, vary)


@pytest.mark.parametrize(
    ("vary", "given", "field"),
    [
        ({"batch_size": [1]}, {"batch_size": 2}, "batch_size"),
        ({"length": [1]}, {"settings": {"length": 2}}, "settings"),
        ({"blocks": [1]}, {"depths_chosen": True}, "depth"),
        ({"image_size": [32]}, {"image_shape": "3x32x32"}, "image_shape"),
    ],
)
def test_values_are_given_once(vary, given, field):
    with pytest.raises(ConfigurationError, match=f"`vary` {next(iter(vary))}: its values are given by `{field}` too"):
        sweep(CASE, vary, **given)


@pytest.mark.parametrize("text", ["3x32", "3x0x32", "-1x2x3", "threexfourxfive", "3x32x32x1", "", "3 x 32 x 32"])
def test_a_shape_that_is_none(text):
    with pytest.raises(ConfigurationError, match="is not that of an image"):
        expand(Sweep(("mocapsnet",), (1,), "cpu", image_shape=text))


def test_a_shape_is_no_option_of_a_case():
    assert f"model '{CASE}' takes no `image_shape`" in refused(CASE, None, image_shape="3x32x32")
    assert f"model '{CASE}' takes no `classes`" in refused(CASE, None, classes=5)


def test_axes_are_what_cells_of_one_series_differ_in():
    grid = expand(sweep(CASE, {"length": [16, 32], "blocks": [1, 2]}))
    assert axes_of(grid, axes_asked(["length", "blocks"])) == ("length", "blocks")
    assert axes_of(grid[:1], axes_asked(["length"])) == ("length",)
    assert axes_of(expand(sweep(CASE, {"length": [16, 32]})), axes_asked(["length"])) == ("length",)
    assert axes_of(expand(Sweep(("rescapsnet",), (1, 2), "cpu")), axes_asked([])) == ("blocks",)
    assert axes_of([], axes_asked([])) == ("blocks",)


def test_lists_of_options_multiply_a_sweep_over_depth_and_are_the_axes_of_one_depth():
    def axes(depths, **options):
        return axes_of(expand(Sweep(("rescapsnet",), depths, "cpu", **options)), axes_asked([]))

    assert axes((1, 2), batch_size=[1, 2]) == ("blocks",)
    assert axes((1,), batch_size=[1, 2]) == ("batch_size",)
    assert axes((4,), parallel="fsdp", world_size=[1, 2, 4]) == ("world_size",)
    assert axes((4,), capsules=[8, 16], batch_size=[1, 2]) == ("batch_size", "capsules")
    # Without processes there is no number of them.
    mixed = expand(Sweep(("rescapsnet",), (4,), "cpu", parallel=["none", "fsdp"], world_size=[1, 2, 4]))
    assert axis_lacked(mixed, axes_of(mixed, axes_asked([]))[0]) == [
        "some cells of model 'rescapsnet' have no world size: they have no slope, and are drawn as a level"
    ]
    # A slope over a coefficient, or over names, would mean nothing.
    assert axes((1,), kernel=["reference", "published"]) == ("blocks",)
    assert axes_of(expand(Sweep(("mocapsnet",), (1,), "cpu", gamma=[0.5, 0.9])), axes_asked([])) == ("blocks",)


def test_a_report_that_is_resumed_along_another_axis_has_both(tmp_path):
    def planned(vary):
        cells = expand(sweep(CASE, vary))
        return Plan(command="", cells=cells, axes=axes_of(cells, axes_asked(vary)))

    report = Report(tmp_path)
    first = begin(report, planned({"length": [16, 32]}), resume=False)
    assert first.axes == ("length",)
    second = begin(report, planned({"blocks": [2, 3]}), resume=True)
    assert second.axes == ("length", "blocks")
    # The corner that both share is one cell.
    assert len(second.cells) == 3
    assert Report(tmp_path).plan == second


def test_images_of_another_shape_are_random_and_said_to_be(tmp_path):
    cells = expand(sweep("mocapsnet", {"image_size": [24, 32]}, classes=7, batch_size=2000))
    assert check_data(cells, tmp_path) == [
        "1×24×24 of 7 classes, 1×32×32 of 7 classes: random images (memory and time do not depend on pixels)"
    ]


@pytest.mark.parametrize("model", ["mocapsnet", "capsnet-1conv", CLASSIFIER])
def test_a_network_of_another_shape_steps(model):
    fields = {"capsules": 4} if model == "mocapsnet" else {}
    (cell,) = expand(sweep(model, None, depths=(1,), image_shape="3x24x20", classes=5, batch_size=2, **fields))
    workload = Workload(cell.configuration)
    assert workload.data_source == "random"
    assert [tuple(tensor.shape) for tensor in workload.given[:2]] == [(2, 3, 24, 20), (2,)]
    workload.train_step()
    workload.inference()
    again = Workload(cell.configuration)
    assert all(torch.equal(one, other) for one, other in zip(workload.given, again.given, strict=True))
    assert workload.given[1].max() < 5


@pytest.mark.parametrize("shapes", [["1x20x20", "3x24x24"], ["1x16x64", "1x32x32"]])
def test_shapes_of_one_axis_differ_in_their_pixels_alone(shapes):
    with pytest.raises(ConfigurationError, match="differ in more than their number of pixels"):
        axis_values("shape", shapes)


def test_threads_can_be_varied_from_python():
    assert "threads" not in machine_options("cpu", None, None, {"threads": [1, 2]})
    assert machine_options("cpu", None, None)["threads"]
