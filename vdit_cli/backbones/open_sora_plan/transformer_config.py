"""The transformer's configuration: upstream's keys with their released values, and what this implementation takes.

Source: Open-Sora-Plan v1.2.0, `OpenSoraT2V`, released size "ROPE-L/122".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from vdit_cli.errors import EvditError
from vdit_cli.reader import MOST_SIZE, Count, Layers, Share, Size, shaped

CONFIG = "config.json"

Scale = Annotated[float, Gt(0)] | None
NoNumber = Annotated[float, Ge(0), Le(0)]


@dataclass(frozen=True)
class OneNetwork:
    """Keys whose other values would be another network; a config need not say them."""

    attention_type: Literal["default"] = "default"
    downsampler: None = None
    dropout: NoNumber = 0.0
    double_self_attention: Literal[False] = False
    only_cross_attention: Literal[False] = False
    upcast_attention: Literal[False] = False
    use_additional_conditions: Literal[None, False] = False
    use_linear_projection: Literal[False] = False
    num_vector_embeds: None = None


@dataclass(frozen=True)
class TransformerConfig(OneNetwork):
    """Keys with the values of those that a config leaves out.

    `null` sizes follow from others: see `complete` and `position_scales`.
    """

    _class_name: Literal["OpenSoraT2V"] = "OpenSoraT2V"
    num_layers: Layers = 32
    num_attention_heads: Layers = 24
    attention_head_dim: Size = 96
    in_channels: Size = 4
    out_channels: Size | None = None
    patch_size: Size = 2
    patch_size_t: Literal[1] = 1
    caption_channels: Size = 4096
    cross_attention_dim: Count | None = None
    sample_size: Any = None
    sample_size_t: Size | None = None
    interpolation_scale_t: Scale = None
    interpolation_scale_h: Scale = None
    interpolation_scale_w: Scale = None
    norm_eps: Share = 1e-6
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    attention_bias: Literal[True] = True
    norm_type: Literal["ada_norm_single"] = "ada_norm_single"
    norm_elementwise_affine: Literal[False] = False
    use_rope: Literal[True] = True


DEFAULTS = {name: getattr(TransformerConfig, name) for name in TransformerConfig.__annotations__}


def complete(config: dict[str, Any], where: str = CONFIG) -> dict[str, Any]:
    """`config` (of the file `where`) with missing keys at their defaults; keys that mean nothing here are kept.

    Raises EvditError, naming the key, for a value that this implementation does not compute.
    """
    shaped(TransformerConfig, config, where, "transformer's config", is_open=True)
    full = DEFAULTS | config
    if full["out_channels"] is None:
        full["out_channels"] = full["in_channels"]
    width = full["num_attention_heads"] * full["attention_head_dim"]
    if full["attention_head_dim"] % 6:
        rule = "3D rotary positions need a multiple of 6"
        raise _refused("attention_head_dim", full["attention_head_dim"], rule, where)
    if full["cross_attention_dim"] not in (None, width):
        rule = f"it must be heads x head size = {width}"
        raise _refused("cross_attention_dim", full["cross_attention_dim"], rule, where)
    position_scales(full, where)
    return full


def position_scales(config: dict[str, Any], where: str = CONFIG) -> tuple[float, float, float]:
    """By what positions on (t, y, x) are divided before they are turned into angles.

    A `null` scale follows from the sample size as upstream derives it; without a sample size it is 1 [ours].
    Raises EvditError for a size that is none.
    """
    size, size_t = config["sample_size"], config["sample_size_t"]
    size = [size, size] if isinstance(size, int) else size
    if size is not None and not (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_count, size))):
        raise _refused("sample_size", size, "it must be null, a latent size, or [height, width] of one", where)
    derived = {
        "t": 1.0 if size_t is None else size_t / 16 if size_t % 2 == 0 else (size_t - 1) // 16 + 1,
        "h": 1.0 if size is None else size[0] / 30,
        "w": 1.0 if size is None else size[1] / 40,
    }
    given = {axis: config[f"interpolation_scale_{axis}"] for axis in derived}
    t, h, w = (float(derived[axis] if scale is None else scale) for axis, scale in given.items())
    return t, h, w


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value <= MOST_SIZE


def _refused(key: str, value: object, rule: str, where: str) -> EvditError:
    return EvditError(f"{key} = {value!r} does not fit OpenSoraT2V: {rule}", where=f"{where} {key}")
