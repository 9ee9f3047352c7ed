"""Which tasks are related? Learned from validation data, together with how strongly the tasks should be tied.

Nine cameras look at digits: three hang upright, three lie on the side, three look into a mirror, and of each three one is
sharp, one dark and one noisy. Each is a task with a softmax regression of its own and 30 examples. The tasks are trained
together on

    sum of the tasks' losses + sum over pairs A_ij |w_i - w_j|² + rho |W|²

and A, rho >= 0 are learned by gradient descent on the validation loss, through the whole training. Nobody says which
cameras hang alike. Beside it: separate tasks (A = 0), all pairs tied equally (one number to learn), and the known groups.
After Franceschi et al. 2017, section 5.2 (there with the classes of CIFAR).

    python examples/task_relations.py
    python examples/task_relations.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
"""

from __future__ import annotations

import math
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
    """Of the experiment."""

    iterations: int  # steps of A and rho
    seeds: int


SIZES = Sizes(Size(25, 3), Size(25, 3))

POSITIONS: dict[str, Callable[[Tensor], Tensor]] = {  # of images [n, side, side]
    "upright": lambda images: images,
    "on its side": lambda images: images.rot90(1, (1, 2)),
    "mirrored": lambda images: images.flip(2),
}
LENSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sharp": lambda images: images,
    "dark": lambda images: 0.5 * images,
    "noisy": lambda images: images + 0.3 * torch.randn(images.shape),
}
TASKS = [f"{position}, {lens}" for position in POSITIONS for lens in LENSES]
TRAINING, VALIDATION, TEST = 30, 60, 300  # examples a task
STEPS = 50  # of training, which the hypergradient goes through

COUNT = len(TASKS)
OTHERS = 1 - torch.eye(COUNT)
GROUP = torch.arange(COUNT) // len(LENSES)
ALIKE = OTHERS * (GROUP[:, None] == GROUP)
WAYS: dict[str, tuple[Tensor, list[int]]] = {  # which pairs are tied, and the shape of what is learned: one strength or all
    "separate": (0 * OTHERS, []),
    "all tied equally": (OTHERS, []),
    "learned": (OTHERS, [COUNT, COUNT]),
    "groups known": (ALIKE, []),
}


class Sets(NamedTuple):
    """What the tasks see."""

    inputs: Tensor  # [tasks, n, features]
    labels: Tensor  # [tasks, n]


class Outcome(NamedTuple):
    """What is left of one way to relate the tasks."""

    relations: Tensor  # A
    loss: float  # on the test sets, mean of the tasks
    error: float  # in percent


class Row(NamedTuple):
    """A line of the table of numbers."""

    tasks: str
    seed: int
    a_inside_groups: float
    a_between_groups: float
    test_loss: float
    test_error: float


def see(task: str, images: Tensor) -> Tensor:
    """Images [n, side, side] as a camera of that name shows them."""
    position, lens = task.split(", ")
    return LENSES[lens](POSITIONS[position](images))


