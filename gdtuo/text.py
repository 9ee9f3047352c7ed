"""Towers from text: `tower("adam/sgd(lr=0.01)/sgd")`."""

from __future__ import annotations

import ast
import math
from typing import Any

from .level import Level

__all__ = ["at_height", "levels", "tower"]


def tower(text: str) -> Level:
    """An unbound tower, bottom first, each level a name and, in parentheses, keyword arguments.

    The names are those of the classes in lower case, subclasses of `Level` that you have defined included, except names
    that start with an underscore.

    Args:
        text: as "adam / sgd(lr=0.01) / sgd"; spaces do not matter. Values are Python literals, or inf.

    Raises:
        TypeError: if it is not a text.
        ValueError: if the text is not such a list, a name is unknown, or a level refuses its arguments.

    Example:
        >>> str(tower("adam(betas=(0.9, 0.99)) / sgd(lr=0.01) / sgd"))
        'adam / sgd / sgd'
    """
    if not isinstance(text, str):
        raise TypeError(f"tower() got {type(text).__name__}. Write levels bottom first, as 'adam/sgd(lr=0.01)/sgd'.")
    try:
        calls = [_call(node) for node in _levels(text)]
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"tower({text!r}): {error}. Write levels bottom first, as 'adam/sgd(lr=0.01)/sgd'.") from error
    classes = _classes(Level)
    above: Level | None = None
    for name, arguments in reversed(calls):
        if name not in classes:
            raise ValueError(f"tower({text!r}): there is no level {name!r}. There are {', '.join(sorted(classes))}.")
        try:
            above = classes[name](**(arguments if above is None else {**arguments, "optimizer": above}))
        except TypeError as error:
            raise ValueError(f"tower({text!r}): {error}") from error
    assert above is not None
    return above


def at_height(text: str, height: int) -> str:
    """The text of a tower with so many hyper-optimizers: the first levels of `text`, its last one again where it ends.

    Args:
        text: as `tower` takes it; at least one level.
        height: 0 or more.

    Example:
        >>> at_height("adam / sgd(lr=0.02) / sgd", 1), at_height("adam / sgd(lr=0.02) / sgd", 3)
        ('adam/sgd(lr=0.02)', 'adam/sgd(lr=0.02)/sgd/sgd')
    """
    found = levels(text)
    return "/".join((found + found[-1:] * height)[: height + 1])


def levels(text: str) -> list[str]:
    """The text of each level of a tower, bottom first.

    Example:
        >>> levels("adam / sgd( lr = 0.02 )")
        ['adam', 'sgd(lr=0.02)']
    """
    return [ast.unparse(node) for node in _levels(text)]


def _levels(text: str) -> list[ast.expr]:
    """Bottom first."""
    node, found = ast.parse(text.strip(), mode="eval").body, []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        found.append(node.right)
        node = node.left
    return [node, *reversed(found)]


def _call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    """One level: its lower-case name and its keyword arguments."""
    if isinstance(node, ast.Name):
        return node.id.lower(), {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args and all(k.arg for k in node.keywords):
        names = [str(k.arg) for k in node.keywords]
        if "optimizer" in names:
            raise ValueError("the optimizer of a level is what follows its slash")
        if len(set(names)) < len(names):
            raise ValueError(f"{ast.unparse(node)!r} gives a keyword twice")
        return node.func.id.lower(), {str(k.arg): _value(k.value) for k in node.keywords}
    raise ValueError(f"{ast.unparse(node)!r} is no level")


def _value(node: ast.expr) -> Any:
    return math.inf if isinstance(node, ast.Name) and node.id == "inf" else ast.literal_eval(node)


def _classes(base: type[Level]) -> dict[str, type[Level]]:
    found: dict[str, type[Level]] = {}
    for cls in base.__subclasses__():
        public = {} if cls.__name__.startswith("_") else {cls.__name__.lower(): cls}
        found |= public | _classes(cls)
    return found
