"""Tables and figures say how far their figures can be trusted: noise, what is no line, and what is predicted."""

from io import StringIO

import numpy as np
import pytest
from matplotlib.colors import same_color
from rich.console import Console

from capsbench import slopes
from capsbench.terminal.table4 import table4
from capsbench.terminal.tables import cells_table, slopes_table
from capsbench.words.labels import Names
from capsbench.words.units import ratio_text, slope_text
from helpers.drawn import figure3, figure4
from helpers.made import MIB, make_frame, make_record

DEPTHS = range(1, 9)
JUMPS = [3042, 3044, 3300, 3280, 3900, 4294, 3200, 3276]
BOTH = pytest.mark.parametrize("draw", [figure3, figure4], ids=lambda draw: draw.__name__)


def noisy(record, *names):
    return record.model_copy(update={"time": record.time.model_copy(update={"noise": list(names)})})


def reserved(values, factor=1.0, kind="measured", **fields):
    """Records that hold so many MiB at each depth."""
    for blocks, mebibytes in enumerate(values, start=1):
        record = make_record(blocks=blocks, **fields)
        memory = record.memory.model_copy(update={"peak_reserved_bytes": int(factor * mebibytes * MIB)})
        yield record.model_copy(update={"memory": memory, "kind": kind} | ({"time": None} if kind == "predicted" else {}))


def both_kinds():
    """Measured lines, and predicted ones that lie a tenth higher."""
    for model in ("rescapsnet", "mocapsnet"):
        yield from reserved([3000 + 10 * blocks for blocks in DEPTHS], model=model, device="cuda:0", dataset="mnist")
        yield from reserved(
            [3000 + 10 * blocks for blocks in DEPTHS],
            factor=1.1, kind="predicted", model=model, device="cuda:predicted", gpu="h100", dataset="mnist",
        )  # fmt: skip


def rendered(table, width=80):
    out = StringIO()
    Console(width=width, file=out).print(table)
    return out.getvalue()


def panel(figure, words):
    (found,) = [ax for ax in figure.axes if words in ax.get_title(loc="left")]
    return found


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def crosses(ax):
    return {x for line in ax.lines if line.get_marker() == "x" for x in line.get_xdata()}


# Noise.


def test_noisy_times_are_marked_where_they_stand():
    frame = make_frame(
        [make_record(blocks=1), noisy(make_record(blocks=2), "load", "drift"), noisy(make_record(blocks=3), "load")]
    )
    lines = rendered(cells_table(frame)).splitlines()
    assert [line.count("~") for line in lines] == [0, 0, 2, 2, 1, 0]
    assert "~ disturbed by other work on the machine and times that rose or fell" in " ".join(" ".join(lines).split())
    assert rendered(cells_table(frame[frame["noise"] == ""])).count("~") == 0


def test_noisy_slopes_are_marked_but_bytes_are_not():
    frame = make_frame(
        [
            noisy(make_record("mocapsnet", blocks), "spread") if blocks == 2 else make_record("mocapsnet", blocks)
            for blocks in DEPTHS
        ]
        + [make_record(blocks=blocks) for blocks in DEPTHS]
    )
    table = slopes(frame)
    assert set(table.loc[table["noise"] != "", "metric"]) == {"train", "forward", "inference"}
    assert set(table.loc[table["noise"] != "", "model"]) == {"mocapsnet"}
    text = rendered(slopes_table(table))
    assert "30.0 ms~" in text
    assert "20.0 ms~" not in text
    assert "MiB~" not in text
    assert "~ disturbed by samples that differ widely" in text


@BOTH
def test_noisy_times_are_crossed_out_in_figures(draw):
    frame = make_frame(
        noisy(make_record(blocks=blocks), "load") if blocks in (2, 5) else make_record(blocks=blocks) for blocks in DEPTHS
    )
    figure = draw(frame)
    assert crosses(panel(figure, "training")) == {2, 5}
    assert crosses(panel(figure, "retained")) == set()
    assert "crossed markers: disturbed by other work on the machine" in figure.get_supxlabel()


@BOTH
def test_quiet_times_are_not_crossed_out(draw, sweep_frame):
    figure = draw(sweep_frame)
    assert not any(crosses(ax) for ax in figure.axes)
    assert "noisy" not in figure.get_supxlabel()


# What is no line.


def test_no_line_is_drawn_where_none_fits():
    ax = panel(figure4(make_frame(reserved(JUMPS)), memory=("reserved",)), "reserved")
    assert legend(ax) == ["ResCapsNet: not a line"]
    assert not [line for line in ax.lines if len(line.get_xdata()) == 2]
    (pale,) = [line for line in ax.lines if line.get_alpha()]
    assert pale.get_alpha() < 0.5
    assert pale.get_linewidth() < 1
    # Reserved memory jumps: it does not pass through what lies between.
    assert pale.get_drawstyle() == "steps-mid"
    assert list(pale.get_ydata()) == pytest.approx(JUMPS)


def test_other_bytes_that_are_no_line_are_joined_without_steps():
    records = list(reserved(JUMPS))
    bent = [
        record.model_copy(update={"memory": record.memory.model_copy(update={"retained_bytes": blocks**3 * MIB})})
        for blocks, record in enumerate(records, start=1)
    ]
    ax = panel(figure4(make_frame(bent)), "retained")
    (pale,) = [line for line in ax.lines if line.get_alpha()]
    assert pale.get_drawstyle() == "default"
    assert legend(ax) == ["ResCapsNet: not a line"]


def test_reserved_memory_is_drawn_in_steps_only_where_it_jumps():
    for values, steps in ((JUMPS, "steps-mid"), ([3000 + 2 * blocks for blocks in DEPTHS], "default")):
        ax = panel(figure3(make_frame(reserved(values)), memory=("reserved",)), "reserved")
        (container,) = ax.containers
        assert container.lines[0].get_drawstyle() == steps


