"""One picture of the cost: by the height of the tower, and by the number of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gdtuo.lab.figures import BLUE, GREEN, HEADLINE, ORANGE, pyplot, save

from .optimizers import BASELINES, HEIGHTS, LEARN, PUBLISHED, tower_name
from .results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

MODEL = "mlp-0.1M"  # of the left panel
FAMILY = "mlp-"  # of the right one: networks that differ in nothing but size
KINDS = {(fused, learn): f"{'fused' if fused else 'eager'}, {learn}" for fused in (False, True) for learn in LEARN}

Points = list[tuple[float, float]]


def by_height(rows: Sequence[Row]) -> dict[str, Points]:
    """Label -> (height, cost of an iteration over torch's default Adam)."""
    cost = {row.contestant: row.over_torch_adam for row in rows if row.model == MODEL and row.mode == "iteration"}
    lines = {
        label: [(float(height), cost.get(tower_name(learn, height, fused))) for height in HEIGHTS]
        for (fused, learn), label in KINDS.items()
    }
    return measured(lines | {"published package": [(1.0, cost.get(PUBLISHED))]})


def by_weights(rows: Sequence[Row]) -> dict[str, Points]:
    """Label -> (weights, cost of a bare step of a tower of height 1 over torch's fused Adam)."""
    chosen = [row for row in rows if row.model.startswith(FAMILY) and row.mode == "step"]
    cost = {(row.contestant, row.weights): row.over_torch_adam_fused for row in chosen}
    sizes = sorted({row.weights for row in chosen})
    names = {label: tower_name(learn, 1, fused) for (fused, learn), label in KINDS.items()} | {"torch, default": BASELINES[0]}
    return measured({label: [(float(size), cost.get((name, size))) for size in sizes] for label, name in names.items()})


def measured(lines: Mapping[str, Sequence[tuple[float, float | None]]]) -> dict[str, Points]:
    """What there is a figure for."""
    found = {label: [(x, y) for x, y in points if y is not None] for label, points in lines.items()}
    return {label: points for label, points in found.items() if points}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Save the picture as a PNG."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 4.8), layout="constrained")

    panel(left, by_height(rows), "torch's default Adam")
    left.set(xlabel="SGDs above Adam", ylabel="iteration time / torch's default Adam")
    left.set_title(f"A whole iteration, {MODEL}")

    right.set_xscale("log")
    panel(right, by_weights(rows), "torch's fused Adam")
    right.set(xlabel="weights", ylabel="step time / torch's fused Adam")
    right.set_title("A bare step, one SGD above Adam")

    figure.suptitle("What a tower costs", **HEADLINE)
    save(figure, path)


def panel(axes: Axes, lines: Mapping[str, Points], unit: str) -> None:
    """Lines from the baseline at 1 upward, each with its name at its end."""
    axes.set_yscale("log")
    axes.axhline(1, color="0.4", linewidth=1.2, linestyle=(0, (4, 4)), zorder=1)
    for label, points in lines.items():
        style = (0, (3, 1.2)) if label.endswith("+eps") else "-"
        axes.plot(*zip(*points, strict=True), color=color(label), linestyle=style, linewidth=2, marker="o", markersize=5)
    ys = [y for points in lines.values() for _, y in points] or [1.0]
    bottom, top = 0.85 * min(1.0, *ys), 1.2 * max(1.0, *ys)
    axes.set_ylim(bottom, top)
    fine, coarse = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8), tuple(2.0**k for k in range(-2, 11))
    ticks = [tick for tick in (fine if top / bottom < 12 else coarse) if bottom <= tick <= top]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    xs = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(xs, [f"{x / 1e6:.2g}M" if x >= 1e5 else f"{x:g}" for x in xs])
    axes.minorticks_off()
    ends = {label: points[-1] for label, points in lines.items()}
    heights = spread({label: y for label, (x, y) in ends.items() if x == xs[-1]} | {unit: 1.0}, (top / bottom) ** 0.055)
    for label, y in heights.items():
        place = {"xy": (1.02, y), "xycoords": ("axes fraction", "data")}
        axes.annotate(label, **place, va="center", color=color(label), fontsize=10)  # type: ignore[arg-type]
    for label, point in ends.items():
        if label not in heights:
            axes.annotate(label, point, (8, 0), textcoords="offset points", va="center", color=color(label), fontsize=10)


def color(label: str) -> str:
    """The same for a contestant in both panels."""
    return {"eager": ORANGE, "fused": BLUE, "publi": GREEN}.get(label[:5], "0.4")


def spread(heights: Mapping[str, float], step: float) -> dict[str, float]:
    """Heights on a logarithmic axis, moved apart to a factor of `step` at least, in their order."""
    placed: dict[str, float] = {}
    floor = 0.0
    for label in sorted(heights, key=lambda name: heights[name]):
        placed[label] = max(heights[label], floor)
        floor = placed[label] * step
    return placed
