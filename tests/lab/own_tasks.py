"""Tasks of a user's own, for tests."""

import os
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from gdtuo.lab.data import Data, Examples
from gdtuo.lab.tasks import Task, classification


def _blobs():
    generator = torch.Generator().manual_seed(3)
    centres = 2 * torch.randn(4, 6, generator=generator)
    labels = torch.randint(0, 4, (120,), generator=generator)
    inputs = centres[labels] + torch.randn(120, 6, generator=generator)
    return Data(Examples(inputs[:80].double(), labels[:80]), Examples(inputs[80:].double(), labels[80:]))


def _network():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def blobs():
    """80 examples of 6 numbers in batches of 32, 32 and 16, in 64 bits."""
    return classification(_blobs(), _network, batch=32, epochs=4, together=6)


def slow_blobs():
    """The same; each evaluation takes a moment."""
    task = classification(_blobs(), _network, batch=32, epochs=4, together=2)

    def evaluate(model):
        time.sleep(float(os.environ.get("SLEEP", "0")))
        return task.evaluate(model)

    return Task(task.model, task.loss, task.epoch, evaluate, task.epochs, metric=task.metric, together=task.together)


def _square(together):
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    return Task(
        model=lambda: nn.Linear(1, 1, dtype=torch.float64),
        loss=lambda model, batch: mse_loss(model(batch), 3 * batch),
        epoch=lambda generator: x[torch.randperm(40, generator=generator)].split(10),
        evaluate=lambda model: mse_loss(model(x), 3 * x).item(),
        epochs=3,
        metric="squared error",
        together=together,
    )


def square():
    """A loss without bounds: it diverges where the rate is too large."""
    return _square(1)


def squares():
    """The same, cells together."""
    return _square(4)


def broken():
    """A loss that fails."""
    return Task(_network, lambda model, batch: {}["no such key"], lambda generator: [1], lambda model: 0.0, 1)


def square_in_a_tensor():
    """The same; its error is a tensor."""
    task = _square(1)
    x = torch.ones(1, 1, dtype=torch.float64)
    return Task(task.model, task.loss, task.epoch, lambda model: mse_loss(model(x), 3 * x), task.epochs, metric="squared error")


def overflows():
    """Its error is not finite though all else is."""
    task = _square(1)
    return Task(task.model, task.loss, task.epoch, lambda model: float("inf"), task.epochs)


class Mode(nn.Linear):
    """Gives 1 in training and 0 in evaluation."""

    def forward(self, x):
        return 0 * super().forward(x) + float(self.training)


def mode():
    """Its error is 1 if the network is evaluated as if it were trained."""
    x = torch.ones(1, 1)
    return Task(lambda: Mode(1, 1), lambda model, batch: model(x).mean(), lambda generator: [x], lambda model: model(x).item(), 1)


def jumps():
    """One step to infinity, which neither the loss before it nor the error shows."""
    weight = lambda: nn.Linear(1, 1, bias=False, dtype=torch.float64)  # noqa: E731
    x = torch.full((1, 1), 1e10, dtype=torch.float64)
    return Task(weight, lambda model, batch: model(batch).sum(), lambda generator: [x], lambda model: 0.0, 1)


def partly_frozen():
    """Several at once, whose first layer is not trained."""

    def network():
        made = _network()
        made[0].weight.requires_grad_(False)
        return made

    return classification(_blobs(), network, batch=32, epochs=4, together=6)


def one_network():
    """The network of the last run goes on with the next."""
    task, made = _square(1), nn.Linear(1, 1, dtype=torch.float64)
    return Task(lambda: made, task.loss, task.epoch, task.evaluate, task.epochs)


def fails():
    """A mistake in the function itself."""
    raise ValueError("not enough values")


def network_fails():
    """A mistake in the network."""
    task = _square(1)
    return Task(lambda: nn.Linear(1), task.loss, task.epoch, task.evaluate, task.epochs)


def dropout():
    """Several at once, which vmap does not do with dropout."""

    def network():
        return nn.Sequential(nn.Linear(6, 4), nn.Dropout())

    examples = Examples(torch.randn(8, 6), torch.zeros(8, dtype=torch.int64))
    return classification(Data(examples, examples), network, batch=8, epochs=1, together=2)


def buffers():
    """Several at once, of networks with running statistics."""
    loss = lambda model, batch: cross_entropy(*batch)  # noqa: E731
    return Task(lambda: nn.BatchNorm1d(3), loss, lambda generator: [1], lambda model: 0.0, 1, together=2)


def nothing():
    """No task."""


not_a_function = 3
