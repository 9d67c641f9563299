"""A pytest plugin that fails a test when the memory of a network grew. Pytest loads it if capsbench is installed.

    @pytest.mark.memory_slope(max_bytes_per_block=0)
    def test_depth_costs_nothing(memory_slope):
        memory_slope(make_net, depths=(1, 2, 4))

    def test_a_step_takes_no_more_than_before(memory_baseline):
        memory_baseline(model, inputs, loss=loss, file="baselines/memory.json")

    @pytest.mark.memory_slope(max_bytes_per_token=40_000, max_bytes_per_pair_of_tokens=96)
    def test_a_token_costs_no_more(memory_slope):
        memory_slope(gpt2, vary={"length": (64, 128, 192, 256)})

Without the marker the first fixture measures and leaves the verdict to the test. `pytest --update-memory-baselines` writes the
files of the second.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from capsbench.estimation import MemoryEstimate
    from capsbench.testing import MemorySlope

_PREFIX = "max_bytes_"
"""Beginning of the marker's arguments, which the unit of a term follows: `per_token`, `per_pair_of_tokens`."""
_UPDATE = "--update-memory-baselines"
_BASELINE = "memory_baseline.json"
"""Name of a baseline in the folder of its tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes baselines."""
    parser.getgroup("capsbench").addoption(
        _UPDATE, action="store_true", help="write the baselines of the fixture memory_baseline, and check nothing"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "memory_slope(max_bytes_per_block): the most that a block (a sample, a token, a pair of tokens) may add to what a "
        "training step retains (capsbench)",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a marker without the fixture, which would guard nothing."""
    if item.get_closest_marker("memory_slope") and "memory_slope" not in getattr(item, "fixturenames", ()):
        pytest.fail(
            f"{item.name} is marked memory_slope and does not take the fixture memory_slope: nothing is measured\n"
            "write def test_…(memory_slope): memory_slope(make_net)",
            pytrace=False,
        )


@pytest.fixture(name="memory_slope")
def memory_slope_fixture(request: pytest.FixtureRequest) -> "Iterator[Callable[..., MemorySlope]]":
    """Provide `capsbench.testing.memory_slope`, which fails the test if its marker's limit is passed."""
    # Imported on use, so that other tests need not wait for torch.
    from capsbench.testing import memory_slope

    limits, asked = _limits(request), list[bool]()

    def measure(*args: Any, **kwargs: Any) -> "MemorySlope":
        asked.append(True)
        found = memory_slope(*args, **kwargs)
        if limits:
            _judge(found, limits)
        return found

    yield measure
    if limits and not asked:
        pytest.fail(
            f"{request.node.name} is marked memory_slope and measured nothing\ncall memory_slope(make_net) in it", pytrace=False
        )


@pytest.fixture(name="memory_baseline")
def memory_baseline_fixture(request: pytest.FixtureRequest) -> "Callable[..., MemoryEstimate]":
    """Provide `capsbench.estimate` of a live network, which fails the test if the step takes more than its baseline.

    The function that the fixture returns has the arguments of `capsbench.estimate`, and two more: `file`, by default
    memory_baseline.json next to the test, and `name`, by default the test's own with its file and class. Bytes that are guessed
    are compared, too.
    """
    from capsbench.errors import CapsbenchError
    from capsbench.estimation import estimate
    from capsbench.testing import grown_memory

    def check(*args: Any, file: str | None = None, name: str | None = None, **kwargs: Any) -> "MemoryEstimate":
        path = request.path.parent / _BASELINE if file is None else file
        update, failure = bool(request.config.getoption(_UPDATE)), ""
        try:
            found = estimate(*args, **kwargs)
            grown = grown_memory(found, path, name=name or request.node.nodeid.rpartition("/")[2], update=update)
            if grown:
                failure = "\n".join([*grown, f"write a new baseline with pytest {_UPDATE} if this is meant"])
        except CapsbenchError as error:
            failure = str(error)
        if failure:  # outside of `except`, or pytest would print both exceptions
            pytest.fail(failure, pytrace=False)
        return found

    return check


def _judge(found: "MemorySlope", limits: Mapping[str, float]) -> None:
    """Fail the test if a term of what is retained exceeds its limit, or a term or limit has no counterpart."""
    from capsbench.axes import BASES, axis_unit, per_unit, term_unit
    from capsbench.words.along import number_text

    varied, unit = found.axis.replace("_", " "), per_unit(found.axis)
    terms = {unit: found.worst_step()} if found.curve is None else found.terms
    possible = {term_unit(found.axis, form) for form in BASES}
    odd = next((name for name in limits if name not in possible), None)
    if odd is not None:
        _refuse(f"memory_slope({_argument(odd)}…) sets no limit {unit}, but {varied} was varied", terms)
    # A limit of a term that there is not is kept.
    if not terms.keys() <= limits.keys():
        given = ", ".join(f"{_argument(name)}…" for name in limits)
        kept = found.in_words if found.curve else f"up to {found.worst_step():.0f} B {unit}"
        _refuse(f"memory_slope({given}) does not limit all of what is retained: {kept}", terms)
    if found.notes:
        warnings.warn(
            f"the bytes that a {axis_unit(found.axis)} may retain are not exact: {'; '.join(found.notes)}", stacklevel=3
        )
    at = zip(found.positions, found.retained_bytes, strict=True)
    sizes = ", ".join(f"{number_text(position)}: {nbytes}" for position, nbytes in at)
    for name, nbytes in terms.items():
        if nbytes > limits[name]:
            subject = f"a {name.removeprefix('per ')} retains" if name.startswith("per ") else f"what is {name} retains"
            where = "depth" if found.axis == "blocks" else varied
            pytest.fail(
                f"{subject} {nbytes:.0f} bytes, and may {limits[name]:.0f} (bytes at each {where}: {sizes})\n{found.explain()}",
                pytrace=False,
            )


def _argument(unit: str) -> str:
    """The marker's argument for a unit: `max_bytes_per_pair_of_tokens=`."""
    return f"{_PREFIX}{unit.replace(' ', '_')}="


def _refuse(what: str, units: Iterable[str]) -> NoReturn:
    """Fail the test, and name the limits that its marker should have."""
    pytest.fail(f"{what}\nmark the test with {' and '.join(map(_argument, units))}", pytrace=False)


def _limits(request: pytest.FixtureRequest) -> dict[str, float]:
    """The limits that a marker sets, in bytes by unit: `per block`, `per pair of tokens`; none without a marker."""
    from capsbench.typed_values import is_number

    marker = request.node.get_closest_marker("memory_slope")
    if marker is None:
        return {}
    found = {
        name.removeprefix(_PREFIX).replace("_", " "): float(limit) if is_number(limit) else -1.0
        for name, limit in marker.kwargs.items()
        if name.startswith(_PREFIX)
    }
    if marker.args or not marker.kwargs or len(found) != len(marker.kwargs) or not all(limit >= 0 for limit in found.values()):
        given = ", ".join([*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())])
        pytest.fail(
            f"memory_slope({given}) does not say how much a block may retain\n"
            "give max_bytes_per_block=, a number of bytes, 0 or more; or max_bytes_per_token= and so on, over another axis",
            pytrace=False,
        )
    return found
