"""Table 1 of the towers paper as it is printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from gdtuo.lab.journal import Row

__all__ = ["TABLE", "Figure", "Published"]

SLACK = 0.4  # percentage points in which a row may be off whatever its spread


class Figure(NamedTuple):
    """A test error in percent over repetitions."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Figure:
        """The summary of some cells."""
        errors = [float(row["error"]) for row in rows]
        return cls(statistics.mean(errors), statistics.stdev(errors))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f}"

    def agrees(self, other: Figure) -> bool:
        """Whether the means are within three combined standard deviations, or within SLACK."""
        combined = math.hypot(self.deviation, other.deviation)
        return abs(self.mean - other.mean) <= max(3 * combined, SLACK)


class Published(NamedTuple):
    """A row of the paper: the stack with its numbers, its error; what it has learned, and the error of the rerun with that."""

    title: str
    stack: str
    error: Figure
    learned: tuple[float, ...] = ()
    rerun: Figure | None = None


TABLE = (
    Published("SGD", "SGD(0.01)", Figure(8.99, 0.05)),
    Published("SGD / SGD", "SGD(0.01) / SGD(0.01)", Figure(4.81, 0.10), (0.0769,), Figure(5.44, 0.10)),
    Published("SGD / Adam(0.1)", "SGD(0.01) / Adam(0.1)", Figure(4.86, 0.06), (0.4538,), Figure(2.80, 0.09)),
    Published("SGD / AdaGrad", "SGD(0.01) / AdaGrad(0.01)", Figure(4.85, 0.21), (0.0836,), Figure(5.17, 0.03)),
    Published("SGD / RMSProp(0.1)", "SGD(0.01) / RMSProp(0.1)", Figure(4.52, 0.02), (0.5920,), Figure(2.52, 0.07)),
    Published("Adam", "Adam(0.001)", Figure(4.67, 0.06)),
    Published("Adam / SGD(1e-5)", "Adam(0.001) / SGD(1e-05)", Figure(3.03, 0.02), (0.0040, 0.899, 0.999), Figure(3.11, 0.06)),
    Published("Adam[lr] / SGD(1e-5)", "AdamBaydin(0.001) / SGD(1e-05)", Figure(3.12, 0.04), (0.0021,), Figure(3.47, 0.02)),
    Published("Adam / Adam", "Adam(0.001) / Adam(0.001)", Figure(3.05, 0.09), (0.0038, 0.870, 0.999), Figure(3.24, 0.13)),
    Published("Adam[lr] / Adam", "AdamBaydin(0.001) / Adam(0.001)", Figure(3.04, 0.08), (0.0036,), Figure(3.08, 0.12)),
    Published("AdaGrad", "AdaGrad(0.01)", Figure(7.40, 0.08)),
    Published("AdaGrad / SGD", "AdaGrad(0.01) / SGD(0.01)", Figure(6.90, 0.16), (0.0080,), Figure(7.75, 0.02)),
    Published("AdaGrad / AdaGrad", "AdaGrad(0.01) / AdaGrad(0.01)", Figure(5.03, 0.23), (0.0151,), Figure(6.67, 0.08)),
    Published("RMSProp", "RMSProp(0.01)", Figure(4.19, 0.47)),
    Published("RMSProp[lr] / SGD(1e-4)", "RMSPropAlpha(0.01) / SGD(0.0001)", Figure(3.55, 0.23), (0.0030,), Figure(3.93, 0.70)),
    Published("RMSProp / SGD(1e-4)", "RMSProp(0.01) / SGD(0.0001)", Figure(3.33, 0.07), (0.0032, 0.9899), Figure(3.25, 0.09)),
    Published(
        "RMSProp[lr] / RMSProp(1e-4)", "RMSPropAlpha(0.01) / RMSProp(0.0001)", Figure(3.42, 0.45), (0.0021,), Figure(3.60, 0.04)
    ),
    Published(
        "RMSProp / RMSProp(1e-4)", "RMSProp(0.01) / RMSProp(0.0001)", Figure(2.96, 0.11), (0.0020, 0.9962), Figure(3.65, 0.36)
    ),
)