def images_of(examples: data.Examples) -> Tensor:
    """As [n, side, side], larger ones shrunk to about the digits' 8 × 8: with few examples small images teach more."""
    side = math.isqrt(examples.inputs.shape[1])
    return nn.functional.avg_pool2d(examples.inputs.reshape(-1, side, side), side // 8)


def look(examples: data.Examples, count: int) -> Sets:
    """Each camera looks at other examples."""
    seen = [examples[torch.randperm(len(examples))[:count]] for _ in TASKS]
    images = [see(task, images_of(some)) for task, some in zip(TASKS, seen, strict=True)]
    return Sets(torch.stack(images).flatten(2), torch.stack([some.labels for some in seen]))


def logits(w: Tensor, sets: Sets) -> Tensor:
    return torch.einsum("tnf,tfc->tcn", sets.inputs, w)


def relate(way: str, training: Sets, validation: Sets, test: Sets, iterations: int) -> Outcome:
    """Learn A and rho, and train with them."""
    tied, shape = WAYS[way]

    def loss(params: Any, hyper: Any, batch: Any) -> Tensor:
        w = params["w"].flatten(1)
        ties = tied * hyper["a"] * (w[:, None] - w).square().sum(2)  # symmetric, so A remains so
        data_loss = COUNT * cross_entropy(logits(params["w"], training), training.labels)
        return data_loss + ties.sum() / 2 + hyper["rho"] * w.square().sum()  # each pair stands in A twice

    def outer_loss(params: Any, hyper: Any) -> Tensor:
        return cross_entropy(logits(params["w"], validation), validation.labels)

    run = gdtuo.Training(loss, gdtuo.SGD(lr=0.2, momentum=0.9), steps=STEPS)
    start = {"w": torch.zeros(COUNT, training.inputs.shape[2], 10)}
    hyper = {"a": nn.Parameter(torch.full(shape, 2e-3)), "rho": nn.Parameter(torch.tensor(1e-2))}
    optimizer = torch.optim.Adam([{"params": [hyper["a"]], "lr": 0.02}, {"params": [hyper["rho"]], "lr": 0.002}])
    result = gdtuo.hypergradient(run, outer_loss, start, hyper)
    for _ in range(iterations):
        for name, number in hyper.items():
            number.grad = result.hyper[name]
        optimizer.step()
        with torch.no_grad():
            for number in hyper.values():
                number.copy_(gdtuo.project_box(number, 0.0, 0.5))
        result = gdtuo.hypergradient(run, outer_loss, start, hyper)
    scores = logits(result.final["w"], test)
    error = 100 * (scores.argmax(1) != test.labels).double().mean().item()
    return Outcome(tied * hyper["a"].detach(), cross_entropy(scores, test.labels).item(), error)


def compare(task: data.Data, size: Size) -> dict[str, list[Outcome]]:
    """Every way to relate the tasks, for every seed."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in WAYS}
    half = len(task.train) // 2
    progress = tqdm([(seed, name) for seed in range(size.seeds) for name in WAYS], unit="run")
    for seed, name in progress:
        progress.set_description(name)
        torch.manual_seed(seed)  # the same examples for every name
        training, validation = look(task.train[:half], TRAINING), look(task.train[half:], VALIDATION)
        outcomes[name].append(relate(name, training, validation, look(task.test, TEST), size.iterations))
    return outcomes


# ---------------------------------------------------------------- what comes out


def row(name: str, seed: int, run: Outcome) -> Row:
    inside, between = ((run.relations * which).sum().item() / which.sum().item() for which in (ALIKE, OTHERS - ALIKE))
    return Row(name, seed, inside, between, run.loss, run.error)


def print_table(outcomes: dict[str, list[Outcome]], title: str) -> None:
    print(f"\n{title}; mean of {len(outcomes['learned'])} seeds")
    print(f"{'tasks':>16}  {'A inside groups':>15}  {'A between groups':>16}  {'test loss':>9}  {'test error %':>12}")
    for name, runs in outcomes.items():
        rows = [row(name, seed, run)[2:] for seed, run in enumerate(runs)]
        inside, between, loss, error = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        print(f"{name:>16}  {inside:15.4f}  {between:16.4f}  {loss:9.3f}  {error:12.1f}")


def draw(outcomes: dict[str, list[Outcome]], example: Tensor, title: str, out: Path) -> None:
    """Left: the learned relations, beside one example as the tasks see it. Right: test errors."""
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", width_ratios=(1.3, 1))
    a = torch.stack([run.relations for run in outcomes["learned"]]).mean(0)
    image = left.imshow(a, cmap="Blues", vmin=0)
    left.grid(False)
    figure.colorbar(image, ax=left, label="A: strength of the tie", shrink=0.8)
    for row, task in enumerate(TASKS):
        thumbnail = left.inset_axes((-1.55, row - 0.45, 0.9, 0.9), transform=left.transData)
        thumbnail.imshow(see(task, example)[0], cmap="gray", vmin=0, vmax=1)
        thumbnail.set_axis_off()
    left.set_yticks(range(COUNT), TASKS)
    left.tick_params(axis="y", length=0, pad=34)
    left.set_xticks([])
    left.set_xlabel("the same cameras")
    left.set_title("Nobody says which cameras hang alike: it is learned,")

    names = list(outcomes)
    for bar, name in enumerate(names):
        errors = [run.error for run in outcomes[name]]
        height = sum(errors) / len(errors)
        right.bar(bar, height, color=figures.BLUE if name == "learned" else "0.75", width=0.65)
        right.plot([bar] * len(errors), errors, ".", color="0.25")
        right.text(bar, max(errors) + 1, f"{height:.1f}", ha="center")
    right.set_xticks(range(len(names)), ["\n".join(name.rsplit(" ", 1)) for name in names])
    right.set(ylabel="test error, %")
    right.margins(y=0.12)
    right.grid(False, axis="x")
    right.set_title("and then they help each other")
    figures.save(figure, out, title)


def main() -> None:
    chosen = experiment(__file__, __doc__, SIZES, iterations="steps of A and rho", seeds="how many choices of examples")
    outcomes = compare(chosen.task, chosen.size)
    title = f"{chosen.name}: {COUNT} cameras with {TRAINING} training examples each"
    print_table(outcomes, title)
    test = chosen.task.test
    draw(outcomes, images_of(test[test.labels == 6])[:1], title, chosen.out)
    chosen.finish([row(name, seed, run) for name, runs in outcomes.items() for seed, run in enumerate(runs)])


if __name__ == "__main__":
    main()
