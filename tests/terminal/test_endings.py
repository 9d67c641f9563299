"""The ends of commands: costs in sentences, files on one line, a page in a browser, tables for LaTeX, one unit in a column."""

import itertools
import json
import re
from math import nan
from pathlib import Path

import pytest
from rich.console import Console

from capsbench.cli.output import console_of, files_line, no_slopes
from capsbench.cli.sweeps import _conclude
from capsbench.devices import gpu_of
from capsbench.figures.legends import legend_text
from capsbench.page import page_html
from capsbench.records import Plan
from capsbench.report import Report
from capsbench.sizes import mebibytes_text
from capsbench.stats.slopes import fitted_slopes
from capsbench.terminal.latex import slopes_latex
from capsbench.terminal.prediction import certainty_note, fit_text, predictions_table
from capsbench.terminal.sentences import cost_sentences
from capsbench.terminal.show import show_lines
from capsbench.terminal.tables import cells_table, cross_terms_table, estimates_table, slopes_table
from capsbench.tracing.cuda_allocator import CachingAllocator, OutOfMemory
from capsbench.words.cost_sentence import named_memory
from capsbench.words.faults import again_sentence, fault_sentences
from capsbench.words.latex import latex_text
from capsbench.words.slopes_in_words import INEXACT_NOTE, row_cost, row_ratio
from capsbench.words.units import common_unit, duration_range, quantity_text
from helpers.made import MIB, make_configuration, make_frame, make_record, make_turns, make_varied, write_report

DEPTHS = (1, 2, 3, 4)

AGAIN = "this command measures these cells again"


def swept(*models, depths=DEPTHS, **fields):
    return make_frame(make_record(model, blocks, **fields) for model in models for blocks in depths)


def noisy_frame():
    """A frame in which no change of time is measurable."""
    records = [make_record("rescapsnet", blocks) for blocks in DEPTHS]
    return make_frame(
        record.model_copy(update={"time": record.time.model_copy(update={"train_step_seconds": [seconds] * 9})})
        for record, seconds in zip(records, (0.2, 0.1, 0.25, 0.15), strict=True)
    )


def bent_frame():
    """A frame in which memory is no line."""
    records = [make_record("rescapsnet", blocks) for blocks in (*DEPTHS, 5)]
    return make_frame(
        record.model_copy(update={"memory": record.memory.model_copy(update={"retained_bytes": size * MIB})})
        for record, size in zip(records, (1, 4, 9, 1, 25), strict=True)
    )


# Sentences.


def test_the_memory_that_a_sentence_names_is_retained_unless_only_another_one_has_a_curve():
    assert named_memory({"retained": "line", "peak": "inverse"}) == "retained"
    assert named_memory({"retained": "not a line", "peak": "line"}) == "retained"
    assert named_memory({"peak": "inverse", "retained": "not a line"}) == "peak"
    assert named_memory({"peak": "not a line", "retained": "not a line", "train": "line"}) == "retained"
    assert named_memory({"train": "line"}) is None


def test_each_series_has_a_sentence():
    first, second = cost_sentences(fitted_slopes(swept("rescapsnet", "mocapsnet")))
    assert first == "ResCapsNet retains 10.00 MiB more per block; its training step takes 20.0 ms longer per block."
    assert second == (
        "MoCapsNet retains 0 B more per block; its training step takes 30.0 ms longer per block, 1.5 times as much as ResCapsNet."
    )


@pytest.mark.parametrize(("basis", "part"), [("edges", "in the blocks and the optimizer"), ("turns", "over the whole step")])
def test_a_sentence_says_which_part_of_a_step_was_timed(basis, part):
    table = fitted_slopes(swept("rescapsnet")).assign(basis=basis)
    assert cost_sentences(table) == [
        f"ResCapsNet retains 10.00 MiB more per block; its training step takes 20.0 ms longer per block, timed {part}."
    ]


def test_what_disturbed_all_training_times_is_said_once():
    table = fitted_slopes(swept("rescapsnet", "mocapsnet"))
    first, second, last = cost_sentences(table.assign(noise="load,throttled"))
    assert "disturbed" not in first + second
    assert last == "All of these training times were disturbed by other work on the machine and a slower clock."
    one, other = cost_sentences(table.assign(noise=["load" if model == "mocapsnet" else "" for model in table["model"]]))
    assert ("disturbed" in one) != ("disturbed" in other)


