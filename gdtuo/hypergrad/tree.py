"""Nested dicts of tensors: what `params`, `hyper` and their gradients are."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["Path", "Tree", "flatten", "shown", "unflatten"]

Tree: TypeAlias = Mapping[Any, Any]  # name -> tensor or Tree
Path: TypeAlias = tuple[Hashable, ...]


def shown(path: Path, root: str) -> str:
    """As Python: hyper['optimizer']['lr']."""
    return root + "".join(f"[{key!r}]" for key in path)


def flatten(tree: Tree, root: str) -> dict[Path, Tensor]:
    """The leaves by their paths, in the order of the dicts.

    Raises:
        TypeError: if it is no nested dict of real floating-point tensors; `root` names it in the message.
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"{root} is a {type(tree).__name__}. Give a nested dict of tensors, as {{'w': torch.zeros(3)}}.")
    return dict(_leaves(tree, (), root))


def _leaves(tree: Tree, path: Path, root: str) -> Iterator[tuple[Path, Tensor]]:
    for key, value in tree.items():
        here = (*path, key)
        if isinstance(value, Mapping):
            yield from _leaves(value, here, root)
        elif isinstance(value, Tensor) and value.is_floating_point():
            yield here, value
        else:
            what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise TypeError(f"{shown(here, root)} is {what}. Give a tensor of real numbers, as torch.tensor(0.1).")


def unflatten(paths: Sequence[Path], leaves: Sequence[Any]) -> dict[Any, Any]:
    """The nested dict whose leaves at `paths` are `leaves`."""
    tree: dict[Any, Any] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = leaf
    return tree
