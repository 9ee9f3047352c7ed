"""A schedule of learning rates, learned by differentiating whole training runs.

A network of four layers is trained for 50 steps. Each layer has a learning rate of its own at each step, and its initial
weights have a scale of their own: 204 hyperparameters. A run forward, and the same run undone step by step, to the bit, give
the derivative of the final loss with respect to all of them, and Adam improves them from run to run. Each run is of four
networks at once, with new initial weights and new batches. What comes out is judged with others again, in an ordinary
training loop, beside a grid of constant learning rates and scales.

    python examples/learned_schedule.py                           # scikit-learn's digits
    python examples/learned_schedule.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions

After Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning", ICML 2015.
"""

from __future__ import annotations

import argparse
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, options

LAYERS = ("layer 1", "layer 2", "layer 3", "layer 4")
START = (0.3, 0.1)  # learning rate and scale of each layer before anything is learned
GRID = list(itertools.product((0.3, 0.5, 1.0, 2.0, 4.0), (0.1, 0.2, 0.3, 0.4)))  # constant rates, scales
MOMENTUM = 0.9
BATCH = 100
LEARN_ON, JUDGE_ON = 4, 10  # networks at a time

Params = dict[str, dict[str, Tensor]]


class Hyper(NamedTuple):
    """What is learned, each by layer."""

    rates: dict[str, Tensor]  # [steps]
    scales: dict[str, Tensor]  # []


def constant(rate: float, scale: float, steps: int) -> Hyper:
    return Hyper({layer: torch.full((steps,), rate) for layer in LAYERS}, {layer: torch.tensor(scale) for layer in LAYERS})


def exponential(hyper: Hyper) -> Hyper:
    return Hyper(*({layer: x.exp() for layer, x in part.items()} for part in hyper))


# ---------------------------------------------------------------- several networks at once: the first dimension counts them


def shapes(task: data.Data) -> dict[str, tuple[int, int]]:
    inputs = task.train.inputs.shape[1]
    hidden = 32 if inputs < 100 else 50
    return dict(zip(LAYERS, itertools.pairwise((inputs, hidden, hidden, hidden, 10)), strict=True))


def draw_networks(count: int, scales: dict[str, Tensor], task: data.Data, generator: torch.Generator) -> Params:
    params = {}
    for layer, (rows, columns) in shapes(task).items():
        noise = torch.randn(count, rows, columns, generator=generator)
        params[layer] = {"weight": scales[layer] * noise, "bias": torch.zeros(count, 1, columns)}
    return params


def draw_batches(count: int, steps: int, task: data.Data, generator: torch.Generator) -> list[Tensor]:
    return list(torch.randint(len(task.train), (steps, count, BATCH), generator=generator))


def logits(params: Params, x: Tensor) -> Tensor:
    for layer in LAYERS[:-1]:
        x = torch.tanh(x @ params[layer]["weight"] + params[layer]["bias"])
    return x @ params[LAYERS[-1]]["weight"] + params[LAYERS[-1]]["bias"]


def losses_on(params: Params, examples: data.Examples) -> Tensor:
    """The loss of each network, on examples of its own or on the same."""
    outputs = logits(params, examples.inputs)  # [networks, examples, 10]
    labels = examples.labels.expand(outputs.shape[:2])
    return nn.functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none").mean(1)


# ---------------------------------------------------------------- learning


def learn(task: data.Data, steps: int, iterations: int) -> Hyper:
    logarithms = constant(*START, steps=steps)
    leaves = [*logarithms.rates.values(), *logarithms.scales.values()]
    for leaf in leaves:
        leaf.log_().requires_grad_()
    adam = torch.optim.Adam(leaves, lr=0.12)  # the first iterations change each number by a factor of e^0.12
    slower = torch.optim.lr_scheduler.LinearLR(adam, 1, 0, iterations)
    seen = task.train[:2000]
    progress = tqdm(range(iterations), unit="run")
    for iteration in progress:
        generator = torch.Generator().manual_seed(iteration)
        hyper = exponential(logarithms)
        params = draw_networks(LEARN_ON, hyper.scales, task, generator)
        training = gdtuo.Training(
            lambda params, hyper, batch: losses_on(params, task.train[batch]).sum(),  # each network descends its own loss
            gdtuo.AveragingSGD(momentum=MOMENTUM),
            batches=draw_batches(LEARN_ON, steps, task, generator),
            steps=steps,
        )
        result = gdtuo.hypergradient(
            training,
            lambda params, hyper: losses_on(params, seen).mean(),
            params,
            {"optimizer": {"lr": hyper.rates}},
            method=gdtuo.Reversible(),
        )
        # From learning rates and initial weights autograd leads on, to the logarithms that they were made of.
        adam.zero_grad()
        torch.autograd.backward(
            [*hyper.rates.values(), *(params[layer]["weight"] for layer in LAYERS)],
            [*result.hyper["optimizer"]["lr"].values(), *(result.params[layer]["weight"] for layer in LAYERS)],
        )
        adam.step()
        slower.step()
        progress.set_description(f"loss at the end of the run {result.value:.3f}")
    with torch.no_grad():
        return exponential(logarithms)


# ---------------------------------------------------------------- judging


class Run(NamedTuple):
    """Training as ever with given hyperparameters, the mean of `JUDGE_ON` networks."""

    losses: list[float]  # on the training set before every second step and at the end
    error: float  # on the test set at the end, in percent


