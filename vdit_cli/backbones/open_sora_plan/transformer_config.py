"""The transformer's configuration: upstream's keys with their released values, and what this implementation takes.

Source: Open-Sora-Plan v1.2.0, `OpenSoraT2V`, released size "ROPE-L/122".
"""

from __future__ import annotations

from typing import Any

from vdit_cli.errors import EvditError

DEFAULTS: dict[str, Any] = {
    "_class_name": "OpenSoraT2V",
    "num_layers": 32,
    "num_attention_heads": 24,
    "attention_head_dim": 96,
    "in_channels": 4,
    "out_channels": None,
    "patch_size": 2,
    "patch_size_t": 1,
    "caption_channels": 4096,
    "cross_attention_dim": None,
    "sample_size": None,
    "sample_size_t": None,
    "interpolation_scale_t": None,
    "interpolation_scale_h": None,
    "interpolation_scale_w": None,
    "norm_eps": 1e-6,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "use_rope": True,
}
"""Values of keys that a config leaves out. `null` sizes follow from others: see `complete` and `position_scales`."""

FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("OpenSoraT2V",),
    "patch_size_t": (1,),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "attention_type": ("default",),
    "norm_type": ("ada_norm_single",),
    "norm_elementwise_affine": (False,),
    "use_rope": (True,),
    "downsampler": (None,),
    "dropout": (0,),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
    "upcast_attention": (False,),
    "use_additional_conditions": (None, False),
    "use_linear_projection": (False,),
    "num_vector_embeds": (None,),
}
"""Keys whose other values would be another network."""

COUNTS = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "caption_channels")


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with missing keys at their defaults; keys that mean nothing here are kept.

    Raises EvditError, naming the key, for a value that this implementation does not compute.
    """
    full = DEFAULTS | config
    for key, allowed in FIXED.items():
        if key in full and full[key] not in allowed:
            raise _refused(key, full[key], f"only {' or '.join(map(repr, allowed))} is implemented")
    for key in COUNTS:
        if not _is_count(full[key]):
            raise _refused(key, full[key], "it must be a whole number above 0")
    for key in ("out_channels", "cross_attention_dim", "sample_size_t"):
        if full[key] is not None and not _is_count(full[key]):
            raise _refused(key, full[key], "it must be null or a whole number above 0")
    if full["out_channels"] is None:
        full["out_channels"] = full["in_channels"]
    width = full["num_attention_heads"] * full["attention_head_dim"]
    if full["attention_head_dim"] % 6:
        raise _refused("attention_head_dim", full["attention_head_dim"], "3D rotary positions need a multiple of 6")
    if full["cross_attention_dim"] not in (None, width):
        raise _refused("cross_attention_dim", full["cross_attention_dim"], f"it must be heads x head size = {width}")
    position_scales(full)
    return full


def position_scales(config: dict[str, Any]) -> tuple[float, float, float]:
    """By what positions on (t, y, x) are divided before they are turned into angles.

    A `null` scale follows from the sample size as upstream derives it; without a sample size it is 1 [ours].
    Raises EvditError for a size or scale that is not a positive number.
    """
    size, size_t = config["sample_size"], config["sample_size_t"]
    size = [size, size] if isinstance(size, int) else size
    if size is not None and not (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_count, size))):
        raise _refused("sample_size", size, "it must be null, a latent size, or [height, width] of one")
    derived = {
        "t": 1.0 if size_t is None else size_t / 16 if size_t % 2 == 0 else (size_t - 1) // 16 + 1,
        "h": 1.0 if size is None else size[0] / 30,
        "w": 1.0 if size is None else size[1] / 40,
    }
    scales = []
    for axis, fallback in derived.items():
        scale = config[f"interpolation_scale_{axis}"]
        scale = fallback if scale is None else scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise _refused(f"interpolation_scale_{axis}", scale, "it must be null or a number above 0")
        scales.append(float(scale))
    return scales[0], scales[1], scales[2]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _refused(key: str, value: object, rule: str) -> EvditError:
    return EvditError(f"{key} = {value!r} does not fit OpenSoraT2V: {rule}", where=f"config.json {key}")
