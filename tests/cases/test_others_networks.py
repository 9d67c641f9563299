"""Networks of others: each is measured and predicted, and what is marked exact is what was measured, to the byte."""

import pytest

from benchmarks import networks
from benchmarks.networks import NETWORKS
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.prediction.predict import predicted_here
from capsbench.records import Cell
from helpers.made import make_configuration

EXACT = {"state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "inference_kept_bytes"}
"""Figures that are marked exact for every one of them."""


def differences(predicted, measured):
    """The figures that are marked exact and are not those that were measured."""
    marked = {name for name, certainty in predicted.certainty.items() if certainty == "exact"}
    assert marked == EXACT
    pairs = {name: (getattr(predicted, name), getattr(measured, name)) for name in marked}
    return {name: (one, other) for name, (one, other) in pairs.items() if one != other}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_marked_exact_is_exact(name):
    configuration = make_configuration(f"benchmarks.networks:{name}", 2, precision=NETWORKS[name], batch_size=2)
    cell = Cell(configuration=configuration.model_copy(update={"device": "cpu:predicted"}))
    record = predicted_here(cell)
    assert record.status == "ok", record.message
    measured = memory_figures(probed_step(configuration))
    assert differences(record.memory, measured) == {}
    wrong = measured.model_copy(update={"retained_bytes": measured.retained_bytes + 1})
    assert differences(record.memory, wrong).keys() == {"retained_bytes"}


def test_there_are_fifteen_and_each_grows_with_its_blocks():
    assert len(NETWORKS) >= 15
    for name in NETWORKS:
        make = getattr(networks, name)
        one, two = (sum(1 for _ in make((1, 28, 28), 10, blocks).modules()) for blocks in (1, 2))
        assert one < two, name
