"""Numbers of 32 bits in Triton's intermediate representation, which may overflow where a tensor has 2³¹ values or more."""

import re

_PARAMETER = re.compile(r"(%\w+): i(?:32|64)\b")
_ASSIGNED = re.compile(r"^\s*(%\w+)(?::\d+)? = (\S+)\s?(.*)$")
_CARRIED = re.compile(r"(%\w+) = (%\w+)")
_USED = re.compile(r"%\w+")
_ONE = re.compile(r"%c1_i32(?:_\d+)?$")
"""Name of a factor that unrolled loops multiply with."""


def narrow_products(ttir: str) -> list[str]:
    """Products of 32 bits with a factor that is not known when the kernel is compiled: an argument, or a program's index.

    Args:
        ttir: the function in the dialect `tt`, after Triton's optimisations.
    """
    unknown, found = set[str](), list[str]()
    for line in ttir.splitlines():
        if "tt.func" in line:
            unknown.update(_PARAMETER.findall(line))
            assert unknown, f"no number among the arguments: {line}"
        assigned = _ASSIGNED.match(line)
        if assigned is None:
            if "scf.for" in line:
                unknown.update(_of_loop(line, unknown))
            continue
        name, operation, rest = assigned.groups()
        used = set(_USED.findall(rest))
        # `launch` refuses an input capsule with 2³¹ weights, of which the third index counts slices.
        if (operation == "tt.get_program_id" and not rest.startswith("z")) or not unknown.isdisjoint(used):
            unknown.add(name)
            if operation == "scf.for":
                unknown.update(_of_loop(rest, unknown))
            narrow = operation == "arith.muli" and re.search(r": (?:i32|tensor<[\dx]+xi32)", rest)
            if narrow and not any(map(_ONE.match, used)):
                found.append(line.strip())
    return found


def _of_loop(text: str, unknown: set[str]) -> set[str]:
    """Names inside a loop that stand for numbers which are not known: its index, and values that it carries on."""
    head, _, carried = text.partition("iter_args")
    index, *bounds = _USED.findall(head)
    found = {inside for inside, given in _CARRIED.findall(carried) if given in unknown}
    return found if unknown.isdisjoint(bounds) else found | {index}
