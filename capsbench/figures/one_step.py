"""One training step, as a figure and in words."""

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capsbench.colours import CAPTION, PURPOSES
from capsbench.figures.styles import STYLE
from capsbench.options import OPTIONS, noun_of, type_of
from capsbench.sizes import MEBIBYTES, MIB
from capsbench.timeline import Timeline
from capsbench.words.labels import STAND_IN, images_title, model_title
from capsbench.words.modules import OUTSIDE, STARS, ModuleChange, module_changes, with_class
from capsbench.words.units import bytes_text

_HATCHES = {"gradient": "///", "communication": "|||", "temporary": "...", "other": "xxx"}
"""Hatches that distinguish purposes in grey."""
_TITLE_PAD = 20
"""Points between a panel and its title, where the names of the phases have room."""
_NARROWEST = 0.11
_MOST_POINTS = 600
_MOST_BARS = 12
_LONGEST_NAME = 34
_SAID = ("model", "dataset", "precision", "device")
"""Options that a caption says in words of its own."""


def draw_timeline(timeline: Timeline) -> Figure:
    """Draw the bytes alive over the events of a step by purpose, and retained bytes by module."""
    with mpl.rc_context({**STYLE, "hatch.linewidth": 0.4}):
        figure = Figure(figsize=(11.5, 5.0), layout="constrained")
        step, modules = figure.subplots(1, 2, width_ratios=[2.2, 1])
        _draw_step(step, timeline)
        _draw_modules(modules, timeline)
        starred = any("*" in _short(module.name) for module in modules_of(timeline)[:_MOST_BARS])
        lines = caption_of(timeline, [STARS] if starred else [])
        caption = [part for line in lines for part in textwrap.wrap(line, 150)]
        figure.supxlabel("\n".join(caption), fontsize=7.5, color=CAPTION)
    return figure


def timeline_text(timeline: Timeline) -> str:
    """The step in words: the peak and its contents, and the modules that retain most."""
    peak = timeline.peak
    lines = [
        title_of(timeline),
        _aligned("peak", f"{_exact(peak.allocated_bytes)} in {peak.contents.phase}"),
        _aligned("operator", peak.operator or "none, or not known"),
        _aligned("module", "not known" if peak.module is None else peak_module(timeline) or OUTSIDE),
        "alive at the peak",
        *(_aligned(f"  {name}", _exact(nbytes)) for name, nbytes in contents_at_peak(timeline).items()),
        _aligned("  left over", _exact(peak.left_over_bytes)),
        _aligned("retained", f"{_exact(timeline.retained_bytes)} after forward, mostly in these modules:"),
    ]
    shown = modules_of(timeline)[:5]
    for module in shown:
        each = f" ({module.count} × {bytes_text(module.nbytes)})" if module.count > 1 else ""
        lines.append(f"  {bytes_text(module.nbytes * module.count):>12}  {module.title(timeline.module_classes)}{each}")
    notes = [*([STARS] if any("*" in module.name for module in shown) else []), *timeline.notes]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _draw_step(ax: Axes, timeline: Timeline) -> None:
    stacks = {name: np.array(nbytes) for name, nbytes in timeline.bytes_by_category.items()}
    total = np.sum([*stacks.values()], axis=0)
    places, shown = places_of(timeline), shown_events(total)
    at_peak, floor = contents_at_peak(timeline), np.zeros(len(shown))
    for name, nbytes in stacks.items():
        if not nbytes.any():
            continue
        top = floor + nbytes[shown] / MIB
        label = f"{name} {bytes_text(at_peak[name])}"
        ax.fill_between(
            places[shown], floor, top, step="post", facecolor=PURPOSES[name], hatch=_HATCHES.get(name, ""), edgecolor="white",
            lw=0.2, label=label,
        )  # fmt: skip
        floor = top
    ax.step(places[shown], floor, where="post", color="black", lw=0.8)
    _mark_phases(ax, timeline, places)
    _mark_peak(ax, timeline, float(places[timeline.peak.event]), float(total[timeline.peak.event]) / MIB)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.3 * float(total.max()) / MIB)
    ax.set_ylabel(f"{MEBIBYTES.name} allocated")
    ax.set_xlabel("allocations and frees, in their order")
    ax.grid(visible=False, axis="x")
    ax.set_title(title_of(timeline), loc="left", fontsize=9.5, pad=_TITLE_PAD)
    ax.legend(
        loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=3, title="alive at the peak", alignment="left", title_fontsize=8
    )


def _mark_phases(ax: Axes, timeline: Timeline, places: np.ndarray) -> None:
    """Draw lines between forward, backward and optimizer, and their names above."""
    for name, phase in timeline.phases.items():
        first, last = places[phase.first_event], places[phase.last_event]
        ax.axvline(last, color="black", lw=0.6, ls=(0, (2, 2)))
        ax.text((first + last) / 2, 1.01, name, ha="center", va="bottom", fontsize=8, transform=ax.get_xaxis_transform())
    ends = [0, *(phase.last_event for phase in timeline.phases.values())]
    ax.set_xticks([places[at] for at in ends], [f"{at:,}" for at in ends])


