"""Lists of numbers as one writes them on a command line."""

from __future__ import annotations

import math

__all__ = ["heights", "rates"]


def heights(text: str) -> tuple[int, ...]:
    """ "0:4" is 0 to 4, both included; "0,2,10" is a list.

    Raises:
        ValueError: for anything else; says what is meant.

    Example:
        >>> heights("0:4"), heights("2")
        ((0, 1, 2, 3, 4), (2,))
    """
    try:
        first, colon, last = text.partition(":")
        found = tuple(range(int(first), int(last) + 1)) if colon else tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise ValueError(f"{text!r} names no heights. Write FIRST:LAST, as 0:4, or a list, as 0,1,3")
    return found


def rates(text: str) -> tuple[float, ...]:
    """ "1e-8:1e1:10" is ten learning rates, equal factors apart; "1e-3,1e-2" is a list.

    A rate that a decade is meant by is that decade, to the bit.

    Raises:
        ValueError: for anything else; says what is meant.

    Example:
        >>> rates("1e-3:1:4")
        (0.001, 0.01, 0.1, 1.0)
    """
    try:
        if ":" in text:
            low, high, count = text.split(":")
            start, end, n = math.log10(float(low)), math.log10(float(high)), int(count)
            found = tuple(_round(start + (end - start) * i / max(n - 1, 1)) for i in range(n if n > 1 or low == high else 0))
        else:
            found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(math.isfinite(rate) and rate > 0 for rate in found) or len(set(found)) < len(found):
        raise ValueError(
            f"{text!r} names no learning rates above 0. Write LOWEST:HIGHEST:HOW MANY, as 1e-8:1e1:10, or a list, as 1e-3,0.01"
        )
    return found


def _round(exponent: float) -> float:
    """10 to the power of it, in twelve digits."""
    return float(f"{10**exponent:.12g}")
