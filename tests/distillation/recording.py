"""A backbone that writes down how it is called, and whose answers are closed forms: it is distilled in seconds.

Its prediction is v = table[text, t] * x: one free factor for each text and timestep. A text is its clip's number from 1
on, and the null text is 0. Letters: B batch, C channels, F latent frames, h, w latent height and width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from vdit_cli.artifacts.digest import content_digest
from vdit_cli.attention.bind import Attend, Case, bind
from vdit_cli.backbones.base import EMPTY, Defaults, TextStates
from vdit_cli.backbones.tensor_file import changed_tensors, write_tensors
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.shards import write_index, write_shard
from vdit_cli.distillation import mlcd_job
from vdit_cli.distillation.distill_mlcd import distill_mlcd
from vdit_cli.distillation.student_networks import Pair
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress, Silent

SHAPE = (2, 2, 2, 2)
SIZE = {"video_frames": 5, "height": 16, "width": 16}
WEIGHTS = "weights.safetensors"
CPU = torch.device("cpu")


class Call(NamedTuple):
    """One call of a network: whose it is, and what it got. `masks` is None where none are bound."""

    who: str
    x: Tensor
    t: tuple[int, ...]
    texts: tuple[int, ...]
    table: Tensor
    is_replaced: bool
    dtype: torch.dtype
    has_grad: bool
    masks: str | None


class Table(nn.Module):
    """v = table[text, t] * x."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())

    def forward(self, x_BCFhw: Tensor, t_B: Tensor, texts_B: Tensor) -> Tensor:
        """The prediction for texts by their numbers."""
        return self.table[texts_B, t_B].view(-1, 1, 1, 1, 1) * x_BCFhw


class Recorder:
    """The backbone: `Backbone` and `Trains`. All that call one `calls` write into it, in order."""

    name, prediction, device, dtype = "recorded", "v", CPU, torch.float32
    defaults = Defaults(video_frames=5, height=16, width=16, fps=8, steps=4, guidance=1.0, scheduler="milestones")
    scheduler_config: dict = {"prediction_type": "v_prediction"}
    architecture = Architecture("Table", layers=1, heads=1, head_dim=16)
    lineage: tuple[str, ...] = ()

    def __init__(self, who: str, table: Tensor, calls: list[Call]) -> None:
        self.who, self.calls, self.net, self.masks = who, calls, Table(table), None
        self.stored = {"table": table.clone()}
        self.weights_digest = content_digest(table.tolist())

    def resident(self, part: str) -> AbstractContextManager[None]:
        """Everything always is."""
        return nullcontext()

    def latent_shape(self, video_frames: int, height: int, width: int) -> tuple[int, ...]:
        """One size only."""
        return SHAPE

    def grid(self, video_frames: int, height: int, width: int, text_tokens: int = 0) -> VideoGrid:
        """A token a latent pixel."""
        return VideoGrid(*SHAPE[1:])

    def denoise(self, x_BCFhw: Tensor, t_B: Tensor, text: TextStates) -> Tensor:
        """The network's prediction, written down."""
        return self._predicted({}, x_BCFhw, t_B, text)

    def predict_with(self, parameters: Mapping[str, Tensor], x_BCFhw: Tensor, t_B: Tensor, text: TextStates) -> Tensor:
        """The same with other parameters."""
        return self._predicted(dict(parameters), x_BCFhw, t_B, text)

    def _predicted(self, replaced: dict[str, Tensor], x: Tensor, t_B: Tensor, text: TextStates) -> Tensor:
        texts = text.states_BLC[:, 0, 0].round().long()
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        table = replaced.get("table", self.net.table).detach().clone()
        told = (tuple(t_B.tolist()), tuple(texts.tolist()), table, bool(replaced), dtype)
        self.calls.append(Call(self.who, x.detach().clone(), *told, torch.is_grad_enabled(), self.masks))
        return functional_call(self.net, replaced, (x, t_B, texts))

    def decode_video(self, latents_BCFhw: Tensor) -> Tensor:
        """The first channel, enlarged and grey."""
        size = tuple(SIZE.values())
        return nn.functional.interpolate(latents_BCFhw[:, :1], size).expand(-1, 3, *size).clamp(-1, 1)

    def apply_plan(self, plan: MaskPlan, batch: int, kernel: str = "auto", **rest: Any) -> tuple[Attend, ...]:
        """Bound truly, though nothing attends here."""
        self.masks = plan.masks_text()
        return (bind(plan.masks[0], Case(plan.grid, 1, 16, batch, torch.float32, CPU, rest["needs_grad"]), kernel),)

    def network(self) -> nn.Module:
        """The table."""
        return self.net

    def trainable(self, names: Collection[str] | None = None) -> dict[str, nn.Parameter]:
        """The table or nothing."""
        self.net.requires_grad_(names is None or "table" in names)
        return {"table": self.net.table} if self.net.table.requires_grad else {}

    def blocks(self) -> Sequence[nn.Module]:
        """None."""
        return ()

    def write_transformer(
        self,
        folder: Path,
        values: Mapping[str, Tensor],
        deltas: Mapping[str, Tensor] = EMPTY,
        metadata: Mapping[str, str] = EMPTY,
    ) -> None:
        """The table as it was given, with `values`."""
        folder.mkdir()
        write_tensors(changed_tensors(self.stored, values, deltas), folder / WEIGHTS, metadata)


def text_of(numbers: Sequence[int]) -> TextStates:
    """The texts with these numbers."""
    return TextStates(torch.tensor(numbers).float().view(-1, 1, 1), torch.ones(len(numbers), 1, dtype=torch.uint8))


def write_recorded(folder: Path, latents: Tensor) -> Path:
    """Data of these clips; the text of clip i is i + 1."""
    names = [f"clip {i}" for i in range(len(latents))]
    shard = write_shard(folder, "shards/0.safetensors", latents, text_of(range(1, len(latents) + 1)), names, names)
    facts = DataFacts.of(Recorder("teacher", torch.zeros(1, 1), []))
    write_index(folder, facts, {**SIZE, "fps": 8, "latent_shape": list(SHAPE)}, text_of([0]), [shard], {})
    return folder


def distill_recorded(
    pair: Pair, data: Path, run: Path, progress: Progress | None = None, allow_changed: bool = False, **changes: Any
) -> Path:
    """The student's folder of a real distillation of these two; the schedule is the default one of 1000 timesteps."""
    small = {"steps": "4", "batch_size": 4, "warmup": 0, "log_every": 1, "previews": 0, "device": "cpu"}
    options = DistillMlcdOptions(model="recorded", data=str(data), **{**small, **changes})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlcd_job, "open_pair", lambda *_: pair)
        return distill_mlcd(options, run, progress or Silent(), allow_changed)
