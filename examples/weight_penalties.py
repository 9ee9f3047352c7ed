"""A penalty of its own for each weight, learned against a validation loss.

Logistic regression on 100 digits overfits. One L2 penalty for all weights helps a little. Here each of the 650 weights has
its own: training is differentiated as a whole, which gives the derivative of the validation loss with respect to all 650
logarithms of penalties at the price of a few trainings, and Adam follows it. A grid of single penalties stands beside it,
and what the validation examples are worth as training data.

    python examples/weight_penalties.py                           # scikit-learn's digits
    python examples/weight_penalties.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
    python examples/weight_penalties.py --paper --data DIR

After Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning", ICML 2015,
section 3.2.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, figures
from gdtuo.lab.experiment import Sizes, experiment


class Size(NamedTuple):
    """Of the data, their training, and the learning of its penalties."""

    examples: int  # to train on
    validation: int
    batches: int  # that the training examples are cut into, in their order
    rate: float  # of momentum 0.9, averaging
    noise: float  # scale of the initial weights
    start: float  # of each penalty
    iterations: int  # trainings that are differentiated
    learner: type[torch.optim.Optimizer]  # of the logarithms
    learner_rate: float
    prior: float  # times the sum of the squared penalties is part of the outer loss


DIGITS = Size(100, 600, 1, 10.0, 0.0, 1e-3, 60, torch.optim.Adam, 0.1, 0.0)
PAPER = Size(10_000, 10_000, 50, 1.0, math.exp(-4), 0.01 * math.e, 50, torch.optim.SGD, 1000.0, 0.01)
PUBLISHED = (
    "logistic regression, 7,850 penalties, 10,000 training and 10,000 validation examples, 50 steps with batches of "
    "200, 50 iterations of gradient descent on the logarithms with a step of 1000; nothing is reduced"
)
SIZES = Sizes(DIGITS, DIGITS._replace(examples=500, validation=5000, rate=1.0), PAPER, PUBLISHED)

GRID = (0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # single penalties
STEPS = 50  # of a training run

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


class Row(NamedTuple):
    """A line of the table of numbers: `penalty` is "learned" or a single one, `iteration` counts what is learned."""

    penalty: str
    iteration: int
    training_loss: float
    validation_loss: float
    test_loss: float
    test_error: float


def split(task: data.Data, size: Size) -> Split:
    there = len(task.train)  # fewer than are asked for are shared in proportion
    examples = min(size.examples, there * size.examples // (size.examples + size.validation))
    return Split(task.train[:examples], task.train[examples : examples + size.validation], task.test)


def logits(params: Params, inputs: Tensor) -> Tensor:
    return inputs @ params["weight"] + params["bias"]


def loss_on(params: Params, examples: data.Examples) -> Tensor:
    return nn.functional.cross_entropy(logits(params, examples.inputs), examples.labels)


# ---------------------------------------------------------------- training, and training differentiated


def start(inputs: int, size: Size) -> Params:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (inputs, 10), "bias": (10,)}
    return {name: size.noise * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def training_on(examples: data.Examples, size: Size) -> gdtuo.Training:
    return gdtuo.Training(
        lambda params, hyper, rows: (
            loss_on(params, examples[rows]) + sum((hyper[name] * params[name] ** 2).sum() for name in params)
        ),
        gdtuo.AveragingSGD(lr=size.rate, momentum=0.9),
        batches=torch.arange(len(examples)).tensor_split(size.batches),
        steps=STEPS,
    )


def trained(penalty: float, examples: data.Examples, parts: Split, size: Size) -> Run:
    """With one penalty."""
    params = start(examples.inputs.shape[1], size)
    hyper = {name: torch.tensor(penalty) for name in params}
    return judged(gdtuo.train(training_on(examples, size), params, hyper), parts)


@torch.no_grad()
def judged(params: Params, parts: Split) -> Run:
    wrong = logits(params, parts.test.inputs).argmax(1) != parts.test.labels
    train, validation, test = (loss_on(params, part).item() for part in parts)
    return Run(train, validation, test, 100 * wrong.double().mean().item())


def learn(parts: Split, size: Size) -> tuple[Tensor, list[Run]]:
    """The penalties of the weights, and how each training went, the last one with the final penalties."""
    training, params = training_on(parts.train, size), start(parts.train.inputs.shape[1], size)
    logarithms = {name: torch.full_like(weights, math.log(size.start)) for name, weights in params.items()}
    learner = size.learner([leaf.requires_grad_() for leaf in logarithms.values()], lr=size.learner_rate)  # type: ignore[call-arg]

    def outer_loss(params: Params, hyper: Params) -> Tensor:
        return loss_on(params, parts.validation) + size.prior * sum(x.square().sum() for x in hyper.values())

    runs = []
    for _ in tqdm(range(size.iterations), unit="run"):
        penalties = {name: logarithm.exp() for name, logarithm in logarithms.items()}
        result = gdtuo.hypergradient(training, outer_loss, params, penalties)
        runs.append(judged(result.final, parts))
        learner.zero_grad()
        torch.autograd.backward(list(penalties.values()), list(result.hyper.values()))
        learner.step()
    penalties = {name: logarithm.detach().exp() for name, logarithm in logarithms.items()}
    return penalties["weight"], [*runs, judged(gdtuo.train(training, params, penalties), parts)]


# ---------------------------------------------------------------- what comes out


def print_table(grid: dict[float, Run], best: float, learned: Run, more: Run, title: str) -> None:
    print(f"\n{title}")
    print(f"{'penalty':>18}  {'training loss':>13}  {'validation loss':>15}  {'test loss':>9}  {'test error %':>12}")
    rows = {f"{penalty:g}": run for penalty, run in grid.items()} | {"learned, by weight": learned, "both sets trained": more}
    for name, run in rows.items():
        mark = "  best of the grid" if name == f"{best:g}" else ""
        print(f"{name:>18}  {run.train:13.3f}  {run.validation:15.3f}  {run.test:9.3f}  {run.error:12.1f}{mark}")


def draw(
    grid: dict[float, Run], best: float, runs: list[Run], more: Run, penalty: Tensor, size: Size, title: str, out: Path
) -> None:
    """Left: the learned penalties, an image for each class. Right: the validation loss while they are learned."""
    plt = figures.pyplot()
    figure = plt.figure(figsize=(12, 4.6), layout="constrained")
    images, curves = figure.subfigures(1, 2, squeeze=False, width_ratios=(6, 5))[0]
    label = "L2 penalty of the pixel's weight: blue set free, red held near 0, white as it began"
    span = max(10.0, *(max(x, 1 / x) for x in (penalty / size.start).quantile(torch.tensor([0.02, 0.98])).tolist()))
    norm = plt.matplotlib.colors.LogNorm(size.start / span, size.start * span)
    figures.gallery(images, penalty.T, "Each weight has learned its penalty", label, norm=norm)

    axis = curves.subplots()
    iterations = range(len(runs))
    for value in set(grid) - {best}:
        axis.axhline(grid[value].validation, color="0.85", linewidth=1, zorder=1)
    axis.plot([], [], color="0.85", linewidth=1, label="one penalty for all: the rest of the grid")
    green, blue, dotted = figures.GREEN, figures.BLUE, {"linewidth": 1.5, "linestyle": ":"}
    axis.axhline(grid[best].validation, color=green, linewidth=2, label=f"one penalty for all: {best:g}, best of the grid")
    axis.plot(iterations, [run.validation for run in runs], color=blue, linewidth=2, label="a learned penalty for each weight")
    axis.axhline(grid[best].test, color=green, **dotted)
    axis.plot(iterations, [run.test for run in runs], color=blue, **dotted)
    axis.axhline(more.test, color=figures.ORANGE, label="one penalty, trained on both sets", **dotted)
    axis.set(xlabel="trainings that were differentiated", ylabel="loss of the trained model", xlim=(0, len(runs) - 1))
    axis.set_ylim(0, 1.9 * grid[best].validation)
    legend = axis.legend(fontsize=10, loc="upper right", title="solid: validation set; dotted: test set", alignment="left")
    legend.get_frame().set(facecolor="white", edgecolor="none", alpha=1)
    axis.set_title("so the trained models overfit less")
    figures.save(figure, out, title)


def main() -> None:
    chosen = experiment(__file__, __doc__, SIZES, iterations="how many trainings are differentiated")
    size, parts = chosen.size, split(chosen.task, chosen.size)
    grid = {value: trained(value, parts.train, parts, size) for value in tqdm(GRID, desc="grid", unit="run")}
    best = min(grid, key=lambda value: grid[value].validation)
    both = chosen.task.train[: len(parts.train) + len(parts.validation)]
    more = min((trained(value, both, parts, size) for value in GRID), key=lambda run: run.test)
    penalty, runs = learn(parts, size)
    title = f"{chosen.name}: softmax regression on {len(parts.train):,} examples, validated on {len(parts.validation):,}"
    print_table(grid, best, runs[-1], more, title)
    draw(grid, best, runs, more, penalty, size, title, chosen.out)
    rows = [Row("learned", k, *run) for k, run in enumerate(runs)]
    chosen.finish(rows + [Row(f"{value:g}", 0, *run) for value, run in grid.items()])


if __name__ == "__main__":
    main()
