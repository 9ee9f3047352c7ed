"""How a rule's hyperparameters stand in a parameter group: under torch's names, read and checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .rules import Number, Rule

__all__ = ["Schema"]


class Schema:
    """The settings of one class of levels.

    Args:
        title: the class's name, for messages.
        rule: its update rule.
        aliases: names in a group that stand for several hyperparameters, as "betas"; switches may be among them.

    Attributes:
        names: the rule's hyperparameters, in its order.
        known: every name that a user may give, and the hyperparameters that it stands for.
        defaults: what a group holds, numbers first, then switches.
    """

    def __init__(self, title: str, rule: type[Rule], aliases: Mapping[str, tuple[str, ...]]) -> None:
        self.title, self.rule = title, rule
        self.names = tuple(rule.hyperparameters)
        self.known: dict[str, tuple[str, ...]] = {name: (name,) for name in self.names}
        numbers: dict[str, Any] = {name: default for name, (default, _) in rule.hyperparameters.items()}
        switches = rule.switches()
        self._switches = tuple(switches)
        self._where: dict[str, tuple[str, int | None]] = {name: (name, None) for name in (*numbers, *switches)}
        for alias, names in aliases.items():
            self.known[alias] = tuple(name for name in names if name in self.names)
            self._where |= {name: (alias, i) for i, name in enumerate(names)}
            numbers[alias] = tuple((numbers if name in numbers else switches).pop(name) for name in names)
        self._numbers = numbers
        self.defaults = numbers | switches

    def named(self, settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The numbers among a level's settings, under the keys that they have in a group."""
        return {prefix + key: settings[key] for key in self._numbers}

    def read(self, group: Mapping[str, Any], prefix: str = "") -> list[Number]:
        """The hyperparameters as they are written in a group."""
        return [self._at(group, name, prefix) for name in self.names]

    def switches(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The rule's switches as they are written in a group."""
        return {name: self._at(group, name) for name in self._switches}

    def _at(self, group: Mapping[str, Any], name: str, prefix: str = "") -> Any:
        key, i = self._where[name]
        return group[prefix + key] if i is None else group[prefix + key][i]

    def replaced(self, settings: Mapping[str, Any], name: str, value: float) -> dict[str, Any]:
        """Settings with another number for one hyperparameter."""
        key, i = self._where[name]
        number = value if i is None else tuple(value if j == i else old for j, old in enumerate(settings[key]))
        return {**settings, key: number}

    def check(self, group: Mapping[str, Any], prefix: str = "") -> None:
        """Raise unless every number may be written."""
        for key, default in self._numbers.items():
            value = group[prefix + key]
            if isinstance(default, tuple) and not (isinstance(value, Sequence) and len(value) == len(default)):
                raise ValueError(f"{self.title} got {key}={value!r}. Give {len(default)} numbers, as {key}={default}.")
        for name, number in zip(self.names, self.read(group, prefix), strict=True):
            self._check_number(name, number)

    def _check_number(self, name: str, number: Any) -> None:
        default, domain = self.rule.hyperparameters[name]
        key, i = self._where[name]
        shown = key if i is None else f"{key}[{i}]"
        if isinstance(number, Tensor) and number.numel() != 1:
            raise ValueError(
                f"{self.title} got a tensor of {number.numel()} numbers as {shown}. Give one number; per='tensor' or "
                "per='element' learns several."
            )
        try:
            value = float("" if isinstance(number, str) else number)  # float("0.1") would pass, and fail at the first step
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self.title} got {shown}={number!r}. Give a number, as {shown}={default}.") from error
        if not domain.allows(value):
            what = "learning rate" if name == "lr" else name
            upward = name == "lr" and value < 0 and "maximize" in self.rule.switches()
            remedy = "Did you mean maximize=True?" if upward else f"The default is {default}."
            raise ValueError(f"{self.title} got {shown}={value}: a {what} is {domain.text}. {remedy}")
