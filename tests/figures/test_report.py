"""Figures and tables say what the records say, whatever the records are."""

import csv
import io
import warnings
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from rich.console import Console

from capsbench import paper, slopes
from capsbench.figures import depth as figures
from capsbench.figures.depth import COLUMN_WIDTH, PAGE_WIDTH, save
from capsbench.figures.styles import series_styles
from capsbench.report import Report
from capsbench.system.durable import write_csv
from capsbench.terminal.table4 import table4, table4_slopes
from capsbench.terminal.tables import cells_table, peak_note, slopes_table
from capsbench.words.labels import Names
from capsbench.words.units import bytes_text, duration_text, seconds_text, slope_text
from helpers.drawn import figure3, figure4
from helpers.made import MIB, RETAINED_PER_BLOCK, make_frame, make_record

DEPTHS = [1, 2, 3, 4]


BOTH = pytest.mark.parametrize("draw", [figure3, figure4], ids=lambda draw: draw.__name__)


def texts(ax):
    legend = ax.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def markers(ax):
    """Lines drawn with a marker for each depth, by their legend's words without the slope."""
    found = {}
    for container in ax.containers:
        line = container.lines[0]
        found[container.get_label().partition(":")[0]] = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    return found


def panel(figure, words):
    (found,) = [ax for ax in figure.axes if words in ax.get_title(loc="left")]
    return found


def replicates(count, depths=DEPTHS):
    return make_frame(make_record(blocks=blocks, replicate=number) for number in range(count) for blocks in depths)


@pytest.mark.parametrize("datasets", [1, 2, 3])
@BOTH
def test_a_row_for_each_data_set_and_three_columns(draw, datasets):
    names = ["mnist", "svhn", "cifar10"][:datasets]
    figure = draw(make_frame(make_record(blocks=blocks, dataset=name) for name in names for blocks in DEPTHS))
    assert len(figure.axes) == 3 * datasets
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    for title in ("MNIST", "SVHN", "CIFAR-10")[:datasets]:
        assert sum(text.startswith(title) for text in titles) == 3


@pytest.mark.parametrize(
    ("draw", "memory", "expected"),
    [
        (figure3, None, ["retained for backward", "training time", "inference time"]),
        (figure4, None, ["retained for backward", "peak allocated", "training time"]),
        (figure3, ("process",), ["largest resident set", "training time", "inference time"]),
        (figure4, ("peak", "process"), ["peak allocated", "largest resident set", "training time"]),
        # Nothing was reserved on this device.
        (figure4, ("reserved",), ["training time"]),
    ],
)
def test_titles_say_which_memory_is_drawn(sweep_frame, draw, memory, expected):
    figure = draw(sweep_frame) if memory is None else draw(sweep_frame, memory=memory)
    assert [ax.get_title(loc="left").partition(": ")[2] for ax in figure.axes] == expected


@BOTH
def test_lines_are_the_records(sweep_frame, draw):
    figure = draw(sweep_frame)
    for ax, column, unit in (
        (panel(figure, "retained"), "retained_bytes", MIB),
        (panel(figure, "training time"), "train_step_seconds", 1),
    ):
        drawn = markers(ax)
        assert set(drawn) == {"CapsNet", "ResCapsNet", "MoCapsNet"}
        for model, title in (("capsnet", "CapsNet"), ("rescapsnet", "ResCapsNet"), ("mocapsnet", "MoCapsNet")):
            rows = sweep_frame[sweep_frame["model"] == model]
            assert drawn[title] == pytest.approx(dict(zip(rows["blocks"], rows[column] / unit, strict=True)))
    assert panel(figure, "retained").get_ylabel() == "MiB"
    assert panel(figure, "training").get_ylabel() == "seconds per step"


@BOTH
def test_every_point_is_in_sight(sweep_frame, draw):
    for ax in draw(sweep_frame).axes:
        low, high = ax.get_ylim()
        values = [value for line in markers(ax).values() for value in line.values()]
        assert low <= min(values)
        assert max(values) <= high


def test_figure_4_has_the_slopes_in_its_legend(sweep_frame):
    figure = figure4(sweep_frame)
    assert texts(panel(figure, "retained")) == [
        "CapsNet: 10.00 MiB per block",
        "ResCapsNet: 10.00 MiB per block",
        "MoCapsNet: 0 B per block",
    ]
    assert texts(panel(figure, "training")) == [
        "CapsNet: 20.0 ms per block",
        "ResCapsNet: 20.0 ms per block",
        "MoCapsNet: 30.0 ms per block",
    ]


