"""Memory is flat, no graph outlives a step, nothing is left behind, and few buffers are kept over torch's own."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import gdtuo


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


def backward(model, seed):
    rng = torch.Generator().manual_seed(seed)
    model(torch.randn(8, 6, generator=rng)).square().mean().backward()


def live():
    """(number, bytes) of all tensors that the collector sees."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return len(tensors), sum(x.untyped_storage().nbytes() for x in tensors)


TOWERS = {
    "adam/sgd/sgd": lambda: gdtuo.Adam(optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
    "all, horizon": lambda: gdtuo.Adam(learn="all", horizon=5, optimizer=gdtuo.Adam(learn="all", optimizer=gdtuo.SGD())),
    "per element": lambda: gdtuo.SGD(momentum=0.9, per="element", optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
    "torch on top": lambda: gdtuo.RMSProp(optimizer=torch.optim.Adam),
}


@pytest.mark.parametrize("shape", TOWERS)
def test_five_hundred_steps_in_constant_memory(shape):
    model = network()
    optimizer = TOWERS[shape]().bind(model.parameters())
    sizes = []
    for step in range(500):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        if step in (3, 50, 499):
            sizes.append(live())
    assert sizes[0] == sizes[1] == sizes[2]
    kept = [*optimizer.state_dict()["state"].values(), *optimizer.param_groups]
    tensors = [value for entries in kept for value in entries.values() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 8
    assert not [x for x in tensors if x.grad_fn is not None or x.requires_grad]
    assert all(p.is_leaf and p.grad_fn is None for p in model.parameters())


@pytest.mark.parametrize("shape", TOWERS)
def test_nothing_is_left_in_cycles(shape):
    def train():
        model = network()
        optimizer = TOWERS[shape]().bind(model.parameters())
        for step in range(5):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
            optimizer.hypergradients()
        tensors = [*model.parameters(), *(s for s in optimizer.param_groups[0].values() if isinstance(s, torch.Tensor))]
        return [weakref.ref(x) for x in (*tensors, optimizer)]

    train()  # what torch imports on first use leaves cycles of its own
    gc.collect()
    gc.disable()
    try:
        gone = train()
        assert [ref() for ref in gone] == [None] * len(gone)
    finally:
        gc.enable()


BUFFERS = {
    "Adam, lr": (lambda p: gdtuo.Adam(p, optimizer=gdtuo.SGD()), torch.optim.Adam, {}, 0),
    "Adam with amsgrad, lr": (
        lambda p: gdtuo.Adam(p, amsgrad=True, optimizer=gdtuo.SGD()),
        torch.optim.Adam,
        {"amsgrad": True},
        0,
    ),
    "momentum, lr": (lambda p: gdtuo.SGD(p, momentum=0.9, optimizer=gdtuo.SGD()), torch.optim.SGD, {"momentum": 0.9}, 0),
    "Adam, lr, eps": (lambda p: gdtuo.Adam(p, learn=("lr", "eps"), optimizer=gdtuo.SGD()), torch.optim.Adam, {}, 0),
    "Adam, all": (lambda p: gdtuo.Adam(p, learn="all", optimizer=gdtuo.SGD()), torch.optim.Adam, {}, 1),
    "momentum, lr and momentum": (
        lambda p: gdtuo.SGD(p, momentum=0.9, learn=("lr", "momentum"), optimizer=gdtuo.SGD()),
        torch.optim.SGD,
        {"momentum": 0.9},
        1,
    ),
    "RMSProp, all": (lambda p: gdtuo.RMSProp(p, learn="all", optimizer=gdtuo.SGD()), torch.optim.RMSprop, {}, 1),
    "AdamW, weight decay": (lambda p: gdtuo.AdamW(p, learn="weight_decay", optimizer=gdtuo.SGD()), torch.optim.AdamW, {}, 1),
    "Adam with a penalty, all": (
        lambda p: gdtuo.Adam(p, weight_decay=0.1, learn="all", optimizer=gdtuo.SGD()),
        torch.optim.Adam,
        {"weight_decay": 0.1},
        2,
    ),
    "horizon, three names": (
        lambda p: gdtuo.Adam(p, horizon=9, learn=("lr", "betas"), optimizer=gdtuo.SGD()),
        torch.optim.Adam,
        {},
        3,
    ),
    "no tower": (gdtuo.Adam, torch.optim.Adam, {}, 0),
}


@pytest.mark.parametrize("case", BUFFERS)
def test_weight_sized_buffers_over_torchs(case):
    make, theirs, settings, more = BUFFERS[case]
    sizes = []
    for build in (make, lambda p: theirs(p, lr=1e-3, **settings)):
        w = torch.nn.Parameter(torch.ones(100_000))
        optimizer = build([w])
        for _ in range(3):
            w.grad = torch.ones_like(w)
            optimizer.step()
        seen = [*optimizer.state[w].values(), *optimizer.param_groups[0].values()]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in seen if isinstance(x, torch.Tensor)}
        sizes.append(sum(storages.values()))
    assert sizes[0] - sizes[1] == pytest.approx(more * 400_000, abs=2_000)
