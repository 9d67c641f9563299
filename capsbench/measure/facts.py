"""Questions about the machine. One that raises must not end a measurement: its answer is unknown, and a note reports it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def asked(question: Callable[[], T]) -> T | None:
    """The answer to a question about the machine; None where asking raises anything."""
    try:
        return question()
    except Exception:  # drivers, containers and other systems may raise anything
        return None


class Facts:
    """Answers, and notes on the questions that had none."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        """A line for each fact that is not known; no name, path or user of the machine."""

    def ask(self, name: str, question: Callable[[], T]) -> T | None:
        """The answer to one question; None, and a note, where asking raises anything."""
        try:
            return question()
        except Exception as error:
            self.notes.append(f"{name} is not known ({type(error).__name__})")
            return None

    def each(self, questions: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """The answer to each question, by its name."""
        return {name: self.ask(name, question) for name, question in questions.items()}
