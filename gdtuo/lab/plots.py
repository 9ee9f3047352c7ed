"""A history as a picture: a panel for each hyperparameter of each level, and for each column of the user's."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..level import Level
from ..observing import unwrap
from .figures import AMBER, BLACK, BLUE, GREEN, GREY, HEADLINE, ORANGE, PURPLE, SKY, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..history import History, Series

__all__ = ["Panel", "panels", "plot_history"]

COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK)
DASHES = (0, (4, 2))
KEY = re.compile(r"(written/)?L(\d+)/g(\d+)/([^/]+)(?:/(.*))?")

AVERAGES = ("momentum", "alpha", "beta1", "beta2", "beta3")
NARROW = 1.5  # positive numbers whose largest is less than so many times the smallest stand on a linear axis
NEAR_ONE = [
    [1 - scale * 10.0**-k for k in range(1, 11) for scale in scales]
    for scales in ((5, 2, 1), (9, 8, 7, 6, 5, 4, 3, 2, 1.8, 1.6, 1.4, 1.2, 1))
]


class Panel(NamedTuple):
    """One hyperparameter of one level."""

    level: int
    name: str
    effective: dict[int, dict[str, Series]]  # of each group, by tensor; "" for the whole group
    written: dict[int, Series]  # of each group


def panels(history: Mapping[str, Series]) -> list[Panel]:
    """What is learned or moves, and every learning rate, from the first level up."""
    found: dict[tuple[int, bool, str], Panel] = {}
    for key, series in history.items():
        match = KEY.fullmatch(key)
        if match:
            written, level, group, name, label = match.groups()
            panel = found.setdefault((int(level), name != "lr", name), Panel(int(level), name, {}, {}))
            if written:
                panel.written[int(group)] = series
            else:
                panel.effective.setdefault(int(group), {})[label or ""] = series
    return [found[place] for place in sorted(found) if _worth_it(found[place])]


def _worth_it(panel: Panel) -> bool:
    every = [series for lines in panel.effective.values() for series in lines.values()]
    return panel.name == "lr" or bool(panel.written) or any(len(set(series.values)) > 1 for series in every)


def plot_history(history: History, path: str | Path | None = None, title: str | None = None) -> Figure:
    """See `History.plot`."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # without pyplot, which would choose how figures are shown
    except ImportError as error:
        raise ImportError("A picture takes matplotlib, which is missing: pip install matplotlib.") from error
    inner = unwrap(history.optimizer) if history.optimizer is not None else None
    tower = str(inner) if isinstance(inner, Level) else type(inner).__name__ if inner is not None else ""
    mixed = isinstance(inner, Level) and any(inner._template_of)  # groups with towers of their own: no name fits all
    levels = [] if mixed else tower.split(" / ")
    chosen = panels(history)
    own = [name for name in history if not KEY.fullmatch(name) and (name != "skipped" or any(history[name].values))]
    count = len(chosen) + len(own)
    if not count:
        raise ValueError("This History has nothing to draw. Call record() after each step first.")
    across = min(count, 2)
    down = -(-count // across)
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4 * across, 2.9 * down + 0.6), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True).flatten()
        for axes, panel in zip(grid, chosen, strict=False):
            _draw(axes, panel, levels[panel.level] if panel.level < len(levels) else "")
        for axes, name in zip(grid[len(chosen) :], own, strict=False):
            _draw_column(axes, name, history[name])
        for axes in grid[count:]:
            axes.remove()
        for axes in grid[count - across : count]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step")
        if title or tower:
            figure.suptitle(title or tower, **HEADLINE)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
    return figure


