"""A penalty of its own for each weight, learned against a validation loss.

Logistic regression on 100 digits overfits. One L2 penalty for all weights helps a little. Here each of the 640 weights has
its own: training is differentiated as a whole, which gives the derivative of the validation loss with respect to all 640
logarithms of penalties at the price of a few trainings, and Adam follows it. A grid of single penalties stands beside it,
and what the validation examples are worth as training data.

    python examples/weight_penalties.py                           # scikit-learn's digits
    python examples/weight_penalties.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions

After Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning", ICML 2015.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, options

GRID = (0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # single penalties
START = 1e-3  # of the learned ones
STEPS = 50  # of a training run, on all training examples at a time

Params = dict[str, Tensor]


class Split(NamedTuple):
    """What is used of a task."""

    train: data.Examples
    validation: data.Examples
    test: data.Examples


class Run(NamedTuple):
    """A trained model: losses, and its error on the test set in percent."""

    train: float
    validation: float
    test: float
    error: float


def split(task: data.Data) -> Split:
    train, validation = (100, 600) if task.train.inputs.shape[1] < 100 else (500, 5000)
    return Split(task.train[:train], task.train[train : train + validation], task.test)


def logits(params: Params, inputs: Tensor) -> Tensor:
    return inputs @ params["weight"] + params["bias"]


def loss_on(params: Params, examples: data.Examples) -> Tensor:
    return nn.functional.cross_entropy(logits(params, examples.inputs), examples.labels)


# ---------------------------------------------------------------- training, and training differentiated


def differentiate(penalty: Tensor, examples: data.Examples, validation: data.Examples) -> gdtuo.Result:
    """Train from 0 with one penalty, or with one for each weight: the derivative of the validation loss, and the weights."""
    classes, inputs = 10, examples.inputs.shape[1]
    training = gdtuo.Training(
        lambda params, hyper, batch: loss_on(params, examples) + (hyper["penalty"] * params["weight"] ** 2).sum(),
        gdtuo.SGD(lr=1.0 if inputs < 100 else 0.1, momentum=0.9),
        steps=STEPS,
    )
    start = {"weight": torch.zeros(inputs, classes), "bias": torch.zeros(classes)}
    return gdtuo.hypergradient(training, lambda params, hyper: loss_on(params, validation), start, {"penalty": penalty})


def trained(penalty: Tensor, examples: data.Examples, parts: Split) -> Run:
    return judged(differentiate(penalty, examples, parts.validation).final, parts)


@torch.no_grad()
def judged(params: Params, parts: Split) -> Run:
    wrong = logits(params, parts.test.inputs).argmax(1) != parts.test.labels
    train, validation, test = (loss_on(params, part).item() for part in parts)
    return Run(train, validation, test, 100 * wrong.double().mean().item())


def learn(parts: Split, iterations: int) -> tuple[Tensor, list[Run]]:
    """The penalties, and how the runs went that they were learned from, the last one with the final penalties."""
    logarithm = torch.full((parts.train.inputs.shape[1], 10), math.log(START), requires_grad=True)
    adam = torch.optim.Adam([logarithm], lr=0.1)
    runs = []
    for _ in tqdm(range(iterations), unit="run"):
        penalty = logarithm.exp()
        result = differentiate(penalty, parts.train, parts.validation)
        runs.append(judged(result.final, parts))
        adam.zero_grad()
        penalty.backward(result.hyper["penalty"])
        adam.step()
    penalty = logarithm.detach().exp()
    return penalty, [*runs, trained(penalty, parts.train, parts)]


# ---------------------------------------------------------------- what comes out


def print_table(grid: dict[float, Run], best: float, learned: Run, more: Run, title: str) -> None:
    print(f"\n{title}")
    print(f"{'penalty':>18}  {'training loss':>13}  {'validation loss':>15}  {'test loss':>9}  {'test error %':>12}")
    rows = {f"{penalty:g}": run for penalty, run in grid.items()} | {"learned, by weight": learned, "both sets trained": more}
    for name, run in rows.items():
        mark = "  best of the grid" if name == f"{best:g}" else ""
        print(f"{name:>18}  {run.train:13.3f}  {run.validation:15.3f}  {run.test:9.3f}  {run.error:12.1f}{mark}")


def draw(grid: dict[float, Run], best: float, runs: list[Run], more: Run, penalty: Tensor, title: str, out: str) -> None:
    """Left: the learned penalties, an image for each class. Right: the validation loss while they are learned."""
    import matplotlib as mpl

    mpl.use("Agg")  # a picture in a file needs no display
    import matplotlib.pyplot as plt

    blue, orange, green = "#0072b2", "#d55e00", "#009e73"  # colour-blind readers tell them apart (Okabe, Ito)
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"grid.alpha": 0.25, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 12})
    plt.rcParams.update({"figure.constrained_layout.w_pad": 0.08, "figure.constrained_layout.h_pad": 0.08})
    figure = plt.figure(figsize=(12, 4.6), layout="constrained")
    images, curves = figure.subfigures(1, 2, squeeze=False, width_ratios=(6, 5))[0]

    axes = images.subplots(2, 5)
    side = math.isqrt(len(penalty))
    for k, axis in enumerate(axes.flat):
        norm = mpl.colors.LogNorm(START / 100, START * 100)  # white is where a penalty began
        shown = axis.imshow(penalty[:, k].reshape(side, side), cmap="RdBu_r", norm=norm)
        axis.set_title(f"class {k}", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="0.8")
    bar = images.colorbar(shown, ax=axes, orientation="horizontal", fraction=0.06, extend="both")
    bar.set_label("L2 penalty of the pixel's weight: blue set free, red held near 0, white as it began")
    images.suptitle("Each weight has learned its penalty", x=0.02, ha="left", fontsize=12)

    axis = curves.subplots()
    axis.grid(True)
    iterations = range(len(runs))
    for value in set(grid) - {best}:
        axis.axhline(grid[value].validation, color="0.85", linewidth=1, zorder=1)
    axis.plot([], [], color="0.85", linewidth=1, label="one penalty for all: the rest of the grid")
    axis.axhline(grid[best].validation, color=green, linewidth=2, label=f"one penalty for all: {best:g}, best of the grid")
    axis.plot(iterations, [run.validation for run in runs], color=blue, linewidth=2, label="a learned penalty for each weight")
    axis.axhline(grid[best].test, color=green, linewidth=1.5, linestyle=":")
    axis.plot(iterations, [run.test for run in runs], color=blue, linewidth=1.5, linestyle=":")
    axis.axhline(more.test, color=orange, linewidth=1.5, linestyle=":", label="one penalty, trained on both sets")
    axis.set(xlabel="trainings that were differentiated", ylabel="loss of the trained model", xlim=(0, len(runs) - 1))
    axis.set_ylim(0, 1.9 * grid[best].validation)
    legend = axis.legend(fontsize=10, loc="upper right", title="solid: validation set; dotted: test set", alignment="left")
    legend.get_frame().set(facecolor="white", edgecolor="none", alpha=1)
    axis.set_title("so the trained models overfit less")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--iterations", type=int, default=60, help="how many trainings are differentiated (default: 60)")
    parser.add_argument("--out", default="weight_penalties.png", help="where the picture goes (default: weight_penalties.png)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "iterations")
    task = options.load_task(parser, arguments)

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    parts = split(task)
    grid = {value: trained(torch.tensor(value), parts.train, parts) for value in tqdm(GRID, desc="grid", unit="run")}
    best = min(grid, key=lambda value: grid[value].validation)
    both = task.train[: len(parts.train) + len(parts.validation)]
    more = min((trained(torch.tensor(value), both, parts) for value in GRID), key=lambda run: run.test)
    penalty, runs = learn(parts, arguments.iterations)
    title = f"{arguments.task}: softmax regression on {len(parts.train)} examples, validated on {len(parts.validation)}"
    print_table(grid, best, runs[-1], more, title)
    draw(grid, best, runs, more, penalty, title, arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