def train(hyper: Hyper, task: data.Data, steps: int) -> Run:
    generator = torch.Generator().manual_seed(2**32)  # none that learning has used
    params = draw_networks(JUDGE_ON, hyper.scales, task, generator)
    optimizer = gdtuo.AveragingSGD(
        [{"params": [weight.requires_grad_() for weight in params[layer].values()]} for layer in LAYERS], momentum=MOMENTUM
    )
    seen, losses = task.train[:2000], []
    for t, batch in enumerate(draw_batches(JUDGE_ON, steps, task, generator)):
        if t % 2 == 0:
            with torch.no_grad():
                losses.append(losses_on(params, seen).mean().item())
        for group, layer in zip(optimizer.param_groups, LAYERS, strict=True):
            group["lr"] = hyper.rates[layer][t].item()
        optimizer.zero_grad()
        losses_on(params, task.train[batch]).sum().backward()
        optimizer.step()
    with torch.no_grad():
        losses.append(losses_on(params, seen).mean().item())
        wrong = logits(params, task.test.inputs).argmax(2) != task.test.labels
    return Run(losses, 100 * wrong.double().mean().item())


# ---------------------------------------------------------------- what comes out


def print_table(runs: dict[str, Run], learned: Hyper, task: data.Data, title: str) -> None:
    print(f"\n{title}; mean of {JUDGE_ON} networks")
    print(f"{'':>34}  {'training loss':>13}  {'test error %':>12}")
    for name, run in runs.items():
        print(f"{name:>34}  {run.losses[-1]:13.4f}  {run.error:12.2f}")
    print(f"\n{'':>34}  {'median rate':>13}  {'last tenth':>12}  {'scale':>7}  {'1/√inputs':>9}")
    for layer, (inputs, _) in shapes(task).items():
        rates = learned.rates[layer]
        late = rates[-math.ceil(len(rates) / 10) :].mean().item()
        print(
            f"{layer:>34}  {rates.median().item():13.2f}  {late:12.2f}  {learned.scales[layer].item():7.2f}  {inputs**-0.5:9.2f}"
        )


def draw(runs: dict[str, Run], learned: Hyper, best: tuple[float, float], title: str, out: str) -> None:
    """Left: the learning rate of each layer over a run. Right: the training loss over a run, learned against constant."""
    import matplotlib as mpl

    mpl.use("Agg")  # a picture in a file needs no display
    import matplotlib.pyplot as plt

    blue, orange, green = "#0072b2", "#d55e00", "#009e73"  # colour-blind readers tell them apart (Okabe, Ito)
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.25, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 12})
    plt.rcParams.update({"figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.08})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    steps = len(learned.rates[LAYERS[0]])
    shades = mpl.colormaps["Blues"]
    for k, layer in enumerate(LAYERS):
        label = f"{layer} (initial scale {learned.scales[layer].item():.2f})"
        left.plot(range(steps), learned.rates[layer], color=shades(0.4 + 0.2 * k), linewidth=2, label=label)
    left.axhline(best[0], color=green, linewidth=1.5, linestyle="--", zorder=1, label=f"best of grid (scale {best[1]:g})")
    left.axhline(START[0], color=orange, linewidth=1.5, linestyle=":", zorder=1, label=f"start (scale {START[1]:g})")
    left.set(yscale="log", xlabel="training step", ylabel="learning rate", xlim=(0, steps))
    left.set_ylim(bottom=0.25 * min(START[0], *(rates.min().item() for rates in learned.rates.values())))  # the legend's room
    left.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.minorticks_off()
    left.set_title("Learned: a rate for each layer and step")
    left.legend(frameon=False, fontsize=9, loc="lower left", ncols=2)

    for (name, run), color, style in zip(runs.items(), (orange, green, blue), (":", "--", "-"), strict=True):
        right.plot([*range(0, steps, 2), steps], run.losses, color=color, linestyle=style, linewidth=2, label=name)
    right.set(yscale="log", xlabel="training step", ylabel="training loss", xlim=(0, steps))
    right.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.minorticks_off()
    right.set_ylim(bottom=0.4 * runs["learned"].losses[-1])  # the legend's room
    right.legend(frameon=False, loc="lower left", title=f"mean of {JUDGE_ON} new networks", alignment="left")
    right.set_title("Training new networks with it")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--steps", type=int, default=50, help="of a training run (default: 50)")
    parser.add_argument("--iterations", type=int, default=40, help="how many runs are differentiated (default: 40)")
    parser.add_argument("--out", default="learned_schedule.png", help="where the picture goes (default: learned_schedule.png)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "steps", "iterations")
    task = options.load_task(parser, arguments)

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    steps = arguments.steps
    grid = {
        (rate, scale): train(constant(rate, scale, steps), task, steps) for rate, scale in tqdm(GRID, desc="grid", unit="cell")
    }
    best = min(grid, key=lambda cell: grid[cell].losses[-1])
    learned = learn(task, steps, arguments.iterations)
    runs = {
        f"start: rate {START[0]:g}, scale {START[1]:g}": grid[START],
        f"best of grid: rate {best[0]:g}, scale {best[1]:g}": grid[best],
        "learned": train(learned, task, steps),
    }
    title = f"{arguments.task}: a network of four layers trained for {steps} steps, learned from {arguments.iterations} such runs"
    print_table(runs, learned, task, title)
    draw(runs, learned, best, title, arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
