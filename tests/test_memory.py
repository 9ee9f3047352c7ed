"""Memory is flat over the steps, nothing keeps a graph, nothing keeps itself alive, buffers are as few as promised."""

from __future__ import annotations

import gc
import inspect
import math
import warnings
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from cases import F64, NEWER, TOWERS, Awkward, PublishedLion, backward, batch, train, two_groups
from torch import Tensor, nn

import gdtuo
from gdtuo.blocks import BLOCK

SHAPES = pytest.mark.parametrize("shape", TOWERS)


def live_tensors() -> Counter:
    """Every tensor that Python can reach, by shape and dtype."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gc finds deprecated module attributes as well
        tensors = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
    return Counter((tuple(t.shape), str(t.dtype), t.untyped_storage().nbytes()) for t in tensors)


def total_bytes(counts: Counter) -> int:
    return sum(n * size for (_, _, size), n in counts.items())


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_in(v)]
    return [t for v in value for t in tensors_in(v)] if isinstance(value, (list, tuple)) else []


def test_item_3_500_steps_are_flat():
    model = Awkward()
    optimizer = gdtuo.Adam(two_groups(model, 0.02), lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
    train(model, optimizer, range(3))
    after_three = live_tensors()
    for step in range(3, 500):
        backward(model, step)
        optimizer.step()
        if step in (3, 10, 100, 499):
            now = live_tensors()
            assert now == after_three, (now - after_three, after_three - now)
            assert total_bytes(now) == total_bytes(after_three)


@SHAPES
def test_every_tower_is_flat(shape):
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    train(model, optimizer, range(3))
    after_three = live_tensors()
    train(model, optimizer, range(3, 60))
    optimizer.hyperstep()
    optimizer.hyperparameters()
    optimizer.hypergradients()
    optimizer.state_dict()
    now = live_tensors()
    assert now == after_three, (now - after_three, after_three - now)


@SHAPES
@pytest.mark.parametrize("create_graph", [False, True])
def test_item_3_nothing_has_a_grad_fn(shape, create_graph):
    """Whatever graph the caller keeps for himself, as scripts for the published package do."""
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    for step in range(50):
        if create_graph:
            model.zero_grad()
            x = torch.randn(8, 4, dtype=F64)
            loss = (model(x) - x).square().mean()
            grads = torch.autograd.grad(loss, [model.tied, model.bias, model.scale], create_graph=True)
            for p, g in zip((model.tied, model.bias, model.scale), grads, strict=True):
                p.grad = g
        else:
            backward(model, step)
        optimizer.step()
        shown = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        held = tensors_in(shown) + tensors_in(list(optimizer.state.values())) + tensors_in(optimizer.state_dict())
        assert held
        assert not [t for t in held if t.grad_fn is not None or t.requires_grad or t.grad is not None]
        assert all(p.is_leaf for p in model.parameters())


class Saved:
    """What a graph keeps of a forward pass; a plain object, since graph nodes take no weak references."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@SHAPES
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_graph_is_freed(shape, create_graph):
    """No graph outlives step(): what it saved dies with the loss and, under create_graph=True, with the gradients."""
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    saved = []

    def pack(tensor: Tensor) -> Saved:
        kept = Saved(tensor.detach())  # an output that keeps itself would be a cycle of this test's own
        saved.append(weakref.ref(kept))
        return kept

    gc.collect()
    gc.disable()
    try:
        for step in range(4):
            x = batch(step)
            with warnings.catch_warnings(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
                warnings.simplefilter("ignore")  # create_graph=True warns of the cycle that zero_grad() breaks
                loss = (model(x) - x).square().mean()
                loss.backward(retain_graph=True, create_graph=create_graph)
            optimizer.step()
            assert any(ref() is not None for ref in saved)
            optimizer.zero_grad()
            del loss
            assert all(ref() is None for ref in saved)
    finally:
        gc.enable()


@SHAPES
@pytest.mark.parametrize("stepped", [False, True])
def test_deleting_leaves_no_cycles(shape, stepped):
    """With the collector off: weights, gradients, states and shifts die when model and optimizer are deleted."""
    model = Awkward()
    optimizer = TOWERS[shape]().bind(two_groups(model, 0.02))
    if stepped:
        train(model, optimizer, range(6))
        optimizer.hyperstep()
        optimizer.hypergradients()
    held = list(model.parameters()) + [p.grad for p in model.parameters() if p.grad is not None]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    held += tensors_in(groups) + tensors_in(list(optimizer.state.values()))
    gc.collect()
    gc.disable()
    try:
        dead = [weakref.ref(t) for t in held] + [weakref.ref(optimizer)]
        assert len(dead) > 10
        del held, groups, model, optimizer
        alive = [tuple(ref().shape) if isinstance(ref(), Tensor) else ref() for ref in dead if ref() is not None]
        assert not alive
    finally:
        gc.enable()


# ---------------------------------------------------------------- buffers


def weight_sized(optimizer: torch.optim.Optimizer, n: int) -> int:
    """How many numbers the size of a weight the optimizer keeps for each weight, from the bytes of its states."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(list(optimizer.state.values()))}
    for group in optimizer.param_groups:
        for key, value in group.items():
            if isinstance(value, Tensor) and key != "params":
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return round(sum(storages.values()) / (4 * n), 1)


#: ours, torch's, options of both, what is learned, how many weight-sized arrays more than torch's a tower keeps
BUFFERS = {
    "sgd": (gdtuo.SGD, torch.optim.SGD, {}, {}, 1),  # the last gradient
    "momentum": (gdtuo.SGD, torch.optim.SGD, {"momentum": 0.9}, {}, 0),
    "momentum, learned": (gdtuo.SGD, torch.optim.SGD, {"momentum": 0.9}, {"learn": ("lr", "momentum")}, 1),
    "adam": (gdtuo.Adam, torch.optim.Adam, {}, {}, 0),
    "adam, eps": (gdtuo.Adam, torch.optim.Adam, {}, {"learn": ("lr", "eps")}, 0),
    "adam, amsgrad": (gdtuo.Adam, torch.optim.Adam, {"amsgrad": True}, {}, 0),
    "adam, L2 penalty": (gdtuo.Adam, torch.optim.Adam, {"weight_decay": 0.1}, {}, 0),
    "adam, betas": (gdtuo.Adam, torch.optim.Adam, {}, {"learn": ("lr", "betas")}, 1),
    "adam, beta1": (gdtuo.Adam, torch.optim.Adam, {}, {"learn": "beta1"}, 1),
    "adam, per tensor": (gdtuo.Adam, torch.optim.Adam, {}, {"per": "tensor"}, 0),
    "adamw": (gdtuo.AdamW, torch.optim.AdamW, {}, {}, 1),  # the last weights
    "adamw, no decay": (gdtuo.AdamW, torch.optim.AdamW, {"weight_decay": 0.0}, {}, 0),
    "rmsprop with momentum": (gdtuo.RMSProp, torch.optim.RMSprop, {"momentum": 0.9}, {}, 0),
    "adam, as it comes": (gdtuo.Adam, torch.optim.Adam, {}, {"horizon": 100}, 1),  # its tangent
    "adamw, as it comes": (gdtuo.AdamW, torch.optim.AdamW, {}, {"horizon": 100}, 1),
    "sgd, as it comes": (gdtuo.SGD, torch.optim.SGD, {}, {"horizon": 100}, 1),
    "adam, horizon": (gdtuo.Adam, torch.optim.Adam, {}, {"horizon": 5}, 1),  # its tangent
    "adam, horizon, two": (gdtuo.Adam, torch.optim.Adam, {}, {"horizon": 5, "learn": ("lr", "eps")}, 2),
    "adagrad": (gdtuo.AdaGrad, torch.optim.Adagrad, {}, {}, 1),
    "adagrad, L2 penalty": (gdtuo.AdaGrad, torch.optim.Adagrad, {"weight_decay": 0.1}, {}, 2),
    "rmsprop": (gdtuo.RMSProp, torch.optim.RMSprop, {}, {}, 1),
    "rmsprop, alpha": (gdtuo.RMSProp, torch.optim.RMSprop, {"momentum": 0.9}, {"learn": ("lr", "alpha")}, 1),
    "sgd, L2 penalty": (gdtuo.SGD, torch.optim.SGD, {"weight_decay": 0.1}, {}, 2),
    "sgd, penalty learned": (gdtuo.SGD, torch.optim.SGD, {"weight_decay": 0.1}, {"learn": "weight_decay"}, 2),
    "momentum, L2 penalty": (gdtuo.SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}, {}, 0),
    "momentum, penalty learned": (
        gdtuo.SGD,
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 0.1},
        {"learn": ("lr", "weight_decay")},
        1,
    ),
    "adam, betas, L2 penalty": (gdtuo.Adam, torch.optim.Adam, {"weight_decay": 0.1}, {"learn": ("lr", "betas")}, 2),
    "adam, penalty learned": (gdtuo.Adam, torch.optim.Adam, {"weight_decay": 0.1}, {"learn": "weight_decay"}, 2),
    "adamw, betas": (gdtuo.AdamW, torch.optim.AdamW, {}, {"learn": ("lr", "betas")}, 2),
    "radam": (gdtuo.RAdam, torch.optim.RAdam, {}, {"learn": ("lr", "eps")}, 0),
    "radam, betas": (gdtuo.RAdam, torch.optim.RAdam, {}, {"learn": ("lr", "betas")}, 1),
    "radam, decoupled": (gdtuo.RAdam, torch.optim.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {}, 1),
    "nadam": (gdtuo.NAdam, torch.optim.NAdam, {}, {}, 1),  # its tangent
    "lion": (gdtuo.Lion, PublishedLion, {"weight_decay": 0.1}, {}, 1),
    "adafactor": (gdtuo.Adafactor, torch.optim.Adafactor, {}, {}, 1),
    "muon": (gdtuo.Muon, torch.optim.Muon, {}, {}, 1),
}


#: Blocks of temporaries that a tower keeps at most, whatever the size of the model.
BLOCKS = 16


@pytest.mark.parametrize(
    ("name", "height"),
    [(name, height) for name in BUFFERS for height in (0, 1, 3) if height == 1 or not name.startswith(NEWER)],
)
def test_weight_sized_buffers(name, height):
    ours_class, torch_class, options, learning, more = BUFFERS[name]
    n = 17 * BLOCK
    columns = 4096 if name == "adafactor" else 2  # of which it keeps one number a row and a column
    weights = [nn.Parameter(torch.ones(n // columns, columns)) for _ in range(2)]
    above = None
    for _ in range(height):
        above = gdtuo.SGD() if above is None else gdtuo.SGD(optimizer=above)
    ours = ours_class(weights[:1], **options, **({"optimizer": above, "horizon": 1, **learning} if height else {}))
    loop = {"foreach": False} if "foreach" in inspect.signature(torch_class).parameters else {}
    plain = torch_class(weights[1:], **loop, **options)
    for scale in (1.0, -0.5, 2.0):
        for w, optimizer in zip(weights, (ours, plain), strict=True):
            w.grad = torch.linspace(-1, 1, n).view_as(w) * scale
            optimizer.step()
    assert weight_sized(ours, n) == weight_sized(plain, n) + (more if height else 0)
    # and what state_dict() shows is all there is: besides it there are blocks, a fixed number of them
    known = (weights[0].data_ptr(), weights[0].grad.data_ptr())
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in live_objects(ours) if t.data_ptr() not in known}
    shown = {t.untyped_storage().data_ptr() for t in tensors_in([ours.state, ours.param_groups])}
    hidden = [size for storage, size in held.items() if storage not in shown and storage not in known]
    assert sum(hidden) <= BLOCKS * BLOCK * 4
    assert len([size for size in held.values() if size >= 4 * n]) == math.ceil(weight_sized(ours, n) - 0.05)


def test_what_a_rate_for_each_weight_takes():
    n = 6 * BLOCK
    w = nn.Parameter(torch.ones(n))
    optimizer = gdtuo.Adam([w], per="element", optimizer=gdtuo.SGD())
    for scale in (1.0, -0.5, 2.0):
        w.grad = torch.linspace(-1, 1, n) * scale
        optimizer.step()
    known = (w.data_ptr(), w.grad.data_ptr())
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in live_objects(optimizer)}
    arrays = sum(size for storage, size in held.items() if storage not in known) / (4 * n)
    assert 30 < arrays < 42  # Adam's own two among them


@pytest.mark.parametrize("learn", ["lr", "all"])
def test_a_small_model_keeps_blocks_of_its_own_size(learn):
    n = 1000
    (w,) = [nn.Parameter(torch.ones(n))]
    optimizer = gdtuo.RMSProp([w], momentum=0.5, weight_decay=0.1, learn=learn, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
    for scale in (1.0, -0.5, 2.0):
        w.grad = torch.linspace(-1, 1, n) * scale
        optimizer.step()
    shown = {t.untyped_storage().data_ptr() for t in tensors_in([optimizer.state, optimizer.param_groups])}
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in live_objects(optimizer)}
    assert sum(size for storage, size in held.items() if storage not in shown) <= BLOCKS * n * 4 + 20_000


def live_objects(root: Any) -> list[Tensor]:
    """Tensors reachable from an object's attributes, through our own classes and containers."""
    seen, stack, found = set(), [root], []
    while stack:
        x = stack.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, dict):
            stack += [*x.keys(), *x.values()]
        elif isinstance(x, (list, tuple, set)):
            stack += list(x)
        elif type(x).__module__.startswith("gdtuo"):
            stack += list(vars(x).values()) if hasattr(x, "__dict__") else []
    return found
