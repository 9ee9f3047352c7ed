"""The results of an ablation as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..text import levels
from .ablation import Results
from .journal import Row

__all__ = ["by_tower", "format_table", "middle", "short"]

WIDTH = 8  # of a column, at least


def by_tower(rows: Sequence[Row]) -> dict[str, dict[float, list[Row]]]:
    """Of each tower, low ones first, and each initial rate, low ones first, the rows of its seeds."""
    found: dict[str, dict[float, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: (int(row["height"]), str(row["tower"]), float(row["lr"]), int(row["seed"]))):
        found.setdefault(str(row["tower"]), {}).setdefault(float(row["lr"]), []).append(row)
    return found


def short(text: str) -> str:
    """A tower's text, equal levels at its end counted.

    Example:
        >>> short("adam/sgd/sgd/sgd"), short("adam/sgd")
        ('adam / sgd x 3', 'adam / sgd')
    """
    *below, last = levels(text)
    n = 1
    while below and below[-1] == last:
        n, below = n + 1, below[:-1]
    return " / ".join([*below, last]) + (f" x {n}" if n > 1 else "")


def middle(rows: Sequence[Row]) -> float:
    """The median error over seeds; what is not a number counts as the largest."""
    return median(value if value == value else float("inf") for value in (float(row["error"]) for row in rows))


def format_table(results: Results) -> str:
    """Medians over the seeds, a line for each tower and a column for each initial rate; a star where a run diverged."""
    towers = by_tower(results.rows)
    rates = sorted({lr for cells in towers.values() for lr in cells})
    seeds = max((len(rows) for cells in towers.values() for rows in cells.values()), default=0)
    table = [["initial lr", *(f"{lr:.3g} " for lr in rates)]]
    table += [[short(text), *(_place(cells.get(lr, [])) for lr in rates)] for text, cells in towers.items()]
    left, *widths = [max(WIDTH * (j > 0), *map(len, column)) for j, column in enumerate(zip(*table, strict=True))]
    lines = [f"{results.title}: {results.metric}" + (f", median of {seeds} seeds" if seeds > 1 else ""), ""]
    for k, (name, *places) in enumerate(table):
        cells = "".join(f" {place:>{width}}" for place, width in zip(places, widths, strict=True))
        lines.append((f"{name:<{left}}" if k else f"{name:>{left}}") + cells)
    if any(row["diverged"] for row in results.rows):
        lines += ["", "* some or all of its runs diverged"]
    return "\n".join(lines)


def _place(rows: Sequence[Row]) -> str:
    if not rows:
        return "- "
    return f"{middle(rows):.4g}" + ("*" if any(row["diverged"] for row in rows) else " ")
