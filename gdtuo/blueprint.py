"""`Blueprint`: a level as the engine needs it: where it stands, its rule, its numbers, how they are learned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from .domains import Domain, Positive
from .options import Options, spelled
from .rules import Number, Rule
from .schema import Schema
from .torch_top import TorchFactory

__all__ = ["Blueprint"]

#: A step size above the first level is a relative change of a step size per step: above this, towers run away.
UPPER_LR_MAXIMUM = 0.2


#: Defaults of the weights' level where "lr" alone is learned with "cosine"; docs/robust-default.md says how they were found.
HORIZON, TRUST = 100, 0.15


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """One level of a tower, `height` levels above the weights' own."""

    height: int
    schema: Schema
    settings: Mapping[str, Any]
    options: Options
    factory: TorchFactory | None  # of the torch optimizer that stands above, if one does

    @property
    def prefix(self) -> str:
        """What the level's keys in a parameter group begin with."""
        return f"L{self.height}/" if self.height else ""

    def read(self, group: Mapping[str, Any]) -> list[Number]:
        """The level's hyperparameters as they are written in a group."""
        return self.schema.read(group, self.prefix)

    def numbers(self) -> dict[str, Any]:
        """What a group holds of this level before anybody writes to it."""
        return self.schema.named(self.settings, self.prefix)

    def switches(self, group: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The rule's switches: each group's own for the weights' level, else the level's."""
        return self.schema.switches(self.settings if group is None or self.height else group)

    def rule(self, group: Mapping[str, Any] | None = None) -> Rule:
        """The update rule with its switches set."""
        return self.schema.rule(**self.switches(group))

    def domain(self, name: str) -> Domain:
        """Where a hyperparameter is learned."""
        if name in self.options.domains:
            return self.options.domains[name]
        domain = self.schema.rule.hyperparameters[name][1]
        if self.height and name == "lr" and type(domain) is Positive:
            return dataclasses.replace(domain, maximum=min(domain.maximum, UPPER_LR_MAXIMUM))
        return domain

    def horizon(self, learned: Collection[str]) -> int:
        """Over how many updates the effect of what is learned is accumulated."""
        return self.options.horizon or (HORIZON if self._usual(learned) else 1)

    def trust(self, learned: Collection[str]) -> float:
        """By how much of the weights' length an update may move them, if `learned` is; inf for no limit."""
        if self.height or "lr" not in learned:
            return math.inf
        if self.options.trust is not None:
            return self.options.trust
        return TRUST if self._usual(learned) else math.inf

    def _usual(self, learned: Collection[str]) -> bool:
        """Whether the weights' learning rate alone is learned, and as it comes: what the defaults were found for."""
        usual = not self.height and self.options.hypergradient == "cosine" and tuple(learned) == ("lr",)
        return usual and not self.options.obstacle(self.schema, learned)

    def closed_form(self, learned: Iterable[str]) -> bool:
        """Whether the rule's own closed form differentiates its updates."""
        rule = self.schema.rule
        return rule.closed_form and not any(name in rule.divisors and self.domain(name).learnable(0.0) for name in learned)

    def chosen(self, group: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The names that a group asks to have learned; None for all."""
        return self.options.learn if self.height else spelled(self.schema, group.get("learn", self.options.learn or "all"))

    def learns(self, name: str, group: Mapping[str, Any]) -> bool:
        """Whether a group asks to have a hyperparameter learned."""
        chosen = self.chosen(group)
        return name not in self.schema.rule.flat if chosen is None else name in chosen

    def learned(self, groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """The names that the level above learns.

        Raises:
            ValueError: if a named hyperparameter cannot move from where it stands in the groups.
        """
        if all(self.chosen(group) == () for group in groups):  # they may ask for it later
            groups = [{key: value for key, value in group.items() if key != "learn"} for group in groups]
        numbers = [dict(zip(self.schema.names, self.read(group), strict=True)) for group in groups]
        names = []
        for name in self.schema.names:
            domain = self.domain(name)
            values = [float(each[name]) for group, each in zip(groups, numbers, strict=True) if self.learns(name, group)]
            if not values:
                continue
            movable = [value for value in values if value != 0 or domain.learnable(0.0)]
            if not movable:
                if all(self.chosen(group) is None for group in groups if self.learns(name, group)):
                    continue
                raise ValueError(
                    f"{self.schema.title} cannot learn {name}: it stands at {values[0]}, and a {type(domain).__name__} "
                    f"hyperparameter stays at 0 when it starts there. Start above 0, for example {name}=1e-4, or leave it "
                    "out of learn=."
                )
            stuck = [value for value in movable if not domain.learnable(value)]
            if stuck:
                raise ValueError(
                    f"{self.schema.title} cannot learn {name}: it stands at {stuck[0]}, outside of {domain}. Start inside, or "
                    f"give another domain: domains={{{name!r}: gdtuo.{type(domain).__name__}()}}."
                )
            names.append(name)
        return tuple(names)
