"""How pictures look: colours, fonts, files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from torch import Tensor

__all__ = [
    "AMBER",
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "HEADLINE",
    "ORANGE",
    "PURPLE",
    "SKY",
    "STYLE",
    "gallery",
    "plain_log",
    "pyplot",
    "save",
]

# Told apart by colour-blind readers (Okabe, Ito).
BLUE, ORANGE, GREEN, SKY, PURPLE, AMBER = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#e69f00"
BLACK, GREY = "0.1", "0.5"
HEADLINE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 13, "fontweight": "bold"}
STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
}


def pyplot() -> Any:
    """matplotlib.pyplot, set up; imported when something is drawn, for whoever only measures need not have it."""
    import matplotlib as mpl

    mpl.use("Agg")  # a picture in a file needs no display
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    return plt


def save(figure: Figure, path: Path, headline: str | None = None) -> None:
    """Write a PNG, under a headline; its folder is made."""
    if headline is not None:
        figure.suptitle(headline, **HEADLINE)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def plain_log(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers: 1, 2, 5, 10, …"""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def gallery(panel: SubFigure, images: Iterable[Tensor], title: str, label: str, **shown: Any) -> None:
    """Ten square images, one for each class, each a vector of pixels; `label` says what their colours mean."""
    axes = panel.subplots(2, 5)
    for k, (axis, image) in enumerate(zip(axes.flat, images, strict=True)):
        side = math.isqrt(len(image))
        mapped = axis.imshow(image.reshape(side, side).numpy(), cmap="RdBu_r", **shown)
        axis.set_title(f"class {k}", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="0.8")
    panel.colorbar(mapped, ax=axes, orientation="horizontal", fraction=0.06, extend="both").set_label(label)
    panel.suptitle(title, x=0.02, ha="left", fontsize=12)
