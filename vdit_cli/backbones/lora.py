"""LoRA adapters (arXiv 2106.09685): read from PEFT folders and diffusers' files, added to weights as these are read.

Letters: r rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.digest import content_digest, weights_digest
from vdit_cli.artifacts.places import expanded
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.artifacts.tensors import opened, stored
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.tensor_file import write_tensors
from vdit_cli.errors import EvditError
from vdit_cli.reader import parse, read_text, shaped

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of a PEFT folder."""
DIFFUSERS_FILE, DIFFUSERS_CONFIG = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"
"""What diffusers calls its file, and the key of its metadata that holds the configuration as JSON."""
ADAPTER_FOLDER = "adapter"
"""Of a student that was trained by pairs, where these lie."""
PLACES = ("", ADAPTER_FOLDER, f"student/{ADAPTER_FOLDER}")
"""Where in a folder an adapter lies: itself, that of a student, that of a run that made one."""
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "")
"""What stands before a layer's name in PEFT's, diffusers' and other programs' keys, in this order."""
DOWN, UP, ALPHA = "lora_A", "lora_B", "alpha"
ENDS = {
    ".lora_A.weight": DOWN,
    ".lora_down.weight": DOWN,
    ".lora.down.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_up.weight": UP,
    ".lora.up.weight": UP,
    ".alpha": ALPHA,
}
"""What a key of an adapter ends in; A is (r, I), B is (O, r), alpha a number. There are no others that mean a pair."""
CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of starting pairs that change the model's weights too, so that the pairs alone are not the adapter."""
DEFAULT = 8
"""PEFT's own r and lora_alpha where a configuration does not say them."""
NAMED = 3
"""Of wrong keys so many are named; the rest is counted."""


@dataclass(frozen=True)
class Pair:
    """The keys of a layer's matrices A and B in the file, and what their product is multiplied by."""

    down: str
    up: str
    factor: float