def _mark_peak(ax: Axes, timeline: Timeline, x: float, y: float) -> None:
    peak = timeline.peak
    words = [f"peak {bytes_text(peak.allocated_bytes)}", peak.operator, _short(peak_module(timeline) or "")]
    side = "right" if x > 0.5 else "left"
    text, at = "\n".join(word for word in words if word), (x + (-0.03 if side == "right" else 0.03), 1.27 * y)
    box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.8}
    ax.annotate(text, (x, y), at, ha=side, va="top", fontsize=8, arrowprops={"arrowstyle": "-", "lw": 0.7}, bbox=box)
    ax.plot([x], [y], "v", color="black", ms=6, mfc="white", zorder=4)


def _draw_modules(ax: Axes, timeline: Timeline) -> None:
    found = modules_of(timeline)
    bars = [(module.title(timeline.module_classes), module.nbytes * module.count, module) for module in found[:_MOST_BARS]]
    if len(found) > _MOST_BARS:
        others = found[_MOST_BARS:]
        count = sum(module.count for module in others)
        bars.append((f"{count} others", sum(it.nbytes * it.count for it in others), ModuleChange("", 0, 1)))
    sizes = [nbytes / MIB for _, nbytes, _ in bars]
    ax.barh(range(len(bars)), sizes, color=PURPOSES["retained"], height=0.65)
    for row, (_, nbytes, module) in enumerate(bars):
        each = f" = {module.count} × {bytes_text(module.nbytes)}" if module.count > 1 else ""
        text = f"{bytes_text(nbytes)}{each}"
        ax.annotate(text, (nbytes / MIB, row), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    ax.set_yticks(range(len(bars)), [_short(name) for name, *_ in bars], fontsize=7.5)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, 2 * max(sizes, default=1.0))
    ax.set_xlabel(MEBIBYTES.name)
    ax.set_title(f"retained by module: {bytes_text(timeline.retained_bytes)}", loc="left", fontsize=9.5, pad=_TITLE_PAD)
    if not bars:
        ax.text(0.5, 0.5, "nothing is retained", ha="center", transform=ax.transAxes)


def places_of(timeline: Timeline) -> np.ndarray:
    """Position of each event, from 0 to 1: phases are as wide as their number of events, but wide enough for their names."""
    phases = list(timeline.phases.values())
    lengths = np.array([phase.last_event - phase.first_event for phase in phases], dtype=float)
    widths = np.maximum(lengths / max(1.0, lengths.sum()), _NARROWEST)
    ends = np.concatenate(([0.0], np.cumsum(widths / widths.sum())))
    events = [0, *(phase.last_event for phase in phases)]
    return np.interp(np.arange(events[-1] + 1), events, ends)


def shown_events(total: np.ndarray) -> np.ndarray:
    """The events that are drawn: all, or the highest of each small group."""
    groups = np.array_split(np.arange(len(total)), min(len(total), _MOST_POINTS))
    return np.unique([0, *(group[total[group].argmax()] for group in groups), len(total) - 1])


def modules_of(timeline: Timeline) -> list[ModuleChange]:
    """Retained bytes by module; modules whose names differ in a number and which keep the same are one."""
    return module_changes({}, timeline.retained_by_module)


def peak_module(timeline: Timeline) -> str | None:
    """The module at the peak with its class, `primary (Conv2d)`; empty for the network itself, None if it is not known."""
    name = timeline.peak.module
    return name and with_class(name, timeline.module_classes.get(name, ""))


def contents_at_peak(timeline: Timeline) -> dict[str, int]:
    """Bytes at the peak by category."""
    return {name: getattr(timeline.peak.contents, f"{name}_bytes") for name in timeline.bytes_by_category}


def title_of(timeline: Timeline) -> str:
    """Title such as `MoCapsNet, 4 blocks: one training step, measured`."""
    it = timeline.configuration
    depth = f", {it.blocks} {'block' if it.blocks == 1 else 'blocks'}" if it.blocks else ""
    return f"{model_title(it.model)}{depth}: one training step, {timeline.kind}"


def caption_of(timeline: Timeline, remarks: Sequence[str] = ()) -> list[str]:
    """Captions: the configuration that was run, and notes for the reader, further remarks among them."""
    it = timeline.configuration
    # A number is named only if it differs from the usual one.
    names = [name for name, option in OPTIONS.items() if type_of(name) is str or option.unwritten is not None]
    known = [(noun_of(name), getattr(it, name)) for name in names if name not in _SAID]
    options = [f"{noun} {value}" for noun, value in known if value is not None]
    batch = [] if it.batch_size is None else [f"batch size {it.batch_size}"]
    own = [it.options()["settings"]] if it.settings else []
    shown = [images_title([it.model_dump()]), *batch, *own, *options, it.precision, f"device {it.device}"]
    stand_in = [STAND_IN] if timeline.data_source == "stand-in" else []
    return [", ".join(shown), "; ".join([*stand_in, f"1 {MEBIBYTES.name} = 2²⁰ bytes", *remarks, *timeline.notes])]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


def _exact(nbytes: int) -> str:
    return f"{bytes_text(nbytes)} ({nbytes:,} bytes)"


def _aligned(name: str, text: str) -> str:
    return f"{name:<12} {text}"