def test_figure_4_draws_the_fitted_line(sweep_frame):
    ax = panel(figure4(sweep_frame[sweep_frame["model"] == "rescapsnet"]), "retained")
    (fitted,) = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert list(fitted.get_xdata()) == [1, 4]
    assert list(fitted.get_ydata()) == pytest.approx([11, 41])


def test_error_bars_are_the_spread_of_replicates():
    figure = figure3(replicates(3))
    (container,) = panel(figure, "training").containers
    (bars,) = container.lines[2]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    # Replicates lie 1 ms apart: a standard deviation of 1 ms to both sides.
    assert (ends[:, 1] - ends[:, 0]) / 2 == pytest.approx([0.001] * len(DEPTHS))
    assert markers(panel(figure, "training"))["ResCapsNet"][1] == pytest.approx(0.121)
    assert "standard deviation over replicates" in figure.get_supxlabel()


def test_one_replicate_has_no_bars():
    figure = figure3(replicates(1))
    assert panel(figure, "training").containers[0].lines[2] == ()
    assert "replicates" not in figure.get_supxlabel()


@BOTH
def test_a_line_that_ran_out_of_memory_says_so_where_it_ends(draw):
    records = [make_record(blocks=blocks) for blocks in (1, 2)]
    records += [make_record(blocks=3, status="oom"), make_record(blocks=4, status="skipped")]
    figure = draw(make_frame([*records, *(make_record("mocapsnet", blocks) for blocks in DEPTHS)]))
    for ax in figure.axes:
        (note,) = [text for text in ax.texts if text.get_text() == "out of memory"]
        assert note.xy[0] == 3
        (line,) = [container.lines[0] for container in ax.containers if container.get_label().startswith("ResCapsNet")]
        assert same_color(note.get_color(), line.get_color())
        assert set(markers(ax)["ResCapsNet"]) == {1, 2}


@pytest.mark.parametrize(("dataset", "steps"), [("mnist", 469), ("cifar10", 391), ("svhn", 573)])
def test_an_epoch_is_the_paper_s_set(dataset, steps):
    # 60,000, 50,000 and 73,257 images in batches of 128, the last one partly filled.
    frame = make_frame(make_record(blocks=blocks, dataset=dataset, batch_size=128) for blocks in DEPTHS)
    by_step, by_epoch = (panel(figure3(frame, per=per), "training") for per in ("step", "epoch"))
    for blocks in DEPTHS:
        assert markers(by_epoch)["ResCapsNet"][blocks] == pytest.approx(steps * markers(by_step)["ResCapsNet"][blocks])
    assert by_epoch.get_ylabel() == "seconds per epoch of the paper's set"
    assert texts(panel(figure4(frame, per="epoch"), "training")) == [f"ResCapsNet: {steps * 0.02:.2f} s per block"]
    assert markers(panel(figure3(frame, per="epoch"), "retained"))["ResCapsNet"][1] == pytest.approx(11)


@pytest.mark.parametrize(
    ("memory", "dataset", "batch_size", "device", "drawn"),
    [
        ("process", "mnist", 128, "cuda:0", True),
        ("process", "mnist", 4, "cuda:0", False),
        ("retained", "mnist", 128, "cuda:0", False),
        ("peak", "mnist", 128, "cuda:0", False),
        ("process", "sample", 128, "cuda:0", False),
        # A CPU's resident set is not what nvidia-smi reads.
        ("process", "mnist", 128, "cpu", False),
    ],
)
def test_the_paper_s_lines_stand_beside_what_they_compare_with(memory, dataset, batch_size, device, drawn):
    frame = make_frame(make_record(blocks=blocks, dataset=dataset, batch_size=batch_size, device=device) for blocks in DEPTHS)
    figure = figure4(frame, memory=(memory,), with_paper=True)
    lines = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("paper's")]
    assert len(lines) == (3 if drawn else 0)
    if drawn:
        table = paper.table("table4_memory_mb")
        rows = table[(table["dataset"] == dataset) & (table["model"] == "mocapsnet")]
        (line,) = [line for line in lines if "MoCapsNet" in line.get_label()]
        assert list(line.get_ydata()) == list(rows["memory_mb"])
    for ax in figure.axes[1:]:
        assert not any("paper" in text for text in texts(ax))
    assert not any("paper's" in text for ax in figure4(frame, memory=(memory,)).axes for text in texts(ax))