@dataclass(frozen=True)
class Lora:
    """An adapter that fits a transformer: `pairs` by the name of the weight they are added to, times `scale`.

    `digest` tells its content from any other's, whatever the path and the scale. One that was trained here says by its
    `lineage` on what, and has its student's `sampler` beside it; of others both are empty.
    """

    path: str
    file: Path
    scale: float
    pairs: Mapping[str, Pair]
    digest: str
    lineage: Lineage = Lineage()
    sampler: Sampler | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether `--checkpoint` takes its folder as this adapter: a PEFT folder that is no run and no transformer."""
        folder = self.file.parent
        is_other = any((folder / name).is_file() for name in ("run.json", "config.json"))
        return self.file.name == WEIGHTS and (folder / CONFIG).is_file() and not is_other

    @property
    def brings_plan(self) -> bool:
        """Whether the plan that its lineage names, if any, lies beside it."""
        try:
            self.lineage.worn([self.file.parent])
        except EvditError:
            return False
        return True

    def content(self) -> dict[str, Any]:
        """What a receipt tells of it."""
        return {"path": self.path, "scale": self.scale, "digest": self.digest}

    def delta(self, name: str, device: torch.device) -> Tensor:
        """What is added to the weight `name`, (O, I) in float32: scale * alpha / r * B A."""
        pair = self.pairs[name]
        with opened(self.file, "pt", str(device)) as tensors:
            up, down = (tensors.get_tensor(key).float() for key in (pair.up, pair.down))
        return self.scale * pair.factor * (up @ down)


def added(loras: Sequence[Lora], name: str, stored: Tensor) -> Tensor:
    """The tensor called `name` as it is `stored`, or in float32 with what the adapters add to it."""
    deltas = [lora.delta(name, stored.device) for lora in loras if name in lora.pairs]
    return torch.stack([stored.float(), *deltas]).sum(0) if deltas else stored


def asked_lora(asked: str, shapes: Mapping[str, tuple[int, ...]]) -> Lora:
    """The adapter that `--lora FILE|FOLDER[:scale]` names; see `read_lora`."""
    where = f"--lora {asked}"
    return read_lora(*_place_and_scale(asked, where), shapes, where)


def read_lora(place: Path, scale: float, shapes: Mapping[str, tuple[int, ...]], where: str) -> Lora:
    """The adapter in a file or folder, for a transformer whose tensors have these `shapes`; `where` is told in errors.

    Reads headers and alphas alone. Raises EvditError (2), naming the keys, for whatever of it can't be added as it
    was meant, and (3) for a damaged file.
    """
    file, config = _find(place, where)
    found, alphas, told = _keys(file)
    if config is None and DIFFUSERS_CONFIG in told:
        config = _of_transformer(told[DIFFUSERS_CONFIG], where)
    if config is not None:
        _check_config(config, where)
    unknown = [key for key in found if _layer_of(key) is None]
    if unknown or not found:
        raise _unfit(f"has {_counted(unknown, 'keys that mean no pair') if unknown else 'no pairs'}", where)
    layers: dict[str, dict[str, str]] = {}
    for key in found:
        layer, part = _layer_of(key) or ("", "")
        if part in layers.setdefault(layer, {}):
            raise _unfit(f"names {layer} twice: {layers[layer][part]} and {key}", where)
        layers[layer][part] = key
    _check_layers(layers, found, shapes, where)
    pairs = {
        f"{layer}.weight": Pair(keys[DOWN], keys[UP], _factor(layer, found[keys[DOWN]][0], keys, alphas, config, where))
        for layer, keys in layers.items()
    }
    factors = {name: pair.factor for name, pair in pairs.items()}
    lineage = Lineage.read(file)
    sampler = Sampler.read(file.parent) if lineage.weights else None
    return Lora(str(place), file, scale, pairs, content_digest([weights_digest([file]), factors]), lineage, sampler)


def write_adapter(folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], metadata: Mapping[str, str]) -> None:
    """Write pairs A (r, I), B (O, r) by the name of their layer as the PEFT folder `folder`, alpha / r = 1, float32."""
    folder.mkdir()
    tensors = {}
    for layer, (down, up) in pairs.items():
        for side, matrix in ((DOWN, down), (UP, up)):
            tensors[f"{PREFIXES[0]}{layer}.{side}.weight"] = matrix.detach().to("cpu", torch.float32).contiguous()
    (rank,) = {down.shape[0] for down, _ in pairs.values()}
    write_tensors(tensors, folder / WEIGHTS, {**metadata, "format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(pairs)}
    write_json(folder / CONFIG, {**config, "lora_dropout": 0.0, "bias": "none", "inference_mode": True})


def _place_and_scale(asked: str, where: str) -> tuple[Path, float]:
    """The path and the number behind its last colon, 1 where there is none."""
    place, colon, number = asked.rpartition(":")
    if not colon or expanded(asked, where).exists():
        return expanded(asked, where), 1.0
    try:
        scale = float(number)
    except ValueError:
        return expanded(asked, where), 1.0
    if not math.isfinite(scale):
        raise EvditError(f"scale is {number}: it must be a number", where=where, next_steps=[f"--lora {place}:1.0"])
    return expanded(place, where), scale


def _find(place: Path, where: str) -> tuple[Path, dict[str, Any] | None]:
    """The file of pairs at `place`, and the configuration beside it."""
    if place.is_file() and place.suffix == ".safetensors":
        is_peft = place.name == WEIGHTS and (place.parent / CONFIG).is_file()
        return place, _object(place.parent / CONFIG, where) if is_peft else None
    for folder in (place / inner for inner in PLACES):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder / WEIGHTS, _object(folder / CONFIG, where)
        if (folder / DIFFUSERS_FILE).is_file():
            return folder / DIFFUSERS_FILE, None
    told = "is not there" if not place.exists() else f"holds no {CONFIG} with {WEIGHTS}, and no {DIFFUSERS_FILE}"
    told = "is no safetensors file, and no other kind is read" if place.is_file() else told
    raise EvditError(
        f"{place} {told}: an adapter is a safetensors file, or the folder of one",
        where=where,
        next_steps=["--lora FOLDER", "--lora FILE.safetensors:0.8"],
    )


def _keys(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, float], dict[str, str]]:
    """Of a safetensors file the shapes by key, the values of alpha keys, and the metadata."""
    with opened(file, "pt") as tensors:
        shapes = {key: each.shape for key, each in stored(tensors).items()}
        alphas = {
            key: float(tensors.get_tensor(key))
            for key, shape in shapes.items()
            if key.endswith(".alpha") and math.prod(shape) == 1
        }
        return shapes, alphas, tensors.metadata() or {}


@dataclass(frozen=True)
class Patterns:
    """What of PEFT's configuration has numbers by layer."""

    rank_pattern: dict[str, float] | None = None
    alpha_pattern: dict[str, float] | None = None


