"""One training loop, two optimizers: plain Adam, and Adam whose learning rate is itself learned.

Both start from learning rates between hopeless and too large. Prints a table and draws a picture.

    python examples/quickstart.py                           # scikit-learn's digits
    python examples/quickstart.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, figures, options

STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
BATCH = 64

Optimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


# ---------------------------------------------------------------- the one line that differs


def plain(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr)


def tower(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return gdtuo.Adam(parameters, lr=lr, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))


def tower_of(height: int) -> Optimizer:
    """The same with `height` SGDs on top of Adam; tower_of(2) is `tower`."""
    above = gdtuo.tower("/".join(["sgd"] * height))
    return lambda parameters, lr: gdtuo.Adam(parameters, lr=lr, optimizer=above)


# ---------------------------------------------------------------- training: the same code for both


class Run(NamedTuple):
    """What is left of one training run."""

    error: float  # on the test set, in percent
    rates: list[float]  # Adam's learning rate before step 0, `every`, 2 `every`, … and at the end


def train(optimizer_of: Optimizer, lr: float, task: data.Data, epochs: int, seed: int, every: int) -> Run:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(task.train.inputs.shape[1], 48), nn.Tanh(), nn.Linear(48, 10))
    optimizer = optimizer_of(model.parameters(), lr)
    rates, step = [], 0
    for _ in range(epochs):
        for batch in torch.randperm(len(task.train)).split(BATCH):
            if step % every == 0:
                rates.append(learning_rate(optimizer))
            loss = nn.functional.cross_entropy(model(task.train.inputs[batch]), task.train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    rates.append(learning_rate(optimizer))
    with torch.no_grad():
        wrong = model(task.test.inputs).argmax(1) != task.test.labels
    return Run(100 * wrong.double().mean().item(), rates)


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate that Adam uses now: a level reports all its effective values, torch keeps its only one in the group."""
    return optimizer.hyperparameters()["L0/g0/lr"] if isinstance(optimizer, gdtuo.Level) else optimizer.param_groups[0]["lr"]


# ---------------------------------------------------------------- what comes out


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def print_table(runs: dict[tuple[str, float], list[Run]], title: str) -> None:
    print(f"\n{title}, test error in percent (mean of {len(next(iter(runs.values())))} seeds)")
    print(f"{'initial lr':>10}  {'plain':>7}  {'tower':>7}   {'learned lr':>10}")
    for lr in STARTS:
        plain_runs, tower_runs = runs["plain", lr], runs["tower", lr]
        errors = f"{mean([run.error for run in plain_runs]):7.2f}  {mean([run.error for run in tower_runs]):7.2f}"
        print(f"{lr:10.0e}  {errors}   {mean([run.rates[-1] for run in tower_runs]):10.1e}")


def draw(runs: dict[tuple[str, float], list[Run]], every: int, steps: int, tower_name: str, title: str, out: str) -> None:
    """Left: the learning rate over time, a line for each start. Right: the test error by start, plain and tower."""
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    shades = plt.colormaps["viridis"]
    for i, lr in enumerate(STARTS):
        rates = runs["tower", lr][0].rates
        times = [min(every * k, steps) for k in range(len(rates))]
        left.plot(times, rates, color=shades(0.9 * i / (len(STARTS) - 1)), linewidth=2)
        left.axhline(lr, color="0.6", linewidth=0.8, linestyle=(0, (4, 4)), zorder=1)
    left.text(steps, STARTS[0] * 1.25, "plain Adam stays where it starts", ha="right", va="bottom", color="0.4", fontsize=10)
    left.set(yscale="log", xlabel="training step", ylabel="Adam's learning rate", xlim=(0, steps))
    left.set_title("The tower moves the learning rate by itself")

    for name, color, label, marker in (
        ("plain", figures.ORANGE, "plain Adam", "s"),
        ("tower", figures.BLUE, f"{tower_name}, a tower", "o"),
    ):
        errors = [[run.error for run in runs[name, lr]] for lr in STARTS]
        right.plot(STARTS, [mean(e) for e in errors], color=color, marker=marker, linewidth=2, label=label)
        right.fill_between(STARTS, [min(e) for e in errors], [max(e) for e in errors], color=color, alpha=0.2, linewidth=0)
    right.set(xscale="log", yscale="log", xlabel="initial learning rate", ylabel="test error, %")
    ticks = [2, 5, 10, 20, 50, 100]
    right.set_yticks(ticks, [str(tick) for tick in ticks])
    right.minorticks_off()
    seeds = len(runs["plain", STARTS[0]])
    band = f"mean and range of {seeds} seeds" if seeds > 1 else None
    right.legend(frameon=False, loc="upper right", title=band, alignment="left")
    right.set_title("so a start that is far too low costs little")
    figures.save(figure, Path(out), f"{tower_name} on {title}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--epochs", type=int, help="default: 15 on digits, 1 else")
    parser.add_argument("--seeds", type=int, help="default: 3 on digits, 1 else")
    parser.add_argument("--height", type=int, default=2, help="how many SGDs stand on top of Adam (default: 2)")
    parser.add_argument("--out", default="quickstart.png", help="where the picture goes (default: quickstart.png)")
    arguments = parser.parse_args()
    small = arguments.task == "digits"
    epochs = arguments.epochs or (15 if small else 1)
    seeds = arguments.seeds or (3 if small else 1)
    options.at_least_1(parser, arguments, "epochs", "seeds", "height")
    task = options.load_task(parser, arguments)

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    optimizers = {"plain": plain, "tower": tower if arguments.height == 2 else tower_of(arguments.height)}
    steps = epochs * -(-len(task.train) // BATCH)
    every = max(1, steps // 150)
    runs: dict[tuple[str, float], list[Run]] = {}
    cells = [(name, lr, seed) for name in optimizers for lr in STARTS for seed in range(seeds)]
    progress = tqdm(cells, unit="run")
    for name, lr, seed in progress:
        progress.set_description(f"{name} Adam from lr {lr:.0e}")
        runs.setdefault((name, lr), []).append(train(optimizers[name], lr, task, epochs, seed, every))

    title = f"{arguments.task}, {epochs} epoch{'s' * (epochs > 1)}"
    tower_name = "Adam" + " / SGD" * arguments.height
    print_table(runs, title)
    draw(runs, every, steps, tower_name, title, arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
