"""Learning what a training loss cannot teach: weight decay, from a validation loss, with `hyperstep()`.

A training loss asks for no weight decay at all. So the weights learn from training data as ever, and after each step the
weight decay learns from validation data. 200 digits, a fifth of them with a random label, make a network overfit: the
right weight decay matters, and is found in one run that starts at 1e-4. A grid of fixed values stands beside it.

    python examples/weight_decay.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, figures, options

GRID = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
EXAMPLES = 200  # to train on, and as many again to validate on
WRONG = 40  # of the training labels are random
BATCH = 20


class Run(NamedTuple):
    """What is left of one training run: numbers after each epoch."""

    decay: list[float]  # weight decay
    validation: list[float]  # loss on the validation set
    test: list[float]  # loss on the test set
    error: list[float]  # on the test set, in percent


def train(fixed: float | None, task: data.Data, epochs: int, seed: int) -> Run:
    """Train with a fixed weight decay, or with `None` learn it."""
    torch.manual_seed(seed)
    order = torch.randperm(len(task.train))
    training, validation = task.train[order[:EXAMPLES]], task.train[order[EXAMPLES : 2 * EXAMPLES]]
    training.labels[:WRONG] = torch.randint(0, 10, (WRONG,))  # indexing has copied: the task keeps its labels
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))

    def loss_on(examples: data.Examples) -> torch.Tensor:
        return nn.functional.cross_entropy(model(examples.inputs), examples.labels)

    if fixed is None:
        hyper = gdtuo.SGD(lr=0.3)  # the weight decay changes by at most 30% a step
        # Early on any shrinking hurts, and the validation loss says so: the lower bound keeps that from carrying far.
        optimizer = gdtuo.SGD(
            model.parameters(),
            lr=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            learn="weight_decay",
            domains={"weight_decay": gdtuo.Positive(minimum=1e-4)},
            optimizer=hyper,
        )
    else:
        optimizer = gdtuo.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=fixed)

    run = Run([], [], [], [])
    for _ in range(epochs):
        for batch in torch.randperm(EXAMPLES).split(BATCH):
            optimizer.zero_grad()
            loss_on(training[batch]).backward()
            optimizer.step()  # the weights move; what was already judged by validation data is not judged again here
            if fixed is None:
                optimizer.zero_grad()
                loss_on(validation).backward()
                optimizer.hyperstep()  # the weight decay moves
        run.decay.append(optimizer.hyperparameters()["L0/g0/weight_decay"])
        with torch.no_grad():
            run.validation.append(loss_on(validation).item())
            run.test.append(loss_on(task.test).item())
            wrong = model(task.test.inputs).argmax(1) != task.test.labels
            run.error.append(100 * wrong.double().mean().item())
    return run


# ---------------------------------------------------------------- what comes out


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def final(curves: Sequence[list[float]]) -> float:
    """The mean over seeds and the last tenth of the epochs: a constant step size leaves single epochs noisy."""
    return mean([mean(curve[len(curve) * 9 // 10 :]) for curve in curves])


def best_of(runs: dict[float | None, list[Run]]) -> float:
    """The fixed value of the lowest final validation loss: what a grid search would choose."""
    return min(GRID, key=lambda decay: final([run.validation for run in runs[decay]]))


def print_table(runs: dict[float | None, list[Run]]) -> None:
    print(f"\n{EXAMPLES} training digits, {WRONG} labels random; mean of {len(runs[None])} seeds and the last tenth of epochs")
    print(f"{'weight decay':>16}  {'validation loss':>15}  {'test loss':>9}  {'test error %':>12}")
    for decay in (*GRID, None):
        these = runs[decay]
        name = f"learned, {final([run.decay for run in these]):.1e}" if decay is None else f"{decay:g}"
        numbers = f"{final([run.validation for run in these]):15.3f}  {final([run.test for run in these]):9.3f}"
        mark = "  best of the grid" if decay == best_of(runs) else ""
        print(f"{name:>16}  {numbers}  {final([run.error for run in these]):12.1f}{mark}")


def draw(runs: dict[float | None, list[Run]], out: str) -> None:
    """Left: the weight decay over time. Right: the validation loss over time, learned against fixed values."""
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    best, epochs = best_of(runs), range(1, len(runs[None][0].decay) + 1)

    for k, run in enumerate(runs[None]):
        left.plot(epochs, run.decay, color=figures.BLUE, linewidth=2, alpha=1 - 0.3 * k, label=f"learned, seed {k}")
    for decay in GRID[1:]:
        chosen = decay == best
        left.axhline(decay, color=figures.GREEN if chosen else "0.75", linewidth=2 if chosen else 1, linestyle="--", zorder=1)
    left.text(1, best * 1.12, "best of the grid", color=figures.GREEN, va="bottom")
    left.set(yscale="log", xlabel="epoch", ylabel="weight decay", xlim=(0, len(epochs)), ylim=(2e-5, 2e-1))
    left.set_title("Validation data raise the weight decay")
    left.legend(frameon=False, loc="lower right")

    def validation(decay: float | None) -> list[float]:
        return [mean(losses) for losses in zip(*(run.validation for run in runs[decay]), strict=True)]

    for decay in sorted(set(GRID) - {0.0, best}):
        right.plot(epochs, validation(decay), color="0.8", linewidth=1)
    right.plot([], [], color="0.8", linewidth=1, label="fixed: others of the grid (0.1 is above)")
    right.plot(epochs, validation(0.0), color=figures.ORANGE, linewidth=2, linestyle=":", label="no weight decay")
    right.plot(
        epochs, validation(best), color=figures.GREEN, linewidth=2, linestyle="--", label=f"fixed at {best:g}, best of the grid"
    )
    right.plot(epochs, validation(None), color=figures.BLUE, linewidth=2, label="learned in one run from 0.0001")
    right.set(xlabel="epoch", ylabel="validation loss", xlim=(0, len(epochs)), ylim=(0.5, 1.6))
    right.set_title("until overfitting is gone")
    right.legend(frameon=False, loc="upper right")
    figures.save(figure, Path(out), f"{EXAMPLES} digits, {WRONG} of them with random labels: weight decay matters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100, help="default: 100")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--out", default="weight_decay.png", help="where the picture goes (default: weight_decay.png)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "epochs", "seeds")
    try:
        task = data.digits()
    except ImportError as error:
        parser.error(str(error))

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    runs: dict[float | None, list[Run]] = {}
    cells = [(decay, seed) for decay in (*GRID, None) for seed in range(arguments.seeds)]
    progress = tqdm(cells, unit="run")
    for decay, seed in progress:
        progress.set_description("learned" if decay is None else f"weight decay {decay:g}")
        runs.setdefault(decay, []).append(train(decay, task, arguments.epochs, seed))
    print_table(runs)
    draw(runs, arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
