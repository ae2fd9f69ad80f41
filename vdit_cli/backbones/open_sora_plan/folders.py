"""Which folders hold the parts of a model: our pipeline folder in the diffusers layout, or the published layout.

Ours: model_index.json, transformer/, vae/, text_encoder/, tokenizer/, scheduler/. Published (Open-Sora-Plan v1.2.0):
one transformer folder a size (`29x720p/`, `93x720p/`, ...) beside `vae/`; the text encoder comes from elsewhere.
Paths are relative to the listing or folder they were found in; no path is read out of a JSON file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdit_cli.backbones.base import Defaults
from vdit_cli.backbones.prompt_form import PromptForm
from vdit_cli.diffusion.schedules import ScheduleForm
from vdit_cli.errors import ENVIRONMENT, EvditError, unknown_name
from vdit_cli.reader import read_object, shaped

PIPELINE_CLASS = "OpenSoraPlanPipeline"
INDEX = "model_index.json"
COMPONENTS: dict[str, tuple[str, ...]] = {
    "transformer": ("OpenSoraT2V",),
    "vae": ("CausalVAEModel",),
    "text_encoder": ("T5EncoderModel", "MT5EncoderModel"),
    "tokenizer": ("T5TokenizerFast", "T5Tokenizer", "MT5Tokenizer", "MT5TokenizerFast"),
    "scheduler": (),
}
"""The folders of our layout, and the classes that model_index.json may name for each (none named: any)."""

SIZE_FOLDER = re.compile(r"(\d+)x(\d+)p")
TEXT_FOLDERS = ("mt5-xxl", "text_encoder")
"""Where a text encoder may lie beside the published folders."""

WIDTHS = {480: 640, 720: 1280}
"""Width in pixels by the height in a folder's name. Source: the report of Open-Sora-Plan v1.2.0."""

GUIDANCE = {"29x480p": 2.5}
"""Guidance by the folder whose weights its authors sample otherwise than at 7.5."""

PUBLISHED_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
PUBLISHED_TEMPLATE = "(masterpiece), (best quality), (ultra-detailed), {prompt}."
PUBLISHED_NEGATIVE = (
    "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry"
)


@dataclass(frozen=True)
class ModelFolders:
    """The folders of one model and what the model says about itself; `text_encoder` is None where it is not with it."""

    name: str
    root: Path
    transformer: Path
    vae: Path
    text_encoder: Path | None
    tokenizer: Path | None
    scheduler_config: dict[str, Any]
    defaults: Defaults
    prompt_form: PromptForm | None = None


@dataclass(frozen=True)
class MadeFor:
    """The size that a published transformer folder was made for, read from its name."""

    folder: str
    video_frames: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """The backbone's name: plans name it, and a plan for one length is never taken for another."""
        return "open-sora-plan" if self.video_frames == 29 else f"open-sora-plan-{self.video_frames}"

    def distance(self, video_frames: int | None, height: int | None, width: int | None) -> tuple[float, float, int]:
        """How far this is from the asked size: in frames, in pixels, then the order in which folders are preferred."""
        frames = 0.0 if video_frames is None else abs(math.log(self.video_frames / max(1, video_frames)))
        asked = (height or self.height, width or self.width)
        pixels = sum(
            abs(math.log(mine / max(1, want))) for mine, want in zip((self.height, self.width), asked, strict=True)
        )
        return frames, pixels, 0 if self.folder == "29x720p" else self.video_frames


def size_folders(paths: Iterable[str]) -> list[MadeFor]:
    """The published transformer folders among relative paths ("29x720p/config.json"), in the order of names."""
    names = {path.split("/")[0] for path in paths if path.count("/") == 1 and path.endswith("/config.json")}
    sizes = []
    for name in sorted(names):
        match = SIZE_FOLDER.fullmatch(name)
        if match:
            height = int(match[2])
            sizes.append(MadeFor(name, int(match[1]), height, WIDTHS.get(height, round(height * 16 / 9 / 16) * 16)))
    return sizes


def fitting(sizes: list[MadeFor], video_frames: int | None, height: int | None, width: int | None) -> MadeFor:
    """The folder whose size is nearest to what was asked, frames first; with nothing asked, 29x720p before others."""
    return min(sizes, key=lambda size: size.distance(video_frames, height, width))


