"""Which parts of a model are in memory when: all of them, one at a time, or one transformer block at a time.

The text encoder is always dropped before the transformer works: it is the largest part and no longer needed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vdit_cli.artifacts.tensors import opened
from vdit_cli.backbones.open_sora_plan import loading
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.errors import unknown_name

OFFLOADS = ("none", "model", "block")
BLOCKS = "transformer_blocks."


class Part(Protocol):
    """A loaded part of a model that can change its place."""

    def to(self, device: torch.device) -> object:
        """Move to `device`."""


class Parts:
    """The parts of one model by name, loaded when first made resident and then kept, parked or dropped.

    `offload` "none" keeps what is loaded; "model" and "block" have one part on the device: on a GPU the others wait
    in CPU memory, on the CPU they are dropped and read again. Parts in use (inside `resident`) are never moved.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Part]], device: torch.device, offload: str) -> None:
        if offload not in OFFLOADS:
            raise unknown_name("offload", offload, OFFLOADS, where=f"--offload {offload}")
        self.loaders = loaders
        self.device = device
        self.offload = offload
        self.loaded: dict[str, Part] = {}
        self.parked: set[str] = set()
        self.in_use: dict[str, int] = dict.fromkeys(loaders, 0)

    @contextmanager
    def resident(self, name: str) -> Iterator[None]:
        """Inside the block the part `name` is on the device. Raises EvditError for an unknown part."""
        if name not in self.loaders:
            raise unknown_name("part", name, self.loaders)
        self._make_room(name)
        self.get(name)
        self.in_use[name] += 1
        try:
            yield
        finally:
            self.in_use[name] -= 1

    def get(self, name: str) -> Part:
        """The part `name`, on the device; loaded if it is not."""
        if name not in self.loaded:
            self._make_room(name)
            self.loaded[name] = self.loaders[name]()
        elif name in self.parked:
            self.loaded[name].to(self.device)
            self.parked.remove(name)
        return self.loaded[name]

    def drop(self, name: str) -> None:
        """Free the part `name`; it is read again when it is next needed."""
        self.parked.discard(name)
        if self.loaded.pop(name, None) is not None:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _make_room(self, name: str) -> None:
        for other in [other for other in self.loaded if other != name and not self.in_use[other]]:
            text_is_done = other == "text" and name == "transformer"
            if text_is_done or (self.offload != "none" and self.device.type == "cpu"):
                self.drop(other)
            elif self.offload != "none" and other not in self.parked and not _is_streamed(self.loaded[other]):
                self.loaded[other].to(torch.device("cpu"))
                self.parked.add(other)


def _is_streamed(part: Part) -> bool:
    """Whether the part's blocks come and go by themselves, so that it must not be moved as a whole."""
    return getattr(part, "is_streamed", False)


def stream_blocks(module: nn.Module, blocks: Sequence[nn.Module], read: Callable[[int], Mapping[str, Tensor]]) -> None:
    """Let each block of `module` hold weights only while it runs: `read(i)` gives those of block i, on the device.

    The blocks must have no weights yet (device "meta"). `read` names tensors as the block's own state dict does.
    """

    def bring(index: int) -> Callable[..., None]:
        def before(block: nn.Module, inputs: object) -> None:
            block.load_state_dict(read(index), assign=True)

        return before

    def take_away(block: nn.Module, inputs: object, output: object) -> None:
        block.to("meta")

    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(bring(index))
        block.register_forward_hook(take_away, always_call=True)
    module.is_streamed = True  # type: ignore[assignment]


def open_streamed(
    folder: Path, dtype: torch.dtype, device: torch.device, change: loading.Change = loading.unchanged
) -> OpenSoraT2V:
    """The transformer in `folder` with its blocks outside: in the files for the CPU, in pinned CPU memory for a GPU.

    `change` makes of each stored tensor what is loaded, for the CPU each time that a block runs.
    Raises EvditError (3) for missing, damaged or unfitting files.
    """
    with torch.device("meta"):
        model = OpenSoraT2V(loading.read_config(folder))
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    loading.check_keys(wanted, loading.stored_shapes(folder, whole=()), type(model).__name__, folder)
    inside: dict[str, Tensor] = {}
    outside: list[dict[str, Callable[[], Tensor]]] = [{} for _ in model.transformer_blocks]
    for path in loading.weight_files(folder):
        for key, tensor in loading.read_tensors(path):
            if key.startswith(BLOCKS):
                index, _, name = key.removeprefix(BLOCKS).partition(".")
                outside[int(index)][name] = _waiting(path, key, tensor, dtype, device, change)
            else:
                # A copy, so that nothing keeps the whole file mapped.
                inside[key] = change(key, tensor).to(device, dtype, copy=True)
    model.load_state_dict(inside, strict=False, assign=True)
    stream_blocks(model, list(model.transformer_blocks), lambda i: {name: read() for name, read in outside[i].items()})
    return model.eval()


def _waiting(
    path: Path, key: str, tensor: Tensor, dtype: torch.dtype, device: torch.device, change: loading.Change
) -> Callable[[], Tensor]:
    """How a block's tensor gets onto the device each time the block runs."""
    if device.type == "cpu":
        return lambda: change(key, _read(path, key)).to(dtype)
    waiting = change(key, tensor).to(dtype)
    if device.type == "cuda":
        waiting = waiting.pin_memory()
    return lambda: waiting.to(device, non_blocking=True)


def _read(path: Path, key: str) -> Tensor:
    """One tensor of a safetensors file; the file is mapped for as long as the tensor lives."""
    with opened(path, "pt") as file:
        return file.get_tensor(key)
