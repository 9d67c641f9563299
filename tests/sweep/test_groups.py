"""Groups of cells that take turns."""

import pytest

from capsbench.records import Cell, Plan
from capsbench.sweep.groups import ends_of, groups_of, halves, needed_bytes, that_fit
from helpers.made import MIB, make_configuration, make_record


def cells(models=("rescapsnet", "mocapsnet"), depths=(1, 2, 3, 4), replicate=0, **options):
    return [
        Cell(configuration=make_configuration(model, blocks, **options), replicate=replicate)
        for blocks in depths
        for model in models
    ]


def names(found):
    return [f"{cell.configuration.model} {cell.configuration.blocks}" for cell in found]


def planned(*several, **fields):
    return Plan(command="", cells=[cell for group in several for cell in group], **fields)


def test_models_and_depths_of_one_environment_take_turns():
    (group,) = groups_of(planned(cells()))
    assert group == cells()


@pytest.mark.parametrize("other", [{"batch_size": 8}, {"threads": 2}, {"dataset": "mnist"}, {"precision": "bf16"}])
def test_another_environment_is_another_group(other):
    assert groups_of(planned(cells(), cells(**other))) == [cells(), cells(**other)]


def test_replicates_are_groups_of_their_own():
    assert groups_of(planned(cells(), cells(replicate=1))) == [cells(), cells(replicate=1)]


@pytest.mark.parametrize(
    "alone",
    [
        planned(cells(("mocapsnet",), (1,))),
        planned(cells(capacity=2**30)),
        planned(cells(device="cuda:predicted", gpu="H100")),
        planned(cells(), passes=["memory"]),
    ],
)
def test_some_cells_are_in_no_group(alone):
    assert groups_of(alone) == []


def test_ends_are_the_first_and_the_last_depth_of_each_series():
    mixed = [*cells(("rescapsnet",), (2, 3, 5)), *cells(("mocapsnet",), (1, 4, 6))]
    assert names(ends_of(mixed)) == ["rescapsnet 2", "rescapsnet 5", "mocapsnet 1", "mocapsnet 6"]


def grid(axes=("blocks", "batch_size")):
    batches = [
        Cell(configuration=make_configuration("rescapsnet", blocks, batch_size=size))
        for blocks in (1, 2, 4)
        for size in (2, 3, 4)
    ]
    return planned(batches, axes=axes)


def test_batches_take_turns_where_they_are_an_axis():
    assert groups_of(grid()) == [list(grid().cells)]
    assert [len(group) for group in groups_of(grid(("blocks",)))] == [3, 3, 3]


def test_ends_of_a_grid_are_its_border():
    found = ends_of(grid().cells, ("blocks", "batch_size"))
    inner = [cell for cell in grid().cells if cell not in found]
    assert [(cell.configuration.blocks, cell.configuration.batch_size) for cell in inner] == [(2, 3)]
    assert len(ends_of(grid().cells, ("batch_size",))) == 6


def test_cells_along_two_axes_from_one_corner_keep_their_ends():
    star = [(blocks, 2) for blocks in (1, 2, 4)] + [(1, size) for size in (3, 4)]
    several = [Cell(configuration=make_configuration("rescapsnet", blocks, batch_size=size)) for blocks, size in star]
    found = ends_of(several, ("blocks", "batch_size"))
    assert {(cell.configuration.blocks, cell.configuration.batch_size) for cell in found} == {(1, 2), (4, 2), (1, 4)}


def test_halves_of_a_grid_share_its_border():
    axes = ("blocks", "batch_size")
    several = [
        Cell(configuration=make_configuration("rescapsnet", blocks, batch_size=size))
        for blocks in range(1, 5)
        for size in range(1, 5)
    ]
    border = ends_of(several, axes)
    low, high = halves(several, axes)
    assert [cell for cell in low if cell in high] == border
    assert len(low) == len(high) == len(border) + 2
    left = [several]
    while left:
        group = left.pop()
        parts = halves(group, axes)
        assert all(len(part) < len(group) for part in parts)
        assert {cell.key() for part in parts for cell in part} in ({cell.key() for cell in group}, set())
        left += parts


def test_halves_share_the_ends_of_every_series():
    low, high = halves(cells(depths=range(1, 7)))
    assert names(low) == names(cells(depths=(1, 2, 3, 6)))
    assert names(high) == names(cells(depths=(1, 4, 5, 6)))


def test_halves_get_smaller_until_cells_are_alone():
    left, alone = [cells(depths=range(1, 9))], []
    for _ in range(100):
        if not left:
            break
        group = left.pop()
        parts = halves(group)
        assert {cell.key() for part in parts for cell in part} in ({cell.key() for cell in group}, set())
        assert all(len(part) < len(group) for part in parts)
        left += parts
        alone += group if len(group) == 1 else []
    assert not left
    assert {cell.key() for cell in alone} == {cell.key() for cell in cells(depths=range(1, 9))}


def memory_of(several):
    return {cell.key(): make_record(cell.configuration.model, cell.configuration.blocks).memory for cell in several}


def test_a_group_needs_what_all_keep_and_the_highest_step():
    both = cells(("rescapsnet",), (1, 4))
    memory = memory_of(both)
    one, four = (memory[cell.key()] for cell in both)
    kept = sum(figures.state_bytes + figures.optimizer_bytes for figures in (one, four))
    step = four.peak_allocated_bytes - four.state_bytes - four.optimizer_bytes
    assert needed_bytes(both, memory) == kept + step


def test_groups_fit_into_the_memory_that_is_there():
    several = cells(depths=range(1, 9))
    memory = memory_of(several)
    whole = needed_bytes(several, memory)
    assert that_fit(several, memory, None) == [several]
    assert that_fit(several, memory, 2 * whole) == [several]
    for share in (0.9, 0.5, 0.3):
        available = int(share * whole)
        parts = that_fit(several, memory, available)
        assert len(parts) > 1
        assert {cell.key() for part in parts for cell in part} == {cell.key() for cell in several}
        assert all(needed_bytes(part, memory) <= 0.8 * available or len(part) == 1 for part in parts)


def test_cells_that_fit_nowhere_are_tried_alone():
    several = cells(depths=(1, 2))
    # Not even one fits by its figures: it is tried, and the machine decides.
    assert sorted(map(len, that_fit(several, memory_of(several), MIB))) == [1] * 4
