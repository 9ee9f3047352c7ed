"""A schedule of learning rates and momenta, learned by differentiating whole training runs.

A network of four layers is trained for 50 steps. The weights and the biases of each layer have a learning rate and a momentum
of their own at each step, and their initial values a scale: 808 hyperparameters. A run forward, and the same run undone step
by step, to the bit, give the derivative of the final training loss with respect to all of them, and Adam improves them from
run to run. Each run is of four networks at once, with new initial weights and new batches. What comes out is judged with
others again, in an ordinary training loop, beside a grid of constant learning rates and scales.

    python examples/learned_schedule.py                           # scikit-learn's digits
    python examples/learned_schedule.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
    python examples/learned_schedule.py --paper --data DIR

After Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning", ICML 2015,
section 3.1.
"""

from __future__ import annotations

import itertools
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
    """Of the networks, their training, and the learning of its hyperparameters."""

    hidden: int  # units of each of three hidden layers
    examples: int  # to train on, and to judge training by
    batch: int
    steps: int
    iterations: int  # runs that are differentiated
    together: int  # networks that are trained in one run
    rate: float  # the start: of every block at every step
    momentum: float
    scale: float
    adam: float  # its learning rate, for the logarithms of rates and scales, the logits of momenta
    adam_end: float  # what is left of it at the end


DIGITS = Size(32, 10_000, 100, 50, 40, 4, rate=0.3, momentum=0.9, scale=0.1, adam=0.12, adam_end=0.0)
PAPER = Size(50, 10_000, 200, 100, 50, 1, rate=math.exp(-1), momentum=0.9, scale=math.exp(-3), adam=0.04, adam_end=1.0)
PUBLISHED = (
    "a 784-50-50-50-10 network, 100 steps with batches of 200, 1,608 hyperparameters, 50 iterations of Adam(0.04), "
    "one network a run; nothing is reduced"
)
SIZES = Sizes(DIGITS, DIGITS._replace(hidden=50), PAPER, PUBLISHED)

LAYERS = ("layer 1", "layer 2", "layer 3", "layer 4")
GRID = list(itertools.product((0.3, 0.5, 1.0, 2.0, 4.0), (0.1, 0.2, 0.3, 0.4)))  # constant rates, scales
JUDGES = 10  # new networks that judge a schedule

Blocks = dict[str, Tensor]  # by block: "layer 1 weights", "layer 1 biases", ...


class Hyper(NamedTuple):
    """What is learned."""

    rates: Blocks  # [steps]
    momenta: Blocks  # [steps]
    scales: Blocks  # []


FREE, BACK = (torch.log, torch.logit, torch.log), (torch.exp, torch.sigmoid, torch.exp)  # to any numbers, and back


class Iteration(NamedTuple):
    """How a run that was differentiated went: the training loss at its end, and the test error in percent."""

    iteration: int
    training_loss: float
    test_error: float


# ---------------------------------------------------------------- several networks at once: the first dimension counts them


def shapes(task: data.Data, size: Size) -> dict[str, tuple[int, int]]:
    widths = (task.train.inputs.shape[1], size.hidden, size.hidden, size.hidden, 10)
    blocks: dict[str, tuple[int, int]] = {}
    for layer, (inputs, outputs) in zip(LAYERS, itertools.pairwise(widths), strict=True):
        blocks |= {f"{layer} weights": (inputs, outputs), f"{layer} biases": (1, outputs)}
    return blocks


def constant(rate: float, scale: float, task: data.Data, size: Size) -> Hyper:
    blocks = shapes(task, size)
    return Hyper(
        {block: torch.full((size.steps,), rate) for block in blocks},
        {block: torch.full((size.steps,), size.momentum) for block in blocks},
        {block: torch.tensor(scale) for block in blocks},
    )


def raw_of(hyper: Hyper) -> Hyper:
    """Logarithms of rates and scales, logits of momenta: any numbers."""
    return Hyper(*({block: f(x) for block, x in part.items()} for part, f in zip(hyper, FREE, strict=True)))


def hyper_of(raw: Hyper) -> Hyper:
    return Hyper(*({block: f(x) for block, x in part.items()} for part, f in zip(raw, BACK, strict=True)))


def draw_networks(count: int, scales: Blocks, task: data.Data, size: Size, generator: torch.Generator) -> Blocks:
    return {block: scales[block] * torch.randn(count, *shape, generator=generator) for block, shape in shapes(task, size).items()}


def draw_batches(count: int, task: data.Data, size: Size, generator: torch.Generator) -> list[Tensor]:
    return list(torch.randint(len(task.train), (size.steps, count, size.batch), generator=generator))