def test_the_same_slope_is_as_much():
    texts = cost_sentences(fitted_slopes(swept("rescapsnet", "capsnet")))
    assert any("CapsNet retains 10.00 MiB more per block, as much as ResCapsNet;" in text for text in texts)


def test_what_is_no_slope_is_named_as_elsewhere():
    (text,) = cost_sentences(fitted_slopes(noisy_frame()))
    assert "its training step shows no change measurable within ±" in text
    (text,) = cost_sentences(fitted_slopes(bent_frame()))
    assert ", though the values do not lie on a line" in text


def test_a_sentence_can_be_read_aloud():
    table = fitted_slopes(swept("rescapsnet")).assign(basis="turns", noise="load,throttled")
    assert cost_sentences(table) == [
        "ResCapsNet retains 10.00 MiB more per block; its training step takes 20.0 ms longer per block, timed over the whole "
        "step and disturbed by other work on the machine and a slower clock."
    ]
    (text,) = cost_sentences(table[table["metric"] != "retained"])
    assert text.startswith("ResCapsNet allocates at its peak 22.00 MiB more per block; ")
    for one in (table.assign(slope_low=nan, slope_high=nan), table.assign(shape="not a line"), fitted_slopes(noisy_frame())):
        assert not re.search(r"\)\s*\(", "".join(cost_sentences(one.assign(basis="turns", noise="load"))))


def test_cells_that_failed_alike_share_a_sentence():
    faults = [make_record("rescapsnet", blocks, status="error") for blocks in (1, 2, 4)]
    faults += [make_record("mocapsnet", 8, status="timeout")]
    assert fault_sentences(faults, ["blocks"]) == [
        "error: rescapsnet at 1, 2, 4 blocks: it was error",
        "timeout: mocapsnet at 8 blocks: it was timeout",
    ]
    assert fault_sentences([make_record("cases:gpt2", 0, status="error")], ["blocks"]) == ["error: cases:gpt2: it was error"]
    grid = [make_record("rescapsnet", blocks, status="error", batch_size=size) for blocks, size in ((1, 8), (2, 16))]
    assert fault_sentences(grid, ["blocks", "batch_size"]) == [
        "error: rescapsnet at 1 block, batch 8; 2 blocks, batch 16: it was error"
    ]


@pytest.mark.parametrize(
    ("command", "status", "again"),
    [
        ("capsbench run --out x", "error", f"once this is fixed, {AGAIN}: capsbench run --out x --resume"),
        ("capsbench run --out=x", "error", f"once this is fixed, {AGAIN}: capsbench run --out=x --resume"),
        ("capsbench run", "timeout", f"with a larger --timeout, {AGAIN}: capsbench run --out f --resume"),
        ("capsbench.run('x')", "error", "once this is fixed, the same call with resume=True measures these cells again"),
        ("capsbench.run('x')", "timeout", "the same call with a larger timeout and resume=True measures these cells again"),
    ],
)  # fmt: skip
def test_the_way_to_measure_cells_that_failed_again(command, status, again):
    report = Report.of([make_record(status=status)], plan=Plan(command=command, cells=[]))
    assert again_sentence(report, Path("f")) == again


def test_cells_that_failed_are_shown_with_their_error_once(command, tmp_path):
    records = [make_record("mocapsnet", blocks, status="error") for blocks in (1, 2, 4)]
    write_report(Report.of(records, "mine", plan=Plan(command="capsbench run", cells=[])), tmp_path / "mine")
    expected = [
        "all 3 cells failed:",
        "error: mocapsnet at 1, 2, 4 blocks: it was error",
        "once this is fixed, this command measures these cells again: capsbench run --out mine --resume",
    ]
    assert command("show", "mine").stdout.splitlines()[-3:] == expected
    assert command("slopes", "mine").stderr.splitlines()[-3:] == expected


def test_the_reason_that_there_is_no_slope_counts_the_cells_that_failed():
    def failed(*depths):
        return [make_record("rescapsnet", blocks, status="error") for blocks in depths]

    assert no_slopes(make_frame([make_record("rescapsnet", 1)])) == "no slopes: a line needs two measured depths"
    said = no_slopes(swept("rescapsnet"), "batch_size")
    assert said == "no slopes: a line needs two measured positions along batch size"
    assert no_slopes(make_frame(failed(1))) == "no slopes: the only cell ended without a result (error)"
    assert no_slopes(make_frame(failed(1, 2, 3))) == "no slopes: all 3 cells ended without a result (error)"
    full = make_record("rescapsnet", 3, status="oom")
    assert no_slopes(make_frame([make_record("rescapsnet", 1), *failed(2), full])) == (
        "no slopes: a line needs two measured depths; 2 of 3 cells ended without a result (error, oom)"
    )


