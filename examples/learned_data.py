"""Ten training images, learned from nothing: the pixels are the hyperparameters.

Softmax regression is trained for 30 steps on ten images, one for each class, and judged by its loss on real digits. Training
is differentiated as a whole, which gives the derivative of that loss with respect to every pixel of the ten images and to the
L2 penalty of the weights, and Adam follows it from blank images on. Beside it: the same training on ten real digits, on the
mean image of each class, and on all the real digits.

    python examples/learned_data.py                           # scikit-learn's digits
    python examples/learned_data.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions
    python examples/learned_data.py --paper --data DIR

After Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning", ICML 2015,
section 3.3.
"""

from __future__ import annotations

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
    """Of training on the images, and of learning them."""

    real: int  # images, that the learned ones are judged by
    centred: bool  # around the mean image, which is then 0
    steps: int  # of a training run, on all training images at a time
    rate: float  # of training on learned images; of as coarse a choice as `RATES`, made by hand
    weights: float  # scale of the initial ones
    images: float  # scale of the noise that they are learned from
    penalty: float  # the first one
    iterations: int  # trainings that are differentiated
    learner: type[torch.optim.Optimizer]
    learner_rate: float


DIGITS = Size(60_000, False, 30, 1.0, 0.0, 0.0, 1e-4, 100, torch.optim.Adam, 0.05)
PAPER = Size(10_000, True, 20, 0.1, math.exp(-4), 0.01, 0.01, 40, torch.optim.SGD, 1.0)
PUBLISHED = (
    "ten images of 784 pixels and an L2 penalty, 20 steps, judged by 10,000 real images, 40 iterations of gradient "
    "descent with a step of 1; nothing is reduced"
)
SIZES = Sizes(DIGITS, DIGITS._replace(rate=0.1), PAPER, PUBLISHED)

CLASSES = torch.arange(10)
MOMENTUM = 0.9
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # real images get the best of these
PICKS = 10  # of ten real images each

Params = dict[str, Tensor]


class Run(NamedTuple):
    """How a trained model does."""

    validation: float  # loss on the real images that the learned ones are made for
    test: float  # loss on the test set
    error: float  # on the test set, in percent


class Row(NamedTuple):
    """A line of the table of numbers; `iteration` counts what is learned."""

    trained_on: str
    iteration: int
    validation_loss: float
    test_loss: float
    test_error: float