def _object(file: Path, where: str) -> dict[str, Any]:
    return parse(read_text(file, CONFIG, where), where, CONFIG)


def _of_transformer(text: str, where: str) -> dict[str, Any]:
    """The transformer's keys of diffusers' configuration, which names parts as "transformer.r"."""
    content = parse(text, where, DIFFUSERS_CONFIG)
    return {key.removeprefix("transformer."): value for key, value in content.items()}


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise EvditError for adapters that are more than pairs beside linear layers, or other pairs than these."""
    shaped(Patterns, config, where, CONFIG, is_open=True)
    started = str(config.get("init_lora_weights", True)).lower()
    faults = {
        "peft_type": config.get("peft_type", "LORA") != "LORA",
        "use_dora": bool(config.get("use_dora")),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "layer_replication": bool(config.get("layer_replication")),
        "init_lora_weights": started.startswith(CHANGES_WEIGHTS),
    }
    for key, is_other in faults.items():
        if is_other:
            raise _unfit(f"has {key} {config[key]!r}, which is not built", where)
    numbers = {"r": config.get("r", DEFAULT), "lora_alpha": config.get("lora_alpha", DEFAULT)}
    for key in ("rank_pattern", "alpha_pattern"):
        numbers |= {f"{key} {end}": value for end, value in dict(config.get(key) or {}).items()}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise _unfit(f"has {key} {value!r}: it must be a number above 0", where)


def _layer_of(key: str) -> tuple[str, str] | None:
    """A key's layer by its name in the transformer, and its part; None for a key that means no pair."""
    end = next((end for end in ENDS if key.endswith(end)), None)
    if end is None:
        return None
    name = key.removesuffix(end)
    return name.removeprefix(next(prefix for prefix in PREFIXES if name.startswith(prefix))), ENDS[end]


def _check_layers(
    layers: Mapping[str, Mapping[str, str]],
    found: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Raise EvditError unless each layer is one of the transformer's and has two matrices that fit it."""
    halves = [layer for layer, keys in layers.items() if not {DOWN, UP} <= keys.keys()]
    unknown = [layer for layer in layers if f"{layer}.weight" not in shapes]
    misshapen = []
    for layer, keys in layers.items():
        if layer in halves or layer in unknown:
            continue
        down, up, weight = found[keys[DOWN]], found[keys[UP]], shapes[f"{layer}.weight"]
        alpha = found.get(keys.get(ALPHA, ""), ())
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or weight != (up[0], down[1]) or math.prod(alpha) != 1:
            misshapen.append(f"{layer} {list(up)} x {list(down)} for {list(weight)}")
    for kind, wrong in (("unknown layers", unknown), ("halves of pairs", halves), ("misshapen pairs", misshapen)):
        if wrong:
            raise _unfit(f"has {_counted(wrong, kind)}", where)


def _factor(
    layer: str,
    rank: int,
    keys: Mapping[str, str],
    alphas: Mapping[str, float],
    config: Mapping[str, Any] | None,
    where: str,
) -> float:
    """alpha / r of a layer, or alpha / sqrt(r) where the configuration says so (arXiv 2312.03732); without alpha 1."""
    if config is None:
        return alphas[keys[ALPHA]] / rank if ALPHA in keys else 1.0
    told = _for_layer(layer, config.get("rank_pattern"), config.get("r", DEFAULT))
    own = _for_layer(layer, config.get("alpha_pattern"), config.get("lora_alpha", DEFAULT))
    alpha = alphas[keys[ALPHA]] if ALPHA in keys else own
    if told != rank:
        raise _unfit(f"has pairs of rank {rank} in {layer}, its configuration says {told}", where)
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _for_layer(layer: str, patterns: Mapping[str, Any] | None, otherwise: Any) -> Any:
    """The value of the first pattern that a layer's name ends in, as PEFT matches them."""
    matching = (value for end, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({end})", layer))
    return next(matching, otherwise)


def _counted(names: Iterable[str], kind: str) -> str:
    names = list(names)
    rest = len(names) - NAMED
    return f"{len(names)} {kind} ({', '.join(names[:NAMED])}{f' and {rest} more' if rest > 0 else ''})"


def _unfit(why: str, where: str) -> EvditError:
    return EvditError(f"the adapter {why}", where=where, next_steps=["an adapter that was made for this model"])
