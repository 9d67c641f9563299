"""The list of cells of a command, and their folder."""

import os
from datetime import datetime
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capsbench.axes import parse_depths
from capsbench.errors import CapsbenchError, ConfigurationError
from capsbench.models.front import CHUNKS
from capsbench.options import OPTIONS
from capsbench.records import Plan
from capsbench.report import Report
from capsbench.reversible import resolve_inverse
from capsbench.routing import algorithms, compiled, kernels, resolve_kernel
from capsbench.sweep.asked import Sweep
from capsbench.sweep.estimate import step_flops
from capsbench.sweep.experiments import EXPERIMENTS, cells_of
from capsbench.sweep.machine import resolve_device
from capsbench.sweep.plan import expand
from capsbench.sweep.session import begin, check_data, choose_report
from capsbench.system.native import NativeLibrary
from capsbench.words.units import parse_bytes


def sweep(models="rescapsnet", depths=(1, 2), **fields):
    return Sweep(models=tuple(models.split(",")), depths=depths, device="cpu", **fields)


def plan_of(*depths, **fields):
    return Plan(command="capsbench run", cells=expand(sweep(depths=depths, **fields)))


@pytest.mark.parametrize(
    ("text", "depths"),
    [
        ("3", (3,)),
        ("1-8", (1, 2, 3, 4, 5, 6, 7, 8)),
        ("1,2,4", (1, 2, 4)),
        ("1-4,8", (1, 2, 3, 4, 8)),
        ("8,1-4", (1, 2, 3, 4, 8)),
        ("2,2,1-2", (1, 2)),
        (" 1 - 3 , 5 ", (1, 2, 3, 5)),
        ("5-5", (5,)),
        ("007", (7,)),
    ],
)
def test_depths(text, depths):
    assert parse_depths(text) == depths


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a",
        "-",
        "1-",
        "-1",
        "1,,2",
        ",",
        "1,",
        "1-8-9",
        "1..8",
        "1 2",
        "1.5",
        "+1",
        "١",
        "²",
        "1-²",
        "0",
        "0-3",
        "8-1",
        "1e3",
        "1_0",
    ],
    ids=repr,
)
def test_no_depths(text):
    with pytest.raises(ConfigurationError) as raised:
        parse_depths(text)
    assert f"`depth` '{text}'" in raised.value.what
    assert raised.value.hint


def test_a_range_that_runs_backwards_is_shown_forwards():
    with pytest.raises(ConfigurationError, match=r"write 1-8"):
        parse_depths("8-1")


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20, unique=True).map(sorted))
def test_any_ascending_list_survives(depths):
    assert parse_depths(",".join(map(str, depths))) == tuple(depths)


@given(st.integers(1, 50), st.integers(0, 50))
def test_any_range_survives(low, more):
    assert parse_depths(f"{low}-{low + more}") == tuple(range(low, low + more + 1))


@given(st.text(alphabet="0123456789-, a", max_size=8))
def test_any_other_text_is_understood_or_refused(text):
    try:
        depths = parse_depths(text)
    except ConfigurationError:
        return
    assert depths == tuple(sorted(set(depths)))
    assert depths[0] >= 1


def test_cells_go_replicate_by_replicate_and_models_interleave():
    cells = expand(sweep("capsnet,mocapsnet", repeats=2))
    found = [(cell.replicate, cell.configuration.blocks, cell.configuration.model) for cell in cells]
    assert found == [
        (replicate, blocks, model) for replicate in (0, 1) for blocks in (1, 2) for model in ("capsnet", "mocapsnet")
    ]
    assert len({cell.key() for cell in cells}) == len(cells)


def test_auto_is_resolved_and_counts_once():
    kernels = [cell.configuration.kernel for cell in expand(sweep(depths=(1,), kernel=("auto", "recompute", "published")))]
    assert kernels == list(dict.fromkeys([resolve_kernel("auto"), "recompute", "published"]))
    fronts = [cell.configuration.front for cell in expand(sweep(depths=(1,), front=("auto", "chunked", "plain")))]
    assert fronts == ["chunked", "plain"]


@pytest.mark.parametrize(("batch_size", "front"), [(CHUNKS["cpu"], "plain"), (CHUNKS["cpu"] + 1, "chunked")])
def test_the_front_that_auto_stands_for_depends_on_the_batch(batch_size, front):
    (cell,) = expand(sweep(depths=(1,), batch_size=batch_size))
    assert cell.configuration.front == front


def inverses(depths, **fields):
    return {cell.configuration.inverse for cell in expand(sweep("mocapsnet", depths=depths, **fields))}


@pytest.mark.parametrize(("model", "memories"), [("rescapsnet", None), ("mocapsnet", ("stored",))])
def test_an_inverse_with_nothing_to_invert(model, memories):
    with pytest.raises(ConfigurationError, match=r"`inverse` exact.*\n.*reversible"):
        expand(sweep(model, inverse=("exact",), memory=memories))


