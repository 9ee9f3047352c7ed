"""Ten training images, learned from nothing: the pixels are the hyperparameters.

Softmax regression is trained for 30 steps on ten images, one for each class, and judged by its loss on real digits. Training
is differentiated as a whole, which gives the derivative of that loss with respect to every pixel of the ten images, and Adam
follows it from blank images on. Beside it: the same training on ten real digits, on the mean image of each class, and on all
the real digits.

    python examples/learned_data.py                           # scikit-learn's digits
    python examples/learned_data.py --task mnist --data DIR   # DIR/mnist/train-images-idx3-ubyte.gz and its companions

After Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning", ICML 2015.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import gdtuo
from gdtuo.lab import data, options

CLASSES = torch.arange(10)
STEPS = 30  # of a training run, on all training images at a time
MOMENTUM = 0.9
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # real images get the best of these
PICKS = 10  # of ten real images each

Params = dict[str, Tensor]


class Run(NamedTuple):
    """How a trained model does."""

    validation: float  # loss on the real images that the learned ones are made for
    test: float  # loss on the test set
    error: float  # on the test set, in percent


def start(features: int) -> Params:
    return {"weight": torch.zeros(features, 10), "bias": torch.zeros(10)}


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


def rate_of(task: data.Data) -> float:
    """The learning rate of training on learned images; of as coarse a choice as `RATES`, made by hand."""
    return 1.0 if task.train.inputs.shape[1] < 100 else 0.1


def learn(task: data.Data, iterations: int) -> tuple[Tensor, list[Run]]:
    """The images, and how training on them went before each iteration."""
    images = torch.zeros(10, task.train.inputs.shape[1])
    training = gdtuo.Training(
        lambda params, hyper, batch: loss_on(params, hyper["images"], CLASSES),
        gdtuo.SGD(lr=rate_of(task), momentum=MOMENTUM),
        steps=STEPS,
    )
    adam = torch.optim.Adam([images], lr=0.05)
    runs = []
    for _ in tqdm(range(iterations), unit="run"):
        result = gdtuo.hypergradient(
            training,
            lambda params, hyper: loss_on(params, task.train.inputs, task.train.labels),
            start(images.shape[1]),
            {"images": images},
            method=gdtuo.Reversible(),
        )
        runs.append(judged(result.final, task))
        images.grad = result.hyper["images"]
        adam.step()
    return images, runs


# ---------------------------------------------------------------- training as ever, on any images


def train(inputs: Tensor, labels: Tensor, rate: float, task: data.Data) -> Run:
    params = {name: weight.requires_grad_() for name, weight in start(inputs.shape[1]).items()}
    optimizer = torch.optim.SGD(params.values(), lr=rate, momentum=MOMENTUM)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_on(params, inputs, labels).backward()
        optimizer.step()
    return judged(params, task)


def best(inputs: Tensor, labels: Tensor, task: data.Data) -> Run:
    return min((train(inputs, labels, rate, task) for rate in RATES), key=lambda run: run.validation)


def real(task: data.Data) -> dict[str, Run]:
    """What real images are worth."""
    members = [task.train.inputs[task.train.labels == k] for k in CLASSES]
    generator = torch.Generator().manual_seed(0)
    picks = []
    for _ in range(PICKS):
        ten = torch.stack([images[torch.randint(len(images), (), generator=generator)] for images in members])
        picks.append(best(ten, CLASSES, task))
    return {
        "a real one of each class": Run(*(sum(numbers) / PICKS for numbers in zip(*picks, strict=True))),
        "the mean of each class": best(torch.stack([images.mean(0) for images in members]), CLASSES, task),
        f"all {len(task.train):,} real ones": best(task.train.inputs, task.train.labels, task),
    }


# ---------------------------------------------------------------- what comes out


def print_table(table: dict[str, Run], title: str) -> None:
    print(f"\n{title}")
    print(f"{'trained on':>26}  {'validation loss':>15}  {'test loss':>9}  {'test error %':>12}")
    for name, run in table.items():
        print(f"{name:>26}  {run.validation:15.3f}  {run.test:9.3f}  {run.error:12.1f}")


def draw(images: Tensor, runs: list[Run], others: dict[str, Run], title: str, out: str) -> None:
    """Left: the ten learned images. Right: the loss on real test digits while they are learned, beside real images."""
    import matplotlib as mpl

    mpl.use("Agg")  # a picture in a file needs no display
    import matplotlib.pyplot as plt

    blue, orange, green = "#0072b2", "#d55e00", "#009e73"  # colour-blind readers tell them apart (Okabe, Ito)
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"grid.alpha": 0.25, "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 12})
    plt.rcParams.update({"figure.constrained_layout.w_pad": 0.08, "figure.constrained_layout.h_pad": 0.08})
    figure = plt.figure(figsize=(12, 4.6), layout="constrained")
    gallery, curves = figure.subfigures(1, 2, squeeze=False, width_ratios=(6, 5))[0]

    axes = gallery.subplots(2, 5)
    side, most = math.isqrt(images.shape[1]), images.abs().max().item()
    for k, axis in enumerate(axes.flat):
        shown = axis.imshow(images[k].reshape(side, side), cmap="RdBu_r", vmin=-most, vmax=most)
        axis.set_title(f"class {k}", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="0.8")
    bar = gallery.colorbar(shown, ax=axes, orientation="horizontal", fraction=0.06)
    bar.set_label("pixel: red is ink, blue is ink that must not be there, white is blank")
    gallery.suptitle("Ten training images, learned from blank ones", x=0.02, ha="left", fontsize=12)

    axis = curves.subplots()
    axis.grid(True)
    axis.plot(range(len(runs)), [run.test for run in runs], color=blue, linewidth=2, label="the ten learned images")
    for (name, run), color, place in zip(others.items(), (orange, orange, green), ("bottom", "bottom", "top"), strict=True):
        axis.axhline(run.test, color=color, linestyle="--", linewidth=1.5)
        shift = (0, 3 if place == "bottom" else -3)
        axis.annotate(name, (len(runs) - 1, run.test), shift, color=color, ha="right", va=place, textcoords="offset points")
    axis.set(xlabel="trainings that were differentiated", ylabel="loss on the test set", xlim=(0, len(runs) - 1), yscale="log")
    axis.set_ylim(bottom=0.75 * min(run.test for run in (*runs, *others.values())))
    axis.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.legend(frameon=False, loc="upper right")
    axis.set_title(f"After {STEPS} training steps on them")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_task(parser)
    parser.add_argument("--iterations", type=int, default=100, help="how many trainings are differentiated (default: 100)")
    parser.add_argument("--out", default="learned_data.png", help="where the picture goes (default: learned_data.png)")
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "iterations")
    task = options.load_task(parser, arguments)

    torch.set_num_threads(1)  # threads cost more than they bring with matrices this small
    images, runs = learn(task, arguments.iterations)
    runs.append(train(images, CLASSES, rate_of(task), task))
    others = real(task)
    title = f"{arguments.task}: softmax regression, {STEPS} training steps"
    print_table({**others, "ten learned ones": runs[-1]}, title)
    draw(images, runs, others, title, arguments.out)
    print(f"\nThe picture: {arguments.out}")


if __name__ == "__main__":
    main()
