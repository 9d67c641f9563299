"""Values as they are typed, and typed again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsbench.options import settings_text
from capsbench.typed_values import as_typed, parsed_values, settings_in

VALUES = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.text('0123456789-:,"\\ =.e')
)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("128", (128,)),
        ("0.5,1e-3", (0.5, 0.001)),
        ("1-4", (1, 2, 3, 4)),
        ("1 - 3 , 8", (1, 2, 3, 8)),
        ("128-512:128", (128, 256, 384, 512)),
        ("1-6:4", (1, 5)),
        ("true,false", (True, False)),
        ("adam, sgd", ("adam", "sgd")),
        ('"yes, no",128', ("yes, no", 128)),
        ('"128"', ("128",)),
        (r'"say \"no\""', ('say "no"',)),
        ('""', ("",)),
        ("2,2,1-2", (2, 1)),
        ("1,true", (1, True)),
        ("8-1", ("8-1",)),
        ("1-8:0", ("1-8:0",)),
        ("inf", ("inf",)),
        ("1-999999999999", ("1-999999999999",)),
    ],
)
def test_values_of_a_text(text, values):
    found = parsed_values(text)
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1-1024", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)),
        ("3-100", (3, 6, 12, 24, 48, 96, 100)),
        ("1-64", tuple(range(1, 65))),
        ("1-100:10", tuple(range(1, 101, 10))),
        ("1-128:1", tuple(range(1, 129))),
        ("0-100", tuple(range(101))),
        ("5,1-100", (5, 1, 2, 4, 8, 16, 32, 64, 100)),
        ("1-99999999999999999999", ("1-99999999999999999999",)),
    ],
)
def test_a_long_range_of_what_doubles(text, values):
    assert parsed_values(text, doubling_beyond=64) == values


@pytest.mark.parametrize("text", ["", ",", "1,", ",1", "1,,2", '"open', '"a"b', '"a","'])
def test_texts_without_values(text):
    with pytest.raises(ValueError, match=r"\w"):
        parsed_values(text)


@given(VALUES)
def test_a_value_that_is_typed_is_read_again(value):
    (found,) = parsed_values(as_typed(value))
    assert (type(found), found) == (type(value), value)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_settings_are_found_again_in_their_text(settings):
    found = settings_in(settings_text(settings.items()))
    assert [one.partition("=")[0] for one in found] == list(settings)
    assert [parsed_values(one.partition("=")[2]) for one in found] == [(value,) for value in settings.values()]


def test_plain_texts_stay_plain():
    assert [as_typed(value) for value in ("adam", "a b", "path/to/x=1", 128, 0.5, True)] == [
        "adam", "a b", "path/to/x=1", "128", "0.5", "true",
    ]  # fmt: skip
