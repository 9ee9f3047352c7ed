"""A schedule and a tower together: warm-up and cosine on digits, under plain Adam and under Adam / SGD / SGD.

A table of test errors for base rates between far too low and good, and a picture of one run: what the scheduler writes, the
factor that the tower learns beside it, and their product, the rate that Adam uses.

    python -m benchmarks.schedulers            # a table, and a picture in runs/schedulers.png
    python -m benchmarks.schedulers --quick    # one seed, two epochs
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean

import torch
from torch import nn
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, figures

__all__ = ["OPTIMIZERS", "draw", "schedule", "table", "train"]

BASES = (1e-5, 1e-4, 1e-3, 1e-2)
DRAWN = 1e-4  # the base rate of the picture's run
EPOCHS, SEEDS, BATCH = 15, 3, 64
WARM_UP = 0.1  # of all steps

Optimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "plain Adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "Adam / SGD / SGD": lambda params, lr: gdtuo.Adam(params, lr=lr, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
}
TOWER = list(OPTIMIZERS)[1]


def schedule(step: int, steps: int) -> float:
    """What the base rate is multiplied by: from 0 to 1 in a line, then to 0 in a cosine."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def train(name: str, lr: float, task: data.Data, epochs: int, seed: int) -> tuple[float, gdtuo.History]:
    """(test error in percent, history) of a 64-48-10 network."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    optimizer = OPTIMIZERS[name](model.parameters(), lr)
    steps = epochs * -(-len(task.train) // BATCH)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    history = gdtuo.History(optimizer)
    for _ in range(epochs):
        for batch in torch.randperm(len(task.train)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(task.train.inputs[batch]), task.train.labels[batch]).backward()
            optimizer.step()
            history.record()
            scheduler.step()
    with torch.no_grad():
        wrong = model(task.test.inputs).argmax(1) != task.test.labels
    return 100 * wrong.double().mean().item(), history


# ---------------------------------------------------------------- what comes out


def table(errors: Mapping[tuple[str, float], list[float]]) -> str:
    """Test errors in percent, the mean of all seeds."""
    bases = sorted({lr for _, lr in errors})
    lines = [f"{'base rate':16}" + "".join(f"{lr:8.0e}" for lr in bases)]
    lines += [f"{name:16}" + "".join(f"{mean(errors[name, lr]):8.1f}" for lr in bases) for name in OPTIMIZERS]
    return "\n".join(lines)


def draw(history: gdtuo.History, path: Path) -> None:
    """Save a picture: schedule, learned factor, effective rate."""
    steps, written = history["written/L0/g0/lr"]
    effective = history["L0/g0/lr"].values
    moving = [i for i, rate in enumerate(written) if rate > 0]  # 0 has no place on a logarithmic axis, 0 / 0 no value
    times = [steps[i] for i in moving]
    below, factors, above = (
        [pick(i) for i in moving] for pick in (written.__getitem__, lambda i: effective[i] / written[i], effective.__getitem__)
    )
    figure, (left, middle, right) = figures.pyplot().subplots(1, 3, figsize=(13.5, 4.2), layout="constrained", sharex=True)
    left.plot(times, below, color=figures.ORANGE, linewidth=2.2)
    left.set_title('What the scheduler writes, group["lr"]')
    middle.plot(times, factors, color=figures.GREEN, linewidth=2.2)
    middle.set_title("times the factor that the tower learns")
    right.plot(times, below, color=figures.ORANGE, linewidth=1.4, linestyle=(0, (4, 2)), label="as scheduled")
    right.plot(times, above, color=figures.BLUE, linewidth=2.2, label="effective")
    right.set_title("is the rate that Adam uses")
    right.legend(frameon=False, loc="lower center")
    bottom, top = min(*below, *above) / 1.5, 1.5 * max(*below, *above)
    for axes, name in ((left, "learning rate"), (middle, "factor"), (right, "learning rate")):
        axes.set(yscale="log", xlabel="step", ylabel=name)
        if axes is not middle:
            axes.set_ylim(bottom, top)
    figure.suptitle(f"Adam / SGD / SGD under warm-up and cosine, base rate {DRAWN:.0e}, digits", **figures.HEADLINE)
    figures.save(figure, path)


def main() -> None:
    """Parse the command line, measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.schedulers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="see whether it works: the figures are no good")
    parser.add_argument("--out", type=Path, default=Path("runs/schedulers.png"), help="default: runs/schedulers.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        task = data.digits()
    except ImportError as error:
        parser.error(str(error))
    epochs, seeds = (2, 1) if arguments.quick else (EPOCHS, SEEDS)
    errors: dict[tuple[str, float], list[float]] = {}
    histories: dict[tuple[str, float], gdtuo.History] = {}
    for name, lr, seed in tqdm([(name, lr, seed) for name in OPTIMIZERS for lr in BASES for seed in range(seeds)], unit="run"):
        percent, history = train(name, lr, task, epochs, seed)
        errors.setdefault((name, lr), []).append(percent)
        histories.setdefault((name, lr), history)
    print(f"\nTest error in percent, {epochs} epochs of digits, mean of {seeds}\n{table(errors)}")
    draw(histories[TOWER, DRAWN], arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