def start(features: int, size: Size) -> Params:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (features, 10), "bias": (10,)}
    return {name: size.weights * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def logits(params: Params, inputs: Tensor) -> Tensor:
    return inputs @ params["weight"] + params["bias"]


def loss_on(params: Params, inputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits(params, inputs), labels)


@torch.no_grad()
def judged(params: Params, task: data.Data) -> Run:
    validation, test = (loss_on(params, part.inputs, part.labels).item() for part in task)
    wrong = logits(params, task.test.inputs).argmax(1) != task.test.labels
    return Run(validation, test, 100 * wrong.double().mean().item())


# ---------------------------------------------------------------- learning images


def training_loss(params: Params, hyper: Params, batch: None) -> Tensor:
    penalty = hyper["log_penalty"].exp() * sum(weights.square().sum() for weights in params.values())
    return loss_on(params, hyper["images"], CLASSES) + penalty


def learn(task: data.Data, size: Size) -> tuple[Tensor, list[Run]]:
    """The images, and how training on them went before each iteration and at the end."""
    features = task.train.inputs.shape[1]
    images = size.images * torch.randn(10, features, generator=torch.Generator().manual_seed(1))
    hyper = {"images": images, "log_penalty": torch.tensor(size.penalty).log()}
    training = gdtuo.Training(training_loss, gdtuo.SGD(lr=size.rate, momentum=MOMENTUM), steps=size.steps)
    learner = size.learner(list(hyper.values()), lr=size.learner_rate)  # type: ignore[call-arg]
    params, runs = start(features, size), []
    for _ in tqdm(range(size.iterations), unit="run"):
        result = gdtuo.hypergradient(
            training,
            lambda params, hyper: loss_on(params, task.train.inputs, task.train.labels),
            params,
            hyper,
            method=gdtuo.Reversible(),
        )
        runs.append(judged(result.final, task))
        for name, leaf in hyper.items():
            leaf.grad = result.hyper[name]
        learner.step()
    return images, [*runs, judged(gdtuo.train(training, params, hyper), task)]


# ---------------------------------------------------------------- training as ever, on real images


def train(inputs: Tensor, labels: Tensor, rate: float, task: data.Data, size: Size) -> Run:
    params = {name: weight.requires_grad_() for name, weight in start(inputs.shape[1], size).items()}
    optimizer = torch.optim.SGD(params.values(), lr=rate, momentum=MOMENTUM)
    for _ in range(size.steps):
        optimizer.zero_grad()
        loss_on(params, inputs, labels).backward()
        optimizer.step()
    return judged(params, task)


def best(inputs: Tensor, labels: Tensor, task: data.Data, size: Size) -> Run:
    return min((train(inputs, labels, rate, task, size) for rate in RATES), key=lambda run: run.validation)


def real(task: data.Data, size: Size) -> dict[str, Run]:
    """What real images are worth."""
    members = [task.train.inputs[task.train.labels == k] for k in CLASSES]
    generator = torch.Generator().manual_seed(0)
    picks = []
    for _ in range(PICKS):
        ten = torch.stack([images[torch.randint(len(images), (), generator=generator)] for images in members])
        picks.append(best(ten, CLASSES, task, size))
    return {
        "a real one of each class": Run(*(sum(numbers) / PICKS for numbers in zip(*picks, strict=True))),
        "the mean of each class": best(torch.stack([images.mean(0) for images in members]), CLASSES, task, size),
        f"all {len(task.train):,} real ones": best(task.train.inputs, task.train.labels, task, size),
    }


# ---------------------------------------------------------------- what comes out


def print_table(first: Run, last: Run, others: dict[str, Run], title: str) -> None:
    print(f"\n{title}")
    print(f"{'trained on':>26}  {'validation loss':>15}  {'test loss':>9}  {'test error %':>12}")
    for name, run in {"the first images": first, **others, "ten learned ones": last}.items():
        print(f"{name:>26}  {run.validation:15.3f}  {run.test:9.3f}  {run.error:12.1f}")


def draw(images: Tensor, runs: list[Run], others: dict[str, Run], size: Size, title: str, out: Path) -> None:
    """Left: the ten learned images. Right: the loss on real test digits while they are learned, beside real images."""
    plt = figures.pyplot()
    figure = plt.figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(6, 5))[0]
    blank = "as in the mean image" if size.centred else "blank"
    label = f"pixel: red is ink, blue is ink that must not be there, white is {blank}"
    most = images.abs().max().item()
    figures.gallery(left, images, "Ten training images, learned from blank ones", label, vmin=-most, vmax=most)

    axis = right.subplots()
    axis.plot(range(len(runs)), [run.test for run in runs], color=figures.BLUE, linewidth=2, label="the ten learned images")
    looks = ((figures.ORANGE, "bottom"), (figures.ORANGE, "bottom"), (figures.GREEN, "top"))
    for (name, run), (color, place) in zip(others.items(), looks, strict=True):
        axis.axhline(run.test, color=color, linestyle="--", linewidth=1.5)
        shift = (0, 3 if place == "bottom" else -3)
        axis.annotate(name, (len(runs) - 1, run.test), shift, color=color, ha="right", va=place, textcoords="offset points")
    axis.set(xlabel="trainings that were differentiated", ylabel="loss on the test set", xlim=(0, len(runs) - 1))
    figures.plain_log(axis)
    axis.set_ylim(bottom=0.75 * min(run.test for run in (*runs, *others.values())))
    axis.legend(frameon=False, loc="upper right")
    axis.set_title(f"After {size.steps} training steps on them")
    figures.save(figure, out, title)


def main() -> None:
    chosen = experiment(__file__, __doc__, SIZES, steps="of a training run", iterations="how many trainings are differentiated")
    size = chosen.size
    train, test = chosen.task.train[: size.real], chosen.task.test
    shift = train.inputs.mean(0) * size.centred
    task = data.Data(*(data.Examples(part.inputs - shift, part.labels) for part in (train, test)))
    images, runs = learn(task, size)
    others = real(task, size)
    title = f"{chosen.name}: softmax regression, {size.steps} training steps"
    print_table(runs[0], runs[-1], others, title)
    draw(images, runs, others, size, title, chosen.out)
    rows = [Row("ten learned ones", k, *run) for k, run in enumerate(runs)]
    chosen.finish(rows + [Row(name, 0, *run) for name, run in others.items()])


if __name__ == "__main__":
    main()