@pytest.mark.parametrize("depths", [(), (1,), (1, 2)])
def test_a_sweep_that_failed_says_what_was_written(depths, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    report = Report(tmp_path / "mine")
    report.write_plan(Plan(command="capsbench run", cells=[], passes=["memory"]))
    for record in [*(make_record("rescapsnet", blocks) for blocks in depths), make_record("rescapsnet", 9, status="error")]:
        report.append(record)
    report.write = lambda: [report.folder / name for name in ("slopes.csv", "figure4.png", "index.html")]
    assert _conclude(console_of(err=True), report, as_json=False, open_page=False) == 1
    wrote, failed, fault, again = capsys.readouterr().err.splitlines()
    assert ("slopes" in wrote) == (len(depths) > 1)
    assert wrote.startswith(f"wrote {report.folder / 'index.html'}, with ")
    assert failed == ("the only cell failed:" if not depths else f"1 of {len(depths) + 1} cells failed:")
    assert fault == "error: rescapsnet at 9 blocks: it was error"
    assert again == f"once this is fixed, this command measures these cells again: capsbench run --out {report.folder} --resume"


def test_of_many_series_the_cheapest_and_the_dearest_have_one():
    frame = make_frame(
        make_record(model, blocks, kernel=kernel)
        for kernel in ("recompute", "published", "reference")
        for model in ("rescapsnet", "mocapsnet")
        for blocks in DEPTHS
    )
    found = cost_sentences(fitted_slopes(frame), most=4)
    assert len(found) == 4
    assert [text.partition(" ")[0] for text in found].count("MoCapsNet") == 2
    assert cost_sentences(fitted_slopes(swept("rescapsnet", depths=[1]))) == []


# Files and the page.


def test_all_files_are_on_one_line():
    others = [Path("x") / name for name in ("slopes.csv", "figure3.svg", "figure3.png", "figure4.svg", "figure4.png")]
    assert files_line(Path("x/index.html"), others) == (
        "wrote x/index.html, with slopes (csv) and figure3, figure4 (png, svg) in its folder"
    )
    assert files_line(Path("x/index.html"), []) == "wrote x/index.html"


@pytest.mark.slow
def test_a_page_is_opened_where_it_was_asked_for(command, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)))
    small = ["--device", "cpu:predicted", "--models", "mocapsnet", "--depth", "1,2", "--batch-size", "2"]
    result = command("run", *small, "--out", "mine", "--open")
    assert result.status == 0, result
    assert "retains 0 B more per block" in result.stdout.splitlines()[-1]
    assert result.stderr.count("wrote ") == 1
    page = (tmp_path / "mine" / "index.html").resolve()
    assert opened == [page.as_uri()]
    # There was no browser.
    assert "warning: no browser could be started for mine/index.html" in result.stderr
    for again in (["plot", "mine"], ["report", "mine"]):
        assert command(*again, "--open").status == 0
        assert command(*again).status == 0
    assert opened == [page.as_uri()] * 3


# LaTeX.


def test_an_interval_that_is_not_symmetric_is_printed_alike_in_every_table():
    table = fitted_slopes(make_frame(make_turns(["mocapsnet"])))
    table = table.assign(slope=0.0029, slope_low=0.0014, slope_high=0.0077)[table["metric"] == "train"]
    assert r"& 2.9 (1.4--7.7) \\" in slopes_latex(table)
    assert "2.9 (1.4–7.7) ms" in printed(slopes_table(table))
    assert "takes 2.9 (1.4–7.7) ms longer per block" in cost_sentences(table)[0]
    assert "2.9 (1.4–7.7) ms per block" in legend_text("MoCapsNet", row_cost(table.iloc[0]))


