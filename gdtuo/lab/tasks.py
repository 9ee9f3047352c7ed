"""What an ablation trains: tasks by name, and the form of a user's own."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import data
from .characters import read_text
from .recurrent import LENGTH, Characters, draw_chunks, validation_loss

__all__ = ["TASKS", "Builtin", "Model", "Named", "Task", "classification"]

Batch: TypeAlias = Any  # a tensor, or tensors in tuples and dictionaries
Model: TypeAlias = Callable[..., Any]  # a network, or a function that calls it with weights of its own


@dataclass(frozen=True)
class Task:
    """A network, a loss, batches and a measure: what is trained again and again, from other learning rates, by other towers.

    Args:
        model: makes the network. torch's generator is seeded before it is called.
        loss: (model, batch) -> scalar. `model` is called as the network is.
        epoch: generator -> the batches of one epoch, in an order that it draws from the generator.
        evaluate: model -> a number that should be small, after training; without gradients.
        epochs: how many, where the user does not say.
        metric: what `evaluate` measures, with its unit.
        together: how many cells are trained at a time, on weights stacked by `torch.func.vmap`. More than 1 is faster where
            a step is short (see docs/lab.md), and asks for a loss that vmap can take: no dropout, no running statistics.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> task = Task(
        ...     model=lambda: nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)),
        ...     loss=lambda model, batch: mse_loss(model(batch), batch**2),
        ...     epoch=lambda generator: x[torch.randperm(64, generator=generator)].split(16),
        ...     evaluate=lambda model: mse_loss(model(x), x**2).item(),
        ...     epochs=50,
        ...     metric="squared error",
        ... )
    """

    model: Callable[[], nn.Module]
    loss: Callable[[Model, Batch], Tensor]
    epoch: Callable[[torch.Generator], Iterable[Batch]]
    evaluate: Callable[[Model], float]
    epochs: int
    metric: str = field(default="error", kw_only=True)
    together: int = field(default=1, kw_only=True)


def classification(examples: data.Data, model: Callable[[], nn.Module], *, batch: int, epochs: int, together: int = 1) -> Task:
    """A classifier trained by cross-entropy on shuffled batches; its error on the test set in percent.

    An example whose outputs are not finite counts as wrong.
    """

    def epoch(generator: torch.Generator) -> Iterable[Batch]:
        for index in torch.randperm(len(examples.train), generator=generator).split(batch):
            yield examples.train.inputs[index], examples.train.labels[index]

    def loss(network: Model, pair: Batch) -> Tensor:
        inputs, labels = pair
        return cross_entropy(network(inputs), labels)

    def error(network: Model) -> float:
        outputs = network(examples.test.inputs)
        right = (outputs.argmax(1) == examples.test.labels) & outputs.isfinite().all(1)
        return 100 * (1 - right.double().mean().item())

    return Task(model, loss, epoch, error, epochs, metric="test error, %", together=together)


# ---------------------------------------------------------------- the built-in ones


class Builtin(NamedTuple):
    """A task that has a name."""

    make: Callable[[Named], Task]
    network: str
    needs: str


def _perceptron(*widths: int) -> Callable[[], nn.Module]:
    n, hidden, classes = widths
    return lambda: nn.Sequential(nn.Linear(n, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def _digits(source: Named) -> Task:
    return classification(data.load("digits"), _perceptron(64, 48, 10), batch=64, epochs=15, together=30)


def _images(source: Named) -> Task:
    return classification(data.load(source.task, source.data), _perceptron(784, 128, 10), batch=256, epochs=5)


def _characters(source: Named) -> Task:
    if source.text is None:
        raise ValueError("The task char-rnn reads a text. Give --text FILE.")
    text = read_text(source.text)
    if len(text.validation) <= LENGTH:
        raise ValueError(f"{source.text} is too short for the task char-rnn. Give a text of more than {10 * LENGTH} characters.")
    return Task(
        model=lambda: Characters(len(text.vocabulary)),
        loss=lambda model, chunk: cross_entropy(model(chunk[:, :-1]).flatten(0, 1), chunk[:, 1:].flatten()),
        epoch=lambda generator: draw_chunks(text.train, generator),
        evaluate=lambda model: validation_loss(model, text.validation),
        epochs=1,
        metric="validation loss, nats per character",
    )


#: The tasks that have a name.
TASKS = {
    "digits": Builtin(_digits, "64-48-10 tanh, batch 64, 15 epochs", "scikit-learn's 1,797 digits; nothing to download"),
    "mnist": Builtin(_images, "784-128-10 tanh, batch 256, 5 epochs", "--data DIR or GDTUO_DATA; else it is downloaded (11 MB)"),
    "fashion": Builtin(
        _images, "784-128-10 tanh, batch 256, 5 epochs", "--data DIR or GDTUO_DATA; else it is downloaded (30 MB)"
    ),
    "char-rnn": Builtin(_characters, "LSTM 2 x 128, 50 chunks of 50 characters, 1 epoch", "--text FILE, a text in UTF-8"),
}


@dataclass(frozen=True)
class Named:
    """Where a task comes from: its name, or "module:function" of the user's own, and what it reads.

    Args:
        task: the name.
        data: the folder of mnist/ and fashion/.
        text: the file that char-rnn reads.
    """

    task: str
    data: str | None = None
    text: str | None = None

    def identity(self) -> dict[str, str]:
        """What tells its results from those of others: the name, and the content of a text."""
        if self.text is None:
            return {"task": self.task}
        content = Path(self.text).read_bytes()
        return {"task": self.task, "text": f"{Path(self.text).name}, SHA-256 {hashlib.sha256(content).hexdigest()}"}

    def load(self) -> Task:
        """The task; made once in a process.

        Raises:
            ValueError: if there is no such task, or the user's function is not found or returns something else.
            OSError: if data are missing.
            RuntimeError: if the user's module or function fails; its cause is that error.
        """
        return _load(self)


@cache
def _load(source: Named) -> Task:
    if source.task in TASKS:
        return TASKS[source.task].make(source)
    module, _, function = source.task.partition(":")
    if not function:
        raise ValueError(f"there is no task {source.task!r}. Use {', '.join(TASKS)}, or module:function of your own")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a console script does not have it there
    try:
        make = getattr(importlib.import_module(module), function, None)
        task = make() if callable(make) else make
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"the task {source.task!r} imports {error.name}, which is missing. Install it") from error
        raise ValueError(f"the task {source.task!r} cannot be imported: {error}. Start it where {module}.py lies") from error
    except Exception as error:  # the user's own, which is shown with its place
        raise RuntimeError(f"the task {source.task!r} failed: {type(error).__name__}: {error}") from error
    if make is None:
        raise ValueError(f"the task {source.task!r}: there is no {function!r} in it. Name a function of {module}")
    if not isinstance(task, Task):
        raise ValueError(
            f"the task {source.task!r} gives {type(task).__name__}. Name a function that returns a gdtuo.lab.tasks.Task"
        )
    return task
