"""How a level's hyperparameters are learned by the level above: the keywords that every level takes, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch

from .domains import Domain, Positive
from .pullback import KINDS
from .schema import Schema
from .torch_top import TorchFactory

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .level import Level

__all__ = ["Learning", "Options", "spelled"]

GRANULARITIES = ("group", "tensor", "element")


class Learning(TypedDict, total=False):
    """The keywords of every level, all of them about how *its* hyperparameters are learned by the level above.

    optimizer: the level above: an unbound `Level`, or a callable that makes an elementwise torch optimizer of
        parameters (`lambda params: torch.optim.Adam(params, lr=0.01)`). Default: None, nothing is learned.
    learn: names of what is learned, "all", or one name; "betas" stands for "beta1" and "beta2". Default: "lr".
    per: "group" (default): one value for each parameter group; "tensor": for each parameter; "element": for
        each weight.
    hypergradient: what goes upward as the gradient of a hyperparameter's shift. "cosine" (default): the cosine
        between the gradient and the direction in which the hyperparameter would have moved the weights,
        without units, so that a hyper-step size is a relative change per step. "exact": the derivative of
        the loss; with `Real` domains that is the published algorithm (Chandra et al. 2022).
    learn_after: how many first steps learn nothing. Default: 0.
    learn_every: learn at each k-th step, from the update before it; the steps between cost no more than plain ones but
        for what they must remember. `hyperstep` learns whenever it is called. Default: 1.
    horizon: over how many updates the effect of a hyperparameter is accumulated, Z ← (1 - 1/N) Z + ∂w/∂shift. The last
        update alone, 1, prefers learning rates that are too small. It takes an array of the weights' size for each name that
        is learned. Default: 100 for the weights' level if "lr" alone is learned, by "cosine", in a `Positive` domain, per "group"
        or "tensor"; else 1.
    trust: by how much of the weights' length one update may move them before the learned learning rate is lowered, as
        LARS's trust coefficient: lr <= trust |w| / |d|, d the update at a learning rate of 1. So a start that is too high is
        mended before the first update. See `gdtuo.trust` for how |w| and |d| are known. For the weights' level, in (0, inf];
        inf is no limit. Steps that do not learn take what is written; only if you set a limit they keep to it even so (in a
        compiled program the first one does). Default: 0.15 where the horizon is 100 by default; else inf.
    sharded: whether each rank of a distributed training has plain tensors of its own, as under FSDP1 and
        ZeroRedundancyOptimizer: True, or the process group over which they are spread. Sums are then added up over the
        ranks, one small message a step. Not needed for DistributedDataParallel, whose ranks have the same tensors, nor for
        the DTensors of `fully_shard` and of tensor parallelism, which say so themselves. Default: False.
    domains: name -> `Domain`, in place of those that the rule declares. Above the first level the learning rate's
        is Positive(maximum=0.2) unless you name another.
    """

    optimizer: Level | TorchFactory | None
    learn: str | Iterable[str]
    per: Literal["group", "tensor", "element"]
    hypergradient: Literal["cosine", "exact"]
    horizon: int
    trust: float
    domains: Mapping[str, Domain]
    learn_after: int
    learn_every: int
    sharded: bool | ProcessGroup


@dataclasses.dataclass(frozen=True)
class Options:
    """`Learning` after its checks, names spelled out; `learn` is None for "all", `horizon` and `trust` for their defaults."""

    learn: tuple[str, ...] | None
    per: str
    hypergradient: str
    horizon: int | None
    trust: float | None
    learn_after: int
    learn_every: int
    domains: Mapping[str, Domain]
    sharded: Any

    @property
    def of_the_weights(self) -> str:
        """Which of these are set that concern the weights' level alone, as text."""
        usual = {name: default for name, default, *_ in COUNTS if name != "horizon"} | {"sharded": False, "trust": None}
        return ", ".join(f"{name}=" for name, default in usual.items() if getattr(self, name) != default)

    def due(self, step: Any) -> Any:
        """Whether the step of this number, from 1 on, learns; of a tensor, a tensor."""
        return (step > self.learn_after) & ((step - self.learn_after) % self.learn_every == 0)

    @classmethod
    def parse(cls, schema: Schema, given: Mapping[str, Any]) -> Options:
        """Check the keywords of `Learning`, except `optimizer`.

        Raises:
            ValueError: if a name or a choice is unknown.
            TypeError: if a value is of a wrong type.
        """
        title = schema.title
        if not isinstance(given.get("domains", {}), Mapping):
            raise TypeError(f"{title} got domains={given['domains']!r}. Name what lives there: domains={{'lr': gdtuo.Real()}}.")
        learn = spelled(schema, given.get("learn", ("lr",) if "lr" in schema.names else "all"))
        if learn == ():
            raise ValueError(f"{title} got learn=(): name what is learned, or leave optimizer= out to learn nothing.")
        per = given.get("per", "group")
        if per not in GRANULARITIES:
            raise ValueError(f"{title} got per={per!r}. It is one of {', '.join(map(repr, GRANULARITIES))}.")
        if per == "element" and not schema.rule.elementwise:
            raise ValueError(f"{title} got per='element', but its rule is not elementwise. Use per='tensor'.")
        kind = given.get("hypergradient", "cosine")
        if kind not in KINDS:
            raise ValueError(f"{title} got hypergradient={kind!r}. It is one of {', '.join(map(repr, KINDS))}.")
        counts = {}
        for name, default, least, what in COUNTS:
            counts[name] = count = given.get(name, default)
            if name in given and (not isinstance(count, int) or isinstance(count, bool) or count < least):
                usual = "" if default is None else f" The default is {default}."
                raise ValueError(f"{title} got {name}={count!r}: it counts {what}, an integer >= {least}.{usual}")
        domains = {n: domain for name, domain in given.get("domains", {}).items() for n in _names(schema, name)}
        for name, domain in domains.items():
            if not isinstance(domain, Domain):
                raise TypeError(
                    f"{title} got domains={{{name!r}: {domain!r}}}. Give an instance of a domain, as gdtuo.Positive(maximum=1.0)."
                )
        sharded = given.get("sharded", False)
        groups = (torch.distributed.ProcessGroup,) if torch.distributed.is_available() else ()
        if not isinstance(sharded, (bool, *groups)):
            raise TypeError(f"{title} got sharded={sharded!r}. Give True, or the process group over which parameters are spread.")
        trust = given.get("trust")
        options = cls(learn, per, kind, domains=domains, sharded=sharded, trust=trust, **counts)
        if "trust" in given:
            options._check_trust(schema)
        return options

    def obstacle(self, schema: Schema, learned: Collection[str] | None) -> str:
        """Why no limit can be set to the learning rate; empty if one can.

        Args:
            learned: what is learned, None for all.
        """
        if "lr" not in schema.names or not (learned is None or "lr" in learned):
            return "which limits a learned lr, but lr is not learned. Name it in learn=."
        domain = self.domains.get("lr", schema.rule.hyperparameters["lr"][1])
        if type(domain) is not Positive:
            return f"which limits lr in a Positive domain, but its domain is {domain}. Leave trust= out."
        return "but per='element'. Use per='tensor' or 'group', or leave trust= out." if self.per == "element" else ""

    def _check_trust(self, schema: Schema) -> None:
        """Check a limit that a user has set.

        Raises:
            ValueError: if it is no share of the weights' length, or there is nothing that it could limit.
            TypeError: if it is no number.
        """
        title, value = schema.title, self.trust
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{title} got trust={value!r}. Give a number, as trust=0.15, or math.inf for no limit.")
        if not value > 0:
            raise ValueError(
                f"{title} got trust={value!r}: a part of the weights' length, > 0. Did you mean math.inf, no limit? Usual is "
                "0.15."
            )
        obstacle = self.obstacle(schema, self.learn)
        if value < math.inf and obstacle:
            raise ValueError(f"{title} got trust={value!r}, {obstacle}")


