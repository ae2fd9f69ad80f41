"""The registered backbones, and what a `--model` means. No torch: `evdit models` reads this."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdit_cli.artifacts.places import expanded
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.backbones.sources import BackboneEntry, LoadOptions, ModelSource, NeededFile
from vdit_cli.errors import ENVIRONMENT, EvditError, quoted, unknown_name
from vdit_cli.reader import kept
from vdit_cli.timing import Progress, Silent

if TYPE_CHECKING:
    from vdit_cli.backbones.base import Backbone

OPEN_SORA_PLAN = "vdit_cli.backbones.open_sora_plan.backbone"
ENTRY_POINTS = "evdit.backbones"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

MT5_XXL = (
    NeededFile("mt5-xxl/config.json", 1_000),
    NeededFile("mt5-xxl/spiece.model", 4_300_000),
    NeededFile("mt5-xxl/pytorch_model.bin", 51_600_000_000),
)
RELEASED_VAE = (
    NeededFile("vae/config.json", 2_000),
    NeededFile("vae/diffusion_pytorch_model.safetensors", 960_000_000),
)
RELEASED_TRANSFORMER_BYTES = 11_100_000_000

ENTRIES: tuple[BackboneEntry, ...] = (
    BackboneEntry(
        name="shapes",
        module=OPEN_SORA_PLAN,
        parameters=11_470_000,
        video_frames=29,
        height=128,
        width=128,
        tokens=512,
        licence="Apache-2.0",
        folder="shapes",
        files=(
            NeededFile("model_index.json", 1_726),
            NeededFile("transformer/config.json", 604),
            NeededFile("transformer/diffusion_pytorch_model.safetensors.index.json", 18_250),
            NeededFile("transformer/diffusion_pytorch_model-00001-of-00002.safetensors", 13_610_360),
            NeededFile("transformer/diffusion_pytorch_model-00002-of-00002.safetensors", 9_342_576),
            NeededFile("vae/config.json", 1_315),
            NeededFile("vae/diffusion_pytorch_model.safetensors", 13_117_606),
            NeededFile("text_encoder/config.json", 720),
            NeededFile("text_encoder/model.safetensors", 1_789_296),
            NeededFile("tokenizer/tokenizer.json", 4_228),
            NeededFile("tokenizer/tokenizer_config.json", 211),
            NeededFile("scheduler/scheduler_config.json", 285),
        ),
        is_embedded=True,
        pipeline_class="OpenSoraPlanPipeline",
    ),
    BackboneEntry(
        name="open-sora-plan",
        module=OPEN_SORA_PLAN,
        parameters=2_770_000_000,
        video_frames=29,
        height=720,
        width=1280,
        tokens=28_800,
        licence="MIT",
        folder="models/open-sora-plan-v1.2.0",
        files=(
            NeededFile("29x720p/config.json", 2_000),
            NeededFile("29x720p/diffusion_pytorch_model.safetensors", RELEASED_TRANSFORMER_BYTES),
            *RELEASED_VAE,
            *MT5_XXL,
        ),
        hub_id="LanguageBind/Open-Sora-Plan-v1.2.0",
        text_encoder_id="google/mt5-xxl",
        pipeline_class="OpenSoraPlanPipeline",
    ),
    BackboneEntry(
        name="open-sora-plan-93",
        module=OPEN_SORA_PLAN,
        parameters=2_770_000_000,
        video_frames=93,
        height=720,
        width=1280,
        tokens=86_400,
        licence="MIT",
        folder="models/open-sora-plan-v1.2.0",
        files=(
            NeededFile("93x720p/config.json", 2_000),
            NeededFile("93x720p/diffusion_pytorch_model.safetensors", RELEASED_TRANSFORMER_BYTES),
            *RELEASED_VAE,
            *MT5_XXL,
        ),
        hub_id="LanguageBind/Open-Sora-Plan-v1.2.0",
        text_encoder_id="google/mt5-xxl",
        pipeline_class="OpenSoraPlanPipeline",
    ),
)


def all_entries() -> tuple[BackboneEntry, ...]:
    """The entries of this package, then those of other packages' entry points. Raises EvditError for a broken one."""
    return ENTRIES + tuple(_load_entry(point) for point in entry_points(group=ENTRY_POINTS))


