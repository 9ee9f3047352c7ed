"""Which labels are wrong? A weight for every training example, learned from the loss on a clean validation set.

Half of the training labels are random. A softmax regression is trained on the weighted examples, its validation loss is
differentiated with respect to all the weights, through the whole training, and the weights take a step of Adam. A budget
bounds their sum: sum <= R. Examples that end with weight 0 are thrown out, and a classifier is trained on the rest,
alone and together with the validation set, which is what the paper reports.
After Franceschi et al. 2017, section 5.1 (there on MNIST; --task mnist takes some six minutes).

    python examples/hyper_cleaning.py
    python examples/hyper_cleaning.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, options

BUDGETS = (0.2, 0.35, 0.5)  # R, in parts of the number of training examples
FLAGGED = 1e-3  # an example of less weight is thrown out
STEPS = 50  # of gradient descent, which the hypergradient goes through
RETRAINING = 300  # steps, with momentum


class Problem(NamedTuple):
    """A training set with wrong labels, and two clean sets."""

    training: data.Examples
    wrong: Tensor  # [n] bool: which labels are wrong, for judging only
    validation: data.Examples
    test: data.Examples
    lr: float


class Outcome(NamedTuple):
    """What is left of one way of choosing training examples."""

    weights: Tensor  # [n] in [0, 1]
    flagged: int
    f1: float  # of flagging the wrong labels
    alone: float  # test accuracy in percent, trained on the chosen examples
    joined: float  # and on those with the validation set


def spoil(task: data.Data, seed: int) -> Problem:
    """Half of the task's training set to train on, half of that with random labels; the other half is for validation."""
    generator = torch.Generator().manual_seed(seed)
    order, n = torch.randperm(len(task.train), generator=generator), min(5000, len(task.train) // 2)
    training, validation = task.train[order[:n]], task.train[order[n : 2 * n]]
    truth = training.labels.clone()
    training.labels[: n // 2] = torch.randint(0, 10, (n // 2,), generator=generator)  # one in ten is right by chance
    lr = 30.0 / training.inputs.square().sum(1).mean().item()  # the curvature of softmax regression grows with |x|²
    return Problem(training, training.labels != truth, validation, task.test, lr)


def learn_weights(problem: Problem, budget: float, iterations: int) -> Tensor:
    """The weights of the training examples, in [0, 1] and with a sum of at most `budget`."""
    (inputs, labels), validation = (problem.training.inputs, problem.training.labels), problem.validation

    def loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        losses = cross_entropy(inputs @ params["w"] + params["b"], labels, reduction="none")
        return (hyper["weights"] * losses).mean()

    def outer_loss(params: Any, hyper: Any) -> Tensor:
        return cross_entropy(validation.inputs @ params["w"] + params["b"], validation.labels)

    training = gdtuo.Training(loss, gdtuo.SGD(lr=problem.lr), steps=STEPS)
    start = {"w": torch.zeros(inputs.shape[1], 10), "b": torch.zeros(10)}
    weights = nn.Parameter(gdtuo.project_budget(torch.ones(len(labels)), budget))
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(iterations):
        weights.grad = gdtuo.hypergradient(training, outer_loss, start, {"weights": weights}).hyper["weights"]
        optimizer.step()
        with torch.no_grad():
            weights.copy_(gdtuo.project_budget(weights, budget))
    return weights.detach()


def accuracy(problem: Problem, keep: Tensor, validation: bool) -> float:
    """On the test set, in percent, after training on some of the training examples, with or without the validation set."""
    parts = [problem.training[keep], *([problem.validation] if validation else [])]
    inputs, labels = torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts])
    model = nn.Linear(inputs.shape[1], 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr, momentum=0.9)
    for _ in range(RETRAINING):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    with torch.no_grad():
        return 100 * (model(problem.test.inputs).argmax(1) == problem.test.labels).double().mean().item()


def judge(problem: Problem, weights: Tensor) -> Outcome:
    flagged = weights < FLAGGED
    found = int((flagged & problem.wrong).sum())
    f1, alone = 2 * found / int(flagged.sum() + problem.wrong.sum()), math.nan
    if not flagged.all():
        alone = accuracy(problem, ~flagged, validation=False)
    return Outcome(weights, int(flagged.sum()), f1, alone, accuracy(problem, ~flagged, validation=True))


