"""The ranks that one command runs on, and the few things that they say to each other.

Small words between ranks go over the CPU (gloo), so that asking costs a GPU no wait; tensors go where they lie.
"""

from __future__ import annotations

import atexit
import datetime
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Its functions' defaults are the group of the moment it is imported: after `joined` they would keep it alive, which
# `take_apart` must not let happen.
import torch.distributed.nn.functional  # noqa: F401
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, reduce
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vdit_cli.errors import EvditError, Interrupted
from vdit_cli.parallel.environment import is_rank, watch_launcher

PATIENCE = datetime.timedelta(days=1)
"""How long a rank waits for another one: a rank may measure alone for hours, and torchrun sees a dead one at once."""
BUCKET = 1 << 24
"""Numbers that are summed over the ranks in one message."""


@dataclass(frozen=True)
class Ranks:
    """This process's number among `count` processes; alone it is 0 of 1, and every method answers at once."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def any(self, *claims: bool) -> list[bool]:
        """Whether each claim is true on any rank; every rank must ask."""
        return [bool(count) for count in self.sum(torch.tensor(claims, dtype=torch.float32))]

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        self.any(False)

    def from_first(self, make: Callable[[], str]) -> str:
        """The text that `make` returns on the first rank, the only one that calls it, on every rank.

        Every rank raises the EvditError that `make` raises there.
        """
        if self.count == 1:
            return make()
        told: list[str | EvditError] = [""]
        try:
            told = [make() if self.is_first else ""]
        except EvditError as error:
            told = [error]
        (answer,) = broadcast_object_list(told)
        if isinstance(answer, EvditError):
            raise answer
        return str(answer)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all ranks."""
        return tensor if self.count == 1 else reduce(tensor, "sum")

    @torch.no_grad()
    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's values, in place."""
        for tensor in tensors if self.count > 1 else ():
            broadcast(tensor.detach())

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every parameter's gradient by its sum over the ranks; the same ones must have one on each rank."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for bucket in buckets(gradients):
            flat = self.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


ALONE = Ranks()
"""The ranks of a process that is the only one."""


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbouring tensors of one dtype together, up to BUCKET numbers or one tensor."""
    gathered: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if gathered and (tensor.dtype != gathered[0].dtype or size + tensor.numel() > BUCKET):
            yield gathered
            gathered, size = [], 0
        gathered.append(tensor)
        size += tensor.numel()
    if gathered:
        yield gathered


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks that this process was started among (torchrun, `accelerate launch`, `--gpus`); else ALONE.

    On CUDA (`device` "cuda", or "auto" where there is a GPU) this rank's GPU becomes the current one. After an error
    the group is not taken apart: the others must hear of the error first; Interrupted is none, for all ranks stop
    between two steps. Raises EvditError (2) for a numbered GPU.
    """
    if not is_rank():
        try:
            yield ALONE
        finally:
            if dist.is_initialized():
                take_apart()
        return
    if device not in ("auto", "cpu", "cuda"):
        raise EvditError(
            f"several ranks can't share the device {device}: it must be cuda, cpu or auto",
            where=f"--device {device}",
            next_steps=["--device cuda", "--device cpu"],
        )
    watch_launcher()
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    state = PartialState(cpu=not on_gpu, backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    ranks = Ranks(state.process_index, state.num_processes)
    try:
        yield ranks
        ranks.wait()
    except Interrupted:
        take_apart()
        raise
    take_apart()


def take_apart() -> None:
    """End the group and, at the latest when Python ends, its threads: one that is at work then aborts the process.

    A group ends its threads when nothing holds it any more. Meshes do, which torch keeps for ever, and so do models in
    shards, which are freed by the garbage collector alone.
    """
    dist.destroy_process_group()
    for mesh in [each for each in gc.get_objects() if type(each) is DeviceMesh]:
        getattr(mesh, "_pg_registry", {}).clear()
    atexit.unregister(gc.collect)
    atexit.register(gc.collect)


def mesh_of(ranks: Ranks, device: torch.device) -> DeviceMesh:
    """All ranks in a row; a process that is alone becomes a group of one, without a network."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device.type, (ranks.count,))
