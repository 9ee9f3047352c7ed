"""A character model of War and Peace: two layers of 128 LSTM cells, trained by Adam and by Adam with a learned learning rate.

From three initial rates: Adam alone; the published algorithm, Adam above Adam, with a hyper-step of a hundredth of the initial
rate; and this package's defaults, Adam / SGD / SGD. The paper trains for 50 epochs; this is about one.

    python examples/paper/char_rnn.py --text FILE    # 12 minutes of one core; killed and called again, it goes on
    python examples/paper/char_rnn.py --quick        # a small network reads this package's own source: seconds

After Chandra, Xie, Ragan-Kelley, Meijer, "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022. Text and network are those of
Karpathy, Johnson, Fei-Fei, "Visualizing and Understanding Recurrent Networks", 2015; but chunks of the text come in random
order, and the network reads each without what came before.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import mnist
import stacks
import torch
from torch import Tensor, nn

import gdtuo
from gdtuo.lab import figures, options
from gdtuo.lab.characters import Text, read_text
from gdtuo.lab.journal import Row
from gdtuo.lab.recurrent import BATCH, LENGTH, Characters, draw_chunks, validation_loss
from gdtuo.lab.sweep import sweep

STARTS = (1e-4, 2e-3, 1e-2)


class Kind(NamedTuple):
    """An optimizer: by which package, its stack at a rate."""

    title: str
    package: str
    form: str  # of the stack: {lr} is the initial rate, {hyper} a hundredth of it
    color: str
    stroke: str

    def stack(self, lr: float) -> str:
        """Its text."""
        return self.form.format(lr=f"{lr:g}", hyper=f"{lr / 100:g}")


KINDS = (
    Kind("Adam", "compat", "Adam({lr})", figures.BLACK, ":"),
    Kind("published: Adam[lr] / Adam(lr₀/100)", "compat", "AdamBaydin({lr}) / Adam({hyper})", figures.BLUE, "--"),
    Kind("gdtuo's defaults: Adam / SGD / SGD", "gdtuo", "AdamBaydin({lr}) / SGD / SGD", figures.ORANGE, "-"),
)


class Size(NamedTuple):
    """How large the experiment is: cells in a layer, steps of training, steps between two looks at the validation loss."""

    width: int
    steps: int
    every: int
    seeds: int = 1

    @property
    def looks(self) -> range:
        """The numbers of steps after which the validation loss is taken."""
        return range(0, self.steps + 1, self.every)


FULL = Size(width=128, steps=1200, every=60)
QUICK = Size(width=16, steps=10, every=10)


# ---------------------------------------------------------------- training


@functools.cache
def _read(path: Path) -> Text:
    return read_text(path)


def _loss(model: Characters, chunks: Tensor) -> Tensor:
    """In nats per character."""
    return nn.functional.cross_entropy(model(chunks[:, :-1]).flatten(0, 1), chunks[:, 1:].flatten())


def train(package: str, stack: str, seed: int, path: Path, size: Size) -> Mapping[str, float | str]:
    """The validation loss and the learning rate at each look; initial weights and batches depend on the seed alone."""
    text = _read(path)
    torch.manual_seed(seed)
    model = Characters(len(text.vocabulary), size.width)
    trainer = stacks.Trainer(package, stack, model)
    generator = torch.Generator().manual_seed(seed)
    chunks = itertools.chain.from_iterable(draw_chunks(text.train, generator) for _ in itertools.count())
    found: dict[str, float | str] = {}
    for step in range(size.steps + 1):
        if step % size.every == 0:
            with torch.no_grad():
                found[f"loss {step}"] = validation_loss(model, text.validation)
            found[f"lr {step}"] = trainer.learned()["lr"]
        if step < size.steps:
            trainer.step(functools.partial(_loss, model, next(chunks)))
    return found


# ---------------------------------------------------------------- what comes out


def results(size: Size) -> list[str]:
    """The columns."""
    return [f"{name} {step}" for step in size.looks for name in ("loss", "lr")]


def table(rows: Mapping[tuple[str, str], Row], size: Size) -> str:
    """As Markdown: of each optimizer and start the validation loss half way and at the end, the best, and the last rate."""
    middle, last = size.looks[len(size.looks) // 2], size.looks[-1]
    lines = [["optimizer", "initial lr", f"loss after {middle} steps", f"after {last}", "last lr"]]
    lines.append(["---"] * len(lines[0]))
    for lr in STARTS:
        for kind in KINDS:
            row = rows[kind.package, kind.stack(lr)]
            losses = [f"{row[f'loss {step}']:.3f}" for step in (middle, last)]
            lines.append([kind.title, f"{lr:g}", *losses, f"{row[f'lr {last}']:.2g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: Mapping[tuple[str, str], Row], size: Size, title: str, path: Path) -> None:
    """A column for each start: above the validation loss, below the learning rate, over steps."""
    plt = figures.pyplot()
    figure, (above, below) = plt.subplots(2, 3, figsize=(13, 7.6), layout="constrained", sharex=True, sharey="row")
    for lr, upper, lower in zip(STARTS, above, below, strict=True):
        for kind in KINDS:
            row = rows[kind.package, kind.stack(lr)]
            for name, axes in (("loss", upper), ("lr", lower)):
                values = [row[f"{name} {step}"] for step in size.looks]
                axes.plot(size.looks, values, color=kind.color, linestyle=kind.stroke, linewidth=2, label=kind.title)
        upper.set_title(f"initial learning rate {lr:g}")
        lower.set_xlabel("training step")
    above[0].set(ylabel="validation loss, nats per character", yscale="log")
    ticks = [1.5, 2, 2.5, 3, 3.5, 4, 4.5]
    above[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    above[0].minorticks_off()
    below[0].set(ylabel="Adam's learning rate", yscale="log")
    handles, labels = above[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(KINDS), fontsize=11)
    figure.suptitle(title, **figures.HEADLINE)
    figures.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text in UTF-8")
    mnist.add_output(parser)
    mnist.add_processes(parser)
    arguments = parser.parse_args()
    options.at_least_1(parser, arguments, "processes")
    if not (arguments.text or arguments.quick):
        parser.error("no text is named. Give --text FILE, or --quick for a small version without one.")
    size = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        text = arguments.text or own_source(Path(folder))
        try:
            length = len(_read(text).train)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        path = arguments.out / "char_rnn.csv"
        cells: list[dict[str, str | int]] = [
            {"package": kind.package, "stack": kind.stack(lr), "seed": seed}
            for seed in range(size.seeds)
            for lr in STARTS
            for kind in KINDS
        ]
        call = functools.partial(train, path=text, size=size)
        found = sweep(call, cells, path, results(size), arguments.processes, "char-RNN")
    rows = {(str(row["package"]), str(row["stack"])): row for row in found if row["seed"] == 0}
    epochs = size.steps * BATCH * LENGTH / length
    name = arguments.text.name if arguments.text else "this package's source"
    title = f"2 × {size.width} LSTM on {name}: {size.steps:,} steps, {epochs:.1f} epochs (the paper: 50)"
    picture = arguments.out / "paper-char-rnn.png"
    draw(rows, size, title, picture)
    mnist.finish(table(rows, size), path, picture)


def own_source(folder: Path) -> Path:
    """A text that everybody has."""
    path = folder / "source.txt"
    sources = sorted(Path(gdtuo.__file__).parent.glob("*.py"))
    path.write_text("".join(source.read_text(encoding="utf-8") for source in sources), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
