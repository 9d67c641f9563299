"""Modules that retain more or less than before, in few words: blocks that changed alike are reported once."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

OUTSIDE = "(the network's own code, the loss)"
"""Name of the bytes that no module keeps: those of the code of the network itself, outside its modules, and of the loss."""

STARS = "* stands for every number"
"""Note on names of modules that `module_changes` has merged."""

Tokens = tuple[str, ...]
_Entry = tuple[Tokens, int, tuple[str, ...]]
"""Name in parts, change of each module, and full names of the modules."""


@dataclass(frozen=True)
class ModuleChange:
    """The change in retained bytes of one module, or of each of several."""

    name: str
    """Name of the module: `blocks.*.0` for all blocks, `blocks.1-7.0` for some; empty for bytes that no module keeps."""
    nbytes: int
    """Change of each, in bytes."""
    count: int
    """Number of modules."""
    names: tuple[str, ...] = field(default=(), compare=False)
    """Full names of these modules."""

    def title(self, classes: Mapping[str, str]) -> str:
        """Name with the class of the modules, if they share one: `blocks.*.0 (Linear)`.

        Args:
            classes: classes by name of the module, as far as they are known.
        """
        if not self.name:
            return OUTSIDE
        kinds = {classes.get(name, "") for name in self.names}
        return with_class(self.name, kinds.pop() if len(kinds) == 1 else "")


def with_class(name: str, kind: str) -> str:
    """Name of a module with its class, `blocks.0 (Linear)`; the name alone if the class is not known."""
    return f"{name} ({kind})" if kind else name


def module_changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[ModuleChange]:
    """The changes, the largest first.

    A number in a name becomes `*` where modules that differ in it alone changed alike, and a range where some of them did.

    Args:
        before: retained bytes by module.
        after: retained bytes later, of a network of the same depth.
    """
    names = sorted(before.keys() | after.keys())
    entries: list[_Entry] = [
        (tuple(re.split(r"(\d+)", name)), after.get(name, 0) - before.get(name, 0), (name,)) for name in names
    ]
    for place in range(1, max((len(tokens) for tokens, _, _ in entries), default=0), 2):
        entries = _merged(entries, place)
    changes = [ModuleChange("".join(tokens), nbytes, len(own), own) for tokens, nbytes, own in entries if nbytes]
    return sorted(changes, key=lambda it: -abs(it.nbytes * it.count))


def _merged(entries: Iterable[_Entry], place: int) -> list[_Entry]:
    """Entries merged where their names differ in the number at one index alone and their changes agree."""
    families: dict[Tokens, list[_Entry]] = {}
    for entry in entries:
        tokens = entry[0]
        families.setdefault((*tokens[:place], "*", *tokens[place + 1 :]) if place < len(tokens) else tokens, []).append(entry)
    merged = []
    for family, members in families.items():
        changes = {nbytes for _, nbytes, _ in members}
        for nbytes in changes:
            alike = [member for member in members if member[1] == nbytes]
            name = alike[0][0]
            if len(alike) > 1:
                some = (*family[:place], _ranges(tokens[place] for tokens, _, _ in alike), *family[place + 1 :])
                name = family if len(changes) == 1 else some
            merged.append((name, nbytes, tuple(chain.from_iterable(own for _, _, own in alike))))
    return merged


def _ranges(numbers: Iterable[str]) -> str:
    """Ranges of numbers in short: `0,2,5-7`."""
    runs: list[list[int]] = []
    for number in sorted(map(int, numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
