"""The transformer's weights as they were chosen: a folder, adapters added as it is read, and what they tell."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from vdit_cli.artifacts.digest import content_digest, weights_digest
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.lora import WEIGHTS, Lora, added, asked_lora, read_lora
from vdit_cli.backbones.open_sora_plan import loading
from vdit_cli.backbones.open_sora_plan.folders import ModelFolders
from vdit_cli.backbones.open_sora_plan.offload import open_streamed
from vdit_cli.backbones.open_sora_plan.opening import Trained
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.tensor_file import changed_tensors
from vdit_cli.errors import EvditError, quoted
from vdit_cli.tiles.plan import MaskPlan


class Weights:
    """The model's own transformer, or the `trained` one in its place, with the adapters `lora` (FILE|FOLDER[:scale]).

    Headers alone are read at first. Raises EvditError (2) for adapters that do not fit, (3) for damaged files.
    """

    def __init__(self, folders: ModelFolders, trained: Trained | None, lora: Sequence[str]) -> None:
        self.folder = (trained and trained.folder) or folders.transformer
        self.adapter = trained.adapter if trained else None
        beside = trained.run if trained else folders.root
        self.plan_folders = (self.adapter or self.folder, *([beside] if beside else []))
        shapes = loading.stored_shapes(self.folder) if self.adapter or lora else {}
        own = () if self.adapter is None else (read_lora(self.adapter, 1.0, shapes, f"--checkpoint {self.adapter}"),)
        asked = tuple(asked_lora(each, shapes) for each in lora)
        merged = self.folder / "adapter"
        merged_digest = read_lora(merged, 1.0, shapes, str(merged)).digest if asked and merged.is_dir() else None
        _check_once(asked, {merged_digest, *(mine.digest for mine in own)})
        self.loras = (*own, *asked)

    @cached_property
    def stored_digest(self) -> str:
        """Digest of the weights in the folder; reads the whole file once."""
        return weights_digest(loading.weight_files(self.folder))

    @cached_property
    def digest(self) -> str:
        """Digest of the weights and of what is added to them. Raises EvditError (2) for an adapter to other weights."""
        trained_on = self._lineage.weights[:1] if self.adapter else ()
        if trained_on not in ((), (self.stored_digest,)):
            # An adapter lies in the folder of the student that has it merged.
            merged, adapter = Path(str(self.adapter)).parent, quoted(str(self.adapter))
            steps = [f"--checkpoint START --lora {adapter}  (evdit generate; START is what its training started from)"]
            if (merged / "config.json").is_file():
                steps.append(f"--checkpoint {quoted(str(merged))}  (the student with the adapter merged)")
            raise EvditError(
                f"the adapter was trained on weights {trained_on[0][:12]}, the model's are {self.stored_digest[:12]}",
                where=f"--checkpoint {self.adapter}",
                next_steps=steps,
            )
        return self._digest_with(self.loras)

    def _digest_with(self, loras: Sequence[Lora]) -> str:
        beside = [[each.digest, each.scale] for each in loras]
        return content_digest([self.stored_digest, *beside]) if beside else self.stored_digest

    def trained_elsewhere(self) -> list[Lora]:
        """The adapters that say that they were trained on other weights than the stored ones.

        Those before them in the row may have been added to these then.
        """
        starts = [self._digest_with(self.loras[:count]) for count in range(len(self.loras))]
        told = ((each, each.lineage.weights[:1], starts[: place + 1]) for place, each in enumerate(self.loras))
        return [each for each, weights, known in told if not set(weights) <= set(known)]

    @cached_property
    def _lineage(self) -> Lineage:
        file = self.adapter / WEIGHTS if self.adapter else loading.weight_files(self.folder)[0]
        return Lineage.read(file)

    @property
    def lineage(self) -> tuple[str, ...]:
        """Digests of the weights that these come from: without adapters, and as they say themselves."""
        stored = (self.stored_digest,) if self.loras else ()
        return tuple(dict.fromkeys((*stored, *self._lineage.weights)))

    def plan(self) -> MaskPlan | None:
        """The plan.json beside the weights, or in the folder of the model or run that they are part of.

        Raises EvditError (2) where the weights name another one, or one that is not there.
        """
        return self._lineage.worn(self.plan_folders)

    def open(self, dtype: torch.dtype, device: torch.device, by_blocks: bool) -> OpenSoraT2V:
        """The transformer, loaded, or with its blocks outside until they run. Raises EvditError (3) for bad files."""
        opened = open_streamed if by_blocks else OpenSoraT2V.from_pretrained
        return opened(self.folder, dtype, device, partial(added, self.loras))

    def write(
        self, folder: Path, values: Mapping[str, Tensor], deltas: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> None:
        """Write the stored transformer, adapters merged, with `values` and `deltas` as `base.Trains` says."""
        stored = loading.read_state(self.folder)
        adapted = {name for each in self.loras for name in each.pairs} - values.keys()
        start = {name: deltas[name] if name in deltas else torch.zeros(stored[name].shape) for name in adapted}
        merged = {name: added(self.loras, name, delta) for name, delta in start.items()}
        state = changed_tensors(stored, values, {**deltas, **merged})
        loading.write_state(state, folder, loading.read_config(self.folder), metadata=metadata)


def _check_once(asked: Sequence[Lora], inside: Collection[str | None]) -> None:
    """Raise EvditError (2) for an adapter that is `inside` the checkpoint or twice in the row; scale 0 is none."""
    adding = [each for each in asked if each.scale]
    for each in adding:
        if each.digest in inside:
            raise EvditError(
                f"the adapter {each.path} is in the checkpoint's weights already: it would be added twice",
                where=f"--lora {each.path}",
                next_steps=["no --lora", "no --checkpoint"],
            )
        scales = [other.scale for other in adding if other.digest == each.digest]
        if len(scales) > 1:
            total = quoted(f"{each.path}:{math.fsum(scales):g}")
            raise EvditError(
                f"the adapter {each.path} stands {len(scales)} times in the row of --lora: it would be added as often",
                where=f"--lora {each.path}",
                next_steps=[f"--lora {total}  (what they add up to)"],
            )
