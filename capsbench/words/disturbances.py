"""Signs of noise in words: what disturbed a time."""

from collections.abc import Iterable

IN_WORDS = {
    "spread": "samples that differ widely",
    "drift": "times that rose or fell",
    "throttled": "a slower clock",
    "load": "other work on the machine",
    "host-bound": "a GPU that waited for the host",
    "compiled": "compilation during the samples",
    "unsettled": "too little time for the precision that was asked for",
}
"""The names of `capsbench.measure.noise`, each in words that a sentence can end with."""


def disturbed_by(names: Iterable[str]) -> str:
    """Text `disturbed by other work on the machine and a slower clock`; an unknown name stands for itself."""
    known = [IN_WORDS.get(name, name) for name in names]
    return f"disturbed by {' and '.join(filter(None, [', '.join(known[:-1]), *known[-1:]]))}"