def test_slopes_for_latex_have_their_units_in_the_head():
    text = slopes_latex(fitted_slopes(make_frame(make_turns())))
    lines = text.splitlines()
    assert lines[0].startswith("% ")
    assert [line for line in lines if line.startswith("\\")] == [
        lines[1],
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    heads, units, first, second = (line for line in lines if "&" in line)
    assert heads.startswith(r"Network & Retained & $\times$ ResCapsNet & Peak")
    assert units.startswith(" & (MiB/block) & ")
    assert "(ms/block)" in units
    assert first.startswith("ResCapsNet & 10.00 &  & ")
    assert second.startswith("MoCapsNet & 0 & 0 & ")
    assert re.search(r"& [\d.]+ \$\\pm\$ [\d.]+ & 1\.\d+ \(1\.\d+--1\.\d+\)", second)
    # Every row has a cell for each column.
    columns = len(re.search(r"\{([lr]+)\}", lines[1])[1])
    assert {line.count("&") for line in (heads, units, first, second)} == {columns - 1}


def test_what_latex_reads_as_a_command_is_escaped():
    text = slopes_latex(fitted_slopes(swept("my_nets:make_100%_$x", depths=(1, 2))))
    assert r"my\_nets:make\_100\%\_\$x & " in text
    assert "n.s." not in text
    text = slopes_latex(fitted_slopes(noisy_frame()))
    assert re.search(r"\\textit\{n\.s\.\} \(\$\\pm\$[\d.]+\)", text)
    assert "% n.s.: no change measurable" in text


def latex_rows(text):
    """The cells of each row below the head, and those of the two lines of the head."""
    lines = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    return lines[2:], lines[:2]


def test_a_remark_on_a_slope_is_a_letter_with_a_line_in_the_legend():
    text = slopes_latex(fitted_slopes(swept("rescapsnet", "mocapsnet", depths=(1, 2))))
    rows, (heads, _) = latex_rows(text)
    # Two values alone give no interval to a time; bytes repeat exactly and need none.
    assert [row[heads.index("Train step")] for row in rows] == ["20.0$^{a}$", "30.0$^{a}$"]
    assert rows[0][1] == "10.00"
    assert [line for line in text.splitlines() if line.startswith("%")][1:] == ["% a: no interval"]
    text = slopes_latex(fitted_slopes(make_frame(make_turns(rest_per_block=0.05))))
    assert "% a: whole step: its rest grows too" in text.splitlines()
    assert text.count("$^{a}$") == 4
    table = fitted_slopes(bent_frame()).assign(noise="busy,drift")
    text = slopes_latex(table)
    assert "$^{a,b}$" in text
    assert text.splitlines()[1:3] == ["% a: not a line", "% b: disturbed by busy and times that rose or fell"]
    # Without a measurable change the noise is the only remark.
    text = slopes_latex(fitted_slopes(noisy_frame()).assign(noise="busy"))
    assert re.search(r"n\.s\.\} \(\$\\pm\$[\d.]+\)\$\^\{a\}\$", text)
    assert [line for line in text.splitlines() if line.startswith("%")][2:] == ["% a: disturbed by busy"]


def test_a_column_of_curves_has_no_unit_in_its_head():
    def curved(table, where):
        return table.assign(shape=table["shape"].mask(where, "quadratic"), term=48.0, term_low=48.0, term_high=48.0)

    table = fitted_slopes(swept("rescapsnet"))
    rows, (heads, units) = latex_rows(slopes_latex(curved(table, table["metric"] == "retained")))
    assert rows[0][1] == "10.00 MiB per block and 48 B per pair of blocks"
    assert (heads[1], units[1], units[2]) == ("Retained", "", "(MiB/block)")
    # A column that has a line as well has its unit.
    table = fitted_slopes(swept("rescapsnet", "mocapsnet"))
    _, (_, units) = latex_rows(slopes_latex(curved(table, table["model"] == "mocapsnet")))
    assert units[1] == "(MiB/block)"


def test_latex_is_printed_and_excludes_other_forms(command, tmp_path):
    (tmp_path / "mine").mkdir()
    for record in (make_record("mocapsnet", blocks) for blocks in DEPTHS):
        Report(tmp_path / "mine").append(record)
    assert r"\begin{tabular}" in command("slopes", "mine", "--latex").stdout
    for other in (["--json"], ["--at", "blocks=3"]):
        result = command("slopes", "mine", "--latex", *other)
        assert (result.status, result.stderr.splitlines()[0]) == (2, f"error: --latex cannot be combined with {other[0]}")


# Units and ranges.


def printed(table):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    return console.export_text()


def test_a_column_has_one_unit():
    frame = make_frame(
        [*(make_record("mocapsnet", blocks) for blocks in DEPTHS), *(make_record("rescapsnet", blocks) for blocks in DEPTHS)]
    )
    text = printed(slopes_table(fitted_slopes(frame)))
    assert "10.00 MiB" in text
    assert "0 B" in text, "an exact 0 reads alike everywhere"
    assert not re.search(r"[^0 ] (B|KiB|GiB|µs|s)\b", text)
    assert set(re.findall(r"\d (B|KiB|MiB|GiB)\b", printed(cells_table(frame)))) == {"MiB"}
    predicted = [make_record("mocapsnet", blocks, device="cuda:predicted", threads=None) for blocks in DEPTHS]
    assert set(re.findall(r"\d (B|KiB|MiB|GiB)\b", printed(predictions_table(predicted)))) == {"MiB"}


def test_predictions_of_several_settings_have_a_column_for_each():
    def predicted(blocks, **settings):
        options = dict.fromkeys(("kernel", "routing", "iterations", "capsules", "threads"))
        return make_record("cases:gpt2", blocks, dataset="own", device="cuda:predicted", settings=settings, **options)

    def rows_of(records, axes=("blocks",)):
        return [line.split() for line in printed(predictions_table(records, axes)).splitlines()[1:]]

    heads, name, *rows = rows_of([predicted(2, length=length, width=64, name="a") for length in (32, 64)])
    assert heads[:3] == ["blocks", "length", "retained"]
    assert name == ["cases:gpt2"]
    assert [row[:2] for row in rows] == [["2", "32"], ["2", "64"]]
    # What is varied has its column already, and a setting that is no number stands in the name.
    heads, *_ = rows_of([predicted(0, length=length) for length in (32, 64)], ("length",))
    assert heads[:2] == ["length", "retained"]
    _, first, _, second, _ = rows_of([predicted(2, kind=kind) for kind in ("gru", "lstm")])
    assert (first, second) == (["cases:gpt2", "(kind=gru)"], ["cases:gpt2", "(kind=lstm)"])


def test_tables_name_the_device_and_the_batch_that_all_of_their_rows_share():
    records = [make_record("mocapsnet", 1, device="cuda:predicted", gpu="a100", batch_size=size) for size in (8, 16)]
    assert printed(predictions_table(records[:1])).splitlines()[0].strip() == "predicted for GPU a100, batch 8"
    assert printed(predictions_table(records)).splitlines()[0].strip() == "predicted for GPU a100"
    on_cpus = [make_record("mocapsnet", 1, device=device) for device in ("cpu:predicted", "cuda:predicted")]
    assert printed(predictions_table(on_cpus[:1])).splitlines()[0].strip() == "predicted for a CPU, batch 4"
    assert printed(predictions_table(on_cpus)).splitlines()[0].strip() == "batch 4"
    measured = make_frame([make_record("mocapsnet", blocks, device="cuda:0", batch_size=16) for blocks in DEPTHS])
    assert "\nmeasured on cuda:0, batch 16" in printed(slopes_table(fitted_slopes(measured)))


def test_a_fit_has_one_unit_and_names_the_part_of_the_driver():
    taken = 15_339 * MIB
    configuration = make_configuration("rescapsnet", 8, device="cuda:predicted", gpu="t4", threads=None)
    gpu = gpu_of("t4")
    with pytest.raises(OutOfMemory) as full:
        CachingAllocator(gpu.memory_bytes - gpu.context_bytes).allocate(16_000 * MIB)
    known = {"what": "batch", "value": 32, "bounded": True, "traced": True, "looked_at": 33, "memory_bytes": taken}
    text = fit_text(configuration, reason=f"33 do not: {full.value.what}", **known)
    assert text == (
        "ResCapsNet: 32 images at 8 blocks fit t4, 15,339.00 MiB of its 15,360.00 MiB (384.00 MiB for the driver's context); 33 "
        "do not: 16,000.00 MiB more do not fit into 14,976.00 MiB for tensors, of which 0.00 are allocated and 0.00 reserved"
    )
    on_cpu = make_configuration("rescapsnet", 8, device="cpu:predicted", capacity=8 * MIB)
    assert "fit this CPU, 7.50 MiB of its 8.00 MiB; " in fit_text(on_cpu, reason="x", **(known | {"memory_bytes": 7.5 * MIB}))
    shallow = configuration.model_copy(update={"blocks": 1})
    assert "32 images at 1 block fit t4" in fit_text(shallow, reason="", **known)
    assert mebibytes_text(301) == "301 bytes"


def test_figures_of_a_prediction_that_are_not_exact_have_a_mark_and_a_note():
    def predicted(device, **certainty):
        record = make_record("mocapsnet", 1, device=device, threads=None)
        return record.model_copy(update={"memory": record.memory.model_copy(update={"certainty": certainty})})

    sure = {"retained_bytes": "exact", "peak_allocated_bytes": "modelled", "process_bytes": "guessed"}
    record = predicted("cuda:predicted", **sure)
    *_, row = printed(predictions_table([record])).splitlines()
    assert re.findall(r"(≈)? ([\d.]+) MiB", row) == [("", "1.00"), ("≈", "164.00"), ("≈", "901.00")]
    first, *others = certainty_note([record]).splitlines()
    assert first == "figures without a mark are exact, to the byte; ≈ marks all others"
    assert [line.partition(":")[0] for line in others] == ["≈ peak", "≈ process", "≈ train step"]
    doubtful = predicted("cpu:predicted", **(sure | {"retained_bytes": "guessed"}))
    assert "≈ retained: a guess where a note gives the reason" in certainty_note([doubtful]).splitlines()
    assert "≈ peak: modelled; measured ones were up to 1 % higher and 5 % lower" in certainty_note([doubtful]).splitlines()


def predicted_report(*certainties, models=("rescapsnet",)):
    """A predicted report of one block or more, with the certainty of each one's retained bytes; peaks are modelled."""
    records = []
    for model, (blocks, certainty) in itertools.product(models, enumerate(certainties, 1)):
        record = make_record(model, blocks, device="cpu:predicted", threads=None)
        sure = {"retained_bytes": certainty, "peak_allocated_bytes": "modelled"}
        memory = record.memory.model_copy(update={"certainty": sure, "process_bytes": None})
        records.append(record.model_copy(update={"kind": "predicted", "memory": memory, "time": None}))
    return Report.of(records, "predicted")


@pytest.mark.parametrize(("certainties", "mark"), [(("exact",) * 4, ""), (("exact", "exact", "guessed", "exact"), "≈ ")])
def test_a_slope_is_marked_where_any_of_its_predicted_figures_is(certainties, mark):
    report = predicted_report(*certainties)
    table = report.slopes
    retained, peak = (table[table["metric"] == name].iloc[0] for name in ("retained", "peak"))
    assert (retained["certainty"], peak["certainty"]) == ("guessed" if mark else "exact", "modelled")
    assert json.loads(table.to_json(orient="records"))[0]["certainty"] == retained["certainty"]
    shown = printed(slopes_table(table))
    assert f"{mark}10.00 MiB" in shown
    assert "≈ 22.00 MiB" in shown
    assert ("≈ 10.00 MiB" in shown) == bool(mark)
    assert INEXACT_NOTE in " ".join(shown.split())
    lines = "\n".join(line.plain for line in show_lines(report.frame, table))
    assert "  ≈ 22.00 MiB" in lines
    assert INEXACT_NOTE in " ".join(lines.split())
    cells = printed(cells_table(report.frame))
    assert [line.count("≈") for line in cells.splitlines()[1:5]] == [1 + (one != "exact") for one in certainties]
    assert INEXACT_NOTE in " ".join(cells.split())
    latex = slopes_latex(table)
    assert rf"& {latex_text(mark)}10.00 & $\approx$ 22.00 \\" in latex
    assert f"% {INEXACT_NOTE}" in latex
    (sentence,) = cost_sentences(table)
    assert sentence == f"ResCapsNet (predicted) retains {mark}10.00 MiB more per block."
    first, second = report.figure4().axes
    legends = [" ".join(" ".join(text.get_text() for text in ax.get_legend().get_texts()).split()) for ax in (first, second)]
    assert f"{mark}10.00 MiB per block" in legends[0]
    assert ("≈" in legends[0]) == bool(mark)
    assert f"{mark}10.00 MiB" in table._repr_html_()
    page = re.sub(r"<script.*?</script>", "", page_html([report]), flags=re.DOTALL)
    assert ("≈ 10.00 MiB" in page) == bool(mark)
    assert "≈ 22.00 MiB" in page
    assert f"{INEXACT_NOTE}." in page


def test_ratios_of_slopes_are_marked_as_the_slopes_are():
    report = predicted_report("exact", "exact", "exact", models=("rescapsnet", "mocapsnet"))
    table = report.slopes
    by_metric = {row["metric"]: row_ratio(row) for row in table.to_dict("records") if row["model"] == "mocapsnet"}
    assert not by_metric["retained"].startswith("≈")
    assert by_metric["peak"].startswith("≈ 0.")
    assert f"× {by_metric['peak']}" in printed(slopes_table(table))
    assert f"$\\approx$ {by_metric['peak'].removeprefix('≈ ')} " in slopes_latex(table)
    page = re.sub(r"<script.*?</script>", "", page_html([report]), flags=re.DOTALL)
    assert f"× {by_metric['peak']}" in page


def test_the_pages_table_of_cells_marks_figures_that_are_not_exact():
    for certainty, marked in (("exact", "peak_allocated_bytes"), ("guessed", "retained_bytes,peak_allocated_bytes")):
        html = page_html([predicted_report("exact", certainty)])
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])
        first, second = (data["texts"][number].split(",") for number in data["cells"]["inexact"])
        assert (first, second) == (["peak_allocated_bytes"], marked.split(","))
        assert data["inexact"] == "≈ "
        assert INEXACT_NOTE in html.partition('id="cells-head"')[2].partition('id="cells-table"')[0]
    assert INEXACT_NOTE not in page_html([Report.of([make_record(blocks=blocks) for blocks in (1, 2)], "measured")])


