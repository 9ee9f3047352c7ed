"""Which panels and lines make the picture of a history, their names, colours and strokes."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypeAlias

from ..history import Series
from .figures import AMBER, BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY

__all__ = ["KEY", "NAMED", "Curve", "Panel", "Stroke", "colors", "curves", "panels", "strokes"]

COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK)
NAMED = 20  # groups, at most, that have names and colours
ELEMENTS = {"mean", "min", "max"}
KEY = re.compile(r"(written/)?L(\d+)/g(\d+)/([^/]+)(?:/(.*))?")
Stroke: TypeAlias = str | tuple[float, tuple[float, float]]  # as matplotlib takes it: solid, or offset, (on, off) in points


class Panel(NamedTuple):
    """One hyperparameter of one level."""

    level: int
    name: str
    effective: dict[int, dict[str, Series]]  # of each group, by tensor; "" for the whole group
    written: dict[int, Series]  # of each group


class Curve(NamedTuple):
    """A line with a name, and what it stands for: thin lines or a band."""

    label: str
    color: str
    series: Series
    each: Sequence[Series] = ()
    band: tuple[Series, Series] | None = None


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


def colors(groups: Collection[int]) -> dict[int, str]:
    """Each group's, the same in all panels: the palette, then its tints, then its shades."""
    from matplotlib.colors import to_hex, to_rgb

    def mixed(color: str, other: float) -> str:
        red, green, blue = (0.55 * part + 0.45 * other for part in to_rgb(color))
        return to_hex((red, green, blue))

    palette = [*COLORS, *(mixed(color, 1.0) for color in COLORS), *(mixed(color, 0.0) for color in COLORS)]
    return dict(zip(sorted(groups), itertools.cycle(palette), strict=False))


def curves(panel: Panel, palette: Mapping[int, str]) -> list[Curve]:
    """The lines of a panel; `palette` has a colour for each group of the history, not of the panel alone."""
    whose = "effective" if panel.written else "not learned"
    groups = panel.effective
    if len(palette) == 1:
        ((group, lines),) = groups.items()
        if lines.keys() != ELEMENTS and 1 < len(lines) <= len(COLORS):
            return [Curve(name, color, series) for (name, series), color in zip(lines.items(), COLORS, strict=False)]
        return [_of_group(lines, whose, palette[group])]
    if len(palette) <= NAMED:
        return [_of_group(lines, f"group {g}", palette[g]) for g, lines in groups.items()]
    pooled = [series for lines in groups.values() for name, series in lines.items() if name not in ("min", "max")]
    return [Curve(f"{whose}, median of {len(pooled)} (thin: each)", BLUE, _median(pooled), pooled)]


def _of_group(lines: Mapping[str, Series], whose: str, color: str) -> Curve:
    if lines.keys() == ELEMENTS:
        label = f"{whose}, mean and range of its weights"
        return Curve(label, color, lines["mean"], band=(lines["min"], lines["max"]))
    every = list(lines.values())
    if len(every) == 1:
        return Curve(whose, color, every[0])
    return Curve(f"{whose}, median of {len(every)} (thin: each)", color, _median(every), every)


def _median(lines: Iterable[Series]) -> Series:
    """At each step the median over the lines that have it."""
    values: dict[int, list[float]] = {}
    for series in lines:
        for step, value in zip(*series, strict=True):
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    return Series(array("q", steps), array("d", (median(values[step]) for step in steps)))


def strokes(lines: Sequence[Series], on: float = 6, off: float = 0) -> list[Stroke]:
    """How to draw lines one over the other so that each is seen: equal ones take turns in dashes.

    A line that joins another where it begins and has its values from there on is equal to it. Of equal lines the longest is
    whole, below the others (if `off` is 0).

    Args:
        lines: in the order in which they are drawn.
        on: the length of a dash, in line widths.
        off: the gap behind each.

    Returns:
        a line style for each.

    Example:
        >>> one, two = Series(array("q", [1, 2]), array("d", [0.1, 0.1])), Series(array("q", [1, 2]), array("d", [0.1, 0.2]))
        >>> strokes([one, two, one])
        ['-', '-', (-6, (6, 6))]
    """
    longest = sorted(range(len(lines)), key=lambda k: -len(lines[k].steps))
    leaders = [next(k for k in longest if _joins(line, lines[k])) for line in lines]
    result: list[Stroke] = []
    for k, leader in enumerate(leaders):
        equal = sorted((other for other, its in enumerate(leaders) if its == leader), key=lambda other: (other != leader, other))
        turn, rest = equal.index(k), off + (len(equal) - 1) * (on + off)
        result.append((-turn * (on + off), (on, rest)) if rest and (off or turn) else "-")
    return result


def _joins(line: Series, other: Series) -> bool:
    """Whether one is the end of the other."""
    end = slice(len(other.steps) - len(line.steps), None) if len(line.steps) <= len(other.steps) else slice(0, 0)
    return line is other or (line.steps == other.steps[end] and line.values == other.values[end])