def _draw(axes: Axes, panel: Panel, optimizer: str) -> None:
    groups = panel.effective
    if len(groups) > len(COLORS):  # too many to tell apart
        lines = {f"{g} {label}": series for g, lines in groups.items() for label, series in lines.items()}
        groups = {0: {name: series for name, series in lines.items() if not name.endswith(("min", "max"))}}
    several, whose = len(groups) > 1, "effective" if panel.written else "not learned"
    width = 1.3 if len(panel.written) <= len(COLORS) else 0.6
    for series, color in zip(panel.written.values(), itertools.cycle(COLORS if several else [GREY]), strict=False):
        axes.plot(*series, color=color, linestyle=DASHES, linewidth=width)
    for (group, lines), color in zip(groups.items(), COLORS, strict=False):
        _draw_group(axes, lines, f"group {group}" if several else whose, color, several)
    if panel.written:
        axes.plot([], [], color=GREY, linestyle=DASHES, linewidth=1.3, label="as written (by you or a scheduler)")
    effective = [series for lines in panel.effective.values() for series in lines.values()]
    _scale(axes, [value for series in (*effective, *panel.written.values()) for value in series.values], panel.name in AVERAGES)
    where = f"Level {panel.level}, {optimizer}" if optimizer else f"Level {panel.level}"
    axes.set_title(f"{where}: {'learning rate' if panel.name == 'lr' else panel.name}")
    axes.set_ylabel(panel.name)
    axes.legend(frameon=False, fontsize=9)


def _draw_group(axes: Axes, lines: Mapping[str, Series], whose: str, color: str, several: bool) -> None:
    if lines.keys() == {"mean", "min", "max"}:  # learned per element
        axes.plot(*lines["mean"], color=color, linewidth=2, label=f"{whose}, mean and range of its weights")
        axes.fill_between(*lines["min"], lines["max"].values, color=color, alpha=0.2, linewidth=0)
    elif len(lines) == 1:
        axes.plot(*next(iter(lines.values())), color=color, linewidth=2, label=whose)
    elif len(lines) <= len(COLORS) and not several:
        for (name, series), own in zip(lines.items(), COLORS, strict=False):
            axes.plot(*series, color=own, linewidth=1.8, label=name)
    else:
        for series in lines.values():
            axes.plot(*series, color=color, linewidth=0.7, alpha=0.35)
        middle = _medians(lines.values())
        label = f"{whose}, median of {len(lines)} (thin: each)"
        axes.plot(list(middle), list(middle.values()), color=color, linewidth=2.2, label=label)


def _medians(lines: Iterable[Series]) -> dict[int, float]:
    """Step -> median over the lines that have it."""
    values: dict[int, list[float]] = {}
    for series in lines:
        for step, value in zip(*series, strict=True):
            values.setdefault(step, []).append(value)
    return {step: median(values[step]) for step in sorted(values)}


def _draw_column(axes: Axes, name: str, series: Series) -> None:
    axes.plot(*series, color=BLACK, linewidth=1.2, marker="o" if len(series.steps) < 30 else "", markersize=4)
    _scale(axes, series.values)
    axes.set_title("skipped hyper-updates, in all" if name == "skipped" else name)
    axes.set_ylabel(name)


def _scale(axes: Axes, values: Iterable[float], average: bool = False) -> None:
    """An axis on which equal steps of learning look equal: factors, or of what averages, factors of its distance from 1."""
    numbers = [value for value in values if math.isfinite(value)]
    positive = [value for value in numbers if value > 0]
    if not positive or min(numbers) < 0:
        return
    low, high = min(positive), max(positive)
    if average and low >= 0.5 and high < 1:
        if 1 - low > NARROW * (1 - high):
            axes.set_yscale("function", functions=(_distance, _undone))
            coarse, fine = ([tick for tick in ticks if low <= tick <= high] for ticks in NEAR_ONE)
            ticks = coarse if len(coarse) > 2 else fine
            axes.set_yticks(ticks, [f"{tick:.10g}" for tick in ticks])
    elif high > NARROW * low:
        axes.set_yscale("log", nonpositive="mask")


def _distance(value: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(1 - np.asarray(value), 1e-12))


def _undone(distance: np.ndarray) -> np.ndarray:
    return 1 - np.exp(-np.asarray(distance))