#: name, default, smallest value, what is counted
COUNTS: tuple[tuple[str, int | None, int, str], ...] = (
    ("horizon", None, 1, "updates that are judged together"),
    ("learn_after", 0, 0, "first steps that learn nothing"),
    ("learn_every", 1, 1, "steps from one that learns to the next"),
)


def spelled(schema: Schema, learn: Any) -> tuple[str, ...] | None:
    """The names that `learn` stands for, in the rule's order; None for "all".

    Raises:
        ValueError: if there is no such name, or nothing to learn of it.
        TypeError: if it does not hold names.
    """
    if not isinstance(learn, Iterable):
        raise TypeError(f"{schema.title} got learn={learn!r}. Give names, as learn='lr' or learn=('lr', 'eps').")
    if learn == "all":
        return None
    chosen = {n for name in ([learn] if isinstance(learn, str) else learn) for n in _names(schema, name)}
    flat = [name for name in schema.names if name in chosen and name in schema.rule.flat]
    if flat:
        able = ", ".join(name for name in schema.names if name not in schema.rule.flat)
        raise ValueError(
            f"{schema.title} cannot learn {', '.join(flat)}: its update depends on that through a sign alone, so every "
            f"hypergradient of it is 0. Leave it out of learn=; what can be learned is {able}."
        )
    return tuple(name for name in schema.names if name in chosen)


def _names(schema: Schema, name: Any) -> tuple[str, ...]:
    if name not in schema.known:
        raise ValueError(f"{schema.title} has no hyperparameter {name!r} to learn. It has {', '.join(schema.known)}, or 'all'.")
    return schema.known[name]