def test_slopes_of_measured_figures_have_no_mark():
    table = fitted_slopes(swept("rescapsnet"))
    assert table["certainty"].isna().all()
    frame = swept("rescapsnet")
    assert "≈" not in printed(slopes_table(table)) + slopes_latex(table) + "".join(cost_sentences(table))
    assert "≈" not in printed(cells_table(frame)) + "".join(line.plain for line in show_lines(frame, table))


def test_costs_of_a_grid_are_marked_where_they_follow_from_guesses():
    made = make_varied(lambda at: 1000 * at["length"] * at["batch_size"], length=(8, 16, 32), batch_size=(2, 4, 8))
    for certainty, mark in (("exact", ""), ("guessed", "≈ ")):
        memories = [one.memory.model_copy(update={"certainty": {"retained_bytes": certainty}}) for one in made.records]
        records = [
            one.model_copy(update={"memory": memory, "time": None}) for one, memory in zip(made.records, memories, strict=True)
        ]
        report = Report.of(records, "predicted", plan=made.plan)
        for table in (
            estimates_table(report.at(length=64, batch_size=16), {"length": 64}),
            cross_terms_table(report.cross_terms),
        ):
            (retained,) = (line for line in printed(table).splitlines() if "retained" in line)
            assert ("≈ 1000" in retained) == bool(mark)
            assert "1000" in retained