ODD = {
    "a single cell": [make_record()],
    "a single depth": [make_record(model) for model in RETAINED_PER_BLOCK],
    "only oom": [make_record(status="oom")],
    "only errors": [make_record(status="error"), make_record(blocks=2, status="timeout")],
    "no record": [],
    "only memory": [make_record(blocks=blocks).model_copy(update={"time": None}) for blocks in (1, 2)],
    "only time": [make_record(blocks=blocks).model_copy(update={"memory": None}) for blocks in (1, 2)],
    "a data set where all failed": [make_record(blocks=1), make_record(blocks=1, dataset="mnist", status="oom")],
    "many own models": [make_record(f"module:net{number}", blocks) for number in range(12) for blocks in (1, 2)],
}


@pytest.mark.slow
@pytest.mark.parametrize("records", ODD.values(), ids=ODD)
@BOTH
def test_odd_reports_are_drawn(draw, records, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in save(draw(make_frame(records), with_paper=True), tmp_path, "figure"):
            assert path.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pkg:a_$net", r"pkg:$\bad{$", "pkg:<b>&amp;", "_private:_make", "package_" * 10 + ":network", "päckchen:netz"]
)
@BOTH
def test_odd_names_are_drawn_as_they_are(draw, name, tmp_path):
    frame = make_frame(make_record(name, blocks) for blocks in (1, 2))
    figure = draw(frame)
    shown = texts(figure.axes[0])[0].removeprefix("\u200b")  # without which matplotlib hides names like _private
    # A name that a panel has no room for is cut off, visibly.
    assert shown.startswith(name[:35])
    assert ("…" in shown) == (len(name) > 36)
    svg, *_ = save(figure, tmp_path, "figure")
    escaped = name[:35].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert escaped in svg.read_text(encoding="utf-8")


def test_lines_that_differ_look_different():
    records = [
        make_record(model, blocks, kernel=kernel)
        for model in RETAINED_PER_BLOCK
        for kernel in ("recompute", "published", "reference")
        for blocks in (1, 2)
    ]
    ax = figure3(make_frame(records)).axes[0]
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines if line.get_linestyle() != "None"}
    assert len(looks) == len(set(texts(ax))) == 9


@pytest.mark.slow
@BOTH
def test_the_same_records_give_the_same_bytes(sweep_frame, draw, tmp_path):
    first = [path.read_bytes() for path in save(draw(sweep_frame), tmp_path, "figure")]
    paths = save(draw(sweep_frame), tmp_path, "figure")
    assert [path.name for path in paths] == ["figure.svg", "figure.png", "figure.pdf"]
    assert [path.read_bytes() for path in paths] == first
    assert first[0].startswith(b"<?xml")
    assert first[1].startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_report_writes_what_it_says(tmp_path):
    report = Report.of(make_record(model, blocks) for blocks in range(1, 5) for model in RETAINED_PER_BLOCK)
    paths = report.draw(tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in paths} == {
        "slopes.csv",
        "figure3.svg",
        "figure3.png",
        "figure3.pdf",
        "figure4.svg",
        "figure4.png",
        "figure4.pdf",
    }
    assert {path.name for path in report.draw(tmp_path, only=("figure4",))} == {
        "slopes.csv",
        "figure4.svg",
        "figure4.png",
        "figure4.pdf",
    }


def test_slopes_csv_has_full_digits(sweep_frame, tmp_path):
    table = slopes(sweep_frame)
    with write_csv(table, tmp_path / "slopes.csv").open(newline="") as file:
        assert [float(row["slope"]) for row in csv.DictReader(file)] == table["slope"].tolist()


def rendered(table):
    out = StringIO()
    Console(width=80, file=out).print(table)
    return out.getvalue()


def test_slopes_fit_a_terminal(sweep_frame):
    text = rendered(slopes_table(slopes(sweep_frame)))
    assert max(map(len, text.splitlines())) <= 80
    for words in ("slope per block, and its ratio to ResCapsNet", "10.00 MiB", "20.0 ms", "30.0 ms", "× 1.5", "× 0"):
        assert words in text
    assert "…" not in text


