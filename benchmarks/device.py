"""What holds on a device that has no place in the tests: equal to the CPU, no waiting, mixed precision, sharding.

python -m benchmarks.device              # on the first GPU
python -m benchmarks.device --device cpu # everything but what only a GPU can show
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import gdtuo

__all__ = ["CHECKS", "main"]

TOWERS: dict[str, Callable[[], gdtuo.Level]] = {
    "adam/sgd/sgd": lambda: gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())),
    "adam fused": lambda: gdtuo.Adam(lr=0.01, learn=("lr", "betas", "eps"), fused=True, optimizer=gdtuo.SGD()),
    "adamw, all": lambda: gdtuo.AdamW(lr=0.01, learn="all", optimizer=gdtuo.Adam(lr=0.01)),
    "sgd per tensor": lambda: gdtuo.SGD(
        lr=0.05, momentum=0.8, learn=("lr", "momentum"), per="tensor", optimizer=gdtuo.Adam(lr=0.01)
    ),
    "sgd per element": lambda: gdtuo.SGD(lr=0.05, per="element", optimizer=gdtuo.SGD(per="element", optimizer=gdtuo.SGD())),
    "adam, horizon": lambda: gdtuo.Adam(lr=0.01, horizon=5, learn=("lr", "betas"), optimizer=gdtuo.SGD(lr=0.02)),
    "rmsprop, exact": lambda: gdtuo.RMSProp(
        lr=0.01, momentum=0.5, learn=("lr", "alpha"), hypergradient="exact", optimizer=gdtuo.AdaGrad(lr=0.02)
    ),
    "adam/torch": lambda: gdtuo.Adam(lr=0.01, optimizer=partial(torch.optim.Adam, lr=0.01)),
}


def network(device: str, dtype: torch.dtype = torch.float64, width: int = 16) -> nn.Module:
    """The same one on every device."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype).to(device)


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Weights, and biases with a rate of their own."""
    params = list(model.parameters())
    return [{"params": params[0::2]}, {"params": params[1::2], "lr": 0.005}]


def backward(model: nn.Module, step: int, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
    """The gradients of a step's batch, which is the same on every device."""
    make, p = torch.Generator().manual_seed(step), next(model.parameters())
    x, y = (torch.randn(8, size, generator=make, dtype=torch.float64).to(p) for size in (6, 3))
    model.zero_grad()
    scale((model(x) - y).square().mean()).backward()


def trained(device: str, tower: Callable[[], gdtuo.Level], width: int = 16, steps: int = 12) -> tuple[list[Tensor], gdtuo.Level]:
    """(weights, optimizer) after some steps."""
    model = network(device, width=width)
    optimizer = tower().bind(groups_of(model))
    for step in range(steps):
        backward(model, step)
        optimizer.step()
    return [p.detach().cpu() for p in model.parameters()], optimizer


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference, relative where numbers are large."""
    return max(
        float(((x.double() - y.double()).abs() / y.double().abs().clamp_min(1.0)).max()) for x, y in zip(a, b, strict=True)
    )


def apart(a: dict[str, float], b: dict[str, float]) -> float:
    """The largest relative difference of hyperparameters."""
    return max(abs(a[key] - b[key]) / (abs(b[key]) + 1e-12) for key in b)


# ---------------------------------------------------------------- checks: each returns what it found, and whether that is right


def check_agreement(device: str) -> Iterator[tuple[str, float, float]]:
    """Weights and hyperparameters against the CPU's, small networks and ones that are worked on in blocks."""
    for name, tower in TOWERS.items():
        for width in (16,) if "element" in name else (16, 70_000):
            (ours, optimizer), (theirs, other) = (
                trained(where, tower, width, 12 if width == 16 else 4) for where in (device, "cpu")
            )
            yield f"{name}, {width} wide, weights", distance(ours, theirs), 1e-9
            yield f"{name}, {width} wide, learned", apart(optimizer.hyperparameters(), other.hyperparameters()), 1e-7


