"""Taking it away: a tower as the plain torch optimizer that goes on with what has been learned."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .domains import Domain
from .level import Level
from .observing import unwrap
from .optimizers import (
    AdafactorRule,
    AdaGradRule,
    AdamRule,
    AdamWRule,
    MuonRule,
    NAdamRule,
    RAdamRule,
    RMSPropRule,
    SGDRule,
)
from .parts import Parts
from .rules import Rule
from .saved import TOWER_KEY

__all__ = ["TWINS", "Twin", "export"]


class Twin(NamedTuple):
    """The optimizer of torch.optim whose updates are those of a rule; the two call everything by the same names."""

    name: str
    counts: bool = True  # whether its state holds the number of updates, as "step"


TWINS: dict[type[Rule], Twin] = {
    SGDRule: Twin("SGD", counts=False),
    AdamRule: Twin("Adam"),
    AdamWRule: Twin("AdamW"),
    AdaGradRule: Twin("Adagrad"),
    RMSPropRule: Twin("RMSprop"),
    NAdamRule: Twin("NAdam"),
    RAdamRule: Twin("RAdam"),
    AdafactorRule: Twin("Adafactor"),
    MuonRule: Twin("Muon", counts=False),
}

#: What schedulers keep in a group, and which hyperparameter they will write over with it.
SCHEDULED = {
    **dict.fromkeys(("initial_lr", "max_lr", "min_lr", "swa_lr"), ("lr",)),
    **dict.fromkeys(("max_momentum", "base_momentum"), ("momentum", "beta1")),
}

#: Keys of our groups that torch's lack, or that mean another thing there.
OWN = {"params", "param_names", "learn", "learning", "skipped", "steps", "fused"}

#: What a tower keeps of the last update, in a parameter's state.
PENDING = re.compile(r"trace_|last_|pending$")


def export(optimizer: Any) -> torch.optim.Optimizer:
    """A plain torch optimizer over the same parameters that goes on as the tower would with `learning = False`.

    `gdtuo.SGD`, `Adam`, `AdamW`, `AdaGrad`, `RMSProp`, `NAdam`, `RAdam`, `Adafactor` and `Muon` become the optimizers of
    `torch.optim` of the same names, in torch's spelling: with the same groups, names of parameters and options, the effective
    values as plain numbers in the groups, and a copy of the state. Learned per tensor, each parameter gets a group of its own,
    for a group has one value. The levels above stay behind: they have a meaning only for learning on. The optimizer itself is
    left as it is; step one of the two.

    A schedule goes on, too: its rates are those of the schedule times the learned factor. What a scheduler keeps in the groups
    ("initial_lr" and its like) is moved like the number that it writes. Make the scheduler anew, and write the rates back:

        rates = [group["lr"] for group in plain.param_groups]
        scheduler = StepLR(plain, step_size=30, last_epoch=scheduler.last_epoch - 1)
        for group, rate in zip(plain.param_groups, rates):
            group["lr"] = rate

    The 1 is the step that a scheduler takes while it is made. `StepLR`, `MultiStepLR` and `ConstantLR` (in older torch others,
    too) multiply the rate in that step, which has been multiplied already: hence the last two lines, which change nothing for
    the others. Rates among a scheduler's arguments (`eta_min`, the `max_lr` of `CyclicLR`) know no factor: multiply them by it
    yourself. An old scheduler's `state_dict` has base rates without it.

    `fused` is left to torch's default: there it chooses another kernel, here it compiles. A momentum of exactly 0 torch leaves
    out, and its dampening with it.

    Args:
        optimizer: a level with parameters, with or without a tower, or a wrapper of one.

    Raises:
        TypeError: for a torch optimizer, or if there is no optimizer in it.
        ValueError: if torch has no such optimizer (`AveragingSGD`, `Lion`, a rule of your own), if values were learned for each
            weight, or one was learned that torch does not take.
        RuntimeError: for a template.

    Example:
        >>> import torch, gdtuo
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> tower = gdtuo.Adam([w], lr=0.1, optimizer=gdtuo.SGD())
        >>> for _ in range(3):
        ...     tower.zero_grad()
        ...     (w**2).sum().backward()
        ...     tower.step()
        >>> plain = gdtuo.export(tower)
        >>> type(plain), round(plain.param_groups[0]["lr"], 4)
        (<class 'torch.optim.adam.Adam'>, 0.102)
    """
    level = unwrap(optimizer)
    if not isinstance(level, Level):
        raise TypeError(f"export() got a {type(level).__name__}, which has no tower to leave behind. Use it as it is.")
    twin, cls = _twin(level)
    parts = level._bound()
    if level._options.per == "element" and any(parts.learned(g) for g in range(len(level.param_groups))):
        raise ValueError(
            f"{type(level).__name__} has learned a number for each weight, and torch's groups hold one for all. Learn with "
            "per='tensor' or per='group', or keep the tower and set optimizer.learning = False."
        )
    groups = list(_groups(level, parts))
    taken = inspect.signature(cls).parameters.keys() - {"params", "fused"}
    if "capturable" not in taken:  # torch's SGD and Adagrad count nothing on the device
        groups = [{key: value for key, value in group.items() if key != "capturable"} for group in groups]
    for group in groups:
        try:  # torch looks at its arguments, not at groups
            cls([torch.nn.Parameter(torch.zeros(1, 1))], **{key: group[key] for key in taken & group.keys()})
        except ValueError as error:
            raise ValueError(
                f"{type(level).__name__} has learned what torch.optim.{twin.name} does not take: {error}. Bound what is learned, "
                "as with domains={'lr': gdtuo.Positive()}, or keep the tower and set optimizer.learning = False."
            ) from error
    exported: torch.optim.Optimizer = cls(groups, **{key: _plain(level.defaults[key]) for key in taken & level.defaults.keys()})
    fresh = exported.state_dict()
    exported.load_state_dict({**fresh, "state": _state(level, exported, fresh["state"], twin)})
    return exported


def _twin(level: Level) -> tuple[Twin, Any]:
    name, twin = type(level).__name__, TWINS.get(level.rule)
    remedy = "Keep the tower and set optimizer.learning = False, which holds what it has learned."
    if twin is None:
        raise ValueError(f"torch.optim has no optimizer whose updates are those of {name}. {remedy}")
    if not hasattr(torch.optim, twin.name):
        raise ValueError(f"torch {torch.__version__} has no torch.optim.{twin.name}, a later one has. Update it. Or: {remedy}")
    return twin, getattr(torch.optim, twin.name)


def _groups(level: Level, parts: Parts) -> Iterator[dict[str, Any]]:
    """The groups as torch takes them, effective values in the place of what users wrote."""
    blueprint, values = level.blueprints()[0], level.hyperparameters()
    own = OWN | ({"decoupled_weight_decay"} - level.rule.switches().keys())  # elsewhere the class says it
    for g, group in enumerate(level.param_groups):
        columns = parts.learned(g)
        learned = [name for name in columns if blueprint.learns(name, group)]
        kept = {key: _plain(value) for key, value in group.items() if key not in own and not TOWER_KEY.match(key)}
        params = list(zip(group["param_names"], group["params"], strict=True)) if "param_names" in group else group["params"]
        blocks = {"": params}
        if learned and level._options.per == "tensor":
            names = group.get("param_names", range(len(params)))
            blocks = {f"/{name}": [param] for name, param in zip(names, params, strict=True)}
        for row, (label, block) in enumerate(blocks.items()):
            options = dict(kept)
            for name in learned:
                key = f"L0/g{g}/{name}"
                options = blueprint.schema.replaced(options, name, values[key + label if key + label in values else key])
            for key in kept.keys() & SCHEDULED.keys():
                for name in (name for name in SCHEDULED[key] if name in learned):
                    shift = group["L0/shift"][row, columns.index(name)]
                    options[key] = _moved(blueprint.domain(name), kept[key], shift)
            yield {"params": block, **options}


def _moved(domain: Domain, value: float, shift: Tensor) -> float:
    """The effective value of another number beside the same shift."""
    number = torch.tensor(value, dtype=torch.float64, device="cpu")
    low, high = domain.limits(number)
    return float(domain.shifted(number, torch.minimum(torch.maximum(shift.cpu().double(), low), high)))


def _state(level: Level, exported: torch.optim.Optimizer, fresh: dict[int, Any], twin: Twin) -> dict[int, dict[str, Any]]:
    """Copies of the parameters' states, by the numbers that `exported` saves them under."""
    result: dict[int, dict[str, Any]] = {}
    for i, p in enumerate(p for group in exported.param_groups for p in group["params"]):
        entries = {name: value.clone() for name, value in level.state.get(p, {}).items() if not PENDING.match(name)}
        updates = float(entries.pop("step", 0.0) if not twin.counts else entries.get("step", 0.0))
        if entries and (updates > 0 or i in fresh):  # most of torch's make a state when a parameter is first updated
            result[i] = entries
    return fresh | result


def _plain(value: Any) -> Any:
    """Numbers for tensors of one element, in pairs such as `betas`, too."""
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(x) for x in value)
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
