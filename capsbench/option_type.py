"""The type of a row of `capsbench.options`: an option's flag, values and titles, and the networks that have it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from capsbench.catalog import MODELS, STACKED
from capsbench.errors import ConfigurationError


@dataclass(frozen=True)
class Networks:
    """The networks that have an option."""

    names: frozenset[str] | None
    """Names in `MODELS` that have it; None if every network has it, even a user's own."""
    why: str = ""
    """Reason that no other network has it."""
    others: bool = False
    """True if networks of a user's own have it too."""

    def have(self, model: object) -> bool:
        """Return whether the network of this name has the option."""
        return self.names is None or model in self.names or (self.others and model not in MODELS)


EVERY_NETWORK = Networks(None)
CAPSULE_NETWORKS = Networks(frozenset(MODELS), "it is an option of capsbench's own capsule networks")
NETWORKS_WITH_BLOCKS = Networks(frozenset(STACKED), "there are no blocks")
NETWORKS_WITH_LAYERS = Networks(frozenset(STACKED), "there are no blocks", others=True)
MOMENTUM_NETWORKS = Networks(frozenset({"mocapsnet"}), "it is MoCapsNet's alone")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a cell: its flag, its values and its titles."""

    flag: str
    """The flag of the command line."""
    help: str
    """Explanation of the flag."""
    title: str
    """Title of the page's filter."""
    noun: str = ""
    """Noun before a number in a label; by default the field's name in words."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """The possible values, each with an explanation; empty if any value of the type is possible."""
    named: tuple[str, ...] = ()
    """Choices that a colon and names of parts of a network may follow: `checkpoint:encoder.layers`."""
    default: Any = None
    """Value of the option by default; None leaves it to the network or the machine."""
    networks: Networks = EVERY_NETWORK
    """The networks that have it. If these are not all, it is an argument of their constructors."""
    least: float | None = None
    """The smallest number; None if nothing limits it."""
    above: float | None = None
    """A number that all values exceed, in place of a smallest one."""
    most: float | None = None
    """The largest number; None if nothing limits it."""
    unit: str = ""
    """Noun of one step along its axis, for slopes: `sample`, `block`; by default a unit of its title."""
    more_memory: bool = False
    """True if a larger value takes at least as much memory: if a cell runs out of it, a sweep skips those with a larger value."""
    is_bytes: bool = False
    """True for an amount of memory."""
    of_model: bool = False
    """True if each network has its own value, which does not distinguish networks from each other."""
    unwritten: Any = None
    """A value that a cell leaves out (None): with the default here, cells from before there was this option keep their keys."""
    before: Any = None
    """The value behind None in records that are older than the option, if it is not `unwritten`."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Words of a label for values that do not name their option."""
    none: str = ""
    """Words of the page's filter for series without a value."""
    alone: str = ""
    """Value of the flag where it is typed without one; empty if it needs one."""
    several: bool = False
    """True if the flag of a number takes several, which multiply a sweep."""
    doubling_beyond: int | None = None
    """Most values of a range without a step; a longer one is its first value, the doubles, and the last value."""

    def knows(self, value: object) -> bool:
        """Return whether a value is one of the choices, which may be followed by names of parts of a network."""
        choice, colon, names = value.partition(":") if isinstance(value, str) else ("", "", "")
        return choice in self.choices and (not colon or (choice in self.named and all(names.split("+"))))

    def bounds(self) -> str:
        """The numbers that are possible, in words: `1 or more`, `0 to 1`, `a number above 0`."""
        most = "" if self.most is None else f"{self.most:,g}"
        if self.above is not None:
            return f"a number above {self.above:,g}{f' and up to {most}' if most else ''}"
        if self.least is not None:
            return f"{self.least:,g} to {most}" if most else f"{self.least:,g} or more"
        return f"{most} or less" if most else "a number"

    def refuse_outside(self, name: str, value: float) -> None:
        """Refuse a number that is out of these bounds.

        Args:
            name: the option, as the error names it.
            value: the number.

        Raises:
            ConfigurationError: it is too small or too large, or not finite.
        """
        shown = value if isinstance(value, int) else f"{value:g}"
        if not math.isfinite(value):
            raise ConfigurationError(f"{name} {shown} is not a finite number", f"give {self.bounds()}")
        too_small = (self.least is not None and value < self.least) or (self.above is not None and value <= self.above)
        if too_small or (self.most is not None and value > self.most):
            raise ConfigurationError(f"{name} {shown} is too {'small' if too_small else 'large'}", f"give {self.bounds()}")