def check_native(device: str) -> Iterator[tuple[str, float, float]]:
    """32 bits and a learned rate alone, where torch's fused kernels may do the update; against torch without a tower, too.

    Sums over 90,000 units are rounded in another order on each device.
    """
    towers = {
        "adam": lambda **above: gdtuo.Adam(lr=0.01, weight_decay=0.1, **above),
        "adamw": lambda **above: gdtuo.AdamW(lr=0.01, amsgrad=True, **above),
        "sgd": lambda **above: gdtuo.SGD(lr=0.05, momentum=0.9, **above),
        "adagrad": lambda **above: gdtuo.AdaGrad(lr=0.05, **above),
    }
    torchs = {
        "adam": lambda params: torch.optim.Adam(params, lr=0.01, weight_decay=0.1),
        "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, amsgrad=True),
        "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
        "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.05, eps=1e-10),
    }
    for name, tower in towers.items():
        for width in (16, 90_000):
            found = []
            for where, build in (
                (device, tower(optimizer=gdtuo.SGD(lr=0.02)).bind),
                ("cpu", tower(optimizer=gdtuo.SGD(lr=0.02)).bind),
                (device, tower().bind),
                (device, torchs[name]),
            ):
                model = network(where, torch.float32, width)
                optimizer = build(model.parameters())
                for step in range(8 if width == 16 else 3):
                    backward(model, step)
                    optimizer.step()
                found.append([p.detach().cpu() for p in model.parameters()])
            yield f"{name}, {width} wide: learned rate", distance(found[0], found[1]), 2e-3
            yield f"{name}, {width} wide: as torch", distance(found[2], found[3]), 2e-4


def check_no_waiting(device: str) -> Iterator[tuple[str, float, float]]:
    """A step that waits for the device raises."""
    if device != "cuda":
        return
    for name, tower in TOWERS.items():
        if "torch" in name:  # torch's own optimizers may wait
            continue
        model = network(device)
        optimizer = tower().bind(model.parameters())
        for step in range(3):
            backward(model, step)
            optimizer.step()
        backward(model, 3)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        waits = 0.0
        try:
            optimizer.step()
        except RuntimeError as error:
            print(error)
            waits = 1.0
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield f"{name}: waits", waits, 0.0


def check_saving(device: str) -> Iterator[tuple[str, float, float]]:
    """To a file, loaded on the device, trained on: to the bit."""
    for name, tower in TOWERS.items():
        model = network(device)
        optimizer = tower().bind(model.parameters())
        for step in range(5):
            backward(model, step)
            optimizer.step()
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, map_location="cpu", weights_only=True)
        twin = network(device)
        twin.load_state_dict(weights)
        other = tower().bind(twin.parameters())
        other.load_state_dict(state)
        third, copied = copy.deepcopy((model, optimizer))
        for step in range(5, 9):
            for each, tower_of in ((model, optimizer), (twin, other), (third, copied)):
                backward(each, step)
                tower_of.step()
        ours = [p.detach() for p in model.parameters()]
        for way, net in (("loaded", twin), ("copied", third)):
            yield f"{name}: {way}", distance([p.detach() for p in net.parameters()], ours), 0.0


def check_moved(device: str) -> Iterator[tuple[str, float, float]]:
    """A model that moves to the device after its optimizer was made."""
    (expected, _) = trained("cpu", TOWERS["adam/sgd/sgd"])
    model = network("cpu")
    optimizer = TOWERS["adam/sgd/sgd"]().bind(groups_of(model))
    for step in range(12):
        if step == 5:
            model.to(device)
        backward(model, step)
        optimizer.step()
    yield "moved in mid-run", distance([p.detach().cpu() for p in model.parameters()], expected), 1e-9


def check_mixed_precision(device: str) -> Iterator[tuple[str, float, float]]:
    """GradScaler and autocast: scale-invariant, and nothing moves where it skips."""
    found = []
    for scaled in (False, True):
        model = network(device, torch.float32)
        optimizer = TOWERS["adam/sgd/sgd"]().bind(model.parameters())
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=1000, enabled=scaled)
        for step in range(10):
            with torch.autocast(device, dtype=torch.bfloat16):
                backward(model, step, scaler.scale)
            if scaled and step == 6:
                before = [p.detach().clone() for p in model.parameters()]
                good = [p.grad for p in model.parameters()]
                for p in model.parameters():
                    p.grad = torch.full_like(p, math.inf)
                scaler.step(optimizer)
                scaler.update()
                yield "a step that the scaler skips", distance([p.detach() for p in model.parameters()], before), 0.0
                for p, g in zip(model.parameters(), good, strict=True):
                    p.grad = None if g is None else g * 0.5  # the scale has been halved
            scaler.step(optimizer)
            scaler.update()
        found.append([p.detach() for p in model.parameters()])
    yield "with a scaler and without", distance(*found), 1e-6
    model = network(device, torch.bfloat16)
    optimizer = TOWERS["adamw, all"]().bind(model.parameters())
    for step in range(10):
        backward(model, step)
        optimizer.step()
    values = optimizer.hyperparameters().values()
    yield "bfloat16 weights: numbers that are not finite", float(sum(not math.isfinite(x) for x in values)), 0.0