def find_source(model: str, where: str = "--model") -> ModelSource:
    """What `model` means: a registered name, else a folder that exists (or a run that made one), else `owner/name`.

    Reads names and folders only: no weights, no network. Raises EvditError (2) for anything else, naming the nearest
    registered names.
    """
    for entry in ENTRIES:
        if entry.name == model:
            return _registered(entry)
    path = expanded(model, where)
    if model and (path / "run.json").is_file():
        path = RunDir.open(path).find("model")
    if model and path.is_dir():
        return ModelSource(path.resolve().name, "folder", _module_for(path), folder=path)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == model:
            return _registered(_load_entry(point))
    if HUB_ID.fullmatch(model) and not path.exists():
        return ModelSource(model, "hub", OPEN_SORA_PLAN, hub_id=model)
    names = [entry.name for entry in ENTRIES] + [point.name for point in entry_points(group=ENTRY_POINTS)]
    if model and path.is_file():
        parent = f"--model {quoted(path.parent)}"
        raise EvditError(f"{model} is a file: a model is a folder", where=where, next_steps=[parent])
    if path.is_absolute() or model.startswith((".", "~")):
        raise EvditError(f"there is no model folder {model}", where=where, next_steps=[f"--model {n}" for n in names])
    raise unknown_name("model", model, names, where)


def open_backbone(
    source: ModelSource,
    *,
    device: str = "auto",
    dtype: Any = "auto",
    text_encoder: str | None = None,
    offload: str = "none",
    vae_tiling: bool = False,
    checkpoint: str | None = None,
    lora: tuple[str, ...] = (),
    progress: Progress | None = None,
    video_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Backbone:
    """Open a model: configurations are read and checked, weights wait until a part is first made resident.

    `lora` are adapters FILE|FOLDER[:scale] that are added to the transformer's weights as these are read.
    The size (T pixel frames, pixels) chooses between folders of weights made for one size each.
    Raises EvditError: 2 for a bad argument, 3 for weights that are missing or damaged, or a device that is absent.
    """
    options = LoadOptions(
        device=device,
        dtype=dtype,
        text_encoder=text_encoder,
        offload=offload,
        vae_tiling=vae_tiling,
        checkpoint=checkpoint,
        lora=lora,
        progress=progress or Silent(),
        video_frames=video_frames,
        height=height,
        width=width,
    )
    backbone = importlib.import_module(source.module).load(source, options)
    if lora and not getattr(backbone, "loras", ()):
        raise EvditError(f"{source.name} takes no adapters: its backbone does not add them", where=f"--lora {lora[0]}")
    return backbone


def _registered(entry: BackboneEntry) -> ModelSource:
    return ModelSource(entry.name, "registered", entry.module, folder=entry.weights_folder, entry=entry)


def _load_entry(point: EntryPoint) -> BackboneEntry:
    try:
        entry = point.load()
    except (ImportError, AttributeError) as error:
        raise EvditError(
            f"backbone {point.name!r} of another package can't be read: {error}",
            where=f"entry point {ENTRY_POINTS}: {point.value}",
            next_steps=["reinstall that package"],
            exit_code=ENVIRONMENT,
        ) from error
    if not isinstance(entry, BackboneEntry):
        raise EvditError(
            f"backbone {point.name!r} of another package is a {type(entry).__name__}, not a BackboneEntry",
            where=f"entry point {ENTRY_POINTS}: {point.value}",
            exit_code=ENVIRONMENT,
        )
    return entry


def _module_for(folder: Path) -> str:
    """The module for a folder by the pipeline class in its model_index.json; without one, the published layout's."""
    index = kept(dict[str, Any], folder / "model_index.json", "model")
    wanted = (index or {}).get("_class_name")  # of a damaged one, the loader says what is wrong
    return next((entry.module for entry in _known_pipelines() if entry.pipeline_class == wanted), OPEN_SORA_PLAN)


def _known_pipelines() -> Iterator[BackboneEntry]:
    yield from ENTRIES
    for point in entry_points(group=ENTRY_POINTS):
        yield _load_entry(point)
