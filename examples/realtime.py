"""Learning rate and momentum learned while a network trains once: `realtime`, from a start that leads nowhere.

Forward mode carries the derivatives of the weights with respect to both numbers along. Every ten steps these meet the
gradient of the validation loss, and Adam moves the two numbers; neither the weights nor the derivatives are reset.
Beside it stand plain training at the starting values, and two random searches of ten trials: one makes as many training
steps in all, so that its trials are ten times shorter; the other makes ten times as many. A step in real time takes
longer than a plain one, with a network this small some ten times; the table says how long all takes.
After Franceschi et al. 2017, section 5.3 (there on a phone classifier).

    python examples/realtime.py
    python examples/realtime.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, options

START_LR, START_MOMENTUM = 1e-3, 0.0
EVERY = 10  # training steps between two moves of the numbers
TRIALS = 10  # of a random search
BATCH = 50

METHODS = ("at the starting values", "random search, short trials", "learned in real time", "random search, whole trials")


class Problem(NamedTuple):
    """A network to train, and on what; the same for all methods."""

    net: nn.Module
    train: data.Examples
    validation: data.Examples
    test: data.Examples
    batches: list[Tensor]  # the rows of each step


class Run(NamedTuple):
    """What is left of one training run, or of one search."""

    steps: list[int]  # training steps so far, in all
    losses: list[float]  # validation loss then; of a search the best so far
    error: float  # on the test set, in percent
    numbers: Sequence[tuple[float, float]] = ()  # learning rate and momentum


def pose(task: data.Data, steps: int, seed: int) -> Problem:
    torch.manual_seed(seed)
    n = min(5000, len(task.train) // 2)
    order = torch.randperm(len(task.train))
    train, validation = task.train[order[:n]], task.train[order[n : 2 * n]]
    width = task.train.inputs.shape[1]
    net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return Problem(net, train, validation, task.test, [torch.randint(0, n, (BATCH,)) for _ in range(steps)])


def percent_wrong(logits: Tensor, labels: Tensor) -> float:
    return 100 * (logits.argmax(1) != labels).double().mean().item()


def learn(problem: Problem) -> Run:
    """One training run, in which the learning rate and the momentum are learned."""
    _, train, validation, test, batches = problem
    apply, params = gdtuo.make_functional(problem.net)

    def loss(params: Any, hyper: Any, rows: Tensor) -> Tensor:
        return cross_entropy(apply(params, train.inputs[rows]), train.labels[rows])

    def outer_loss(params: Any, hyper: Any) -> Tensor:
        return cross_entropy(apply(params, validation.inputs), validation.labels)

    def project(hyper: Any) -> Any:
        lr, momentum = hyper["optimizer"]["lr"], hyper["optimizer"]["momentum"]
        return {"optimizer": {"lr": gdtuo.project_box(lr), "momentum": gdtuo.project_box(momentum, 0.0, 0.999)}}

    training = gdtuo.Training(loss, gdtuo.SGD(), batches, steps=len(batches))
    hyper = {"optimizer": {"lr": torch.tensor(START_LR), "momentum": torch.tensor(START_MOMENTUM)}}
    adam = gdtuo.Adam(lr=0.01)
    records = list(gdtuo.realtime(training, outer_loss, params, hyper, EVERY, adam, project=project))
    numbers = [(r.hyper["optimizer"]["lr"].item(), r.hyper["optimizer"]["momentum"].item()) for r in records]
    error = percent_wrong(apply(records[-1].params, test.inputs), test.labels)
    return Run([r.step for r in records], [r.value.item() for r in records], error, numbers)


def train(problem: Problem, lr: float, momentum: float, steps: int) -> Run:
    """One plain training run."""
    net, (_, train, validation, test, batches) = copy.deepcopy(problem.net), problem
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    run = Run([], [], 0.0)
    for step, rows in enumerate(batches[:steps], start=1):
        optimizer.zero_grad()
        cross_entropy(net(train.inputs[rows]), train.labels[rows]).backward()
        optimizer.step()
        if step % EVERY == 0 or step == steps:
            loss = cross_entropy(net(validation.inputs), validation.labels).item()
            run.steps.append(step)
            run.losses.append(loss if math.isfinite(loss) else math.inf)
    return run._replace(error=percent_wrong(net(test.inputs), test.labels))


def search(problem: Problem, steps: int, seed: int) -> Run:
    """Ten trials: lr from 1e-4 to 1, uniform on a log scale, momentum uniform from 0 to 0.99."""
    draws = torch.rand(TRIALS, 2, generator=torch.Generator().manual_seed(seed)).tolist()
    trials = [train(problem, 10 ** (-4 * u), 0.99 * v, steps) for u, v in draws]
    losses = [min(trial.losses[-1] for trial in trials[: k + 1]) for k in range(TRIALS)]
    best = min(trials, key=lambda trial: trial.losses[-1])
    return Run([steps * (k + 1) for k in range(TRIALS)], losses, best.error)


def compare(task: data.Data, steps: int, seed: int) -> dict[str, tuple[Run, float]]:
    """Each method's run and its seconds."""
    problem = pose(task, steps, seed)
    actions = (
        lambda: train(problem, START_LR, START_MOMENTUM, steps),
        lambda: search(problem, max(1, steps // TRIALS), seed),
        lambda: learn(problem),
        lambda: search(problem, steps, seed),
    )
    outcomes = {}
    for name, action in zip(METHODS, actions, strict=True):
        begin = time.perf_counter()
        run = action()
        outcomes[name] = (run, time.perf_counter() - begin)
    return outcomes


# ---------------------------------------------------------------- what comes out


def print_table(outcomes: list[dict[str, tuple[Run, float]]], title: str) -> None:
    print(f"\n{title}; mean of {len(outcomes)} seeds")
    print(f"{'':>27}  {'validation loss':>15}  {'test error %':>12}  {'steps in all':>12}  {'seconds':>7}")
    for name in METHODS:
        rows = [(run.losses[-1], run.error, run.steps[-1], seconds) for run, seconds in (outcome[name] for outcome in outcomes)]
        loss, error, steps, seconds = torch.tensor(rows).mean(0).tolist()
        print(f"{name:>27}  {loss:15.3f}  {error:12.1f}  {steps:12.0f}  {seconds:7.1f}")


def draw(outcomes: list[dict[str, tuple[Run, float]]], title: str, out: str) -> None:
    """Left: learning rate and momentum over the steps. Right: the validation loss over the steps that a method takes."""
    import matplotlib as mpl

    mpl.use("Agg")  # a picture in a file needs no display
    import matplotlib.pyplot as plt

    colors = ("#d55e00", "#009e73", "#0072b2", "#cc79a7")  # colour-blind readers tell them apart (Okabe, Ito)
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.25, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 12})
    plt.rcParams.update({"figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.08})
    figure, axes = plt.subplot_mosaic([["lr", "loss"], ["momentum", "loss"]], figsize=(12, 5), layout="constrained")

    for k, (name, start) in enumerate((("lr", START_LR), ("momentum", START_MOMENTUM))):
        for outcome in outcomes:
            run = outcome[METHODS[2]][0]
            axes[name].plot([0, *run.steps], [start, *(numbers[k] for numbers in run.numbers)], color=colors[2], linewidth=2)
        axes[name].axhline(start, color=colors[0], linewidth=2, linestyle=":")
        axes[name].set(ylabel=("learning rate", "momentum")[k], xlim=(0, run.steps[-1]), ylim=(-0.02, None))
    axes["lr"].set_title("Both numbers grow while the network trains,")
    axes["momentum"].set(xlabel="training step")

    right = axes["loss"]
    for name, color, style in zip(METHODS, colors, (":", "-.", "-", "--"), strict=True):
        runs = [outcome[name][0] for outcome in outcomes]
        losses, shape = torch.tensor([run.losses for run in runs]), "steps-post" if "search" in name else "default"
        label = f"{name}, {sum(outcome[name][1] for outcome in outcomes) / len(outcomes):.1f} s"
        for loss in losses:
            right.plot(runs[0].steps, loss, color=color, linewidth=0.8, alpha=0.35, drawstyle=shape)
        right.plot(runs[0].steps, losses.mean(0), style, color=color, linewidth=2.2, label=label, drawstyle=shape)
        right.plot(runs[0].steps[-1], losses.mean(0)[-1], "o", color=color, markersize=8)
    right.set(xscale="log", yscale="log", xlabel="training steps in all", ylabel="validation loss")
    right.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    right.minorticks_off()
    right.set_title("and one run ends about as well as the best of ten")
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.46, -0.13), ncols=2, fontsize=10, columnspacing=1)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--steps", type=int, default=600, help="of training (default: 600)")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--out", default="realtime.png", help="where the picture goes (default: realtime.png)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "steps", "seeds")
    task = options.load_task(parser, arguments)

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    outcomes = [compare(task, arguments.steps, seed) for seed in tqdm(range(arguments.seeds), unit="seed")]
    title = f"{arguments.task}: SGD from learning rate {START_LR:g}, momentum {START_MOMENTUM:g}, {arguments.steps} steps"
    print_table(outcomes, title)
    draw(outcomes, title, arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
