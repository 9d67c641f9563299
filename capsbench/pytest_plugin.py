"""A pytest plugin that fails a test when the memory of a network grew. Pytest loads it if capsbench is installed.

    @pytest.mark.memory_slope(max_bytes_per_block=0)
    def test_depth_costs_nothing(memory_slope):
        memory_slope(make_net, depths=(1, 2, 4))

    def test_a_step_takes_no_more_than_before(memory_baseline):
        memory_baseline(model, inputs, loss=loss, file="baselines/memory.json")

Without the marker the first fixture measures and leaves the verdict to the test. `pytest --update-memory-baselines` writes the
files of the second.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from capsbench.estimation import MemoryEstimate
    from capsbench.testing import MemorySlope

_PREFIX = "max_bytes_per_"
"""Beginning of the marker's argument, which the unit of the axis follows."""
_UPDATE = "--update-memory-baselines"
_BASELINE = "memory_baseline.json"
"""Name of a baseline beside the file of its tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes baselines."""
    parser.getgroup("capsbench").addoption(
        _UPDATE, action="store_true", help="write the baselines of the fixture memory_baseline, and check nothing"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "memory_slope(max_bytes_per_block): the most that a block (a sample, a token) may add to what a training step retains "
        "(capsbench)",
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
    from capsbench.axes import axis_unit
    from capsbench.testing import memory_slope
    from capsbench.words.along import number_text

    limit, asked = _limit(request), list[bool]()

    def measure(*args: Any, **kwargs: Any) -> "MemorySlope":
        asked.append(True)
        found = memory_slope(*args, **kwargs)
        if limit is None:
            return found
        unit, varied = axis_unit(found.axis), found.axis.replace("_", " ")
        if unit != limit.unit:
            pytest.fail(
                f"memory_slope({_PREFIX}{limit.unit.replace(' ', '_')}=…) sets no limit per {unit}, but {varied} was varied\n"
                f"mark the test with {_PREFIX}{unit.replace(' ', '_')}=",
                pytrace=False,
            )
        if found.notes:
            warnings.warn(f"the bytes that a {unit} may retain are not exact: {'; '.join(found.notes)}", stacklevel=2)
        if found.worst_step() > limit.nbytes:
            at = zip(found.positions, found.retained_bytes, strict=True)
            sizes = ", ".join(f"{number_text(position)}: {nbytes}" for position, nbytes in at)
            where = "depth" if unit == "block" else varied
            pytest.fail(
                f"a {unit} retains {found.worst_step():.0f} bytes, and may {limit.nbytes:.0f} (bytes at each {where}: {sizes})\n"
                f"{found.explain()}",
                pytrace=False,
            )
        return found

    yield measure
    if limit is not None and not asked:
        pytest.fail(
            f"{request.node.name} is marked memory_slope and measured nothing\ncall memory_slope(make_net) in it", pytrace=False
        )


@pytest.fixture(name="memory_baseline")
def memory_baseline_fixture(request: pytest.FixtureRequest) -> "Callable[..., MemoryEstimate]":
    """Provide `capsbench.estimate` of a live network, which fails the test if the step takes more than its baseline.

    The function that the fixture returns has the arguments of `capsbench.estimate`, and two more: `file`, by default
    memory_baseline.json beside the test, and `name`, by default the test's own with its file and class. Bytes that are guessed
    are compared, too.
    """
    from capsbench.errors import CapsbenchError
    from capsbench.estimation import estimate
    from capsbench.testing import grown_memory

    def check(*args: Any, file: str | None = None, name: str | None = None, **kwargs: Any) -> "MemoryEstimate":
        path = request.path.parent / _BASELINE if file is None else file
        update = bool(request.config.getoption(_UPDATE))
        try:
            found = estimate(*args, **kwargs)
            grown = grown_memory(found, path, name=name or request.node.nodeid.rpartition("/")[2], update=update)
        except CapsbenchError as error:
            pytest.fail(str(error), pytrace=False)
        if grown:
            pytest.fail("\n".join([*grown, f"write a new baseline with pytest {_UPDATE} if this is meant"]), pytrace=False)
        return found

    return check


class _Limit(NamedTuple):
    """The limit that a marker sets."""

    nbytes: float
    unit: str
    """Unit of the axis: `block`, `token`."""


def _limit(request: pytest.FixtureRequest) -> _Limit | None:
    marker = request.node.get_closest_marker("memory_slope")
    if marker is None:
        return None
    name, limit = next(iter(marker.kwargs.items()), ("", None))
    number = float(limit) if isinstance(limit, int | float) and not isinstance(limit, bool) else -1.0
    if marker.args or len(marker.kwargs) != 1 or not name.startswith(_PREFIX) or not number >= 0:
        given = ", ".join([*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())])
        pytest.fail(
            f"memory_slope({given}) does not say how much a block may retain\n"
            "give max_bytes_per_block=, a number of bytes, 0 or more; or max_bytes_per_token= and so on, over another axis",
            pytrace=False,
        )
    return _Limit(number, name.removeprefix(_PREFIX).replace("_", " "))
