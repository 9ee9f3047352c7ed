"""The picture of what an ablation's towers learned: each hyperparameter over the steps of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import TYPE_CHECKING, Any, TypeAlias

from .ablation import Results
from .figures import pyplot, save
from .journal import Row
from .scales import AVERAGES, LEAST, scale
from .summary import by_tower, short
from .training import BOUNDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_learned"]

Line: TypeAlias = dict[int, float]  # step -> median over seeds, and over tensors
Lines: TypeAlias = dict[float, Line]  # of each initial rate
MARGIN = 1.6  # of a logarithmic axis, a factor
LETTER = 0.118  # inches, of the headline
LETTERS = 42  # of a title, at most, in a column


def draw_learned(results: Results, path: Path) -> bool:
    """A column for each tower, a row for each hyperparameter that was learned, a line for each initial learning rate.

    Returns:
        whether there was anything to draw.
    """
    panels = _panels(results.traces)
    if not panels:
        return False
    texts = [text for text in by_tower(results.rows) if any(text == other for other, _ in panels)]
    names = sorted({name for _, name in panels}, key=_place)
    rates = sorted({lr for lines in panels.values() for lr in lines})
    plt = pyplot()
    colors = dict(
        zip(rates, plt.colormaps["viridis"]([0.9 * i / max(len(rates) - 1, 1) for i in range(len(rates))]), strict=True)
    )
    headline = f"{results.title}: what the towers learned"
    width = max(4 * len(texts) + 1.4, LETTER * len(headline) + 1.6)  # the legend stands beside the headline
    size = (width, 2.6 * len(names) + 0.9)
    figure, grid = plt.subplots(len(names), len(texts), figsize=size, layout="constrained", squeeze=False, sharex="col")
    for i, name in enumerate(names):
        shared = [
            value for (_, other), lines in panels.items() if other == name for line in lines.values() for value in line.values()
        ]
        for j, text in enumerate(texts):
            axes, lowest = grid[i, j], not any((text, other) in panels for other in names[i + 1 :])
            if (text, name) in panels:
                _draw(axes, panels[text, name], colors, name, shared, "step" if lowest else "")
            else:
                axes.set_axis_off()
            if i == 0:
                axes.set_title(f"{fill(short(text), LETTERS)}\n{_title(name)}", fontsize=11)
    handles = [plt.Line2D([], [], color=colors[lr], linewidth=2, label=f"{lr:.3g}") for lr in reversed(rates)]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="initial lr", alignment="left", fontsize=10)
    save(figure, path, headline)
    return True


def _panels(traces: Sequence[Row]) -> dict[tuple[str, str], Lines]:
    """Of each tower and name that moved; what a tower learns for each tensor counts as one."""
    every: dict[tuple[str, str], dict[float, dict[int, list[float]]]] = {}
    for row in traces:
        name = str(row["name"])
        if name.endswith(BOUNDS):
            continue
        lines = every.setdefault((str(row["tower"]), "/".join(name.split("/")[:2])), {})
        lines.setdefault(float(row["lr"]), {}).setdefault(int(row["step"]), []).append(float(row["value"]))
    moved = {place: lines for place, lines in every.items() if any(_moves(points) for points in lines.values())}
    return {
        place: {lr: {step: median(values) for step, values in sorted(points.items())} for lr, points in sorted(lines.items())}
        for place, lines in moved.items()
    }


def _moves(points: Mapping[int, Sequence[float]]) -> bool:
    return len({tuple(values) for values in points.values()}) > 1


def _place(name: str) -> tuple[int, bool, str]:
    """Levels upwards, of each the learning rate first."""
    level, _, what = name.partition("/")
    return int(level[1:]), what != "lr", what


def _title(name: str) -> str:
    level, _, what = _place(name)
    return f"level {level}: {'learning rate' if name.endswith('/lr') else what}"


def _draw(axes: Axes, lines: Lines, colors: Mapping[float, Any], name: str, shared: Sequence[float], below: str) -> None:
    """`shared` are the values of all panels of this name, which have one scale."""
    for lr, line in lines.items():
        axes.plot(list(line), list(line.values()), color=colors[lr], linewidth=1.8)
    scale(axes, shared, name.split("/")[1] in AVERAGES)
    positive = [value for value in shared if LEAST < value < 1 / LEAST]
    if axes.get_yscale() == "log" and positive:
        axes.set_ylim(min(positive) / MARGIN, max(positive) * MARGIN)
    axes.locator_params(axis="x", integer=True)  # there is no half step
    axes.set_title(_title(name), fontsize=10)
    if below:
        axes.set_xlabel(below)
        axes.tick_params(labelbottom=True)
