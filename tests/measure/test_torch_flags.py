"""Flags of torch that hold for a whole process."""

import pytest
import torch

from capsbench.measure.torch_flags import read_flags, set_flags


@pytest.fixture(autouse=True)
def as_before():
    """Leave this process's flags as they were."""
    before = read_flags()
    yield
    set_flags(before)


def changed_and_set_back(change):
    """Flags before a change, after it, once they are set back, and once the change is set again."""
    before = read_flags()
    change()
    changed = read_flags()
    set_flags(before)
    back = read_flags()
    set_flags(changed)
    return before, changed, back, read_flags()


def set_attribute(owner, name, value):
    return lambda: setattr(owner, name, value)


@pytest.mark.parametrize(
    "change",
    [
        set_attribute(torch.backends.cudnn, "benchmark", True),
        set_attribute(torch.backends.cudnn, "allow_tf32", False),
        set_attribute(torch.backends.cudnn, "enabled", False),
        set_attribute(torch.backends.cuda.matmul, "allow_tf32", True),
        set_attribute(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_grad_enabled(False),
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        lambda: torch.backends.cuda.enable_flash_sdp(False),
        lambda: torch.backends.mha.set_fastpath_enabled(False),
        lambda: torch.autograd.set_detect_anomaly(True),
    ],
)
def test_a_flag_that_is_changed_is_set_back_and_again(change):
    before, changed, back, again = changed_and_set_back(change)
    assert changed != before
    assert back == before
    assert again == changed


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has the older names alone")
def test_flags_that_are_set_by_their_newer_names_are_set_back():
    def change():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"

    before, changed, back, again = changed_and_set_back(change)
    # The older name of a flag is not known until the newer one has its value back.
    assert "backends.cuda.matmul.allow_tf32" in before
    assert "backends.cuda.matmul.allow_tf32" not in changed
    assert back == before
    assert again == changed
