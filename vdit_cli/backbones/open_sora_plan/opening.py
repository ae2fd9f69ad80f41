"""From what a person asked for to the folders of a model: registered weights, a folder, or files of a hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vdit_cli.artifacts.places import expanded
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones import hub, lora
from vdit_cli.backbones.open_sora_plan import loading
from vdit_cli.backbones.open_sora_plan.folders import (
    COMPONENTS,
    INDEX,
    TEXT_FOLDERS,
    ModelFolders,
    find_folders,
    fitting,
    size_folders,
)
from vdit_cli.backbones.open_sora_plan.text import read_config
from vdit_cli.backbones.open_sora_plan.transformer_config import complete
from vdit_cli.backbones.registry import HUB_ID
from vdit_cli.backbones.sources import BackboneEntry, LoadOptions, ModelSource, check_whole, weights_missing
from vdit_cli.errors import ENVIRONMENT, EvditError, quoted

TEXT_ENCODER_ID = "google/mt5-xxl"
TEXT_ENCODER_SIZE = "about 52 GB on the hub, of which the encoder half takes 11.5 GB of memory"


@dataclass(frozen=True)
class Trained:
    """A transformer that takes the place of the model's own: its folder, and that of the run that made it.

    With an `adapter`, the folder of LoRA pairs, it is the model's own with these added, and `folder` is None. `sampler`
    is how a distilled student wants to be sampled; None leaves the model's own defaults.
    """

    folder: Path | None
    adapter: Path | None = None
    run: Path | None = None
    sampler: Sampler | None = None


def find_model(source: ModelSource, options: LoadOptions) -> ModelFolders:
    """The folders of the model, its text encoder included; fetches from a hub only what a person named by hub id.

    Raises EvditError: 2 for a bad folder or text encoder, 3 for missing weights or a hub that does not give them.
    """
    if source.entry is not None:
        folders = _registered(source.entry, options)
    elif source.hub_id is not None:
        folders = _fetched(source.hub_id, options)
    else:
        folders = find_folders(source.folder or Path(source.name), options.video_frames, options.height, options.width)
    if options.text_encoder is not None:
        text = find_text_encoder(options.text_encoder, options)
        folders = replace(folders, text_encoder=text, tokenizer=text)
    if folders.text_encoder is None or folders.tokenizer is None:
        raise _no_text_encoder(folders.name, str(folders.root))
    _check_text_width(folders)
    return folders


def find_text_encoder(asked: str, options: LoadOptions) -> Path:
    """The folder of the text encoder that `--text-encoder` names, a folder or a hub id. Raises EvditError (2, 3)."""
    path = expanded(asked, f"--text-encoder {asked}")
    if path.is_dir():
        return path
    if not HUB_ID.fullmatch(asked) or path.exists():
        raise EvditError(
            f"there is no text encoder folder {asked}",
            where=f"--text-encoder {asked}",
            next_steps=[f"--text-encoder {TEXT_ENCODER_ID}"],
        )
    listing = hub.list_files(asked, options.progress)
    return hub.fetch(listing, text_files(listing.files), options.progress)


def transformer_of(checkpoint: str) -> Trained:
    """The transformer that a run made, the one in a plain folder of config.json and safetensors, or a PEFT folder.

    Raises EvditError: 2 for a path that is none of them, and for a run that made no transformer.
    """
    path = expanded(checkpoint, f"--checkpoint {checkpoint}")
    if (path / "run.json").is_file():
        run = RunDir.open(path)
        if "model" in run.manifest["outputs"] and "transformer" not in run.manifest["outputs"]:
            raise EvditError(
                f"the run {checkpoint} made a whole model: a checkpoint is a transformer alone",
                where=f"--checkpoint {checkpoint}",
                next_steps=[f"--model {quoted(checkpoint)}"],
            )
        folder = run.find("transformer")
        if not run.is_whole("transformer"):
            raise EvditError(
                f"{folder} is not what its run wrote: a file of it was changed or lost since",
                where=f"--checkpoint {checkpoint}",
                next_steps=[
                    f"the command of {quoted(checkpoint)} again, which makes it anew",
                    f"--checkpoint {quoted(str(folder))}  (as it is)",
                ],
            )
        return Trained(folder, run=path, sampler=Sampler.read(folder))
    if (path / "config.json").is_file():
        return Trained(path, sampler=Sampler.read(path))
    if (path / lora.CONFIG).is_file():
        return Trained(None, adapter=path, sampler=Sampler.read(path))
    inner = path / "student"
    raise EvditError(
        f"{checkpoint} is no checkpoint: it is no run folder, no transformer's folder with a config.json, no adapter's",
        where=f"--checkpoint {checkpoint}",
        next_steps=[f"--checkpoint {quoted(str(inner))}"] if (inner / "config.json").is_file() else [],
    )


def model_files(files: Iterable[str], options: LoadOptions) -> list[str]:
    """Of a hub's listing, the files of the model that fits the asked size: our layout whole, or one size and its VAE.

    Raises EvditError (2) where the listing is in neither layout.
    """
    safe = [path for path in files if path.endswith(hub.SAFE_SUFFIXES)]
    if INDEX in safe:
        return [INDEX] + [path for path in safe if path.count("/") == 1 and path.split("/")[0] in COMPONENTS]
    sizes = size_folders(safe)
    if not sizes:
        raise EvditError(f"the hub's model has neither {INDEX} nor a folder like 29x720p", next_steps=["evdit models"])
    size = fitting(sizes, options.video_frames, options.height, options.width)
    parts = {size.folder, "vae"} | (set() if options.text_encoder else {*TEXT_FOLDERS, "tokenizer"})
    return [path for path in safe if path.count("/") == 1 and path.split("/")[0] in parts]


def text_files(files: Iterable[str]) -> list[str]:
    """Of a hub's listing, the files of a text encoder: safetensors, or where there are none PyTorch's own `.bin` files.

    The latter are read with `weights_only`; google/mt5-xxl has no others.
    """
    top = [path for path in files if "/" not in path]
    weights = [path for path in top if path.endswith((".safetensors", ".safetensors.index.json"))]
    if not weights:
        weights = [
            path for path in top if path.startswith("pytorch_model") and path.endswith((".bin", ".bin.index.json"))
        ]
    rest = [path for path in top if path.endswith((".json", ".model")) and not path.endswith(".index.json")]
    if not weights or "config.json" not in rest:
        raise EvditError("the hub's text encoder has no config.json and weights", next_steps=[TEXT_ENCODER_ID])
    return weights + rest


def _registered(entry: BackboneEntry, options: LoadOptions) -> ModelFolders:
    missing = entry.missing_files()
    if options.text_encoder is not None:
        missing = [needed for needed in missing if needed.path.split("/")[0] not in TEXT_FOLDERS]
    if missing:
        raise weights_missing(entry, missing)
    if entry.is_embedded:
        check_whole(entry)
    root = entry.weights_folder
    own_size = root / f"{entry.video_frames}x{entry.height}p"
    return replace(find_folders(own_size if own_size.is_dir() else root, None, None, None), name=entry.name)


def _fetched(hub_id: str, options: LoadOptions) -> ModelFolders:
    listing = hub.list_files(hub_id, options.progress)
    wanted = model_files(listing.files, options)
    # Asked before the transformer is fetched: without a text encoder those gigabytes would be of no use.
    has_text = any(path.split("/")[0] in TEXT_FOLDERS for path in wanted)
    if not has_text and options.text_encoder is None:
        raise _no_text_encoder(hub_id, f"--model {hub_id}")
    folder = hub.fetch(listing, wanted, options.progress)
    folders = find_folders(folder, options.video_frames, options.height, options.width)
    return replace(folders, name=hub_id.split("/")[1]) if folders.name == folder.name else folders


def _no_text_encoder(name: str, where: str) -> EvditError:
    return EvditError(
        f"{name} comes without its text encoder {TEXT_ENCODER_ID} ({TEXT_ENCODER_SIZE})",
        where=where,
        next_steps=["--text-encoder FOLDER", f"--text-encoder {TEXT_ENCODER_ID}  (fetches it)"],
        exit_code=ENVIRONMENT,
    )


def _check_text_width(folders: ModelFolders) -> None:
    """Raise EvditError (2) where the text encoder's states are not as wide as the transformer expects them."""
    if folders.text_encoder is None:
        return
    width = read_config(folders.text_encoder).get("d_model")
    config = loading.read_config(folders.transformer)
    wanted = complete(config, str(folders.transformer / loading.CONFIG))["caption_channels"]
    if width != wanted:
        raise EvditError(
            f"the text encoder gives states of width {width}: {folders.name} needs {wanted}",
            where=str(folders.text_encoder / "config.json"),
            next_steps=[f"--text-encoder {TEXT_ENCODER_ID}"],
        )
