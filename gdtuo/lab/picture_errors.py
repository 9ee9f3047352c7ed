"""The picture of an ablation: error against the initial learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ablation import Results
from .curves import COLORS
from .figures import GREY, HEADLINE, pyplot, save
from .journal import Row
from .scales import plain_ticks, scale
from .summary import by_tower, middle, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_errors"]

TOP = 0.97  # of the axes: where a cross stands that has no number


def draw_errors(results: Results, path: Path) -> None:
    """A line for each tower, the median of its seeds, in their range; a cross where a run diverged."""
    figure, axes = pyplot().subplots(figsize=(9.5, 5), layout="constrained")
    towers = by_tower(results.rows)
    for (text, cells), color in zip(towers.items(), _colors(len(towers)), strict=True):
        height = next(iter(cells.values()))[0]["height"]
        _draw(axes, cells, color, f"height {height}: {short(text)}")
    if any(row["diverged"] for row in results.rows):
        axes.plot([], [], "x", color=GREY, markersize=9, mew=2, label="a run diverged")
    values = _finite(results.rows)
    axes.set_xscale("log")
    scale(axes, values)
    plain_ticks(axes, values)
    axes.set(xlabel="initial learning rate", ylabel=results.metric)
    seeds = max(len(rows) for cells in towers.values() for rows in cells.values())
    title = f"median and range of {seeds} seeds" if seeds > 1 else None
    axes.legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(1, 1), title=title, alignment="left")
    figure.suptitle(f"{results.title}: {results.metric.split(',')[0]} by initial learning rate", **HEADLINE)
    save(figure, path)


def _draw(axes: Axes, cells: Mapping[float, Sequence[Row]], color: Any, label: str) -> None:
    rates, middles = list(cells), [middle(rows) for rows in cells.values()]
    lines = [value if math.isfinite(value) else math.nan for value in middles]
    ranges = [_finite(rows) or [math.nan] for rows in cells.values()]
    axes.plot(rates, lines, color=color, marker="o", markersize=4, linewidth=2, label=label)
    axes.fill_between(rates, list(map(min, ranges)), list(map(max, ranges)), color=color, alpha=0.18, linewidth=0)
    for lr, value, rows in zip(rates, middles, cells.values(), strict=True):
        if any(row["diverged"] for row in rows):
            inside = math.isfinite(value)
            place: Any = axes.transData if inside else axes.get_xaxis_transform()
            axes.plot(lr, value if inside else TOP, "x", color=color, markersize=9, mew=2, transform=place)


def _finite(rows: Sequence[Row]) -> list[float]:
    return [value for value in (float(row["error"]) for row in rows) if math.isfinite(value)]


def _colors(n: int) -> list[Any]:
    return list(COLORS[:n]) if n <= len(COLORS) else list(pyplot().colormaps["viridis"]([0.95 * i / (n - 1) for i in range(n)]))
