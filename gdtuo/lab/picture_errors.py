"""The picture of an ablation: error against the initial learning rate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .ablation import Results
from .curves import COLORS
from .figures import GREY, pyplot, save
from .journal import Row
from .scales import plain_ticks, scale
from .summary import by_tower, middle, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_errors"]

TOP = 0.97  # of the axes: where a cross stands that has no number
BELOW = 0.05  # of the axes: from one such cross to the next
LETTER = 0.08  # inches, of a label
MARKERS = "osD^vp*"


class Style(NamedTuple):
    """What tells a tower's line from others; many bands are pale, for they lie one over the other."""

    color: Any
    marker: str
    alpha: float


def draw_errors(results: Results, path: Path) -> None:
    """A line for each tower, the median of its seeds, in their range; a cross where a run diverged."""
    towers = by_tower(results.rows)
    labels = {text: f"height {next(iter(cells.values()))[0]['height']}: {short(text)}" for text, cells in towers.items()}
    width = max(9.5, 7 + LETTER * max(map(len, labels.values())))
    figure, axes = pyplot().subplots(figsize=(width, 5), layout="constrained")
    values = _finite(results.rows)
    axes.set_xscale("log")
    scale(axes, values)
    zero = plain_ticks(axes, values)
    if not values:
        axes.set_yticks([])
    crosses: Counter[float] = Counter()
    for (text, cells), style in zip(towers.items(), _styles(len(towers)), strict=True):
        _draw(axes, cells, style, labels[text], zero, crosses)
    if any(row["diverged"] for row in results.rows):
        axes.plot([], [], "x", color=GREY, markersize=9, mew=2, label="a run diverged")
    axes.set(xlabel="initial learning rate", ylabel=results.metric)
    seeds = max(len(rows) for cells in towers.values() for rows in cells.values())
    title = f"median and range of {seeds} seeds" if seeds > 1 else None
    axes.legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(1, 1), title=title, alignment="left")
    save(figure, path, f"{results.title}: {results.metric.split(',')[0]} by initial learning rate")


def _draw(
    axes: Axes, cells: Mapping[float, Sequence[Row]], style: Style, label: str, zero: float, crosses: Counter[float]
) -> None:
    """`zero` is where 0 stands; `crosses` counts those without a number at each rate, which stand one below the other."""
    rates, middles = list(cells), [max(middle(rows), zero) for rows in cells.values()]
    lines = [value if math.isfinite(value) else math.nan for value in middles]
    ranges = [[max(value, zero) for value in _finite(rows)] or [math.nan] for rows in cells.values()]
    axes.plot(rates, lines, color=style.color, marker=style.marker, markersize=4, linewidth=2, label=label)
    axes.fill_between(rates, list(map(min, ranges)), list(map(max, ranges)), color=style.color, alpha=style.alpha, linewidth=0)
    for lr, value, rows in zip(rates, middles, cells.values(), strict=True):
        if any(row["diverged"] for row in rows):
            inside = math.isfinite(value)
            place: Any = axes.transData if inside else axes.get_xaxis_transform()
            y = value if inside else TOP - BELOW * crosses[lr]
            axes.plot(lr, y, "x", color=style.color, markersize=9, mew=2, transform=place)
            crosses[lr] += not inside


def _finite(rows: Sequence[Row]) -> list[float]:
    return [value for value in (float(row["error"]) for row in rows) if math.isfinite(value)]


def _styles(n: int) -> list[Style]:
    if n <= len(COLORS):
        return [Style(color, "o", 0.18) for color in COLORS[:n]]
    colors = pyplot().colormaps["viridis"]([0.95 * i / (n - 1) for i in range(n)])
    return [Style(color, marker, 0.9 / n) for color, marker in zip(colors, cycle(MARKERS), strict=False)]