def compare(task: data.Data, seeds: int, iterations: int) -> tuple[list[Problem], dict[str, list[Outcome]]]:
    """Every way of choosing training examples, for every seed."""
    problems, outcomes = [spoil(task, seed) for seed in range(seeds)], defaultdict(list)
    with tqdm(total=seeds * len(BUDGETS), unit="budget") as progress:
        for problem in problems:
            n = len(problem.training)
            outcomes["all labels (baseline)"].append(judge(problem, torch.ones(n)))
            for part in BUDGETS:
                budget = round(part * n)
                progress.set_description(f"R = {budget}")
                weights = learn_weights(problem, budget, iterations)
                outcomes[f"cleaned, R = {budget}"].append(judge(problem, weights))
                progress.update()
            outcomes["right labels only (oracle)"].append(judge(problem, (~problem.wrong).float()))
            outcomes["validation set alone"].append(judge(problem, torch.zeros(n)))
    return problems, dict(outcomes)


# ---------------------------------------------------------------- what comes out


def means(runs: list[Outcome]) -> list[float]:
    """Over the seeds: how many are flagged, F1, and both accuracies."""
    return torch.tensor([run[1:] for run in runs]).mean(0).tolist()


def print_table(outcomes: dict[str, list[Outcome]], title: str) -> None:
    print(f"\n{title}; mean of {len(next(iter(outcomes.values())))} seeds")
    print(f"{'test accuracy, %':>51}\n{'trained on':>26}  {'flagged':>7}  {'F1':>5}  {'alone':>6}  + validation set")
    for name, runs in outcomes.items():
        flagged, f1, alone, joined = means(runs)
        print(f"{name:>26}  {flagged:7.0f}  {f1:5.3f}  {alone:6.1f}  {joined:6.1f}".replace("nan", "  -"))


def draw(outcomes: dict[str, list[Outcome]], problem: Problem, title: str, out: str) -> None:
    """Left: the learned weights of right and of wrong labels. Right: test accuracies."""
    import matplotlib as mpl

    mpl.use("Agg")  # a picture in a file needs no display
    import matplotlib.pyplot as plt

    blue, orange, green = "#0072b2", "#d55e00", "#009e73"  # colour-blind readers tell them apart (Okabe, Ito)
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.25, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 12})
    plt.rcParams.update({"figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.08})
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")

    names = list(outcomes)
    weights = outcomes[names[2]][0].weights
    kinds = [weights[problem.wrong].numpy(), weights[~problem.wrong].numpy()]
    left.hist(kinds, bins=20, range=(0, 1), color=[orange, blue], label=["the label is wrong", "the label is right"])
    left.set(xlabel="learned weight of a training example", ylabel="how many examples", xlim=(0, 1))
    left.set_title(f"Wrong labels lose their weight ({names[2].split(', ')[1]})")
    left.legend(frameon=False, loc="upper center")

    for row, name in enumerate(names):
        *_, alone, joined = means(outcomes[name])
        right.plot([alone, joined], [row, row], color="0.8", linewidth=2, zorder=1)
        for value, color, marker, align, shift in ((alone, "0.45", "s", "right", -9), (joined, green, "o", "left", 9)):
            if not math.isnan(value):  # the validation set alone has no other half
                right.plot(value, row, marker, color=color, markersize=8)
                right.annotate(
                    f"{value:.1f}", (value, row), (shift, 0), textcoords="offset points", ha=align, va="center", fontsize=10
                )
    right.plot([], [], "s", color="0.45", markersize=8, label="trained on these alone")
    right.plot([], [], "o", color=green, markersize=8, label="and on the validation set")
    right.set_yticks(range(len(names)), names)
    right.set(xlabel="test accuracy, %", ylim=(len(names) - 0.5, -0.5))
    right.margins(x=0.15)
    right.set_title("and training on the rest comes near the oracle")
    right.legend(frameon=False, loc="lower left")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--iterations", type=int, default=30, help="steps of the weights (default: 30)")
    parser.add_argument("--seeds", type=int, help="default: 2 on digits, 1 else")
    parser.add_argument("--out", default="hyper_cleaning.png", help="where the picture goes (default: hyper_cleaning.png)")
    arguments = parser.parse_args()
    seeds = arguments.seeds if arguments.seeds is not None else (2 if arguments.task == "digits" else 1)
    options.at_least_1(parser, arguments, "iterations", "seeds")
    task = options.load_task(parser, arguments)

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    problems, outcomes = compare(task, seeds, arguments.iterations)
    wrong = sum(int(problem.wrong.sum()) for problem in problems) / seeds
    title = f"{arguments.task}: {len(problems[0].training)} training labels, {wrong:.0f} of them wrong"
    print_table(outcomes, title)
    draw(outcomes, problems[0], title, arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
