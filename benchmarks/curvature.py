"""Products with second derivatives, by each way of nesting the two derivatives: time and peak memory over one gradient.

A product is what reverse methods need of each step: the gradient and its derivative along a vector, with respect to the
weights and to one hyperparameter. All three ways compute the same; `gdtuo` offers the first two. The time of a product
alone is what is left after the gradient: the figure in the table less 1. Time is that of the processor, one thread.

    python -m benchmarks.curvature            # a table, and a picture in runs/curvature.png
    python -m benchmarks.curvature --quick    # small networks, few repetitions
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import gdtuo
from gdtuo.hypergrad.curvature import LINEARIZATIONS, Loss, gradient_of
from gdtuo.hypergrad.live_bytes import LiveBytes
from gdtuo.lab import figures

from . import models, timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MODES", "NETWORKS", "Row", "compare", "draw", "table"]

Vector = Sequence[Tensor]
Product = tuple[list[Tensor], list[Tensor | None]]  # for each weight, for each hyperparameter
Mode = Callable[[Loss, Vector, Vector, Vector], Product]

REPETITIONS = 9


# ---------------------------------------------------------------- networks


class Recurrent(nn.Module):
    """An LSTM cell, unrolled: a deep graph of small operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[time, batch, width] -> [batch, width], the last output."""
        state = (torch.zeros_like(x[0]), torch.zeros_like(x[0]))
        for inputs in x:
            state = self.cell(inputs, state)
        return state[0]


def convolutional(width: int) -> nn.Module:
    """Two convolutions, each with BatchNorm."""
    layers = [models.convolution(3, width, 3), nn.ReLU(), models.convolution(width, 2 * width, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * width, 10))


class Network(NamedTuple):
    """A module and what it is called with."""

    module: nn.Module
    inputs: Tensor


NETWORKS: dict[str, Callable[[bool], Network]] = {  # quick -> network
    "MLP": lambda quick: Network(
        models.mlp(*[64 if quick else 512] * 9), torch.randn(64 if quick else 256, 64 if quick else 512)
    ),
    "LSTM, 60 steps": lambda quick: Network(Recurrent(16 if quick else 128), torch.randn(60, 32, 16 if quick else 128)),
    "transformer": lambda quick: Network(
        nn.Sequential(*(models.Block(32 if quick else 128, 4) for _ in range(1 if quick else 4))),
        torch.randn(8, 16 if quick else 128, 32 if quick else 128),
    ),
    "CNN, BatchNorm": lambda quick: Network(convolutional(2 if quick else 16), torch.randn(8 if quick else 64, 3, 16, 16)),
}


def problem(network: Network) -> tuple[list[Tensor], Loss]:
    """Weights, and a loss of them and of one hyperparameter, a factor."""
    apply, params = gdtuo.make_functional(network.module)
    names = list(params)

    def loss(weights: Vector, leaves: Vector) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivatives
            return leaves[0] * apply(dict(zip(names, weights, strict=True)), network.inputs).square().mean()

    return list(params.values()), loss


# ---------------------------------------------------------------- the three ways


def offered(name: str) -> Mode:
    """One of gdtuo's."""
    return lambda loss, weights, leaves, vector: LINEARIZATIONS[name](loss, weights, leaves).product(vector)


def reverse_over_forward(loss: Loss, weights: Vector, leaves: Vector, vector: Vector) -> Product:
    """Differentiates the loss's derivative along the vector: ∇(∇L · q). Tried, and not offered."""
    inputs = [x.detach().requires_grad_() for x in (*weights, *leaves)]
    count = len(weights)
    with forward_ad.dual_level(), torch.enable_grad():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(inputs, vector, strict=False)]
        slope = forward_ad.unpack_dual(loss(duals, inputs[count:])).tangent
        if slope is None:
            raise RuntimeError("the loss does not depend on the weights")
        gradients = gradient_of(slope, inputs)
    return gradients[:count], list(gradients[count:])


MODES: dict[str, Mode] = {**{name: offered(name) for name in LINEARIZATIONS}, "reverse-over-forward": reverse_over_forward}


# ---------------------------------------------------------------- measuring


class Row(NamedTuple):
    """One way on one network, over the gradient alone; `failure` says why there are no figures."""

    network: str
    mode: str
    time: float = float("nan")
    memory: float = float("nan")
    error: float = float("nan")  # relative to reverse-over-reverse
    failure: str = ""

    @property
    def wrong(self) -> bool:
        """Whether its figures differ by more than rounding does."""
        return self.error > 1e-4


def peak(action: Callable[[], object]) -> int:
    """Bytes of the tensors that an action makes, at their most."""
    with LiveBytes() as live:
        action()
    return live.peak


