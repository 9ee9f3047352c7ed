"""A character model of War and Peace: two layers of 128 LSTM cells, trained by Adam and by Adam with a learned learning rate.

From three initial rates: Adam alone; the published algorithm, Adam above Adam, with a hyper-step of a hundredth of the initial
rate; and this package's defaults, Adam / SGD / SGD. The paper trains for 50 epochs; this is about two and a half.

    python examples/paper/char_rnn.py --text FILE    # 20 minutes of one core; killed and called again, it goes on
    python examples/paper/char_rnn.py --quick        # a small network reads this package's own source: seconds

After Chandra, Xie, Ragan-Kelley, Meijer, "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022, section 4.3; text and network
are those of Karpathy, Johnson, Fei-Fei, "Visualizing and Understanding Recurrent Networks", 2015.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import stacks
import torch
from torch import Tensor, nn

import gdtuo
from gdtuo.lab import figures, options
from gdtuo.lab.characters import Text, read_text
from gdtuo.lab.journal import Row
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
    """How large the experiment is: of the network, of a batch (texts read side by side, characters of each), of the run."""

    cells: int
    side_by_side: int
    length: int
    steps: int
    every: int  # steps between two looks at the validation loss
    validation: int  # batches in a look
    seeds: int

    @property
    def looks(self) -> range:
        """The numbers of steps after which the validation loss is taken."""
        return range(0, self.steps + 1, self.every)


FULL = Size(128, 50, 50, 3000, 150, 40, 1)
QUICK = Size(16, 10, 20, 40, 20, 5, 1)


# ---------------------------------------------------------------- training


class Characters(nn.Module):
    """Two layers of LSTM from characters to logits of the next."""

    def __init__(self, vocabulary: int, cells: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(vocabulary, cells, num_layers=2, batch_first=True)
        self.out = nn.Linear(cells, vocabulary)

    def forward(self, text: Tensor, memory: Sequence[Tensor] | None) -> tuple[Tensor, Sequence[Tensor]]:
        """[batch, time] numbers of characters -> [batch, time, vocabulary] logits; the memory goes on from text to text."""
        hot = nn.functional.one_hot(text, self.out.out_features).to(self.out.weight.dtype)
        hidden, memory = self.lstm(hot, memory)
        return self.out(hidden), memory


def batches(text: Tensor, side_by_side: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The text from its beginning, in so many parts read side by side: characters and those that follow them."""
    part = (len(text) - 1) // side_by_side
    first, following = (text[k : k + side_by_side * part].view(side_by_side, part) for k in (0, 1))
    for start in range(0, part - length + 1, length):
        yield first[:, start : start + length], following[:, start : start + length]


class Reader:
    """A model that reads on: its memory is kept from batch to batch, gradients end at a batch's beginning."""

    def __init__(self, model: Characters) -> None:
        self.model = model
        self.memory: Sequence[Tensor] | None = None

    def loss(self, text: Tensor, following: Tensor) -> Tensor:
        """In nats per character."""
        logits, memory = self.model(text, self.memory)
        self.memory = [part.detach() for part in memory]
        return nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())


@functools.cache
def _read(path: Path) -> Text:
    return read_text(path)


def train(package: str, stack: str, seed: int, path: Path, size: Size) -> Mapping[str, float | str]:
    """Train from the text's beginning, again from there at its end; the validation loss and the learning rate at each look."""
    text = _read(path)
    torch.manual_seed(seed)
    model = Characters(len(text.vocabulary), size.cells)
    trainer = stacks.Trainer(package, stack, model)
    found: dict[str, float | str] = {}
    source: Iterator[tuple[Tensor, Tensor]] = iter(())
    reader = Reader(model)
    for step in range(size.steps + 1):
        if step % size.every == 0:
            found |= {f"loss {step}": _validation_loss(model, text, size), f"lr {step}": trainer.learned()["lr"]}
        batch = next(source, None)
        if batch is None:
            source, reader = batches(text.train, size.side_by_side, size.length), Reader(model)
            batch = next(source)
        if step < size.steps:
            trainer.step(functools.partial(reader.loss, *batch))
    return found


@torch.no_grad()
def _validation_loss(model: Characters, text: Text, size: Size) -> float:
    reader = Reader(model)
    source = batches(text.validation, size.side_by_side, size.length)
    losses = [reader.loss(*batch) for batch, _ in zip(source, range(size.validation), strict=False)]
    return torch.stack(losses).mean().item()


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
    above[0].set_ylabel("validation loss, nats per character")
    below[0].set(ylabel="Adam's learning rate", yscale="log")
    handles, labels = above[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(KINDS), fontsize=11)
    figure.suptitle(title, **figures.HEADLINE)
    figures.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text in UTF-8")
    stacks.add_options(parser, folder=False)
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
    shown = table(rows, size)
    print(shown)
    path.with_suffix(".md").write_text(shown + "\n")
    epochs = size.steps * size.side_by_side * size.length / length
    name = arguments.text.stem if arguments.text else "this package's source"
    title = f"2 × {size.cells} LSTM on {name}: {size.steps:,} steps, {epochs:.2g} epochs"
    draw(rows, size, title, arguments.out / "paper-char-rnn.png")
    print(f"\nCells: {path}\nThe picture: {arguments.out / 'paper-char-rnn.png'}")


def own_source(folder: Path) -> Path:
    """A text that everybody has."""
    path = folder / "source.txt"
    sources = sorted(Path(gdtuo.__file__).parent.glob("*.py"))
    path.write_text("".join(source.read_text(encoding="utf-8") for source in sources), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
