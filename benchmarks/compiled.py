"""`torch.compile(opt.step)` and CUDA graphs: that they equal the eager tower on the CPU, what compiling and a step cost.

python -m benchmarks.compiled              # on the first GPU, else on the CPU
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gdtuo

from . import models
from .timing import interleave, synchroniser

__all__ = ["main"]

Step = Callable[[], object]

TOWERS: dict[str, Callable[..., gdtuo.Level]] = {
    "adam/sgd/sgd": lambda **more: gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()), **more),
    "adamw, all": lambda **more: gdtuo.AdamW(lr=0.01, learn="all", optimizer=gdtuo.Adam(lr=0.01), **more),
    "rmsprop per tensor": lambda **more: gdtuo.RMSProp(
        lr=0.01, learn=("lr", "alpha"), per="tensor", horizon=3, optimizer=gdtuo.SGD(lr=0.02), **more
    ),
    "adagrad per element": lambda **more: gdtuo.AdaGrad(lr=0.02, per="element", optimizer=gdtuo.SGD(), **more),
}
SHAPES = [(6, 40), (6,), (3, 6), (3,), (300, 1000)]
CAPTURED = 5  # the step that is captured; those before it warm up


def parameters(device: str, dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    make = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=make, dtype=torch.float64).to(dtype).to(device)) for shape in SHAPES]


def set_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    """In memory that stays where it is, as a captured step needs it."""
    make = torch.Generator().manual_seed(100 + step)
    for p in params:
        gradient = torch.randn(p.shape, generator=make, dtype=torch.float64).to(p) + p.detach()
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.copy_(gradient)


def captured(optimizer: gdtuo.Level) -> Step:
    """A step as a CUDA graph of the user's own."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


#: name -> (whether the optimizer is capturable, what makes a step of it)
WAYS: dict[str, tuple[bool, Callable[[gdtuo.Level], Step]]] = {
    "eager": (False, lambda optimizer: optimizer.step),
    "capturable": (True, lambda optimizer: optimizer.step),
    "compiled": (False, lambda optimizer: torch.compile(optimizer.step, fullgraph=True)),
    "compiled, CUDA graph": (True, lambda optimizer: torch.compile(optimizer.step, fullgraph=True, mode="reduce-overhead")),
    "captured": (True, captured),
}


def ways(device: str) -> list[str]:
    """Those that a device has; a CPU has no graphs."""
    return [name for name in WAYS if device == "cuda" or name in ("eager", "capturable", "compiled")]


def trained(device: str, tower: Callable[..., gdtuo.Level], way: str) -> tuple[list[Tensor], dict[str, float]]:
    """(weights, hyperparameters) after 10 steps."""
    capturable, prepare = WAYS[way]
    params = parameters(device)
    groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:], "lr": 0.005}]
    optimizer = tower(capturable=capturable).bind(groups)
    step = optimizer.step if way == "captured" else prepare(optimizer)
    for t in range(10):
        set_gradients(params, t)
        if t == CAPTURED and way == "captured":
            step = prepare(optimizer)  # captures, and changes nothing
        step()
    return [p.detach().cpu() for p in params], optimizer.hyperparameters()


def agreement(device: str) -> bool:
    """Print how far each way is from the CPU's eager step; returns whether all are near."""
    right = True
    for name, tower in TOWERS.items():
        weights, learned = trained("cpu", tower, "eager")
        for way in ways(device):
            found, values = trained(device, tower, way)
            off = max(float((a - b).abs().max()) for a, b in zip(found, weights, strict=True))
            apart = max(abs(values[key] - learned[key]) / (abs(learned[key]) + 1e-12) for key in learned)
            right = right and off < 1e-9 and apart < 1e-7
            print(f"{name:22} {way:22} weights {off:.1e}, learned {apart:.1e}")
    return right


def times(device: str, name: str) -> None:
    """Print the seconds of the first step and the microseconds of later ones, for the parameters of a workload."""
    tasks: dict[str, Step] = {}
    for way in ways(device):
        capturable, prepare = WAYS[way]
        params = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in models.shapes(name)]
        for p in params:
            p.grad = 1e-3 * torch.randn_like(p)
        above = gdtuo.SGD(lr=1e-5, optimizer=gdtuo.SGD(lr=1e-5))
        optimizer = gdtuo.Adam(params, lr=1e-5, optimizer=above, capturable=capturable)
        for _ in range(3 if way == "captured" else 0):
            optimizer.step()
        step = prepare(optimizer)
        start = time.perf_counter()
        step()
        synchroniser(device)()
        print(f"{name:10} {way:22} first step {time.perf_counter() - start:.1f} s", flush=True)
        tasks[way] = step
    plain = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in models.shapes(name)]
    for p in plain:
        p.grad = 1e-3 * torch.randn_like(p)
    tasks["torch's Adam"] = torch.optim.Adam(plain, lr=1e-5).step
    for way, timing in interleave(tasks, synchronise=synchroniser(device)).items():
        print(f"{name:10} {way:22} {1e6 * timing.median:8.0f} us")


def main(arguments: list[str] | None = None) -> int:
    """Print all; 1 if a way is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", default=["mlp-0.1M", "resnet20"])
    given = parser.parse_args(arguments)
    print(f"torch {torch.__version__}, {given.device}")
    right = agreement(given.device)
    for name in given.models:
        times(given.device, name)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
