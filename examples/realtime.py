"""Learning rate and momentum learned while a network trains once: `realtime`, from a start that leads nowhere.

Forward mode carries the derivatives of the weights with respect to both numbers along. Every ten steps these meet the
gradient of the validation loss, and Adam moves the two numbers; neither the weights nor the derivatives are reset.
Beside it stand plain training at the starting values, and two random searches of ten trials: one makes as many training
steps in all, so that its trials are ten times shorter; the other makes ten times as many. A step in real time takes
longer than a plain one, with a network this small some ten times; the table says how long all takes.

    python examples/realtime.py
    python examples/realtime.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
    python examples/realtime.py --paper --data DIR

After Franceschi, Donini, Frasconi, Pontil, "Forward and Reverse Gradient-Based Hyperparameter Optimization", ICML 2017,
section 5.3 (there on a phone classifier).
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, figures
from gdtuo.lab.experiment import Sizes, experiment


class Size(NamedTuple):
    """Of the network, its training, and the learning of the two numbers."""

    examples: int  # at most, to train on, and as many to validate on
    hidden: tuple[int, ...]  # units of each hidden layer
    activation: Callable[[], nn.Module]
    batch: int
    steps: int
    every: int  # training steps between two moves of the numbers
    adam: float  # its learning rate
    seeds: int


DIGITS = Size(5000, (32, 32), nn.Tanh, 50, 600, 10, 0.01, seeds=3)
# The paper: four layers of 2,000 units, batches of 500, a move every 200 steps with Adam(0.005), a training of hours.
PAPER = Size(10_000, (200, 200, 200, 200), nn.ReLU, 100, 3000, 20, 0.01, seeds=1)
PUBLISHED = (
    "the phone data are not free, so digits stand for them, and a CPU reduces four layers of 2,000 units to four of "
    "200, batches of 500 to 100, a training of hours to 3,000 steps, a move of the numbers every 200 steps to one every 20; "
    "a step of the full network takes a core 4 seconds in real time"
)
SIZES = Sizes(DIGITS, DIGITS, PAPER, PUBLISHED)

START_LR, START_MOMENTUM = 1e-3, 0.0
TRIALS = 10  # of a random search

METHODS = ("at the starting values", "random search, short trials", "learned in real time", "random search, whole trials")


class Problem(NamedTuple):
    """A network to train, and on what; the same for all methods."""

    net: nn.Module
    train: data.Examples
    validation: data.Examples
    test: data.Examples
    batches: list[Tensor]  # the rows of each step
    size: Size


class Run(NamedTuple):
    """What is left of one training run, or of one search."""

    steps: list[int]  # training steps so far, in all
    losses: list[float]  # validation loss then; of a search the best so far
    error: float  # on the test set, in percent
    numbers: list[tuple[float, float]]  # learning rate and momentum then; of a search those of the best
    seconds: float = math.nan


class Row(NamedTuple):
    """A line of the table of numbers; test error and seconds of the whole run."""

    method: str
    seed: int
    steps: int
    validation_loss: float
    lr: float
    momentum: float
    test_error: float
    seconds: float


def pose(task: data.Data, size: Size, seed: int) -> Problem:
    torch.manual_seed(seed)
    n = min(size.examples, len(task.train) // 2)
    order = torch.randperm(len(task.train))
    train, validation = task.train[order[:n]], task.train[order[n : 2 * n]]
    widths, layers = (task.train.inputs.shape[1], *size.hidden), []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), size.activation()]
    batches = [torch.randint(0, n, (size.batch,)) for _ in range(size.steps)]
    return Problem(nn.Sequential(*layers, nn.Linear(widths[-1], 10)), train, validation, task.test, batches, size)


def percent_wrong(logits: Tensor, labels: Tensor) -> float:
    return 100 * (logits.argmax(1) != labels).double().mean().item()


def learn(problem: Problem) -> Run:
    """One training run, in which the learning rate and the momentum are learned."""
    _, train, validation, test, batches, size = problem
    apply, params = gdtuo.make_functional(problem.net)

    def loss(params: Any, hyper: Any, rows: Tensor) -> Tensor:
        return cross_entropy(apply(params, train.inputs[rows]), train.labels[rows])

    def outer_loss(params: Any, hyper: Any) -> Tensor:
        return cross_entropy(apply(params, validation.inputs), validation.labels)

    def project(hyper: Any) -> Any:
        lr, momentum = hyper["optimizer"]["lr"], hyper["optimizer"]["momentum"]
        return {"optimizer": {"lr": gdtuo.project_box(lr), "momentum": gdtuo.project_box(momentum, 0.0, 0.999)}}

    training = gdtuo.Training(loss, gdtuo.SGD(), batches, steps=size.steps)
    hyper = {"optimizer": {"lr": torch.tensor(START_LR), "momentum": torch.tensor(START_MOMENTUM)}}
    adam = gdtuo.Adam(lr=size.adam)
    records = list(gdtuo.realtime(training, outer_loss, params, hyper, size.every, adam, project=project))
    numbers = [(r.hyper["optimizer"]["lr"].item(), r.hyper["optimizer"]["momentum"].item()) for r in records]
    error = percent_wrong(apply(records[-1].params, test.inputs), test.labels)
    return Run([r.step for r in records], [r.value.item() for r in records], error, numbers)


def train(problem: Problem, lr: float, momentum: float, steps: int) -> Run:
    """One plain training run."""
    net, (_, train, validation, test, batches, size) = copy.deepcopy(problem.net), problem
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    run = Run([], [], math.nan, [])
    for step, rows in enumerate(batches[:steps], start=1):
        optimizer.zero_grad()
        cross_entropy(net(train.inputs[rows]), train.labels[rows]).backward()
        optimizer.step()
        if step % size.every == 0 or step == steps:
            with torch.no_grad():
                loss = cross_entropy(net(validation.inputs), validation.labels).item()
            run.steps.append(step)
            run.losses.append(loss if math.isfinite(loss) else math.inf)
            run.numbers.append((lr, momentum))
    with torch.no_grad():
        return run._replace(error=percent_wrong(net(test.inputs), test.labels))


def search(problem: Problem, steps: int, seed: int) -> Run:
    """Ten trials: lr from 1e-4 to 1, uniform on a log scale, momentum uniform from 0 to 0.99."""
    draws = torch.rand(TRIALS, 2, generator=torch.Generator().manual_seed(seed)).tolist()
    trials = [train(problem, 10 ** (-4 * u), 0.99 * v, steps) for u, v in draws]
    best = [min(trials[: k + 1], key=lambda trial: trial.losses[-1]) for k in range(TRIALS)]
    steps_so_far, losses = [steps * (k + 1) for k in range(TRIALS)], [trial.losses[-1] for trial in best]
    return Run(steps_so_far, losses, best[-1].error, [trial.numbers[-1] for trial in best])


def compare(task: data.Data, size: Size, seed: int) -> dict[str, Run]:
    problem = pose(task, size, seed)
    actions = (
        lambda: train(problem, START_LR, START_MOMENTUM, size.steps),
        lambda: search(problem, max(1, size.steps // TRIALS), seed),
        lambda: learn(problem),
        lambda: search(problem, size.steps, seed),
    )
    outcomes = {}
    for name, action in zip(METHODS, actions, strict=True):
        begin = time.perf_counter()
        run = action()
        outcomes[name] = run._replace(seconds=time.perf_counter() - begin)
    return outcomes


# ---------------------------------------------------------------- what comes out


def mean_seconds(name: str, outcomes: list[dict[str, Run]]) -> float:
    return sum(outcome[name].seconds for outcome in outcomes) / len(outcomes)


def print_table(outcomes: list[dict[str, Run]], title: str) -> None:
    print(f"\n{title}; mean of {len(outcomes)} seeds")
    print(f"{'':>27}  {'validation loss':>15}  {'test error %':>12}  {'steps in all':>12}  {'seconds':>7}")
    for name in METHODS:
        runs = [outcome[name] for outcome in outcomes]
        numbers = torch.tensor([(run.losses[-1], run.error, run.steps[-1]) for run in runs], dtype=torch.float64)
        loss, error, steps = numbers.mean(0).tolist()
        print(f"{name:>27}  {loss:15.3f}  {error:12.1f}  {steps:12.0f}  {mean_seconds(name, outcomes):7.1f}")


def draw(outcomes: list[dict[str, Run]], title: str, out: Path) -> None:
    """Left: learning rate and momentum over the steps. Right: the validation loss over the steps that a method takes."""
    colors = dict(zip(METHODS, (figures.ORANGE, figures.GREEN, figures.BLUE, figures.PURPLE), strict=True))
    plt = figures.pyplot()
    figure, axes = plt.subplot_mosaic([["lr", "loss"], ["momentum", "loss"]], figsize=(12, 5), layout="constrained")
    plain, _, learned, _ = METHODS
    for k, (name, start) in enumerate((("lr", START_LR), ("momentum", START_MOMENTUM))):
        for outcome in outcomes:
            run = outcome[learned]
            values = [start, *(numbers[k] for numbers in run.numbers)]
            axes[name].plot([0, *run.steps], values, color=colors[learned], linewidth=2)
        axes[name].axhline(start, color=colors[plain], linewidth=2, linestyle=":")
        axes[name].set(ylabel=("learning rate", "momentum")[k], xlim=(0, run.steps[-1]), ylim=(-0.02, None))
    axes["lr"].set_title("Both numbers move while the network trains,")
    axes["momentum"].set(xlabel="training step")

    right = axes["loss"]
    for name, style in zip(METHODS, (":", "-.", "-", "--"), strict=True):
        runs = [outcome[name] for outcome in outcomes]
        losses, shape = torch.tensor([run.losses for run in runs]), "steps-post" if "search" in name else "default"
        label, color = f"{name}, {mean_seconds(name, outcomes):.1f} s", colors[name]
        for loss in losses:
            right.plot(runs[0].steps, loss, color=color, linewidth=0.8, alpha=0.35, drawstyle=shape)
        right.plot(runs[0].steps, losses.mean(0), style, color=color, linewidth=2.2, label=label, drawstyle=shape)
        right.plot(runs[0].steps[-1], losses.mean(0)[-1], "o", color=color, markersize=8)
    right.set(xscale="log", xlabel="training steps in all", ylabel="validation loss")
    figures.plain_log(right)
    right.set_title("in a single run: its loss beside that of searches")
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.46, -0.13), ncols=2, fontsize=10, columnspacing=1)
    figures.save(figure, out, title)


def rows_of(seed: int, outcome: dict[str, Run]) -> list[Row]:
    return [
        Row(name, seed, step, loss, *numbers, run.error, run.seconds)
        for name, run in outcome.items()
        for step, loss, numbers in zip(run.steps, run.losses, run.numbers, strict=True)
    ]


def main() -> None:
    chosen = experiment(__file__, __doc__, SIZES, steps="of training", seeds="how many networks and orders of the data")
    size = chosen.size
    outcomes = [compare(chosen.task, size, seed) for seed in tqdm(range(size.seeds), unit="seed")]
    title = f"{chosen.name}: SGD from learning rate {START_LR:g}, momentum {START_MOMENTUM:g}, {size.steps} steps"
    print_table(outcomes, title)
    draw(outcomes, title, chosen.out)
    chosen.finish([row for seed, outcome in enumerate(outcomes) for row in rows_of(seed, outcome)])


if __name__ == "__main__":
    main()
