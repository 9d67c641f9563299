"""Predicted figures as a table for a terminal."""

from collections.abc import Sequence

from capsbench.axes import axis_title
from capsbench.catalog import OWN_INPUTS
from capsbench.devices import gpu_of
from capsbench.gate.findings import Labels
from capsbench.records import Configuration, Record
from capsbench.sizes import mebibytes_text
from capsbench.stats.metrics import METRICS
from capsbench.terminal.named_rows import NamedRows
from capsbench.typed_values import is_number
from capsbench.words.along import place_text, places_text
from capsbench.words.labels import conditions_text, model_title
from capsbench.words.printable import cell as text_cell
from capsbench.words.slopes_in_words import INEXACT, inexact_mark
from capsbench.words.units import common_unit, quantity_text

_COLUMNS = {METRICS[name].head: METRICS[name].column for name in ("retained", "peak", "reserved", "process")}
"""Columns of memory in a table, with the field of each."""
CPU_PEAK_MARGIN = "measured ones were up to 1 % higher and 5 % lower"
"""Error of predicted peaks against measured ones, which the tests hold over networks of many kinds."""


def predictions_table(records: Sequence[Record], axes: Sequence[str] = ("blocks",)) -> NamedRows:
    """A table with a row per record beneath the name of its line, in which every figure that is not exact is marked.

    Args:
        records: predicted records.
        axes: what they vary, which has a column each, as has every setting of a case with several numbers.
    """
    axes = [*axes, *_varied_settings(records, axes)]
    known = [record.memory for record in records if record.memory]
    shown = {head: name for head, name in _COLUMNS.items() if any(getattr(one, name) is not None for one in known)}
    lines = [record.cell.configuration.without(*axes).options() for record in records]
    names = Labels(lines)
    units = {name: common_unit([getattr(one, name) or 0 for one in known], is_bytes=True) for name in shown.values()}
    modelled = [record.step.modelled_train_step_seconds or 0 for record in records if record.step]
    of_step = common_unit(modelled, is_bytes=False)
    shared = conditions_text(line | {"kind": "predicted"} for line in lines)
    square = all(record.cell.configuration.images_are_square() for record in records)
    out = NamedRows([*(axis_title(axis).lower() for axis in axes), *shown, METRICS["train"].head], title=text_cell(shared))
    for line, record in zip(lines, records, strict=True):
        places = [record.cell.configuration.position(axis) for axis in axes]
        name, at = (
            text_cell(names.of(line)),
            ["-" if place is None else place_text(axis, place, square=square) for axis, place in zip(axes, places, strict=True)],
        )
        memory, certainty = record.memory, record.memory.certainty if record.memory else None
        if memory is None:
            # The first of the figures' columns; there may be none but that of the seconds.
            out.add(name, [*at, f"[yellow]{record.status}[/]", *[""] * len(shown)])
            continue
        cells = []
        for figure in shown.values():
            value = getattr(memory, figure)
            mark = inexact_mark((certainty or {}).get(figure))
            cells.append("-" if value is None else mark + quantity_text(value, is_bytes=True, unit=units[figure]))
        seconds = record.step.modelled_train_step_seconds if record.step else None
        step = "-" if seconds is None else INEXACT + quantity_text(seconds, is_bytes=False, unit=of_step)
        out.add(name, [*at, *cells, step])
    return out


def _varied_settings(records: Sequence[Record], axes: Sequence[str]) -> list[str]:
    """Names of the settings of cases, other than the axes, that have several values, all of them numbers."""
    found: dict[str, set[object]] = {}
    for record in records:
        for name, value in record.cell.configuration.settings or ():
            found.setdefault(name, set()).add(value)
    numbers = (name for name, values in found.items() if len(values) > 1 and all(map(is_number, values)))
    return [name for name in numbers if name not in axes]


