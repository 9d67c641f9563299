"""The words for what a sweep varies."""

import pytest

from capsbench.axes import axis_flag, axis_title, axis_unit, position_in_words
from capsbench.options import AXES_OF_FIELDS, OPTIONS
from helpers.made import make_configuration


@pytest.mark.parametrize(
    ("axis", "title", "unit", "flag"),
    [
        ("blocks", "Blocks", "block", "--depth "),
        ("batch_size", "Batch size", "sample", "--batch-size "),
        ("capsules", "Capsules", "capsule", "--capsules "),
        ("accumulate", "Accumulation", "pass", "--accumulate "),
        ("iterations", "Iterations", "round", "--iterations "),
        ("image_shape", "Image size", "pixel", "--shape "),
        ("classes", "Classes", "class", "--classes "),
        ("length", "Length", "token", "--set length="),
        ("seq_len", "Seq len", "token", "--set seq_len="),
        ("hidden_width", "Hidden width", "hidden width", "--set hidden_width="),
    ],
)
def test_an_axis_has_a_title_a_unit_and_a_flag(axis, title, unit, flag):
    assert (axis_title(axis), axis_unit(axis), axis_flag(axis)) == (title, unit, flag)


def test_every_axis_of_a_field_has_words():
    for axis in AXES_OF_FIELDS:
        assert axis_title(axis)
        assert axis_unit(axis)
    assert set(AXES_OF_FIELDS) <= set(OPTIONS)


@pytest.mark.parametrize(
    ("fields", "axis", "words"),
    [
        ({"blocks": 1}, "blocks", "1 block"),
        ({"blocks": 4}, "blocks", "4 blocks"),
        ({"batch_size": 32}, "batch_size", "batch 32"),
        ({"capsules": 16}, "capsules", "capsules 16"),
        ({"image_shape": "3x64x32"}, "image_shape", "3x64x32"),
        ({"dataset": "mnist"}, "image_shape", "1x28x28"),
        ({"classes": 196}, "classes", "classes 196"),
        ({"settings": {"length": 256}}, "length", "length 256"),
        ({"settings": {"drop_out": 0.5}}, "drop_out", "drop out 0.5"),
        ({}, "length", "no length"),
    ],
)
def test_a_position_in_words(fields, axis, words):
    assert position_in_words(make_configuration(**fields), axis) == words
