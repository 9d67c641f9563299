"""The words for what a sweep varies."""

import pytest

from capsbench.axes import axis_flag, axis_title, axis_unit
from capsbench.options import AXES_OF_FIELDS, OPTIONS


@pytest.mark.parametrize(
    ("axis", "title", "unit", "flag"),
    [
        ("blocks", "Blocks", "block", "--depth "),
        ("batch_size", "Batch size", "sample", "--batch-size "),
        ("capsules", "Capsules", "capsule", "--capsules "),
        ("iterations", "Iterations", "round", "--iterations "),
        ("shape", "Image size", "pixel", None),
        ("classes", "Classes", "class", None),
        ("length", "Length", "token", "--set length="),
        ("seq_len", "Seq len", "token", "--set seq_len="),
        ("hidden_width", "Hidden width", "hidden width", "--set hidden_width="),
    ],
)
def test_an_axis_has_a_title_a_unit_and_a_flag(axis, title, unit, flag):
    assert (axis_title(axis), axis_unit(axis)) == (title, unit)
    assert flag is None or axis_flag(axis) == flag


def test_every_axis_of_a_field_has_words():
    for axis in AXES_OF_FIELDS:
        assert axis_title(axis)
        assert axis_unit(axis)
    assert set(AXES_OF_FIELDS) - {"shape", "classes"} <= set(OPTIONS)
