"""A model in shards, one on each rank (FSDP2): parameters are gathered block by block while they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vdit_cli.parallel.groups import Ranks, mesh_of


def shard(model: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks, device: torch.device) -> nn.Module:
    """The same model, each rank now holding its share of every parameter, split along the first dimension.

    Student and teacher alike; an average made of the shards is sharded too. All ranks must hold the same values
    before. Only `model(...)` and its blocks' own calls gather the parameters, block by block; a method called past
    them does not. Source: torch.distributed.fsdp.fully_shard.
    """
    mesh = mesh_of(ranks, device)
    for block in blocks:
        if next(block.parameters(), None) is not None:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of the tensors is one rank's share of a whole."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every rank, all of which must ask; another tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a sharded tensor; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, target: Tensor) -> Tensor:
    """This rank's share of a whole `value`, split as `target` is; as it is where the target or the shape is another."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor) or value.shape != target.shape:
        return value
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def whole_on_first(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the first rank, gathered one at a time; nothing on the others, which must ask too."""
    return dict(_gathered(tensors, ranks))


def _gathered(tensors: Mapping[str, Tensor], ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if ranks.is_first:
            yield name, gathered.cpu()