def test_slopes_of_a_wide_sweep_fit_a_terminal_unabridged():
    records = [
        make_record(model, blocks, kernel=kernel, dataset=dataset, replicate=replicate)
        for model in RETAINED_PER_BLOCK
        for kernel in ("recompute", "published")
        for dataset in ("mnist", "cifar10")
        for blocks in DEPTHS
        for replicate in (0, 1)
    ]
    records += [make_record("my_package.models:make_a_network", blocks) for blocks in DEPTHS]
    text = rendered(slopes_table(slopes(make_frame(records))))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for words in ("CIFAR-10", "published", "±"):
        assert words in text


def test_cells_say_what_came_of_them():
    text = rendered(
        cells_table(make_frame([make_record(), make_record(blocks=2, status="oom"), make_record(blocks=3, status="error")]))
    )
    assert "11.00 MiB" in text
    assert "oom" in text
    assert "error" in text
    assert len(rendered(cells_table(replicates(9), last=5)).splitlines()) == 6


def with_peak(per_block):
    """ResCapsNet with a peak that grows as told; weights, gradients and optimizer state grow by 2 MiB a block."""
    for blocks in DEPTHS:
        record = make_record(blocks=blocks)
        memory = record.memory.model_copy(update={"peak_allocated_bytes": 100 * MIB + blocks * per_block})
        yield record.model_copy(update={"memory": memory})


@pytest.mark.parametrize(
    ("per_block", "told"), [(2 * MIB, True), (2 * MIB + 4, True), (12 * MIB, False), (0, False), (3 * MIB, False)]
)
def test_the_note_on_the_peak_stands_only_where_it_is_true(per_block, told):
    frame = make_frame(with_peak(per_block))
    note = peak_note(slopes(frame), frame)
    assert (note is not None) == told
    if note is not None:
        assert "2.00 MiB" in note
        assert "at 4 blocks" in note


def test_one_line_whose_peak_moves_is_enough_for_no_note():
    frame = make_frame([*with_peak(2 * MIB), *(make_record("capsnet", blocks) for blocks in DEPTHS)])
    assert peak_note(slopes(frame), frame) is None


@pytest.mark.parametrize("records", [[], [make_record()], [make_record(status="oom")]], ids=["nothing", "one cell", "only oom"])
def test_no_note_without_slopes(records):
    frame = make_frame(records)
    assert peak_note(slopes(frame), frame) is None


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (bytes_text, 0, "0 B"),
        (bytes_text, 1023, "1023 B"),
        (bytes_text, 1024, "1.00 KiB"),
        (bytes_text, MIB, "1.00 MiB"),
        (bytes_text, -1.5 * MIB, "-1.50 MiB"),
        (bytes_text, 2**30, "1.00 GiB"),
        (bytes_text, 2**41, "2048.00 GiB"),
        (bytes_text, float("nan"), "-"),
        (seconds_text, 0, "0 µs"),
        (seconds_text, 12e-6, "12 µs"),
        (seconds_text, 0.001, "1.0 ms"),
        (seconds_text, -0.0083, "-8.3 ms"),
        (seconds_text, 1, "1.00 s"),
        (seconds_text, float("nan"), "-"),
        (duration_text, 0, "0 s"),
        (duration_text, 59.4, "59 s"),
        (duration_text, 59.6, "1 min 00 s"),
        (duration_text, 200, "3 min 20 s"),
        (duration_text, 3599.6, "1 h 00 min"),
        (duration_text, 7500, "2 h 05 min"),
        (duration_text, 86400 * 3 + 3600 * 4 + 59, "3 days 4 h"),
    ],
)
def test_units(function, value, text):
    assert function(value) == text