def test_the_table_says_what_is_no_line():
    records = [*reserved(JUMPS), *reserved([3000 + 2 * blocks for blocks in DEPTHS], model="mocapsnet")]
    text = rendered(slopes_table(slopes(make_frame(records))))
    assert text.count("not a line") == 1
    assert "2.00 MiB" in text


# What is predicted.


@BOTH
def test_predicted_lines_are_dashed_and_named(draw):
    ax = panel(draw(make_frame(both_kinds()), memory=("reserved",)), "reserved")
    assert [text.partition(":")[0] for text in legend(ax)] == [
        "ResCapsNet",
        "ResCapsNet (predicted)",
        "MoCapsNet",
        "MoCapsNet (predicted)",
    ]
    handles = ax.get_legend().legend_handles
    assert [handle.get_linestyle() for handle in handles] == ["-", "--", "-", "--"]
    assert same_color(handles[0].get_color(), handles[1].get_color())
    assert not same_color(handles[0].get_color(), handles[2].get_color())


def test_predicted_values_are_not_averaged_with_measured_ones():
    frame = make_frame(both_kinds())
    ax = panel(figure3(frame, memory=("reserved",)), "reserved")
    drawn = {container.get_label(): list(container.lines[0].get_ydata()) for container in ax.containers}
    expected = [3000 + 10 * blocks for blocks in DEPTHS]
    assert drawn["ResCapsNet"] == pytest.approx(expected)
    assert drawn["ResCapsNet (predicted)"] == pytest.approx([1.1 * value for value in expected])
    table = slopes(frame)
    found = table[(table["metric"] == "reserved") & (table["model"] == "mocapsnet")].set_index("kind")
    assert found["slope"].to_dict() == pytest.approx({"measured": 10 * MIB, "predicted": 11 * MIB}, rel=1e-6)
    # Each kind has its own reference.
    assert found["ratio_to_rescapsnet"].tolist() == pytest.approx([1, 1])
    assert list(table4(frame)["recompute_peak_reserved_bytes"][:2]) == [3010 * MIB, 3020 * MIB]


def test_predicted_cells_are_named_in_tables():
    text = rendered(cells_table(make_frame(both_kinds())))
    assert text.count("(predicted)") == 2 * len(DEPTHS)
    assert "measured" not in text
    assert "cuda" not in text


def labels_of(*lines):
    return [*map(Names(lines).of, lines)]


def test_options_are_told_among_lines_of_one_kind():
    base = make_record().cell.configuration.model_dump() | {"kind": "measured", "device": "cuda:0"}
    predicted = base | {"kind": "predicted", "device": "cuda:predicted"}
    assert labels_of(base, predicted | {"gpu": "h100"}, predicted | {"gpu": "t4"}) == [
        "ResCapsNet",
        "ResCapsNet (predicted, h100)",
        "ResCapsNet (predicted, t4)",
    ]
    assert labels_of(base, base | {"batch_size": 8}, predicted) == [
        "ResCapsNet (batch 4)",
        "ResCapsNet (batch 8)",
        "ResCapsNet (predicted, batch 4)",
    ]
    # The batch decides what any figure is, of whatever kind.
    assert labels_of(base, predicted | {"batch_size": 8}) == ["ResCapsNet (batch 4)", "ResCapsNet (predicted, batch 8)"]


# Intervals in words.


@pytest.mark.parametrize(
    ("ratio", "low", "high", "text"),
    [
        (1.5, 1.3, 1.8, "1.50\n1.30–1.80"),
        (1.2708, 1.1978, 1.3611, "1.27\n1.20–1.36"),
        # An end beyond 1 does not read as 1, at which an interval does not show the direction.
        (0.956, 0.91366, 1.00127, "0.956\n0.914–1.001"),
        (0.9982, 0.9961, 1.00036, "0.9982\n0.9961–1.0004"),
        (1.5, 0.00012, 3.2, "1.50\n0.00–3.20"),
        (0.05, -3.0, 3.2, "0.05\n-3.00 to 3.20"),
        (0.0, -0.001, 0.001, "0.00000\n-0.00100 to 0.00100"),
        (1.0, 0.99999, 1.00001, "1"),
        (0.0909, 0.0909, 0.0909, "0.0909"),
        (2.0, float("nan"), float("nan"), "2"),
        (0.0, 0.0, 0.0, "0"),
    ],
)
def test_a_ratio_is_told_with_its_interval(ratio, low, high, text):
    assert ratio_text(ratio, low, high) == text


def test_less_than_a_byte_is_no_uncertainty():
    assert slope_text(2 * MIB, 2 * MIB - 0.4, 2 * MIB + 0.4, is_bytes=True) == "2.00 MiB"
    assert slope_text(100, 99, 101, is_bytes=True) == "100 ± 1 B"


def test_noise_between_and_within_processes_is_in_the_legend():
    random = np.random.default_rng(0)
    records = []
    for blocks in DEPTHS:
        record = make_record(blocks=blocks)
        samples = (0.1 + 0.02 * blocks) * random.normal(1, 0.05, size=9)
        records.append(
            record.model_copy(update={"time": record.time.model_copy(update={"train_step_seconds": samples.tolist()})})
        )
    frame = make_frame(records)
    (found,) = [row for _, row in slopes(frame).iterrows() if row["metric"] == "train"]
    text = slope_text(found["slope"], found["slope_low"], found["slope_high"], is_bytes=False)
    assert "±" in text
    assert legend(panel(figure4(frame), "training")) == [f"ResCapsNet: {text} per block"]