def test_the_inverse_that_auto_stands_for_is_one_for_all_depths():
    deep = 1000
    chosen = resolve_inverse("auto", 2 * deep, 0.9)
    assert chosen != "float"
    assert inverses((1,)) == {"float"}
    assert inverses((1, deep)) == {chosen}
    assert inverses((1, deep), memory=("reversible-kept",)) == {chosen}
    # The published rule has stacks of one block each.
    assert inverses((1, deep), rule=("published",)) == {"float"}
    assert inverses((1, deep), memory=("stored",)) == {None}
    assert inverses((1, deep), inverse=("float", "auto", "segmented")) == {"float", "segmented", chosen}


def test_kernels_go_to_the_routings_that_have_them():
    cells = expand(sweep(depths=(1,), routing=algorithms(), kernel=("published", "recompute")))
    found = [(cell.configuration.routing, cell.configuration.kernel) for cell in cells]
    assert found == [
        (routing, name) for routing in algorithms() for name in ("published", "recompute") if name in kernels(routing)
    ]
    assert ("em", "recompute") in found
    assert ("em", "published") not in found


def test_a_kernel_for_a_gpu():
    (cell,) = expand(Sweep(models=("capsnet",), depths=(1,), device="cuda:0", kernel=("triton",)))
    assert cell.configuration.kernel == "triton"


@pytest.mark.parametrize(("kernel", "device"), [("triton", "cpu"), ("compiled", "cuda:0")])
def test_a_kernel_for_another_device(kernel, device):
    with pytest.raises(ConfigurationError, match=rf"`kernel` {kernel} needs a device of kind .*'{device}'\n.*`kernel` auto"):
        expand(Sweep(models=("capsnet",), depths=(1,), device=device, kernel=(kernel,)))


def test_a_compiled_kernel_without_a_compiler(monkeypatch):
    monkeypatch.setattr(compiled, "library", lambda: NativeLibrary(None, "there is no C compiler"))
    with pytest.raises(ConfigurationError, match=r"`kernel` compiled .*there is no C compiler\n.*recompute"):
        expand(sweep(kernel=("compiled",)))
    (cell,) = expand(sweep(depths=(1,)))
    assert cell.configuration.kernel == "recompute"


def test_when_the_optimizer_steps():
    after, backward = expand(sweep(depths=(1,), optimizer_step=("after", "backward")))
    assert (after.configuration.optimizer_step, backward.configuration.optimizer_step) == (None, "backward")
    own = expand(sweep("builtins:max", depths=(1,), optimizer_step=("after", "backward")))
    assert [(cell.configuration.optimizer_step, cell.configuration.front) for cell in own] == [(None, None), ("backward", None)]


def test_how_the_optimizer_steps():
    options = {"optimizer": ("own", "sgd"), "accumulate": (1, 4), "compile": ("none", "default")}
    every = set(product((None, "sgd"), (1, 4), (None, "default")))
    for model in ("rescapsnet", "builtins:max"):
        found = [cell.configuration for cell in expand(sweep(model, depths=(1,), **options))]
        assert {(it.optimizer, it.accumulate, it.compile) for it in found} == every
    (usual,) = expand(sweep("rescapsnet", depths=(1,)))
    assert not {"optimizer", "accumulate", "compile"} & usual.configuration.model_dump(exclude_none=True).keys()
    with pytest.raises(ConfigurationError, match="`optimizer_step` backward is not possible with `accumulate` 4"):
        expand(sweep("rescapsnet", depths=(1,), optimizer_step="backward", accumulate=(1, 4)))


def test_lists_multiply():
    cells = expand(
        sweep(
            "mocapsnet",
            dataset=("sample", "cifar10"),
            kernel=("recompute", "published"),
            memory=("stored", "checkpoint"),
            rule=("paper", "published"),
            precision=("fp32", "bf16"),
            repeats=2,
        )
    )
    assert len(cells) == 2**7
    assert len({cell.key() for cell in cells}) == 2**7


@pytest.mark.parametrize(
    ("model", "lacking"),
    [
        ("rescapsnet", {"inverse", "rule", "gamma"}),
        ("mocapsnet", set()),
        ("builtins:max", {"kernel", "routing", "iterations", "capsules", "front", "memory", "inverse", "rule", "gamma"}),
    ],
)
def test_options_that_do_not_apply_are_none(model, lacking):
    (cell,) = expand(sweep(model, depths=(1,), threads=2))
    none = {name for name, value in cell.configuration if value is None}
    left_out = {"optimizer_step", "accumulate", "capacity", "gpu", "image_shape", "classes", "world_size"}
    assert none >= lacking | left_out
    # In addition, an option is absent if it has the value that cells without it have.
    others = none - lacking - left_out - {"settings"}
    assert all(OPTIONS[name].unwritten is not None or not OPTIONS[name].networks.have(model) for name in others)