@pytest.mark.parametrize(
    ("slope", "low", "high", "is_bytes", "text"),
    [
        (2 * MIB, 2 * MIB, 2 * MIB, True, "2.00 MiB"),
        (2 * MIB, 1 * MIB, 3 * MIB, True, "2.00 ± 1.00 MiB"),
        (0.0083, 0.0079, 0.0087, False, "8.3 ± 0.4 ms"),
        (0.000168, -0.022032, 0.022368, False, "0.2 ± 22.2 ms"),
        (0.5, float("nan"), float("nan"), False, "500.0 ms"),
        (0.0, 0.0, 0.0, True, "0 B"),
        (0.001, 0.00098, 0.00102, False, "1.00 ± 0.02 ms"),
        (4e-7, 3e-7, 5e-7, False, "0.4 ± 0.1 µs"),
        (4e-7, float("nan"), float("nan"), False, "0.4 µs"),
        (-1e-7, -4e-6, 4e-6, False, "0 ± 4 µs"),
    ],
)
def test_a_slope_has_its_uncertainty(slope, low, high, is_bytes, text):
    assert slope_text(slope, low, high, is_bytes=is_bytes) == text


def labels_of(*records):
    everyone = [record.cell.configuration.model_dump() for record in records]
    return [*map(Names(everyone).of, everyone)]


@pytest.mark.parametrize(
    "records",
    [
        [make_record(model) for model in RETAINED_PER_BLOCK],
        [make_record(), make_record("mocapsnet", rule="published")],
        [make_record(), make_record("package.module:name")],
        [make_record(memory="checkpoint"), make_record("mocapsnet", memory="stored")],
    ],
    ids=["models", "a rule that only one model has", "an own model", "strategies that only one model has"],
)
def test_labels_say_no_more_than_tells_lines_apart(records):
    titles = {"capsnet": "CapsNet", "rescapsnet": "ResCapsNet", "mocapsnet": "MoCapsNet"}
    models = [record.cell.configuration.model for record in records]
    assert labels_of(*records) == [titles.get(model, model) for model in models]


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("kernel", "recompute", "published"),
        ("batch_size", 4, 8),
        ("precision", "fp32", "bf16"),
        ("device", "cpu", "cuda"),
        ("iterations", 3, 1),
        ("threads", 1, 2),
        ("capsules", 16, 32),
        ("memory", "stored", "reversible"),
        ("rule", "paper", "published"),
        ("gamma", 0.5, 0.9),
        ("front", "plain", "chunked"),
        ("capacity", 2**30, 2**31),
    ],
)
def test_labels_tell_lines_apart(field, one, other):
    labels = labels_of(*(make_record("mocapsnet", **{field: value}) for value in (one, other)))
    assert len(set(labels)) == 2
    for label, value in zip(labels, (one, other), strict=True):
        assert label.startswith("MoCapsNet (")
        assert field == "capacity" or str(value) in label


def test_labels_tell_when_the_optimizer_steps():
    after, backward = make_record(), make_record("mocapsnet", optimizer_step="backward")
    assert labels_of(after, backward) == ["ResCapsNet (step after backward)", "MoCapsNet (step in backward)"]


def test_records_without_a_front_had_a_plain_one():
    before, after = make_record(front=None), make_record(front="chunked")
    assert labels_of(before, after) == ["ResCapsNet (plain front)", "ResCapsNet (chunked front)"]
    assert labels_of(before, make_record(front="plain")) == ["ResCapsNet", "ResCapsNet"]


def test_labels_tell_a_limit_from_none():
    without, limited = labels_of(make_record(), make_record(capacity=2**30))
    assert without != limited


