"""Which labels are wrong? A weight for every training example, learned from the loss on a clean validation set.

Half of the training labels are wrong. A softmax regression is trained on the weighted examples, its validation loss is
differentiated with respect to all the weights, through the whole training, and the weights take a step of Adam. A budget
bounds their sum: sum <= R. Examples that end with weight 0 are thrown out, and a classifier is trained on the rest,
alone and together with the validation set, which is what the paper reports.

    python examples/hyper_cleaning.py
    python examples/hyper_cleaning.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
    python examples/hyper_cleaning.py --paper --data DIR

After Franceschi, Donini, Frasconi, Pontil, "Forward and Reverse Gradient-Based Hyperparameter Optimization", ICML 2017,
section 5.1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, figures
from gdtuo.lab.experiment import Sizes, experiment


class Size(NamedTuple):
    """Of the data, the training, and the learning of the weights."""

    examples: int  # at most, to train on, and as many to validate on
    held_out: int  # of the task's training set, to test on; 0 for its test set
    budgets: tuple[float, ...]  # R, in parts of the number of training examples
    rate: float  # of training on examples of weight 1; on others it is larger, as the loss is smaller
    momentum: float
    steps: int  # of a training run, which the hypergradient goes through
    iterations: int  # steps of the weights
    adam: float
    retraining: int  # steps, with momentum 0.9
    seeds: int


DIGITS = Size(5000, 0, (0.2, 0.35, 0.5), 0.7, 0.0, 50, 30, 0.05, retraining=300, seeds=2)
# The paper: 2,000 steps of plain gradient descent at rate 0.1, which these 100 follow closely; 500 iterations of Adam(0.005).
PAPER = Size(5000, 10_000, (0.2, 0.3, 0.4, 0.5), 0.2, 0.9, 100, 100, 0.02, retraining=100, seeds=1)
PUBLISHED = (
    "5,000 training labels of which 2,500 are wrong, 5,000 validation and 10,000 test examples, R = 1000, 1500, 2000, "
    "2500. Reduced for a CPU: 100 steps with momentum for 2,000 without, which end at nearly the same weights, and 100 "
    "iterations of Adam(0.02) for 500 of Adam(0.005); the whole would take a core 21 hours"
)
SIZES = Sizes(DIGITS, DIGITS._replace(rate=0.1, seeds=1), PAPER, PUBLISHED)

FLAGGED = 1e-3  # an example of less weight is thrown out


class Problem(NamedTuple):
    """A training set with wrong labels, and two clean sets."""

    training: data.Examples
    wrong: Tensor  # [n] bool: which labels are wrong, for judging only
    validation: data.Examples
    test: data.Examples


class Outcome(NamedTuple):
    """What is left of one way of choosing training examples."""

    weights: Tensor  # [n] in [0, 1]
    flagged: int
    f1: float  # of flagging the wrong labels
    alone: float  # test accuracy in percent, trained on the chosen examples
    joined: float  # and on those with the validation set


class Row(NamedTuple):
    """A line of the table of numbers: after so many steps of the weights, accuracies at the end alone."""

    trained_on: str
    seed: int
    iteration: int
    validation_loss: float
    flagged: int
    f1: float
    accuracy_alone: float
    accuracy_with_validation: float


def spoil(task: data.Data, size: Size, seed: int) -> Problem:
    """Some of the task's training set to train on, half of that with another label; as much for validation; a test set."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(task.train), generator=generator)
    n = min(size.examples, len(task.train) // (3 if size.held_out else 2))
    training, validation = task.train[order[:n]], task.train[order[n : 2 * n]]
    wrong = torch.arange(n) < n // 2
    training.labels[wrong] = (training.labels[wrong] + torch.randint(1, 10, (n // 2,), generator=generator)) % 10
    test = task.train[order[2 * n : 2 * n + size.held_out]] if size.held_out else task.test
    return Problem(training, wrong, validation, test)


# ---------------------------------------------------------------- learning the weights


class Look(NamedTuple):
    """How a training that was differentiated went, and what the weights say then."""

    validation_loss: float
    flagged: int
    f1: float


def learn_weights(problem: Problem, budget: float, size: Size, progress: tqdm[Any]) -> tuple[Tensor, list[Look]]:
    """The weights of the training examples, in [0, 1] and with a sum of at most `budget`."""
    (inputs, labels), validation = (problem.training.inputs, problem.training.labels), problem.validation

    def loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        losses = cross_entropy(linear(inputs, params["w"], params["b"]), labels, reduction="none")
        return (hyper["weights"] * losses).mean()

    def outer_loss(params: Any, hyper: Any) -> Tensor:
        return cross_entropy(linear(validation.inputs, params["w"], params["b"]), validation.labels)

    optimizer = gdtuo.SGD(lr=size.rate * len(labels) / budget, momentum=size.momentum)
    training = gdtuo.Training(loss, optimizer, steps=size.steps)
    start = {"w": torch.zeros(10, inputs.shape[1]), "b": torch.zeros(10)}
    weights = nn.Parameter(gdtuo.project_budget(torch.ones(len(labels)), budget))
    learner = torch.optim.Adam([weights], lr=size.adam)
    looks = []
    for _ in range(size.iterations):
        result = gdtuo.hypergradient(training, outer_loss, start, {"weights": weights})
        looks.append(Look(result.value.item(), *flags(problem, weights.detach())))
        weights.grad = result.hyper["weights"]
        learner.step()
        with torch.no_grad():
            weights.copy_(gdtuo.project_budget(weights, budget))
        progress.update()
    return weights.detach(), looks


def flags(problem: Problem, weights: Tensor) -> tuple[int, float]:
    """How many examples are thrown out, and how well these are the wrong ones: F1."""
    flagged = weights < FLAGGED
    return int(flagged.sum()), 2 * int((flagged & problem.wrong).sum()) / int(flagged.sum() + problem.wrong.sum())


# ---------------------------------------------------------------- judging them


def accuracy(problem: Problem, keep: Tensor, size: Size, validation: bool) -> float:
    """On the test set, in percent, after training on some of the training examples, with or without the validation set."""
    parts = [problem.training[keep], *([problem.validation] if validation else [])]
    inputs, labels = torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts])
    model = nn.Linear(inputs.shape[1], 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=size.rate, momentum=0.9)
    for _ in range(size.retraining):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    with torch.no_grad():
        return 100 * (model(problem.test.inputs).argmax(1) == problem.test.labels).double().mean().item()


def judge(problem: Problem, weights: Tensor, size: Size) -> Outcome:
    keep = weights >= FLAGGED
    alone = accuracy(problem, keep, size, validation=False) if keep.any() else math.nan
    return Outcome(weights, *flags(problem, weights), alone, accuracy(problem, keep, size, validation=True))


def compare(task: data.Data, size: Size) -> tuple[list[Problem], dict[str, list[Outcome]], list[Row]]:
    """Every way of choosing training examples, for every seed."""
    problems, outcomes, rows = [spoil(task, size, seed) for seed in range(size.seeds)], defaultdict(list), []

    def take(name: str, seed: int, iteration: int, outcome: Outcome) -> None:
        outcomes[name].append(outcome)
        rows.append(Row(name, seed, iteration, math.nan, *outcome[1:]))

    with tqdm(total=size.seeds * len(size.budgets) * size.iterations, unit="run") as progress:
        for seed, problem in enumerate(problems):
            n = len(problem.training)
            take("all labels (baseline)", seed, 0, judge(problem, torch.ones(n), size))
            for part in size.budgets:
                budget = round(part * n)
                progress.set_description(f"R = {budget}")
                weights, looks = learn_weights(problem, budget, size, progress)
                name = f"cleaned, R = {budget}"
                rows += [Row(name, seed, k, *look, math.nan, math.nan) for k, look in enumerate(looks)]
                take(name, seed, size.iterations, judge(problem, weights, size))
            take("right labels only (oracle)", seed, 0, judge(problem, (~problem.wrong).float(), size))
            take("validation set alone", seed, 0, judge(problem, torch.zeros(n), size))
    return problems, dict(outcomes), rows


# ---------------------------------------------------------------- what comes out


def means(runs: list[Outcome]) -> list[float]:
    """Over the seeds: how many are flagged, F1, and both accuracies."""
    return torch.tensor([run[1:] for run in runs], dtype=torch.float64).mean(0).tolist()


def print_table(outcomes: dict[str, list[Outcome]], title: str) -> None:
    print(f"\n{title}; mean of {len(next(iter(outcomes.values())))} seeds")
    print(f"{'test accuracy, %':>52}\n{'trained on':>26}  {'flagged':>7}  {'F1':>5}  {'alone':>6}  + validation set")
    for name, runs in outcomes.items():
        flagged, f1, alone, joined = means(runs)
        print(f"{name:>26}  {flagged:7.0f}  {f1:5.3f}  {alone:6.2f}  {joined:6.2f}".replace("nan", "  -"))


def draw(outcomes: dict[str, list[Outcome]], problem: Problem, title: str, out: Path) -> None:
    """Left: the learned weights of right and of wrong labels. Right: test accuracies."""
    figure, (left, right) = figures.pyplot().subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    names = list(outcomes)
    middle = names[len(names) // 2 - 1]
    weights = outcomes[middle][0].weights
    kinds = [weights[problem.wrong].numpy(), weights[~problem.wrong].numpy()]
    labels, colors = ["the label is wrong", "the label is right"], [figures.ORANGE, figures.BLUE]
    left.hist(kinds, bins=20, range=(0, weights.max().item()), color=colors, label=labels)
    left.set(xlabel="learned weight of a training example", ylabel="how many examples")
    left.set_title(f"Wrong labels lose their weight ({middle.split(', ')[1]})")
    left.legend(frameon=False, loc="upper center")

    for row, name in enumerate(names):
        *_, alone, joined = means(outcomes[name])
        right.plot([alone, joined], [row, row], color="0.8", linewidth=2, zorder=1)
        looks = ((alone, figures.GREY, "s", "right", -9), (joined, figures.GREEN, "o", "left", 9))
        for value, color, marker, align, shift in looks:
            if not math.isnan(value):  # the validation set alone has no other half
                right.plot(value, row, marker, color=color, markersize=8)
                text = {"textcoords": "offset points", "ha": align, "va": "center", "fontsize": 10}
                right.annotate(f"{value:.1f}", (value, row), (shift, 0), **text)
    right.plot([], [], "s", color=figures.GREY, markersize=8, label="trained on these alone")
    right.plot([], [], "o", color=figures.GREEN, markersize=8, label="and on the validation set")
    right.set_yticks(range(len(names)), names)
    right.set(xlabel="test accuracy, %", ylim=(len(names) - 0.5, -0.5))
    right.margins(x=0.15)
    right.set_title("and training on the rest comes near the oracle")
    right.legend(frameon=False, loc="lower left")
    figures.save(figure, out, title)


def main() -> None:
    chosen = experiment(
        __file__,
        __doc__,
        SIZES,
        steps="of a training run",
        iterations="steps of the weights",
        seeds="of spoiling",
    )
    problems, outcomes, rows = compare(chosen.task, chosen.size)
    wrong = int(problems[0].wrong.sum())
    title = f"{chosen.name}: {len(problems[0].training):,} training labels, {wrong:,} of them wrong"
    print_table(outcomes, title)
    draw(outcomes, problems[0], title, chosen.out)
    chosen.finish(rows)


if __name__ == "__main__":
    main()
