"""`Adam(optimizer=SGD(optimizer=SGD()))` with no further numbers, on real data, from good and bad starts."""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from cases import NEWER, PAIRS
from torch.nn.functional import cross_entropy

import gdtuo
from gdtuo.lab.data import digits

SEEDS = (0, 1, 2)
HEIGHTS = (2, 3, 6)


def tower(height: int) -> gdtuo.Level | None:
    above = None
    for _ in range(height):
        above = gdtuo.SGD(optimizer=above)
    return above


def train(make, seed: int) -> tuple[float, float]:
    """(training loss, test loss) of a 64-48-10 network after 15 epochs of batches of 64."""
    data = digits()
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Tanh(), torch.nn.Linear(48, 10))
    optimizer = make(model.parameters())
    for _ in range(15):
        for batch in torch.randperm(len(data.train)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(data.train.inputs[batch]), data.train.labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        train_loss, test_loss = (cross_entropy(model(part.inputs), part.labels).item() for part in data)
    return train_loss, test_loss


@pytest.mark.parametrize("lr", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_never_behind_plain_adam_and_far_ahead_from_low_starts(lr):
    plain = [train(lambda params: torch.optim.Adam(params, lr=lr), seed) for seed in SEEDS]
    for height in HEIGHTS:
        towers = [train(lambda params, h=height: gdtuo.Adam(params, lr=lr, optimizer=tower(h)), seed) for seed in SEEDS]
        train_ratio, test_ratio = (mean(t[i] for t in towers) / mean(p[i] for p in plain) for i in (0, 1))
        assert train_ratio <= (0.1 if lr <= 1e-4 else 1.05), height
        assert test_ratio <= (0.1 if lr <= 1e-4 else 1.10), height


@pytest.mark.parametrize("name", NEWER[::2])  # and so were the others
def test_far_ahead_of_every_other_optimizer_from_a_low_start(name):
    """Muon with its matrices alone."""
    pair = PAIRS[name]

    def chosen(params):
        return [p for p in params if p.dim() == 2] if pair.matrices else params

    plain = train(lambda params: pair.theirs(chosen(params), lr=1e-4), 0)
    learned = train(lambda params: pair.ours(chosen(params), lr=1e-4, optimizer=tower(2)), 0)
    assert learned[0] <= 0.15 * plain[0]
    assert learned[1] <= 0.2 * plain[1]