def legend_of(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_no_more_lines_are_drawn_than_can_be_told_apart():
    """All panels of a data set draw the same lines where they can, also where the first has nothing of some of them."""
    records = [make_record("rescapsnet", blocks, batch_size=batch) for batch in range(1, 16) for blocks in (1, 2)]
    records = [
        record.model_copy(update={"memory": None}) if record.cell.configuration.batch_size < 4 else record for record in records
    ]
    memory, train, inference = figures.figure3(make_frame(records))[0]
    legend = legend_of(memory)
    left = ["3 more lines of inference time are not drawn", "3 more lines of training time are not drawn"]
    assert legend[-2:] == left
    for panel in (memory, train, inference):
        assert {container.get_label() for container in panel.containers} == {*legend[:-2]}
        assert len(panel.containers) == 12
    retained, peak, train = figures.figure4(make_frame(records))[0]
    assert len(legend_of(retained)) == len(legend_of(peak)) == 12
    assert legend_of(train)[12:] == ["3 more lines are not drawn"]


def test_a_panel_draws_lines_that_have_what_it_shows():
    """Here the first twelve lines have times, the others bytes."""
    records = [make_record("rescapsnet", blocks, batch_size=batch) for batch in range(1, 25) for blocks in (1, 2)]
    records = [
        record.model_copy(update={"memory" if record.cell.configuration.batch_size <= 12 else "time": None}) for record in records
    ]
    memory, train, inference = figures.figure3(make_frame(records))[0]
    assert [len(panel.containers) for panel in (memory, train, inference)] == [12, 12, 12]
    assert len(legend_of(memory)) == 24
    assert [len(panel.containers) for panel in figures.figure4(make_frame(records))[0]] == [12, 12, 12]


def test_a_common_legend_says_which_panel_leaves_lines_out():
    records = [make_record("rescapsnet", blocks, batch_size=batch) for batch in range(1, 25) for blocks in (1, 2)]
    records = [
        record.model_copy(update={"memory": None}) if record.cell.configuration.batch_size > 14 else record for record in records
    ]
    legend = legend_of(figures.figure3(make_frame(records))[0][0])
    assert legend[-3:] == [
        "12 more lines of inference time are not drawn",
        "12 more lines of training time are not drawn",
        "2 more lines of retained for backward are not drawn",
    ]


def test_lines_that_are_drawn_beside_each_other_look_unlike():
    records = [
        make_record(model, blocks, batch_size=batch).model_copy(update={"kind": kind})
        for model in ("rescapsnet", "mocapsnet", "a:a", "b:b", "c:c", "d:d", "e:e")
        for batch in range(1, 13)
        for blocks in (1, 2)
        for kind in ("measured", "predicted")
    ]
    looks = [(one.colour, one.marker, one.dash) for one in series_styles(make_frame(records)).values()]
    assert len(set(looks)) == len(looks) == 168


def looks_of(*reports):
    """Colour and marker of each series of reports, given as name and records."""
    frame = pd.concat([make_frame(records, name) for name, records in reports], ignore_index=True)
    return [(one.colour, one.marker) for one in series_styles(frame).values()]


def strategies(model):
    names = ("stored", "checkpoint", "offload", "checkpoint-sqrt")
    return [make_record(model, blocks, memory=name) for name in names for blocks in (1, 2)]


def test_series_of_one_network_differ_in_colour():
    looks = looks_of(("mine", strategies("rescapsnet")))
    assert len({colour for colour, _ in looks}) == 4
    assert looks[0] == ("#D55E00", "s")
    # Among other networks the colour is the network's, and markers differ.
    both = looks_of(("mine", [*strategies("rescapsnet"), *strategies("capsnet")]))
    assert [colour for colour, _ in both] == ["#D55E00"] * 4 + ["#009E73"] * 4
    assert len(set(both)) == 8


def test_two_reports_of_one_network_differ_in_colour():
    records = [make_record("mocapsnet", blocks) for blocks in (1, 2)]
    one, other = looks_of(("before", records), ("after", records))
    assert one[0] != other[0]
    several = looks_of(("before", strategies("rescapsnet")), ("after", strategies("rescapsnet")))
    assert [len({colour for colour, _ in half}) for half in (several[:4], several[4:])] == [1, 1]
    assert len(set(several)) == 8


def test_predictions_have_the_colours_of_their_measurements():
    measured = strategies("rescapsnet")
    predicted = [one.model_copy(update={"kind": "predicted"}) for one in measured]
    looks = looks_of(("mine", [*measured, *predicted]))
    assert looks[:4] == looks[4:]


@pytest.mark.parametrize(("width", "columns"), [(COLUMN_WIDTH, 1), (PAGE_WIDTH, 3), (4.5, 2)])
def test_panels_that_would_be_narrow_stand_below_each_other(width, columns):
    axes = figures.figure4(make_frame(strategies("rescapsnet")), width=width)
    assert axes.shape == (1, 3)
    figure = axes[0][0].figure
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    assert len({round(panel.get_position().x0, 2) for panel in axes[0]}) == columns
    assert figure.get_figwidth() == pytest.approx(width)
    for panel in axes[0]:
        assert panel.get_position().width * width > 1.4
        assert panel.get_position().height * figure.get_figheight() > 1.2


@pytest.mark.parametrize(("lines", "below"), [(3, False), (10, True)])
@pytest.mark.parametrize("width", [None, PAGE_WIDTH])
def test_a_legend_without_room_lies_beneath_its_panel(lines, below, width):
    records = [make_record("rescapsnet", blocks, batch_size=batch) for batch in range(1, 1 + lines) for blocks in (1, 2, 3)]
    axes = figures.figure4(make_frame(records), width=width)[0]
    axes[0].figure.draw_without_rendering()
    for panel in axes:
        legend, name = panel.get_legend().get_window_extent(), panel.xaxis.label.get_window_extent()
        assert (legend.y1 < name.y0) == below
        assert (legend.y0 > panel.get_window_extent().y0) != below
        assert legend.x1 < panel.figure.bbox.x1


def test_long_names_are_wrapped_and_keep_their_slopes():
    records = [
        make_record(model, blocks, kernel=kernel, memory=memory)
        for model in ("rescapsnet", "a_model_with_a_name_of_its_own") for kernel in ("recompute", "published")
        for memory in ("checkpoint-sqrt", "stored") for blocks in (1, 2)
    ]  # fmt: skip
    legend = legend_of(figures.figure4(make_frame(records))[0][0])
    assert all(len(row) <= 43 for text in legend for row in text.split("\n"))
    assert all(text.replace("\n", " ").endswith("MiB per block") for text in legend)
    assert len({*legend}) == 8


@BOTH
def test_names_that_differ_in_their_last_letters_are_told_apart(draw):
    long = "my_group.experiments.of_2026:a_network_whose_name_is_far_longer_than_two_rows_of_a_legend_of_any_figure"
    figure = draw(make_frame(make_record(f"{long}_{end}", blocks) for end in ("left", "right") for blocks in (1, 2)))
    names = [text.replace("\n", "") for text in texts(figure.axes[0])]
    assert [text.startswith("my_group.experiments") for text in names] == [True, True]
    assert [end in text for end, text in zip(("_left", "_right"), names, strict=True)] == [True, True]
    assert all("…" in text for text in names)


@pytest.mark.parametrize(
    ("factor", "memory", "time"),
    [(1, "MiB", "seconds per step"), (1e-3, "KiB", "milliseconds per step"), (1e-6, "B", "microseconds per step")],
)
@BOTH
def test_small_values_are_drawn_in_a_unit_that_suits_them(draw, factor, memory, time):
    figure = draw(make_frame(scaled(make_record(blocks=blocks), factor) for blocks in (1, 2, 4)))
    per_byte = {"MiB": 1 / MIB, "KiB": 1 / 1024, "B": 1}[memory]
    per_second = {"seconds per step": 1, "milliseconds per step": 1e3, "microseconds per step": 1e6}[time]
    expected = {
        "retained": (memory, [per_byte * int(factor * (1 + 10 * blocks) * MIB) for blocks in (1, 2, 4)]),
        "training": (time, [per_second * factor * (0.1 + 0.02 * blocks) for blocks in (1, 2, 4)]),
    }
    for name, (unit, values) in expected.items():
        assert panel(figure, name).get_ylabel() == unit
        (points,) = panel(figure, name).containers
        assert points.lines[0].get_ydata() == pytest.approx(values)


def scaled(record, factor):
    """A record of a network that is smaller by a factor."""
    memory = record.memory.model_copy(update={"retained_bytes": int(factor * record.memory.retained_bytes)})
    names = ("train_step_seconds", "inference_seconds")
    steps = {name: [factor * value for value in getattr(record.time, name)] for name in names}
    return record.model_copy(update={"memory": memory, "time": record.time.model_copy(update=steps)})


@pytest.mark.parametrize(
    ("depths", "ticks"),
    [
        ((3,), [3]),
        ((16, 32, 64, 128), [16, 32, 64, 128]),
        ((1, 2, 4, 8), [1, 2, 4, 8]),
        ((1, 2, 300), None),
        (range(1, 30), None),
    ],
)
@BOTH
def test_few_positions_have_a_tick_each(draw, depths, ticks):
    figure = draw(make_frame(make_record(blocks=blocks) for blocks in depths))
    for ax in figure.axes:
        low, high = ax.get_xlim()
        found = [tick for tick in ax.get_xticks() if low <= tick <= high]
        assert all(float(tick).is_integer() for tick in found)
        assert ticks is None or found == ticks


@BOTH
def test_markers_of_many_points_do_not_cover_each_other(draw):
    def size(count):
        figure = draw(make_frame(make_record(blocks=blocks) for blocks in range(1, count + 1)))
        return figure.axes[0].containers[0].lines[0].get_markersize()

    assert size(8) == size(16)
    assert size(64) < 0.4 * size(16)


@BOTH
def test_a_caption_names_cells_without_a_result(draw):
    records = [make_record(blocks=blocks) for blocks in (1, 2, 4)]
    assert "no result" not in draw(make_frame([*records, make_record(blocks=8, status="oom")])).get_supxlabel()
    records += [make_record("mocapsnet", 1), make_record("mocapsnet", 2, status="timeout"), make_record("mocapsnet", 4)]
    records += [make_record("capsnet", blocks, status="oom") for blocks in (1, 2)]
    records += [make_record("mocapsnet", 8, status="error"), make_record("mocapsnet", 16, status="skipped")]
    caption = " ".join(draw(make_frame(records)).get_supxlabel().split())
    assert (
        "no result: MoCapsNet at 2 blocks (timeout), MoCapsNet at 8 blocks (error), CapsNet at 1, 2 blocks (out of memory)"
        in caption
    )


def test_out_of_memory_below_a_depth_that_worked_is_marked_where_it_was():
    records = [make_record("mocapsnet", blocks) for blocks in (1, 4, 40)]
    frame = make_frame([*records, make_record("mocapsnet", 10, status="oom")])
    panel = figures.figure4(frame)[0][0]
    (dotted,) = [line for line in panel.get_lines() if line.get_linestyle() == ":" and line.get_xdata()[-1] == 10]
    assert list(dotted.get_xdata()) == [4, 10]
    (mark,) = [text for text in panel.texts if text.get_text() == "out of memory"]
    assert (mark.xy[0], mark.get_ha()) == (10, "left")


def test_nothing_but_out_of_memory_says_so():
    panel = figures.figure4(make_frame([make_record(status="oom")]))[0][0]
    assert [text.get_text() for text in panel.texts] == ["every cell ran out of memory"]


def test_slopes_of_two_reports_are_told_apart():
    records = [make_record(blocks=blocks) for blocks in DEPTHS]
    frame = pd.concat([make_frame(records, report=name) for name in ("tuesday", "friday")], ignore_index=True)
    text = rendered(slopes_table(slopes(frame)))
    assert "tuesday" in text
    assert "friday" in text


def test_the_note_on_the_peak_looks_at_each_line_alone():
    """Data sets differ in their weights; within each line a block adds the same."""

    def record(dataset, blocks, base):
        made = make_record(blocks=blocks, dataset=dataset)
        state = base + blocks * MIB
        own = {
            "state_bytes": state,
            "gradient_bytes": state,
            "optimizer_bytes": 2 * state,
            "peak_allocated_bytes": 4 * state + base,
        }
        return made.model_copy(update={"memory": made.memory.model_copy(update=own)})

    frame = make_frame(
        record(dataset, blocks, base) for dataset, base in (("mnist", 50 * MIB), ("cifar10", 90 * MIB)) for blocks in (1, 2)
    )
    note = peak_note(slopes(frame), frame)
    assert note is not None
    assert "4.00 MiB" in note


@pytest.mark.parametrize("records", [[], [make_record(status="oom", dataset="mnist")]], ids=["nothing", "only oom"])
def test_table_4_of_nothing_measured_is_empty(records, tmp_path):
    table = table4(make_frame(records))
    assert len(table) == 0
    assert write_csv(table, tmp_path / "table4.csv").read_text().startswith("dataset,model,blocks,paper_bytes")
    Console(file=io.StringIO()).print(table4_slopes(table))


def test_table_4_stands_beside_the_paper():
    kernels = ("published", "recompute")
    frame = make_frame(make_record(blocks=blocks, dataset="mnist", kernel=kernel) for blocks in (1, 2) for kernel in kernels)
    table = table4(frame)
    assert list(table["blocks"]) == [1, 2]
    assert list(table["paper_bytes"]) == [4462 * MIB, 4612 * MIB]
    retained = [make_record(blocks=blocks).memory.retained_bytes for blocks in (1, 2)]
    assert list(table["published_retained_bytes"]) == list(table["recompute_retained_bytes"]) == retained
    assert not [name for name in table.columns if "process" in name]
