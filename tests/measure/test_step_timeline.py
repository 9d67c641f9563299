"""The inside of a step: bytes equal to a measurement's, and known answers for the origin of the peak and the holders."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capsbench.figures.one_step import draw_timeline, timeline_text
from capsbench.measure import cuda_memory, memory
from capsbench.measure.cell import run_pass
from capsbench.measure.close_look import embedded
from capsbench.measure.cuda_memory import CudaProbe
from capsbench.measure.messages import Request
from capsbench.measure.step_timeline import measured_timeline
from capsbench.prediction.timelines import predicted_timeline
from capsbench.timeline import Timeline
from capsbench.tracing import counting
from capsbench.tracing.trace import CATEGORIES
from helpers.fakes import FakeCuda
from helpers.forked import in_fork
from helpers.made import make_configuration, make_timeline

PATIENCE = 300.0
MIB = 2**20

# Modules that are known to make the peak, or to keep something, or to be hard to watch.
MODELS = """
import torch
from torch import nn


class Wide(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            torch.cumsum(x.new_zeros(1, 1).expand(1024, 4096), 1)
        return x.clone()


class WideBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        torch.cumprod(grad.new_zeros(1, 1).expand(1024, 4096), 1)
        return grad.clone()


class Back(nn.Module):
    def forward(self, x):
        return WideBack.apply(x)


class Keeper(nn.Module):
    def forward(self, x):
        self.kept = x.detach().repeat(1, 100)
        return x


class Hoarder(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        self.kept.append(x.detach().repeat(1, 100))
        return x


class Shy(nn.Module):
    def forward(self, x):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise TypeError("not while you look")
        return x


class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("not today\\nnor tomorrow")


def network(part):
    def make(in_shape, num_classes, blocks):
        parts = [nn.Linear(784, 8), *(part() for _ in range(blocks)), nn.Linear(8, num_classes)]
        return nn.Sequential(nn.Flatten(), *parts)
    return make


wide, back, keeper, hoarder = map(network, (Wide, Back, Keeper, Hoarder))
shy, broken, relu = map(network, (Shy, Broken, nn.ReLU))
"""


@pytest.fixture
def own(own_model):
    """The name of a model of `MODELS`."""
    module = own_model(MODELS).partition(":")[0]
    return lambda name: f"{module}:{name}"


def configuration(model="rescapsnet", blocks=2, **fields):
    return make_configuration(model, blocks, **fields)


def totals(timeline):
    return np.sum([*timeline.bytes_by_category.values()], axis=0)


def assert_adds_up(timeline):
    """All that a timeline says of the same bytes."""
    assert tuple(timeline.bytes_by_category) == CATEGORIES
    alive, peak, phases = totals(timeline), timeline.peak, timeline.phases
    assert min(min(nbytes) for nbytes in timeline.bytes_by_category.values()) >= 0
    assert peak.contents.total() + peak.left_over_bytes == peak.allocated_bytes == alive.max() == alive[peak.event]
    assert peak.left_over_bytes == 0
    for name, nbytes in timeline.bytes_by_category.items():
        assert nbytes[peak.event] == getattr(peak.contents, f"{name}_bytes")
    assert [*phases] == ["forward", "backward", "optimizer"]
    assert phases["forward"].first_event == 0
    assert phases["optimizer"].last_event == len(alive) - 1
    for phase in phases.values():
        assert (alive[phase.first_event], alive[phase.last_event]) == (phase.start_bytes, phase.end_bytes)
        assert alive[phase.first_event : phase.last_event + 1].max() == phase.peak_bytes
    assert all(one.last_event == other.first_event for one, other in pairwise(phases.values()))
    where = phases[peak.contents.phase]
    assert where.first_event <= peak.event <= where.last_event
    assert (np.diff(alive) != 0).all(), "events that change nothing are left out"
    retained = phases["forward"].end_bytes - phases["forward"].start_bytes
    assert sum(timeline.retained_by_module.values()) == retained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "fields"), [("mocapsnet", {"blocks": 1}), ("rescapsnet", {"kernel": "published", "blocks": 1})]
)
def test_the_bytes_are_those_of_a_measurement(model, fields):
    asked = configuration(model, **fields)
    figures = in_fork(run_pass, Request(configuration=asked, what="memory", samples=5), PATIENCE).memory
    found = in_fork(run_pass, Request(configuration=asked, what="memory", samples=5, timeline=True), PATIENCE).timeline
    assert found.probe == figures.probe
    assert found.data_source == "sample"
    assert found.peak.contents == figures.at_peak
    assert found.peak.allocated_bytes == figures.peak_allocated_bytes
    assert found.phases["forward"].peak_bytes == figures.peak_forward_bytes
    assert found.phases["backward"].peak_bytes == figures.peak_backward_bytes
    assert found.phases["forward"].end_bytes - found.phases["forward"].start_bytes == figures.retained_bytes
    assert_adds_up(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("mocapsnet", {}),
        ("mocapsnet", {"kernel": "reference", "memory": "stored"}),
        ("rescapsnet", {"memory": "checkpoint"}),
        ("rescapsnet", {"kernel": "published", "optimizer_step": "backward"}),
        ("capsnet", {"routing": "sda", "precision": "bf16"}),
        ("mocapsnet", {"front": "chunked", "inverse": "exact", "blocks": 1}),
    ],
)
def test_prediction_and_measurement_name_the_same_modules_and_operator(model, fields):
    counting.installed()
    asked = configuration(model, **fields)
    measured = measured_timeline(asked)
    predicted = predicted_timeline(asked.model_copy(update={"device": "cpu:predicted"}))
    assert measured.retained_by_module == predicted.retained_by_module
    assert (measured.peak.operator, measured.peak.module) == (predicted.peak.operator, predicted.peak.module)
    assert measured.peak.operator is not None
    assert measured.module_classes == predicted.module_classes
    assert measured.module_classes.keys() == {*measured.retained_by_module, measured.peak.module} - {""}
    assert measured.peak.contents.phase == predicted.peak.contents.phase
    assert (measured.kind, predicted.kind) == ("measured", "predicted")
    assert measured.notes == []
    assert_adds_up(measured)
    assert_adds_up(predicted)


@pytest.mark.parametrize("look", [measured_timeline, predicted_timeline])
@pytest.mark.parametrize(
    ("model", "phase", "operator", "module"),
    [("wide", "forward", "aten::cumsum", "2"), ("back", "backward", "aten::cumprod", "2")],
)
def test_the_operator_at_the_peak_of_a_network_made_for_it(own, look, model, phase, operator, module):
    counting.installed()
    device = "cpu" if look is measured_timeline else "cpu:predicted"
    found = look(configuration(own(model), blocks=1, device=device))
    assert (found.peak.contents.phase, found.peak.operator, found.peak.module) == (phase, operator, module)
    assert found.peak.contents.temporary_bytes >= 1024 * 4096 * 4
    assert_adds_up(found)


@pytest.mark.parametrize("look", [measured_timeline, predicted_timeline])
@pytest.mark.parametrize("model", ["keeper", "hoarder"])
def test_what_a_module_keeps_is_its_own(own, look, model):
    counting.installed()
    device = "cpu" if look is measured_timeline else "cpu:predicted"
    found = look(configuration(own(model), batch_size=4, device=device))
    # Only what is remembered on top of what was remembered before is kept by a step.
    kept = {"keeper": None, "hoarder": 4 * 800 * 4}[model]
    assert {name: found.retained_by_module.get(name) for name in "234"} == {"2": kept, "3": kept, "4": 4 * 8 * 4}
    assert_adds_up(found)


@pytest.mark.parametrize("look", [measured_timeline, predicted_timeline])
def test_a_timeline_names_the_classes_of_its_modules(own, look):
    counting.installed()
    found = look(configuration(own("back"), blocks=3, device="cpu" if look is measured_timeline else "cpu:predicted"))
    assert found.module_classes.keys() == {*found.retained_by_module, found.peak.module} - {""}
    assert found.peak.module is not None
    assert found.module_classes[found.peak.module] == "Back"
    assert f"module       {found.peak.module} (Back)" in timeline_text(found)


def test_what_backward_saves_is_the_savers(own):
    counting.installed()
    found = measured_timeline(configuration(own("relu"), blocks=3, batch_size=4))
    # Each ReLU saves its result, which the layer after it saves too: the first who did has it.
    assert {name: found.retained_by_module.get(name) for name in "1234"} == {"1": None, "2": 128, "3": 128, "4": 128}


def test_a_step_that_cannot_be_watched_is_measured_all_the_same(own):
    counting.installed()
    found = measured_timeline(configuration(own("shy"), blocks=1))
    assert found.notes == ["operators and modules are not known: the step cannot be watched: TypeError: not while you look"]
    assert (found.peak.operator, found.peak.module) == (None, None)
    assert found.peak.allocated_bytes == predicted_timeline(configuration(own("relu"), blocks=0)).peak.allocated_bytes
    assert_adds_up(found)


def test_without_a_compiler_the_profiler_says_the_same(own, monkeypatch):
    counting.installed()
    asked = configuration(own("back"), blocks=1)
    by_allocator = measured_timeline(asked)
    monkeypatch.setattr(memory.counting, "installed", lambda: None)
    by_profiler = measured_timeline(asked)
    assert (by_allocator.probe, by_profiler.probe) == ("allocator", "profiler")
    assert by_profiler.model_copy(update={"probe": "allocator"}) == by_allocator


def test_a_prediction_for_cuda_rounds_as_its_allocator_does():
    asked = configuration("mocapsnet", blocks=1, kernel="triton", device="cuda:predicted", gpu="h100", threads=None)
    found = predicted_timeline(asked)
    assert not (totals(found) % 512).any()
    assert found.peak.left_over_bytes == 0
    assert any("as the allocator rounds them" in note for note in found.notes)
    assert not any("fit" in note for note in found.notes)


# Two steps of which one has more.


def test_known_places():
    assert embedded([5, 7, 7], [5, 8, 7, 8, 7, 1]) == [0, 2, 4]
    assert embedded([], [1]) == []
    assert embedded([5, 6, 7], [5, 7]) == [0]


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans())))
def test_what_is_there_is_found_in_order(members):
    many = [size for size, _ in members]
    few = [size for size, kept in members if kept]
    places = embedded(few, many)
    assert [many[place] for place in places] == few
    assert places == sorted(set(places))


# A CUDA device's probe.


@pytest.mark.parametrize("earlier", [0, 1000])
def test_marks_of_a_cuda_probe_count_from_where_its_history_begins(monkeypatch, earlier):
    history = []
    fake = FakeCuda(monkeypatch, history)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: (None, "it is a fake"))
    counters = {"allocated": earlier, "freed": earlier // 2}
    monkeypatch.setattr(
        torch.cuda, "memory_stats_as_nested_dict", lambda device: {"allocation": {"all": counters}}, raising=False
    )

    def happens(action, address):
        fake.history.append({"action": action, "addr": address, "size": 512})
        counter = {"alloc": "allocated", "free_requested": "freed"}.get(action)
        if counter:
            counters[counter] += 1

    with CudaProbe(torch.device("cuda")) as probe:
        happens("alloc", 4096)
        probe.mark()
        happens("free_requested", 4096)
        happens("free_completed", 4096)
        probe.mark()
        probe.mark()
        happens("alloc", 8192)
    assert probe.trace().marks == [1, 2, 2]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_device(tmp_path):
    asked = configuration("mocapsnet", kernel="triton", device="cuda:0", threads=None)
    request = Request(configuration=asked, what="memory", samples=5, timeline=True, snapshot=tmp_path / "snapshot.pickle")
    found = run_pass(request, PATIENCE).timeline
    assert (tmp_path / "snapshot.pickle").stat().st_size > 0
    assert found.probe == "cuda"
    assert found.peak.operator is not None
    assert abs(found.peak.left_over_bytes) < 0.02 * found.peak.allocated_bytes
    assert found.notes == []


# The figure, and the words.


def made(model="rescapsnet", **fields):
    return predicted_timeline(configuration(model, device="cpu:predicted", **fields))


def words(ax):
    return " ".join(text.get_text() for text in ax.texts)


@pytest.mark.slow
def test_the_figure_shows_phases_the_peak_and_modules():
    found = made(kernel="published")
    figure = draw_timeline(found)
    step, modules = figure.axes
    assert all(
        name in words(step) for name in ("forward", "backward", "optimizer", "peak", found.peak.operator, found.peak.module)
    )
    legend = [text.get_text() for text in step.get_legend().get_texts()]
    assert [label.split()[0] for label in legend] == [name for name in CATEGORIES if any(found.bytes_by_category[name])]
    # As high as what is alive, and marked where it is most.
    (outline,), (marker,) = (
        [line for line in step.lines if line.get_marker() == kind and len(line.get_ydata()) != 2] for kind in ("None", "v")
    )
    assert max(outline.get_ydata()) * MIB == pytest.approx(found.peak.allocated_bytes)
    assert marker.get_ydata()[0] * MIB == pytest.approx(found.peak.allocated_bytes)
    assert 0 < marker.get_xdata()[0] < 1
    names = [label.get_text() for label in modules.get_yticklabels()]
    assert "blocks.blocks.*.* (CapsuleLayer)" in names
    assert sum(bar.get_width() for bar in modules.patches) * MIB == pytest.approx(sum(found.retained_by_module.values()))
    assert "4 × " in words(modules)
    assert "* stands for every number" in " ".join(figure._supxlabel.get_text().split())
    # The names of the phases do not touch the title.
    figure.draw_without_rendering()
    title = step._left_title.get_window_extent()
    assert all(text.get_window_extent().y1 < title.y0 - 3 for text in step.texts if text.get_text() in found.phases)


def test_a_note_on_stars_stands_where_there_are_some():
    plain, starred = make_timeline(configuration()), {"blocks.0.up": 3, "blocks.1.up": 3}
    for timeline, notes in ((plain, 0), (plain.model_copy(update={"retained_by_module": starred}), 1)):
        assert draw_timeline(timeline)._supxlabel.get_text().count("* stands for every number") == notes
        assert timeline_text(timeline).count("* stands for every number") == notes


@pytest.mark.slow
def test_of_many_events_the_highest_is_drawn():
    found = made()
    events = 5000
    grown = {name: [nbytes[0]] * events for name, nbytes in found.bytes_by_category.items()}
    grown["temporary"][3210] = 2**33
    phases = {name: it.model_copy(update={"first_event": 0, "last_event": 0}) for name, it in found.phases.items()}
    phases["optimizer"] = phases["optimizer"].model_copy(update={"last_event": events - 1})
    peak = found.peak.model_copy(update={"event": 3210})
    figure = draw_timeline(found.model_copy(update={"bytes_by_category": grown, "phases": phases, "peak": peak}))
    outline = max(figure.axes[0].lines, key=lambda line: len(line.get_ydata()))
    assert len(outline.get_ydata()) <= 602
    assert max(outline.get_ydata()) > 2**33 / MIB


@pytest.mark.slow
def test_a_network_that_retains_nothing_is_drawn():
    figure = draw_timeline(made().model_copy(update={"retained_by_module": {}}))
    assert "nothing is retained" in words(figure.axes[1])


@pytest.mark.slow
def test_the_words_add_up():
    found = made()
    text = timeline_text(found)
    shares = [
        int(line.split("(")[1].split()[0].replace(",", ""))
        for line in text.splitlines()
        if line.startswith("  ") and "bytes" in line
    ]
    assert sum(shares) == found.peak.allocated_bytes
    assert f"{found.peak.allocated_bytes:,} bytes" in text
    assert found.peak.operator in text
    lost = found.peak.model_copy(update={"left_over_bytes": 12345, "operator": None, "module": None})
    text = timeline_text(found.model_copy(update={"peak": lost, "notes": ["something else"]}))
    assert "12,345 bytes" in text
    assert "not known" in text
    assert "note: something else" in text


# The command.

QUICK = ("timeline", "--depth", 1, "--batch-size", 2, "--device", "cpu:predicted")


def test_the_command_writes_and_draws(command, tmp_path):
    result = command(*QUICK, "--out", "out")
    assert result.status == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "timeline.json",
        "timeline.svg",
        "timeline.png",
        "timeline.pdf",
    }
    found = Timeline.model_validate_json((tmp_path / "out" / "timeline.json").read_text())
    assert_adds_up(found)
    assert result.stdout == timeline_text(found) + "\n"
    again = command(*QUICK, "--out", "out")
    assert (again.status, again.stdout) == (2, "")
    assert again.stderr.splitlines() == ["error: --out out already holds a timeline", "choose another --out, or remove it first"]


def test_json_is_all_that_is_printed(command, tmp_path):
    result = command(*QUICK, "--json")
    (folder,) = (tmp_path / "reports").iterdir()
    assert folder.name.startswith("timeline-")
    assert json.loads(result.stdout) == json.loads((folder / "timeline.json").read_text())


@pytest.mark.slow
def test_a_measured_step_by_command(capsbench, own, tmp_path):
    result = capsbench("timeline", "--model", own("wide"), "--device", "cpu", "--batch-size", 2, "--out", "deep/out")
    assert result.status == 0, result.stderr
    assert "aten::cumsum" in result.stdout
    assert "measured" in result.stdout
    assert_adds_up(Timeline.model_validate_json((tmp_path / "deep" / "out" / "timeline.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--depth", "1,2"], "asks for 2, which differ in depth"),
        (["--model", "capsnet,mocapsnet"], "differ in model"),
        (["--optimizer-step", "after,backward"], "differ in optimizer step"),
        (["--kernel", "reference,published"], "differ in kernel"),
        (["--model", "nothing"], "--model: model 'nothing' is not known"),
        (["--model", "no.such:thing"], "cannot be imported"),
        (["--dataset", "nothing"], "--dataset 'nothing' is not known"),
        (["--gpu", "nothing", "--device", "cuda:predicted"], "--gpu 'nothing'"),
        (["--depth", "0"], "--depth '0' begins below 1"),
        (["--device", "cpu", "--batch-size", "99999"], "--batch-size 99999 is larger than the data"),
        (["--out", "a-file"], "--out a-file cannot be written"),
        (["--out", "a-file/within"], "--out a-file/within cannot be written"),
    ],
)
def test_what_makes_no_sense_is_refused(command, tmp_path, arguments, told):
    (tmp_path / "a-file").touch()
    result = command("timeline", "--device", "cpu:predicted", *arguments)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("data ")]
    assert (result.status, result.stdout, len(lines)) == (2, "", 2), result
    assert told in lines[0]
    assert {path.name for path in tmp_path.iterdir()} <= {"a-file", "reports"}
    assert not [*tmp_path.glob("reports/*")]


@pytest.mark.slow
@pytest.mark.parametrize(("device", "status"), [("cpu", 1), ("cpu:predicted", 2)])
def test_a_network_that_raises_is_told_in_two_lines(capsbench, own, tmp_path, device, status):
    result = capsbench("timeline", "--model", own("broken"), "--device", device, "--batch-size", 2, "--out", "out")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("data ")]
    assert (result.status, result.stdout, len(lines)) == (status, "", 2), result
    assert "ValueError: not today" in lines[0]
    assert not (tmp_path / "out").exists()