def logits(params: Blocks, x: Tensor) -> Tensor:
    for layer in LAYERS:
        x = x @ params[f"{layer} weights"] + params[f"{layer} biases"]
        x = torch.tanh(x) if layer != LAYERS[-1] else x
    return x


def losses_on(params: Blocks, examples: data.Examples) -> Tensor:
    """The loss of each network, on examples of its own or on the same."""
    outputs = logits(params, examples.inputs)  # [networks, examples, 10]
    labels = examples.labels.expand(outputs.shape[:2])
    return nn.functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none").mean(1)


@torch.no_grad()
def test_error(params: Blocks, task: data.Data) -> float:
    wrong = logits(params, task.test.inputs).argmax(2) != task.test.labels
    return 100 * wrong.double().mean().item()


# ---------------------------------------------------------------- learning


def learn(task: data.Data, size: Size) -> tuple[Hyper, list[Iteration]]:
    raw = raw_of(constant(size.rate, size.scale, task, size))
    leaves = [leaf.requires_grad_() for part in raw for leaf in part.values()]
    adam = torch.optim.Adam(leaves, lr=size.adam)
    slower = torch.optim.lr_scheduler.LinearLR(adam, 1, size.adam_end, size.iterations)
    history = []
    progress = tqdm(range(size.iterations), unit="run")
    for iteration in progress:
        generator = torch.Generator().manual_seed(iteration)
        hyper = hyper_of(raw)
        params = draw_networks(size.together, hyper.scales, task, size, generator)
        training = gdtuo.Training(
            lambda params, hyper, batch: losses_on(params, task.train[batch]).sum(),  # each network descends its own loss
            gdtuo.AveragingSGD(),
            batches=draw_batches(size.together, task, size, generator),
            steps=size.steps,
        )
        result = gdtuo.hypergradient(
            training,
            lambda params, hyper: losses_on(params, task.train).mean(),
            params,
            {"optimizer": {"lr": hyper.rates, "momentum": hyper.momenta}},
            method=gdtuo.Reversible(),
        )
        # From rates, momenta and initial weights autograd leads on, to the numbers that they were made of.
        adam.zero_grad()
        learned = result.hyper["optimizer"]
        torch.autograd.backward(
            [*hyper.rates.values(), *hyper.momenta.values(), *params.values()],
            [*learned["lr"].values(), *learned["momentum"].values(), *result.params.values()],
        )
        adam.step()
        slower.step()
        history.append(Iteration(iteration, result.value.item(), test_error(result.final, task)))
        progress.set_description(f"loss at the end of the run {history[-1].training_loss:.3f}")
    with torch.no_grad():
        return hyper_of(raw), history


# ---------------------------------------------------------------- judging


class Run(NamedTuple):
    """Training as ever with given hyperparameters, the mean of `JUDGES` networks."""

    steps: list[int]
    losses: list[float]  # on the training set before these steps
    error: float  # on the test set at the end, in percent


def train(hyper: Hyper, task: data.Data, size: Size, every: int) -> Run:
    generator = torch.Generator().manual_seed(2**32)  # none that learning has used
    params = draw_networks(JUDGES, hyper.scales, task, size, generator)
    optimizer = gdtuo.AveragingSGD([{"params": [weights.requires_grad_()]} for weights in params.values()])
    run = Run([], [], 0.0)

    def look(step: int) -> None:
        with torch.no_grad():
            run.steps.append(step)
            run.losses.append(losses_on(params, task.train).mean().item())

    for t, batch in enumerate(draw_batches(JUDGES, task, size, generator)):
        if t % every == 0:
            look(t)
        for group, block in zip(optimizer.param_groups, params, strict=True):
            group["lr"], group["momentum"] = hyper.rates[block][t].item(), hyper.momenta[block][t].item()
        optimizer.zero_grad()
        losses_on(params, task.train[batch]).sum().backward()
        optimizer.step()
    look(size.steps)
    return run._replace(error=test_error(params, task))