def test_a_unit_suits_the_largest_value():
    assert common_unit([3, 5 * MIB, float("nan")], is_bytes=True)[1] == "MiB"
    assert common_unit([], is_bytes=False)[1] == "µs"
    assert quantity_text(MIB / 2, is_bytes=True, unit=common_unit([2**30], is_bytes=True)) == "0.0005 GiB"
    assert quantity_text(0, is_bytes=True, unit=common_unit([MIB], is_bytes=True)) == "0 B"


def test_a_slope_reads_alike_wherever_it_is_printed():
    records = [make_record(model, blocks) for model in ("mocapsnet", "rescapsnet") for blocks in DEPTHS]
    sizes = {"mocapsnet": 0, "rescapsnet": 1152}
    for place, one in enumerate(records):
        it = one.cell.configuration
        memory = one.memory.model_copy(update={"retained_bytes": sizes[it.model] * it.blocks})
        records[place] = one.model_copy(update={"memory": memory})
    report = Report.of(records, "mine")
    shown = "\n".join(line.plain for line in show_lines(report.frame, report.slopes))
    page = page_html([report]).partition("<script")[0]
    # Of two numbers that are equally close, the larger is printed, as in the page's scripts.
    for text in (printed(slopes_table(report.slopes)), shown, " ".join(cost_sentences(report.slopes)), page):
        assert re.search(r"\b0 B\b", text)
        assert "1.13 KiB" in text
        assert "0 KiB" not in text


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (10, 100, "10 s to 1 min 40 s"),
        (100, 110, "about 1 min 45 s"),
        (0, 45, "at most 45 s"),
        (0, 0, "less than 1 s"),
        (0, 0.9, "less than 1 s"),
        (0, 1, "at most 1 s"),
    ],
)
def test_a_rough_duration_is_a_range(least, most, text):
    assert duration_range(least, most) == text
