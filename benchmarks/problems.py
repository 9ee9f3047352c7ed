"""Training problems of different kinds, each a few seconds of one core: what the robustness of optimizers is measured on.

Each is a `gdtuo.lab.tasks.Task` that evaluates a held-out loss, or the loss itself where there are no data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdtuo.lab import data
from gdtuo.lab.characters import Text, read_text
from gdtuo.lab.tasks import Model, Task

from .models import GPT, mlp

__all__ = ["KEPT_ASIDE", "PROBLEMS", "load"]

CHUNK = 33  # characters: 32 and the one after each


# ---------------------------------------------------------------- with data


def _classifier(examples: data.Data, model: Callable[[], nn.Module], batch: int, epochs: int, held_out: int = 2000) -> Task:
    """Cross-entropy on shuffled batches; evaluated on the first test examples."""
    held = examples.test[:held_out]

    def epoch(generator: torch.Generator) -> Iterator[data.Examples]:
        for index in torch.randperm(len(examples.train), generator=generator).split(batch):
            yield examples.train[index]

    return Task(
        model,
        lambda network, pair: F.cross_entropy(network(pair.inputs), pair.labels),
        epoch,
        lambda network: F.cross_entropy(network(held.inputs), held.labels).item(),
        epochs,
        metric="held-out loss",
    )


def digits(folder: str | None) -> Task:
    """A small network on scikit-learn's digits."""
    return _classifier(data.load("digits"), lambda: mlp(64, 48, 10), 64, 40)


def mnist(folder: str | None) -> Task:
    """The towers paper's network, without its last tanh."""
    return _classifier(data.load("mnist", folder), lambda: mlp(784, 128, 10), 256, 4)


def _block(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]


def fashion_cnn(folder: str | None) -> Task:
    """Three convolutions with batch normalisation, on 12,000 pictures."""
    examples = data.load("fashion", folder)

    def make() -> nn.Module:
        layers = [nn.Unflatten(1, (1, 28, 28)), *_block(1, 12), *_block(12, 24), *_block(24, 48)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 16, 10))

    return _classifier(data.Data(examples.train[:12_000], examples.test), make, 128, 3)


def cifar_cnn(folder: str | None) -> Task:
    """A CNN with dropout and no normalisation, on 4,000 colour pictures."""
    with np.load(Path(folder or "") / "cifar" / "cifar10_train_first4000_exact.npz") as file:
        images, labels = file[file.files[0]], file[file.files[1]]
    inputs = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)
    every = data.Examples(inputs, torch.from_numpy(labels.astype(np.int64)))

    def make() -> nn.Module:
        layers: list[nn.Module] = [nn.Unflatten(1, (3, 32, 32))]
        for n_in, n_out in itertools.pairwise((3, 16, 32, 32)):
            layers += [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.GELU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 16, 10))

    return _classifier(data.Data(every[:3200], every[3200:]), make, 64, 6)


def autoencoder(folder: str | None) -> Task:
    """MNIST through 16 numbers and back; squared error."""
    examples = data.load("mnist", folder)
    train, held = examples.train.inputs[:12_000], examples.test.inputs[:2000]
    return Task(
        lambda: nn.Sequential(nn.Linear(784, 96), nn.ReLU(), nn.Linear(96, 16), nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 784)),
        lambda network, batch: (network(batch) - batch).square().mean(),
        lambda generator: train[torch.randperm(len(train), generator=generator)].split(128),
        lambda network: (network(held) - held).square().mean().item(),
        6,
        metric="held-out loss",
    )


# ---------------------------------------------------------------- text


@cache
def _text(folder: str | None) -> Text:
    return read_text(Path(folder or "") / "text" / "tinyshakespeare_input.txt")