def compare(name: str, network: Network, repetitions: int = REPETITIONS) -> list[Row]:
    """All ways on one network, timed in turns with its gradient."""
    weights, loss = problem(network)
    leaves, vector = [torch.tensor(1.0)], [torch.randn_like(w) for w in weights]

    def gradient() -> list[Tensor]:
        inputs = [w.detach().requires_grad_() for w in weights]
        return gradient_of(loss(inputs, leaves), inputs)

    def task(mode: Mode) -> Callable[[], Product]:
        return lambda: mode(loss, weights, leaves, vector)

    tasks, found, failures = {}, {}, {}
    for mode, function in MODES.items():
        try:
            found[mode] = task(function)()
            tasks[mode] = task(function)
        except (RuntimeError, NotImplementedError) as error:  # torch lacks a derivative
            failures[mode] = str(error).partition("\n")[0].partition(":")[0]
    times = timing.interleave({"": gradient, **tasks}, repetitions, clock=time.process_time, warm_up=1)
    memory = peak(gradient)
    exact = found["reverse-over-reverse"]
    rows = []
    for mode in MODES:
        if mode in failures:
            rows.append(Row(name, mode, failure=failures[mode]))
            continue
        ratio = times[mode].median / times[""].median
        rows.append(Row(name, mode, ratio, peak(tasks[mode]) / memory, distance(found[mode], exact)))
    return rows


def distance(a: Product, b: Product) -> float:
    """|a - b| / |b| over all parts."""
    pairs = [(x, y) for x, y in zip([*a[0], *a[1]], [*b[0], *b[1]], strict=True) if x is not None and y is not None]
    return float(sum((x - y).square().sum() for x, y in pairs) / sum(y.square().sum() for _, y in pairs)) ** 0.5


# ---------------------------------------------------------------- what comes out


def table(rows: Sequence[Row]) -> str:
    """All figures, as text."""
    lines = [f"{'over one gradient':16}  {'':20}  {'time':>5}  {'memory':>6}  {'difference':>10}"]
    for row in rows:
        figures = (
            f"fails: {row.failure}"
            if row.failure
            else f"{row.time:5.1f}  {row.memory:6.1f}  {row.error:10.0e}{'  wrong' * row.wrong}"
        )
        lines.append(f"{row.network:17}  {row.mode:20}  {figures}")
    return "\n".join(lines)


COLORS = {"reverse-over-reverse": figures.BLUE, "forward-over-reverse": figures.ORANGE, "reverse-over-forward": figures.GREY}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Save a picture: time left, memory right, a block of lines for each network."""
    figure, (left, right) = figures.pyplot().subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    panel(left, rows, lambda row: row.time)
    left.set(xlabel="time / time of the gradient alone")
    panel(right, rows, lambda row: row.memory)
    right.set(xlabel="peak memory / that of the gradient alone")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle("The gradient and one product with second derivatives", **figures.HEADLINE)
    figures.save(figure, path)


def panel(axes: Axes, rows: Sequence[Row], figure_of: Callable[[Row], float]) -> None:
    """Lines from 1 to the figure."""
    names = list(dict.fromkeys(row.network for row in rows))
    for k, (mode, color) in enumerate(COLORS.items()):
        labelled = mode if mode in LINEARIZATIONS else f"{mode} (tried, not offered)"
        for row in (row for row in rows if row.mode == mode):
            x, y = 1.0 if row.failure else figure_of(row), names.index(row.network) + 0.24 * (k - 1)
            note = "fails" if row.failure else f"{x:.1f}, wrong" if row.wrong else f"{x:.1f}"
            axes.plot([1.0, x], [y, y], color=color, linewidth=5, solid_capstyle="butt", label=labelled)
            axes.annotate(note, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=10, color=color)
            labelled = ""  # once in the legend
    axes.axvline(1, color="0.4", linewidth=1.2)
    axes.set_xscale("log")
    largest = max(figure_of(row) for row in rows if not row.failure)
    ticks = [tick for tick in (1, 2, 3, 4, 5, 7, 10, 20, 30, 50) if tick < 1.3 * largest]
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.95, 1.3 * largest)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def main() -> None:
    """Parse the command line, measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curvature", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="see whether it works: the figures are no good")
    parser.add_argument("--repetitions", type=int, help=f"of each measurement of a time (default: {REPETITIONS})")
    parser.add_argument("--out", type=Path, default=Path("runs/curvature.png"), help="default: runs/curvature.png")
    arguments = parser.parse_args()
    quick = arguments.quick
    repetitions = arguments.repetitions if arguments.repetitions is not None else 2 if quick else REPETITIONS
    if repetitions < 1:
        parser.error(f"--repetitions is {repetitions}: give at least 1")
    torch.set_num_threads(1)
    rows: list[Row] = []
    progress = tqdm(NETWORKS.items(), unit="network")
    for name, make in progress:
        progress.set_description(name)
        torch.manual_seed(0)
        rows += compare(name, make(quick), repetitions)
    print(f"\n{table(rows)}")
    draw(rows, arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
