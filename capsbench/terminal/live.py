"""Displays on a terminal that move during work."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live


class Display(ABC):
    """A display that redraws itself on a terminal; elsewhere its subclasses print lines.

    Args:
        console: console to draw on.
        per_second: most drawings per second; each takes time from the work that is shown.
    """

    def __init__(self, console: Console, per_second: float) -> None:
        self._console = console
        self._per_second = per_second
        self._live: Live | None = None

    @abstractmethod
    def _render(self) -> RenderableType:
        """The present content of the screen."""

    def __enter__(self) -> Self:
        """Start the display."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=self._per_second, get_renderable=self._render)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.stop()
