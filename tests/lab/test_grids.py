"""Numbers on the command line, against numpy's."""

import numpy as np
import pytest

from gdtuo.lab import grids


@pytest.mark.parametrize(
    ("text", "low", "high", "n"), [("1e-8:1e1:10", -8, 1, 10), ("1e-6:1:13", -6, 0, 13), ("1e-3:1e-3:1", -3, -3, 1)]
)
def test_rates_are_equal_factors_apart(text, low, high, n):
    assert grids.rates(text) == pytest.approx(np.logspace(low, high, n), rel=1e-11)


def test_decades_are_exact():
    assert grids.rates("1e-8:1e1:10") == (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def test_lists():
    assert grids.rates("1e-3,0.5") == (1e-3, 0.5)
    assert grids.heights("0,2,10") == (0, 2, 10)
    assert grids.heights("3:5") == (3, 4, 5)


@pytest.mark.parametrize(
    "text", ["", "1:2", "1:2:0", "1:10:1", "0", "-1", "nan", "inf", "1e-3,1e-3", "a", "1:2:3:4", "0:1:3", "-1:1:3"]
)
def test_no_rates(text):
    with pytest.raises(ValueError, match="LOWEST:HIGHEST:HOW MANY"):
        grids.rates(text)


@pytest.mark.parametrize("text", ["", "4:0", "-1", "1,1", "a", "0:1:2", "1.5", "-2:3"])
def test_no_heights(text):
    with pytest.raises(ValueError, match="FIRST:LAST"):
        grids.heights(text)


def test_rates_are_rounded_to_what_one_would_write():
    assert grids.rates("5e-4:5e-1:4") == (5e-4, 5e-3, 5e-2, 0.5)
