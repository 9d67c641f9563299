"""The words for what a sweep varies."""

import pytest

from capsbench.axes import (
    axis_flag,
    axis_title,
    axis_unit,
    basis_form,
    declared_forms,
    per_unit,
    plural_unit,
    position_in_words,
    shared_unit,
    term_unit,
)
from capsbench.errors import ConfigurationError
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
        ("hidden_width", "Hidden width", "unit of hidden width", "--set hidden_width="),
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


@pytest.mark.parametrize(
    ("axis", "unit", "plural"),
    [
        ("length", "token", "tokens"),
        ("classes", "class", "classes"),
        ("accumulate", "pass", "passes"),
        ("num_heads", "head", "heads"),
        ("layers", "layer", "layers"),
        ("world_size", "rank", "ranks"),
        ("levels", "level", "levels"),
        ("num_chunks", "chunk", "chunks"),
        ("width", "unit of width", "units of width"),
    ],
)
def test_one_unit_of_an_axis_and_several(axis, unit, plural):
    assert (axis_unit(axis), plural_unit(axis), per_unit(axis)) == (unit, plural, f"per {unit}")
    assert term_unit(axis, "quadratic") == f"per pair of {plural}"


def test_units_of_terms_that_axes_share():
    assert shared_unit(("blocks", "batch_size"), (1, 1)) == "per block and sample"
    assert shared_unit(("blocks", "length"), (1, 2)) == "per block and pair of tokens"
    assert shared_unit(("blocks", "world_size"), (1, -1)) == "per block, divided by world size"
    assert shared_unit(("length", "world_size"), (0, -1)) == "divided by world size"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("1,n", "line"),
        ("1, n", "line"),
        ("1,n,n²", "quadratic"),
        ("1,n,n^2", "quadratic"),
        ("{1, n, n**2}", "quadratic"),
        ("n², n, 1", "quadratic"),
        (("1", "n", "n2"), "quadratic"),
        ("1,1/n", "inverse"),
        ((1, "1/N"), "inverse"),
    ],
)
def test_a_basis_as_it_is_typed(text, form):
    assert basis_form("length", text) == form


@pytest.mark.parametrize("text", ["", "n", "n,n²", "1,n²", "1,n³", "1,n,1/n", "line"])
def test_a_basis_that_no_cost_has_gets_two_lines(text):
    with pytest.raises(ConfigurationError, match="`basis`") as error:
        basis_form("length", text)
    assert "1,n,n²" in error.value.hint


def test_bases_are_declared_for_axes_that_there_are():
    assert declared_forms({"image_size": "1,n", "blocks": "1,n"}, ("image_shape", "blocks")) == {
        "image_shape": "line",
        "blocks": "line",
    }
    assert declared_forms(None, ("blocks",)) == {}
    with pytest.raises(ConfigurationError, match="the axis 'lenght', which is not varied") as error:
        declared_forms({"lenght": "1,n"}, ("length", "blocks"))
    assert error.value.hint == "did you mean length? If not, the axes here are length, blocks"
