"""Steps with sparse gradients: their bytes are those of a measurement, and a guess only where they depend on unknown values."""

import os

import pytest

from capsbench.prediction import apart
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.tracing import counting
from helpers import TESTS
from helpers.sparse_steps import KINDS, asked, figures_of


@pytest.fixture(scope="module")
def finds_helpers():
    """Processes of their own can import the helpers of tests."""
    apart.close()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        yield
    apart.close()


@pytest.mark.skipif(counting.installed() is None, reason="there is nothing that counts what libraries take")
@pytest.mark.usefixtures("finds_helpers")
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_sparse_gradients_is_predicted_to_the_byte(kind):
    # Apart: once TorchScript has run in a process, sums of sparse tensors take their memory in another order there.
    measured, predicted, notes = apart.call(figures_of, kind)
    assert predicted == measured
    assert notes == ((), ())


def test_rows_that_a_network_chooses_are_a_guess():
    configuration = asked("rounded")
    traced = trace_for(configuration)
    (note,) = traced.unsure
    assert "sparse tensor" in note
    assert predict_memory(configuration, traced).memory.certainty["peak_allocated_bytes"] == "guessed"
