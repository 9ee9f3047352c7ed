"""How pictures look: colours, fonts, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AMBER", "BLACK", "BLUE", "GREEN", "GREY", "HEADLINE", "ORANGE", "PURPLE", "SKY", "STYLE", "pyplot", "save"]

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


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