def test_threads_belong_to_a_cpu():
    (cell,) = expand(Sweep(models=("capsnet",), depths=(1,), device="cuda", threads=2))
    assert cell.configuration.threads is None


def test_own_models_refuse_the_options_of_capsule_networks():
    with pytest.raises(ConfigurationError, match=r"`kernel` recompute,published has no effect on model 'builtins:max'"):
        expand(sweep("builtins:max", depths=(1,), kernel=("recompute", "published"), memory=("stored", "checkpoint")))


def test_each_model_has_its_own_strategy():
    cells = expand(sweep("capsnet,rescapsnet,mocapsnet", depths=(1,)))
    assert [cell.configuration.memory for cell in cells] == ["stored", "stored", "reversible"]


def test_reversible_is_left_out_where_others_are_left():
    cells = expand(sweep("rescapsnet,mocapsnet", depths=(1,), memory=("stored", "reversible")))
    found = [(cell.configuration.model, cell.configuration.memory, cell.configuration.inverse) for cell in cells]
    assert found == [("rescapsnet", "stored", None), ("mocapsnet", "stored", None), ("mocapsnet", "reversible", "float")]


def test_gamma_0_runs_where_nothing_is_inverted():
    assert expand(sweep("mocapsnet", depths=(1,), memory=("stored",), gamma=0))[0].configuration.gamma == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"models": "nonsense"}, "nonsense"),
        ({"models": "missing_module:make"}, "missing_module"),
        ({"models": "math:no_such_thing"}, "no_such_thing"),
        ({"models": "math:pi"}, "math:pi"),
        ({"models": ":make"}, ":make"),
        ({"models": "math:"}, "math:"),
        ({"dataset": ("nonsense",)}, "nonsense"),
        ({"kernel": ("nonsense",)}, "nonsense"),
        ({"routing": ("nonsense",)}, "nonsense"),
        ({"memory": ("nonsense",)}, "nonsense"),
        ({"inverse": ("nonsense",)}, "nonsense"),
        ({"rule": ("nonsense",)}, "nonsense"),
        ({"precision": ("nonsense",)}, "nonsense"),
        ({"iterations": 0}, "`iterations` 0"),
        ({"gamma": 1.5}, "`gamma` 1.5"),
        ({"gamma": float("nan")}, "`gamma`: nan"),
        ({"gamma": 0}, "`gamma` 0"),
        ({"gamma": 0, "memory": ("stored", "reversible")}, "`gamma` 0"),
        ({"gamma": 0, "memory": ("stored", "reversible-kept")}, "`gamma` 0"),
        ({"models": "rescapsnet", "memory": ("reversible",)}, "reversible leaves no strategy for rescapsnet"),
        ({"models": "rescapsnet", "rule": ("paper", "published")}, "`rule` paper,published has no effect on rescapsnet"),
        ({"models": "capsnet", "gamma": 0.5}, "`gamma` 0.5 has no effect on capsnet"),
        ({"front": ("nonsense",)}, "`front` 'nonsense'"),
        ({"optimizer_step": ("nonsense",)}, "`optimizer_step` 'nonsense'"),
        (
            {"optimizer_step": ("after", "backward"), "precision": ("fp32", "fp16")},
            "`optimizer_step` backward is not possible with `precision` fp16",
        ),
        ({"routing": ("rba", "em"), "kernel": ("published",)}, "`kernel` published leaves no kernel for routing em"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(fields, named):
    with pytest.raises(CapsbenchError) as raised:
        expand(sweep(**({"models": "mocapsnet"} | fields)))
    assert named in raised.value.what
    assert raised.value.hint
    assert len(str(raised.value).splitlines()) == 2


def test_estimates_know_what_takes_longer():
    def flops(**fields):
        (cell,) = expand(sweep("mocapsnet", depths=(8,), **fields))
        return step_flops(cell)

    ascending = [
        {"memory": ("reversible-kept",)},
        {},
        {"routing": ("sda",)},
        {"routing": ("em",)},
        {"kernel": ("published",)},
    ]
    costs = [flops(**fields) for fields in ascending]
    assert costs == sorted(set(costs))
    assert flops(memory=("checkpoint-sqrt",)) == flops()


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda", 0, None),
        ("cuda:2", 2, None),
        ("cuda:", 2, None),
        ("cuda:x", 2, None),
        ("cuda:²", 2, None),
        ("cuda:-1", 2, None),
        ("cpu:0", 2, None),
        ("tpu", 2, None),
        ("", 2, None),
    ],
)
def test_devices(monkeypatch, name, count, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if expected is not None:
        assert resolve_device(name) == expected
        return
    with pytest.raises(ConfigurationError) as raised:
        resolve_device(name)
    assert "`device`" in raised.value.what
    assert name in raised.value.what
    assert "cpu" in raised.value.hint


NOW = datetime(2031, 2, 3, 4, 5, 6)


def test_a_new_report_is_named_for_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_report(plan_of(1), None, resume=False, now=NOW).folder == Path("reports/2031-02-03-040506")
    assert choose_report(plan_of(1), Path("mine"), resume=True, now=NOW).folder == Path("mine")


def test_resume_finds_the_newest_report_with_these_cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, (name, plan) in enumerate([("narrow", plan_of(1)), ("other", plan_of(1, 2, batch_size=4)), ("old", plan_of(1, 2))]):
        folder = Path("reports") / name
        folder.mkdir(parents=True)
        Report(folder).write_plan(plan)
        os.utime(folder / "plan.json", (1e9 - age, 1e9 - age))
    # `narrow` is newer, but does not have all cells; `other` has other ones.
    assert choose_report(plan_of(1, 2), None, resume=True, now=NOW).folder == Path("reports/old")
    assert choose_report(plan_of(1), None, resume=True, now=NOW).folder == Path("reports/narrow")
    with pytest.raises(ConfigurationError, match=r"`resume`.*\n.*`out`"):
        choose_report(plan_of(1, 2, 3), None, resume=True, now=NOW)


def test_a_report_is_not_begun_twice(tmp_path):
    store = Report(tmp_path)
    begin(store, plan_of(1), resume=False)
    with pytest.raises(ConfigurationError, match=r"already holds a report\nadd `resume`"):
        begin(store, plan_of(1), resume=False)
    assert Report(store.folder).plan == plan_of(1)


def test_a_folder_with_records_alone_is_not_overwritten(tmp_path):
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(ConfigurationError, match="already holds a report"):
        begin(Report(tmp_path), plan_of(1), resume=False)


def test_resuming_keeps_the_earlier_cells_and_adds_the_new(tmp_path):
    store = Report(tmp_path)
    begin(store, plan_of(1, 2), resume=False)
    plan = begin(store, plan_of(2, 3), resume=True)
    assert [cell.configuration.blocks for cell in plan.cells] == [1, 2, 3]
    assert Report(store.folder).plan == plan


def test_resuming_nothing_begins(tmp_path):
    assert begin(Report(tmp_path), plan_of(1), resume=True) == plan_of(1)


@pytest.mark.parametrize("batch_size", [1024, 1025])
def test_a_batch_must_fit_the_data(tmp_path, batch_size):
    cells = plan_of(1, batch_size=batch_size).cells
    if batch_size == 1024:
        assert "1,024" in check_data(cells, tmp_path)[0]
        return
    with pytest.raises(ConfigurationError, match=r"`batch_size` 1025 .* 1024 images"):
        check_data(cells, tmp_path)


def test_a_stand_in_is_said_to_be_one(tmp_path):
    (words,) = check_data(plan_of(1, dataset=("cifar10",)).cells, tmp_path)
    assert words.startswith("cifar10: not found in")
    assert "the packaged sample is used" in words


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_of_the_paper_is_the_published_runs_and_auto_beside_them(name):
    cells = cells_of(EXPERIMENTS[name], depths=(1, 2), device="cpu", batch_size=128)
    momentum = [cell.configuration for cell in cells if cell.configuration.model == "mocapsnet"]
    settings = {(it.kernel, it.rule, it.front) for it in momentum}
    assert settings == {("published", "published", "plain"), (resolve_kernel("auto"), "paper", "chunked")}
    assert {cell.configuration.dataset for cell in cells} == set(EXPERIMENTS[name].datasets)
    assert {cell.configuration.model for cell in cells} == {"capsnet", "rescapsnet", "mocapsnet"}
    assert len(cells) == 2 * 2 * 3 * len(EXPERIMENTS[name].datasets)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("24GiB", 24 * 2**30),
        ("8 GB", 8 * 10**9),
        ("1.5gib", 3 * 2**29),
        ("500MiB", 500 * 2**20),
        ("2048kib", 2**21),
        ("1048576", 2**20),
        (" 1048576b ", 2**20),
    ],
)
def test_amounts_of_memory(text, nbytes):
    assert parse_bytes("--capacity", text) == nbytes


@pytest.mark.parametrize("text", ["", "3", "3B", "GiB", "-1GiB", "1TiB", "1 2GiB", "1e9", "nan", "inf", "1,5GiB", "0"])
def test_no_amounts_of_memory(text):
    with pytest.raises(ConfigurationError) as raised:
        parse_bytes("--capacity", text)
    assert f"--capacity '{text}'" in raised.value.what
    assert raised.value.hint
