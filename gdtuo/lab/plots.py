"""A history as a picture: a panel for each hyperparameter of each level, and for each column of the user's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

from ..history import Series
from ..level import Level
from ..observing import unwrap
from .curves import KEY, NAMED, Curve, Panel, colors, curves, panels, strokes
from .figures import BLACK, GREY, HEADLINE, STYLE
from .scales import AVERAGES, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..history import History

__all__ = ["plot_history"]

DASHES = (0, (4, 2))
WRAP = 26  # letters in a line of a legend


def plot_history(history: History, path: str | Path | None = None, title: str | None = None) -> Figure:
    """See `History.plot`."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # without pyplot, which would choose how figures are shown
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("A picture takes matplotlib, which is missing: pip install matplotlib.") from error
    inner = unwrap(history.optimizer) if history.optimizer is not None else None
    tower = _headline(inner) if isinstance(inner, Level) else type(inner).__name__ if inner is not None else ""
    levels = [] if "\n" in tower else tower.split(" / ")  # of several towers no name fits all
    chosen = panels(history)
    own = [name for name in history if not KEY.fullmatch(name) and (name != "skipped" or any(history[name].values))]
    count = len(chosen) + len(own)
    if not count:
        raise ValueError("This History has nothing to draw. Call record() after each step first.")
    palette = colors({int(match[3]) for match in map(KEY.fullmatch, history) if match})
    drawn = [curves(panel, palette) for panel in chosen]
    rows = max((sum(len(wrap(curve.label, WRAP)) for curve in each) for each in drawn), default=0)
    across = min(count, 2)
    down = -(-count // across)
    height = max(2.9, 0.19 * (rows + 2))  # inches, for the longest legend
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6 * across, height * down + 0.35 + 0.25 * len(tower.splitlines())), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True).flatten()
        for axes, panel, each in zip(grid, chosen, drawn, strict=False):
            _draw(axes, panel, each, levels[panel.level] if panel.level < len(levels) else "", palette)
        for axes, name in zip(grid[len(chosen) :], own, strict=False):
            _draw_column(axes, name, history[name])
        for axes in grid[count:]:
            axes.remove()
        for axes in grid[count - across : count]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step")
        grid[0].xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))  # shared
        if title or tower:
            figure.suptitle(title or tower, **HEADLINE)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
    return figure


def _draw(axes: Axes, panel: Panel, drawn: Sequence[Curve], optimizer: str, palette: Mapping[int, str]) -> None:
    written = [(series, palette[g] if 1 < len(palette) <= NAMED else GREY) for g, series in panel.written.items()]
    width = 1.3 if len(palette) <= NAMED else 0.6
    for (series, color), stroke in zip(written, strokes([series for series, _ in written], 4, 2), strict=True):
        _line(axes, series, color=color, linestyle=stroke, linewidth=width)
    for curve, stroke in zip(drawn, strokes([curve.series for curve in drawn]), strict=True):
        for series in curve.each:
            _line(axes, series, color=curve.color, linewidth=0.7, alpha=0.35)
        if curve.band:
            low, high = curve.band
            axes.fill_between(*low, high.values, color=curve.color, alpha=0.2, linewidth=0)
        above = 2 if stroke == "-" else 2.1
        _line(axes, curve.series, color=curve.color, linestyle=stroke, linewidth=2, label=curve.label, zorder=above)
    effective = [series for lines in panel.effective.values() for series in lines.values()]
    values = [value for series in (*effective, *panel.written.values()) for value in series.values]
    scale(axes, values, panel.name in AVERAGES)
    _say_if_empty(axes, values)
    where = f"Level {panel.level}, {optimizer}" if optimizer else f"Level {panel.level}"
    axes.set_title(f"{where}: {'learning rate' if panel.name == 'lr' else panel.name}")
    axes.set_ylabel(panel.name)
    _legend(axes, drawn, bool(written))


def _line(axes: Axes, series: Series, **style: Any) -> None:
    axes.plot(*series, marker="o" if len(series.steps) == 1 else "", markersize=5, dash_capstyle="butt", **style)


def _say_if_empty(axes: Axes, values: Iterable[float]) -> None:
    if not any(map(math.isfinite, values)):
        axes.text(0.5, 0.5, "no finite number", color=GREY, ha="center", va="center", transform=axes.transAxes)


def _legend(axes: Axes, drawn: Sequence[Curve], written: bool) -> None:
    """Beside the axes, where it covers nothing; its samples are whole, whatever dashes a line has."""
    from matplotlib.lines import Line2D

    samples = [Line2D([], [], color=curve.color, linewidth=2, label=fill(curve.label, WRAP)) for curve in drawn]
    if written:
        samples.append(Line2D([], [], color=GREY, linestyle=DASHES, linewidth=1.3, label="as written\n(by you or a scheduler)"))
    axes.legend(handles=samples, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _draw_column(axes: Axes, name: str, series: Series) -> None:
    axes.plot(*series, color=BLACK, linewidth=1.2, marker="o" if len(series.steps) < 30 else "", markersize=4)
    scale(axes, series.values)
    _say_if_empty(axes, series.values)
    axes.set_title("skipped hyper-updates, in all" if name == "skipped" else name)
    axes.set_ylabel(name)


def _headline(optimizer: Level) -> str:
    """The tower, or each tower with the groups that it learns."""
    members: dict[str, list[int]] = {}
    for g, t in enumerate(optimizer._template_of):
        members.setdefault(str(optimizer._templates[t]), []).append(g)
    if len(members) == 1:
        return next(iter(members))
    return "\n".join(f"{tower}  ({_groups(groups)})" for tower, groups in members.items())


def _groups(numbers: Sequence[int]) -> str:
    """ "group 3", "groups 0, 2 to 5"."""
    runs = [[g for _, g in run] for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    named = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"group{'s' * (len(numbers) > 1)} {', '.join(named)}"