def find_folders(root: Path, video_frames: int | None, height: int | None, width: int | None) -> ModelFolders:
    """The parts of the model in the folder `root`; with several transformers, the one that fits the size (pixels) best.

    Raises EvditError: 2 for a bad model_index.json, 3 for a part that is not there.
    """
    if (root / INDEX).exists():
        return _ours(root)
    if _is_transformer(root) and SIZE_FOLDER.fullmatch(root.name):
        return _published(root.parent, size_folders([f"{root.name}/config.json"])[0])
    sizes = size_folders(path.relative_to(root).as_posix() for path in root.glob("*/config.json"))
    if not sizes:
        raise EvditError(
            f"{root} is no model folder: it has neither {INDEX} nor a folder like 29x720p with a config.json",
            where=f"--model {root}",
            next_steps=["--model shapes", "the folder that holds 29x720p/ and vae/"],
        )
    return _published(root, fitting(sizes, video_frames, height, width))


def _ours(root: Path) -> ModelFolders:
    index = present(root / INDEX)
    if index.get("_class_name") != PIPELINE_CLASS:
        raise EvditError(
            f"{INDEX} names the pipeline {index.get('_class_name')!r}: it must be {PIPELINE_CLASS!r}",
            where=str(root / INDEX),
            next_steps=["evdit models"],
        )
    for part, classes in COMPONENTS.items():
        _check_component(root, part, classes, index.get(part))
    ours = index.get("evdit", {})
    if not isinstance(ours, dict) or not isinstance(ours.get("name", ""), str):
        raise EvditError(f'"evdit" in {INDEX} must be an object with a "name"', where=str(root / INDEX))
    form = ours.get("prompt_form")
    schedule = root / "scheduler" / "scheduler_config.json"
    scheduler_config = present(schedule)
    ScheduleForm.of(scheduler_config, str(schedule))
    return ModelFolders(
        name=ours.get("name") or root.resolve().name,
        root=root,
        transformer=root / "transformer",
        vae=root / "vae",
        text_encoder=root / "text_encoder",
        tokenizer=root / "tokenizer",
        scheduler_config=scheduler_config,
        defaults=shaped(Defaults, ours.get("defaults", {}), f"{root / INDEX} evdit.defaults", "model's defaults"),
        prompt_form=None if form is None else PromptForm.read(form, f"{root / INDEX} evdit.prompt_form"),
    )


def _check_component(root: Path, part: str, classes: tuple[str, ...], named: Any) -> None:
    where = f"{root / INDEX} {part}"
    if not (isinstance(named, list) and len(named) == 2 and all(isinstance(word, str) for word in named)):
        raise EvditError(f"{part} is {named!r}: {INDEX} must give it as [library, class]", where=where)
    if classes and named[1] not in classes:
        raise unknown_name(f"{part} class", named[1], classes, where)
    if not (root / part).is_dir():
        raise EvditError(
            f"the folder {part}/ is missing from the model {root}",
            where=where,
            next_steps=[f"bring {root / part}"],
            exit_code=ENVIRONMENT,
        )


def _published(root: Path, size: MadeFor) -> ModelFolders:
    for part in (size.folder, "vae"):
        if not (root / part / "config.json").is_file():
            raise EvditError(
                f"{part}/config.json is missing from the model {root}",
                where=f"--model {root}",
                next_steps=[f"bring {root / part}"],
                exit_code=ENVIRONMENT,
            )
    text = next((root / name for name in TEXT_FOLDERS if (root / name / "config.json").is_file()), None)
    return ModelFolders(
        name=size.name,
        root=root,
        transformer=root / size.folder,
        vae=root / "vae",
        text_encoder=text,
        tokenizer=root / "tokenizer" if (root / "tokenizer").is_dir() else text,
        scheduler_config=dict(PUBLISHED_SCHEDULER),
        defaults=Defaults(
            video_frames=size.video_frames,
            height=size.height,
            width=size.width,
            fps=24,
            steps=100,
            guidance=GUIDANCE.get(size.folder, 7.5),
            scheduler="euler-ancestral",
            prompt_template=PUBLISHED_TEMPLATE,
            negative=PUBLISHED_NEGATIVE,
        ),
    )


def _is_transformer(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def present(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises EvditError: 3 where there is no file, 2 for anything but an object."""
    if not path.exists():
        raise EvditError(
            f"{path.name} is missing", where=str(path), next_steps=[f"bring {path}"], exit_code=ENVIRONMENT
        )
    return read_object(dict[str, Any], path, path.name)