def check_whole_training(device: str) -> Iterator[tuple[str, float, float]]:
    """Hypergradients of a whole training run, every method, against the CPU's."""

    def result(where: str, method: Any) -> list[Tensor]:
        make = torch.Generator().manual_seed(1)
        data = [tuple(torch.randn(16, n, generator=make, dtype=torch.float64).to(where) for n in (5, 1)) for _ in range(8)]

        def inner(params: Any, hyper: Any, batch: Any) -> Tensor:
            return (batch[0] @ params["w"] - batch[1]).square().mean() + hyper["l2"].exp() * params["w"].square().sum()

        run = gdtuo.Training(inner, optimizer=gdtuo.SGD(momentum=0.9), batches=data, steps=20)
        hyper = {
            "l2": torch.tensor(-3.0, dtype=torch.float64, device=where),
            "optimizer": {"lr": torch.full((20,), 0.02, dtype=torch.float64, device=where)},
        }
        start = {"w": torch.ones(5, 1, dtype=torch.float64, device=where)}

        def outer(params: Any, hyper: Any) -> Tensor:
            return (data[0][0] @ params["w"] - data[0][1]).square().mean()

        found = gdtuo.hypergradient(run, outer, start, hyper, method=method)
        return [found.hyper["l2"].cpu(), found.hyper["optimizer"]["lr"].cpu(), found.final["w"].cpu()]

    methods = (gdtuo.Reverse(), gdtuo.Checkpointed(), gdtuo.Reversible(), gdtuo.Forward(), gdtuo.Truncated(5))
    for method in methods:
        yield type(method).__name__, distance(result(device, method), result("cpu", method)), 1e-8


@contextmanager
def one_rank(device: str) -> Iterator[Any]:
    """A process group of this process alone, and its mesh."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    store = torch._C._distributed_c10d.HashStore()
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh(device, (1,))
    finally:
        dist.destroy_process_group()


def check_sharding(device: str) -> Iterator[tuple[str, float, float]]:
    """`fully_shard` on one rank: DTensors and the collective are as on many."""
    from torch.distributed.fsdp import fully_shard

    with one_rank(device) as mesh:
        model = network(device)
        fully_shard(model, mesh=mesh)
        optimizer = TOWERS["adamw, all"]().bind(model.parameters())
        twin = network(device)
        other = TOWERS["adamw, all"]().bind(twin.parameters())
        for step in range(8):
            make = torch.Generator().manual_seed(step)
            x, y = (torch.randn(8, size, generator=make, dtype=torch.float64).to(device) for size in (6, 3))
            for net, tower in ((model, optimizer), (twin, other)):
                net.zero_grad()
                (net(x) - y).square().mean().backward()
                tower.step()
        whole: list[Any] = list(model.parameters())
        yield (
            "fsdp2, weights",
            distance([p.full_tensor().detach() for p in whole], [p.detach() for p in twin.parameters()]),
            1e-10,
        )
        yield "fsdp2, learned", apart(optimizer.hyperparameters(), other.hyperparameters()), 1e-10


CHECKS: dict[str, Callable[[str], Iterator[tuple[str, float, float]]]] = {
    "agreement": check_agreement,
    "native": check_native,
    "no waiting": check_no_waiting,
    "saving": check_saving,
    "moved": check_moved,
    "mixed precision": check_mixed_precision,
    "whole training": check_whole_training,
    "sharding": check_sharding,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--only", choices=list(CHECKS), help="one of them")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU: give --device cpu to run what needs none")
    failed = 0
    for title, check in CHECKS.items():
        if given.only in (None, title):
            start = time.perf_counter()
            print(f"{title}: {(check.__doc__ or title).strip().splitlines()[0]}", flush=True)
            try:
                for name, found, limit in check(given.device):
                    failed += not found <= limit
                    print(f"  {name:<50} {found:9.2g}  <= {limit:g}  {'met' if found <= limit else 'MISSED'}", flush=True)
            except Exception as error:  # what breaks one check should not hide the others
                failed += 1
                print(f"  {type(error).__name__}: {error}"[:2000], flush=True)
            print(f"  ({time.perf_counter() - start:.1f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
