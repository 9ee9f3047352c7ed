"""Parameters that several ranks share: this rank's part of a tensor, and the groups of ranks among which it is cut."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Ranks", "as_part_of", "is_distributed", "local", "local_gradient", "ranks_of"]

#: Groups of ranks; a number about a parameter is the sum of theirs, over each group in turn.
Ranks: TypeAlias = "tuple[ProcessGroup, ...]"


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`."""
    module: Any = sys.modules.get("torch.distributed.tensor")  # not imported: there is none
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory."""
    distributed: Any = tensor
    return distributed.to_local() if is_distributed(tensor) else tensor


def local_gradient(p: Tensor) -> Tensor:
    """This rank's part of the gradient of a parameter, cut like the parameter."""
    gradient: Any = p.grad
    owner: Any = p
    if is_distributed(gradient) and gradient.placements != owner.placements:  # sums that are yet to be formed
        gradient = gradient.redistribute(owner.device_mesh, owner.placements)
    return local(gradient)


def as_part_of(owner: Tensor, part: Tensor) -> Tensor:
    """A tensor of the owner's kind that has `part` as this rank's part."""
    if not is_distributed(owner):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = owner
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=owner.shape, stride=owner.stride())


def ranks_of(p: Tensor, sharded: bool | ProcessGroup) -> Ranks:
    """The groups of ranks among which a parameter is cut.

    Args:
        sharded: of plain tensors: False if every rank has the same ones, True if each has its own part, or the group that has.
    """
    if is_distributed(p):
        distributed: Any = p
        mesh = distributed.device_mesh
        return tuple(mesh.get_group(i) for i, placement in enumerate(distributed.placements) if placement.is_shard())
    if sharded is False:
        return ()
    if sharded is True:
        sharded = torch.distributed.distributed_c10d._get_default_group()
    return (sharded,)
