"""A recurrent network that predicts the next character of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["BATCH", "LENGTH", "Characters", "draw_chunks", "validation_loss"]

BATCH = 50  # chunks at a time
LENGTH = 50  # characters that a chunk predicts
EVALUATED = 500  # chunks of the validation text, at most, that are evaluated


class Characters(nn.Module):
    """Two layers of LSTM on embedded characters.

    Args:
        vocabulary: how many characters there are.
        width: of each layer. Default: 128.

    References:
        Karpathy, Johnson, Fei-Fei, "Visualizing and Understanding Recurrent Networks", 2015; the size is that of Chandra et
        al., "Gradient Descent: The Ultimate Optimizer", NeurIPS 2022.
    """

    def __init__(self, vocabulary: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """[batch, time] -> [batch, time, vocabulary], the logits of each next character."""
        return self.output(self.lstm(self.embedding(characters))[0])


def draw_chunks(text: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """An epoch: the text in chunks of 51 characters that share their ends, shuffled, 50 at a time; a rest is left out."""
    starts = torch.arange(0, len(text) - LENGTH, LENGTH)
    for batch in starts[torch.randperm(len(starts), generator=generator)].split(BATCH):
        if len(batch) == BATCH or len(starts) < BATCH:
            yield text[batch[:, None] + torch.arange(LENGTH + 1)]


def validation_loss(model: Callable[..., Any], text: Tensor) -> float:
    """The mean cross-entropy of a character, in nats, over at most 500 chunks spread over the text."""
    starts = torch.arange(0, len(text) - LENGTH, LENGTH)
    starts = starts[:: max(1, len(starts) // EVALUATED)][:EVALUATED]
    chunks = text[starts[:, None] + torch.arange(LENGTH + 1)]
    logits = model(chunks[:, :-1])
    return cross_entropy(logits.flatten(0, 1), chunks[:, 1:].flatten()).item()