def judge(learned: Hyper, task: data.Data, size: Size) -> tuple[tuple[float, float], dict[str, Run]]:
    """The best of the grid, and how training goes from the start, with that and with what was learned."""
    cells = tqdm(GRID, desc="grid", unit="cell")
    losses = {
        (rate, scale): train(constant(rate, scale, task, size), task, size, every=size.steps).losses[-1] for rate, scale in cells
    }
    best, every = min(losses, key=lambda cell: losses[cell]), max(1, size.steps // 25)
    start = (size.rate, size.scale)
    runs = {}
    for name, (rate, scale) in (("start", start), ("best of grid", best)):
        label = f"{name}: rate {rate:.2g}, scale {scale:.2g}"
        runs[label] = train(constant(rate, scale, task, size), task, size, every)
    return best, {**runs, "learned": train(learned, task, size, every)}


# ---------------------------------------------------------------- what comes out


def print_table(runs: dict[str, Run], learned: Hyper, history: list[Iteration], task: data.Data, size: Size, title: str) -> None:
    print(f"\n{title}; mean of {JUDGES} new networks")
    print(f"{'':>34}  {'training loss':>13}  {'test error %':>12}")
    for name, run in runs.items():
        print(f"{name:>34}  {run.losses[-1]:13.4f}  {run.error:12.2f}")
    for name, row in (("first run differentiated", history[0]), ("last run differentiated", history[-1])):
        print(f"{name:>34}  {row.training_loss:13.4f}  {row.test_error:12.2f}")
    print(f"\n{'':>34}  {'median rate':>13}  {'last tenth':>12}  {'scale':>7}  {'1/√inputs':>9}  {'median momentum':>15}")
    for layer in LAYERS:
        block = f"{layer} weights"
        rates, scale, inputs = learned.rates[block], learned.scales[block].item(), shapes(task, size)[block][0]
        late, momentum = rates[-math.ceil(len(rates) / 10) :].mean().item(), learned.momenta[block].median().item()
        print(f"{layer:>34}  {rates.median().item():13.2f}  {late:12.2f}  {scale:7.2f}  {inputs**-0.5:9.2f}  {momentum:15.3f}")


def draw(
    runs: dict[str, Run],
    learned: Hyper,
    history: list[Iteration],
    best: tuple[float, float],
    size: Size,
    title: str,
    out: Path,
) -> None:
    """Left: the loss of each run that was differentiated. Middle: the rates of each layer. Right: training with them."""
    plt = figures.pyplot()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14.5, 4.6), layout="constrained", width_ratios=(2, 3, 3))
    left.plot([row.training_loss for row in history], ".-", color=figures.BLUE)
    left.set(xlabel="run differentiated", ylabel="training loss at the end of the run")
    figures.plain_log(left)
    left.set_title("Runs get better,")

    shades = plt.colormaps["Blues"]
    for k, layer in enumerate(LAYERS):
        rates, scale = learned.rates[f"{layer} weights"], learned.scales[f"{layer} weights"].item()
        middle.plot(rates, color=shades(0.4 + 0.2 * k), linewidth=2, label=f"{layer} (initial scale {scale:.2f})")
    constants = ((figures.GREEN, "--", "best of grid", *best), (figures.ORANGE, ":", "start", size.rate, size.scale))
    for color, style, name, rate, scale in constants:
        label = f"{name} (scale {scale:.2g})"
        middle.axhline(rate, color=color, linewidth=1.5, linestyle=style, zorder=1, label=label)
    middle.set(xlabel="training step", ylabel="learning rate of the weights", xlim=(0, size.steps))
    figures.plain_log(middle)
    lowest = min(size.rate, *(rates.min().item() for block, rates in learned.rates.items() if block.endswith("weights")))
    middle.set_ylim(bottom=0.2 * lowest)  # the legend's room
    middle.set_title("for each layer has learned a rate for each step,")
    middle.legend(frameon=False, fontsize=9, loc="lower left", ncols=2)

    looks = ((figures.ORANGE, ":"), (figures.GREEN, "--"), (figures.BLUE, "-"))
    for (name, run), (color, style) in zip(runs.items(), looks, strict=True):
        right.plot(run.steps, run.losses, color=color, linestyle=style, linewidth=2, label=name)
    right.set(xlabel="training step", ylabel="training loss", xlim=(0, size.steps))
    figures.plain_log(right)
    right.set_ylim(bottom=0.4 * runs["learned"].losses[-1])  # the legend's room
    right.legend(frameon=False, loc="lower left", title=f"mean of {JUDGES} new networks", alignment="left")
    right.set_title("which serves new networks")
    figures.save(figure, out, title)


def main() -> None:
    chosen = experiment(__file__, __doc__, SIZES, steps="of a training run", iterations="how many runs are differentiated")
    size, task = chosen.size, data.Data(chosen.task.train[: chosen.size.examples], chosen.task.test)
    learned, history = learn(task, size)
    best, runs = judge(learned, task, size)
    title = f"{chosen.name}: a network of four layers trained for {size.steps} steps, learned from {size.iterations} such runs"
    print_table(runs, learned, history, task, size, title)
    draw(runs, learned, history, best, size, title, chosen.out)
    chosen.finish(history)


if __name__ == "__main__":
    main()
