"""Numbers with their intervals, as they are printed everywhere."""

import pytest

from capsbench.sizes import Unit
from capsbench.words.units import quantity_text, range_text, slope_number, slope_text, with_interval


@pytest.mark.parametrize(
    ("slope", "low", "high", "text"),
    [
        (0.0029, 0.0014, 0.0077, "2.9 (1.4–7.7) ms"),
        (0.0010, -0.0014, 0.0077, "1.0 (-1.4 to 7.7) ms"),
        (-0.0077, -0.0082, -0.0015, "-7.7 (-8.2 to -1.5) ms"),
        # The halves differ, and ± gives the same digits.
        (0.0029, 0.0027, 0.0031, "2.9 ± 0.2 ms"),
        (0.0029, 0.00281, 0.00305, "2.9 ± 0.1 ms"),
        # The halves differ by a fifth.
        (0.0100, 0.0050, 0.0160, "10.0 ± 5.5 ms"),
        (0.0100, 0.0050, 0.0180, "10.0 (5.0–18.0) ms"),
        # A value outside its interval.
        (0.0100, 0.0120, 0.0180, "10.0 (12.0–18.0) ms"),
        (0.0100, float("nan"), float("nan"), "10.0 ms"),
        (float("nan"), float("nan"), float("nan"), "-"),
    ],
)
def test_an_interval_that_is_not_symmetric_has_its_ends(slope, low, high, text):
    assert slope_text(slope, low, high, is_bytes=False) == text


def test_the_ends_share_the_unit_and_the_decimals_of_the_value():
    assert slope_text(900e-6, 500e-6, 7.7e-3, is_bytes=False) == "0.9 (0.5–7.7) ms"
    assert slope_number(900e-6, 500e-6, 7.7e-3, is_bytes=False, unit=Unit(1e-6, "µs", 0)) == "900 (500–7700)"
    assert slope_number(900e-6, 500e-6, 7.7e-3, is_bytes=False, unit=(1e-3, "ms", 1)) == "0.9 (0.5–7.7)"
    assert with_interval(10, 9.99, 10.05, decimals=1) == "10.00 (9.99–10.05)"


@pytest.mark.parametrize("value", [1e30, 1e308])
def test_a_number_of_any_size_has_all_of_its_digits(value):
    assert quantity_text(value, is_bytes=False) == f"{value:.2f} s"
    assert float(quantity_text(value, is_bytes=True).partition(" ")[0]) == pytest.approx(value / 2**30)


def test_a_range_with_a_minus_sign_is_in_words():
    assert range_text("1.4", "7.7") == "1.4–7.7"
    assert range_text("-7.7", "-1.4") == "-7.7 to -1.4"