def _language(folder: str | None, make: Callable[[int], nn.Module], batch: int, steps: int) -> Task:
    text = _text(folder)
    places = torch.arange(0, len(text.validation) - CHUNK, 400)
    held = text.validation[places[:, None] + torch.arange(CHUNK)]

    def loss(model: Model, chunk: Tensor) -> Tensor:
        return F.cross_entropy(model(chunk[:, :-1]).flatten(0, 1), chunk[:, 1:].flatten())

    def epoch(generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(steps):
            starts = torch.randint(len(text.train) - CHUNK, (batch,), generator=generator)
            yield text.train[starts[:, None] + torch.arange(CHUNK)]

    return Task(
        lambda: make(len(text.vocabulary)), loss, epoch, lambda model: loss(model, held).item(), 1, metric="held-out loss"
    )


class _Recurrent(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(vocabulary, 48), nn.LSTM(48, 96, batch_first=True)
        self.output = nn.Linear(96, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(characters))[0])


def char_rnn(folder: str | None) -> Task:
    """An LSTM that predicts characters."""
    return _language(folder, _Recurrent, 32, 500)


def transformer(folder: str | None) -> Task:
    """Two blocks of attention that predict characters."""
    return _language(folder, lambda vocabulary: GPT(vocabulary, CHUNK, 48, 2, 4), 16, 500)


# ---------------------------------------------------------------- without data


class _Weights(nn.Module):
    """Weights with a starting point, and nothing to compute: the loss does."""

    def __init__(self, *starts: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(start) for start in starts)

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(self.weights)


def _analytic(start: Callable[[], tuple[Tensor, ...]], loss: Callable[..., Tensor], steps: int, noise: int = 0) -> Task:
    """`loss(weights, *noise)`; evaluated without noise."""
    return Task(
        lambda: _Weights(*start()),
        lambda model, batch: loss(*model(), *((batch,) if noise else ())),
        lambda generator: (torch.randn(noise, generator=generator) for _ in range(steps)),
        lambda model: loss(*model()).item(),
        1,
        metric="loss",
    )


def noisy_quadratic(folder: str | None) -> Task:
    """Half a sum of h_i w_i², h from 0.01 to 1, gradients with noise of deviation 0.3 √h_i; the optimum is 0."""
    curvatures = torch.logspace(-2, 0, 100)

    def loss(weights: Tensor, noise: Tensor | None = None) -> Tensor:
        exact = 0.5 * (curvatures * weights.square()).sum()
        return exact if noise is None else exact + (0.3 * curvatures.sqrt() * noise * weights).sum()

    return _analytic(lambda: (3 * torch.randn(100),), loss, 2000, noise=100)


def rosenbrock(folder: str | None) -> Task:
    """The valley of Rosenbrock 1960 in 20 dimensions (ten pairs), without noise."""

    def loss(weights: Tensor) -> Tensor:
        x, y = weights[::2], weights[1::2]
        return (100 * (y - x.square()).square() + (1 - x).square()).mean()

    return _analytic(lambda: (torch.randn(20),), loss, 3000)


def scaled_logistic(folder: str | None) -> Task:
    """Logistic regression on 50 features whose scales run from 0.001 to 1000."""
    generator = torch.Generator().manual_seed(11)
    scales = torch.logspace(-3, 3, 50)
    truth = torch.randn(50, generator=generator)
    inputs = torch.randn(6000, 50, generator=generator)
    labels = (inputs @ truth + torch.randn(6000, generator=generator) > 0).float()
    inputs = inputs * scales

    def loss(model: Model, index: Tensor) -> Tensor:
        (weights,) = model()
        return F.binary_cross_entropy_with_logits(inputs[index] @ weights, labels[index])

    held = torch.arange(4000, 6000)
    return Task(
        lambda: _Weights(torch.zeros(50)),
        loss,
        lambda generator: torch.randperm(4000, generator=generator).split(50),
        lambda model: loss(model, held).item(),
        15,
        metric="held-out loss",
    )


def factorisation(folder: str | None) -> Task:
    """A 200 x 100 matrix of rank 8 with noise, a third of it seen; the held-out entries' squared error."""
    generator = torch.Generator().manual_seed(12)
    truth = torch.randn(200, 8, generator=generator) @ torch.randn(8, 100, generator=generator)
    noisy = truth + 0.1 * torch.randn(200, 100, generator=generator)
    order = torch.randperm(20_000, generator=generator)
    seen, held = order[:7000], order[7000:]

    def loss(model: Model, index: Tensor) -> Tensor:
        left, right = model()
        rows, columns = index // 100, index % 100
        return ((left[rows] * right[columns]).sum(1) - noisy[rows, columns]).square().mean()

    return Task(
        lambda: _Weights(0.3 * torch.randn(200, 8), 0.3 * torch.randn(100, 8)),
        loss,
        lambda generator: seen[torch.randperm(7000, generator=generator)].split(500),
        lambda model: loss(model, held).item(),
        80,
        metric="held-out loss",
    )


#: What methods are chosen on.
PROBLEMS: dict[str, Callable[[str | None], Task]] = {
    "digits MLP": digits,
    "MNIST MLP": mnist,
    "Fashion CNN": fashion_cnn,
    "char LSTM": char_rnn,
    "transformer": transformer,
    "noisy quadratic": noisy_quadratic,
    "Rosenbrock": rosenbrock,
    "scaled logistic": scaled_logistic,
    "factorisation": factorisation,
}

#: What a chosen method is tried on once, at the end.
KEPT_ASIDE: dict[str, Callable[[str | None], Task]] = {"autoencoder": autoencoder, "CIFAR CNN": cifar_cnn}


@cache
def load(name: str, folder: str | None) -> Task:
    """A problem by name; made once in a process.

    Args:
        name: of `PROBLEMS` or `KEPT_ASIDE`.
        folder: of mnist/, fashion/, cifar/ and text/.
    """
    return {**PROBLEMS, **KEPT_ASIDE}[name](folder)
