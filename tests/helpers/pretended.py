"""Devices on which steps take as many bytes as a function says, for searches of what fits."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from capsbench.prediction import fit
from capsbench.prediction.predict import Prediction
from capsbench.records import Configuration, MemoryFigures

Figures = int | Mapping[str, int]
"""Bytes of a step at its highest point, or `MemoryFigures` and the `communication_bytes` of a prediction by name."""


def prediction_of(found: Figures, room: int | None) -> Prediction:
    """The prediction of a step with these figures; peaks that are not named are that of the whole step, other bytes 0.

    Args:
        found: figures of the step, of which `peak_allocated_bytes` is always named.
        room: bytes that the device has; None if nothing limits it.
    """
    figures: dict[str, Any] = {"peak_allocated_bytes": found} if isinstance(found, int) else dict(found)
    exchanged, peak = figures.pop("communication_bytes", 0), figures["peak_allocated_bytes"]
    usual = dict.fromkeys(("state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes"), 0)
    usual |= {"peak_forward_bytes": peak, "peak_backward_bytes": peak}
    memory = MemoryFigures(probe="trace", **(usual | figures))
    fits = room is None or (memory.process_bytes or peak) <= room
    return Prediction(memory, fits, "" if fits else "it is full", room, exchanged)


def pretend_steps(
    monkeypatch: pytest.MonkeyPatch, step: Callable[[int], Figures], room: int | None, *, name: str = "blocks"
) -> list[int]:
    """Pretend a device on which a search for what fits traces its steps, and return the sizes that it has asked for.

    Args:
        monkeypatch: pytest's.
        step: figures of the step of a size.
        room: bytes that the device has; None if nothing limits it.
        name: the field of a configuration that is searched.
    """
    asked: list[int] = []

    def answer(configuration: Configuration, _: object) -> Prediction:
        asked.append(getattr(configuration, name))
        return prediction_of(step(asked[-1]), room)

    monkeypatch.setattr(fit, "trace_for", lambda _, **__: None)
    monkeypatch.setattr(fit, "predict_memory", answer)
    return asked