def certainty_note(records: Sequence[Record]) -> str:
    """Notes on the certainty of the figures, each column's by its head, and on memory that is not in them."""
    known = [(record.memory, record.memory.certainty or {}) for record in records if record.memory]
    by_figure = {head: {certainty.get(name, "exact") for _, certainty in known} for head, name in _COLUMNS.items()}
    lines = ["figures without a mark are exact, to the byte; ≈ marks all others"]
    on_cpu = any(record.cell.configuration.device_kind() == "cpu" for record in records)
    modelled = " and ".join(head for head in ("peak", "reserved") if "modelled" in by_figure[head])
    how = f"modelled; {CPU_PEAK_MARGIN}" if on_cpu else "modelled by the rules of CUDA's allocator"
    lines += [f"≈ {modelled}: {how}"] * bool(modelled)
    if any(memory.process_bytes is not None for memory, _ in known):
        lines.append("≈ process: a guess, reserved memory and CUDA's context, which depends on the driver")
    guessed = [head for head in ("retained", "peak", "reserved") if "guessed" in by_figure[head]]
    lines += [f"≈ {', '.join(guessed)}: a guess where a note gives the reason"] * bool(guessed)
    if any(record.cell.configuration.parallel is not None for record in records):
        own = "" if on_cpu else ", and leave out what NCCL takes for itself"
        lines.append(
            f"of several processes the bytes are the first one's, which has a whole batch{own}; seconds leave out communication"
        )
    speeds = "this CPU's speeds, measured just now" if on_cpu else "the speeds of the GPU's data sheet"
    lines.append(f"≈ train step: modelled operator by operator from {speeds}; libraries may be slower")
    scratch = dict.fromkeys(name for record in records if record.memory for name in record.memory.scratch)
    if scratch:
        lines.append(f"not in the peaks: scratch memory of libraries for {', '.join(scratch)}")
    notes = dict.fromkeys(note for record in records if record.step for note in record.step.notes)
    lines += [f"note: {note}" for note in notes]
    full = [record for record in records if record.status == "oom"]
    lines += [f"{record.cell.label()}: out of memory: {record.message}" for record in full]
    return "\n".join(lines)


def fit_text(
    configuration: Configuration, what: str, value: int, memory_bytes: int | None, *, bounded: bool, traced: bool, reason: str,
    looked_at: int, lower_bound: bool = False, title: str | None = None,
) -> str:  # fmt: skip
    """Text `MoCapsNet: 123 blocks fit …` or `GPT2: length 512 fits …`; `about` if extrapolated, `at least` if more may fit.

    `title` is the name of the series, where several are printed; by default its network's.
    """
    title, where = title or model_title(configuration.model), configuration.gpu or "this CPU"
    images = "samples" if configuration.dataset == OWN_INPUTS else "images"
    at_depth = f" at {places_text('blocks', [configuration.blocks])}" if configuration.blocks else ""
    unit = {"depth": "blocks", "batch": f"{images}{at_depth}"}.get(what)
    noun = axis_title(what).lower()
    if not value:
        smallest = f"1 of {unit}" if unit else f"a smaller {noun}"
        return f"{title}: not even {smallest} fits {where}: {reason}"
    found = "" if memory_bytes is None else _share_text(configuration, memory_bytes)
    sure = "at least " if not bounded else "" if traced else "about "
    how = "" if traced else f", extrapolated from how bytes grow up to {looked_at} blocks"
    why = f"; {reason}" if reason else ""
    why += "; these bytes are a lower bound, since sizes of tensors depend on values: less may fit" if lower_bound else ""
    fitting = f"{sure}{value:,} {unit} fit" if unit else f"{noun} {sure}{value:,} fits"
    return f"{title}: {fitting} {where}{found}{how}{why}"


def _share_text(configuration: Configuration, nbytes: int) -> str:
    """Text `, 15,339.50 MiB of its 15,360.00 MiB (384.00 MiB for the driver's context)`, in the unit of reasons."""
    gpu = None if configuration.gpu is None else gpu_of(configuration.gpu)
    room = configuration.capacity or (gpu.memory_bytes if gpu else None)
    of_all = "of its memory" if room is None else f"of its {mebibytes_text(room)}"
    context = f" ({mebibytes_text(gpu.context_bytes)} for the driver's context)" if gpu else ""
    return f", {mebibytes_text(nbytes)} {of_all}{context}"
