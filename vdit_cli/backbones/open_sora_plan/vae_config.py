"""What a config of the causal video VAE may name, and its keys with upstream's defaults.

Source: Open-Sora-Plan v1.2.0, whose published weights fix the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vdit_cli.backbones.open_sora_plan import vae_layers, vae_resample
from vdit_cli.errors import EvditError, unknown_name
from vdit_cli.reader import Index, Layers, Share, Size, shaped

LAYERS: dict[str, dict[str, type[Any]]] = {
    "convolution": {
        "Conv2d": vae_layers.Conv2d,
        "CausalConv3d": vae_layers.CausalConv3d,
    },
    "residual block": {
        "ResnetBlock2D": vae_layers.ResnetBlock2D,
        "ResnetBlock3D": vae_layers.ResnetBlock3D,
    },
    "attention": {
        "AttnBlock": vae_layers.AttnBlock,
        "AttnBlock3D": vae_layers.AttnBlock3D,
        "AttnBlock3DFix": vae_layers.AttnBlock3DFix,
    },
    "downsampling": {
        "Downsample": vae_resample.Downsample,
        "SpatialDownsample2x": vae_resample.SpatialDownsample2x,
        "TimeDownsample2x": vae_resample.TimeDownsample2x,
        "TimeDownsampleRes2x": vae_resample.TimeDownsampleRes2x,
        "Spatial2xTime2x3DDownsample": vae_resample.Spatial2xTime2x3DDownsample,
    },
    "upsampling": {
        "Upsample": vae_resample.Upsample,
        "SpatialUpsample2x": vae_resample.SpatialUpsample2x,
        "TimeUpsample2x": vae_resample.TimeUpsample2x,
        "TimeUpsampleRes2x": vae_resample.TimeUpsampleRes2x,
        "Spatial2xTime2x3DUpsample": vae_resample.Spatial2xTime2x3DUpsample,
    },
}
"""What a config may name, by the role of the place that names it."""


ACTIVATIONS = ("silu", "swish")
"""What a config may call the one activation that there is."""


@dataclass(frozen=True)
class VaeConfig:
    """The keys of a VAE's config.json that build it, with upstream's defaults; lists have one entry a level."""

    hidden_size: Size = 128
    z_channels: Size = 4
    hidden_size_mult: tuple[Layers, ...] = (1, 2, 4, 4)
    attn_resolutions: tuple[Index, ...] = ()
    dropout: Share = 0.0
    resolution: Size = 256
    double_z: bool = True
    embed_dim: Size = 4
    num_res_blocks: Layers = 2
    q_conv: str = "CausalConv3d"
    use_quant_layer: bool = True
    norm_num_groups: Size = 32
    """[ours] Upstream has 32 in its code; a narrow model needs fewer, or each group is one channel."""
    encoder_conv_in: str = "CausalConv3d"
    encoder_conv_out: str = "CausalConv3d"
    encoder_attention: str = "AttnBlock3D"
    encoder_resnet_blocks: tuple[str, ...] = ("ResnetBlock3D",) * 4
    encoder_spatial_downsample: tuple[str, ...] = ("SpatialDownsample2x",) * 3 + ("",)
    encoder_temporal_downsample: tuple[str, ...] = ("", "TimeDownsample2x", "TimeDownsample2x", "")
    encoder_mid_resnet: str = "ResnetBlock3D"
    decoder_conv_in: str = "CausalConv3d"
    decoder_conv_out: str = "CausalConv3d"
    decoder_attention: str = "AttnBlock3D"
    decoder_resnet_blocks: tuple[str, ...] = ("ResnetBlock3D",) * 4
    decoder_spatial_upsample: tuple[str, ...] = ("",) + ("SpatialUpsample2x",) * 3
    decoder_temporal_upsample: tuple[str, ...] = ("", "", "TimeUpsample2x", "TimeUpsample2x")
    decoder_mid_resnet: str = "ResnetBlock3D"

    @classmethod
    def read(cls, config: dict, where: str = "vae/config.json") -> VaeConfig:
        """The known keys of `config` (of the file `where`).

        Raises EvditError for values that are none, and when a list does not have one entry a level.
        """
        read = shaped(cls, config, where, "VAE's config", is_open=True)
        if config.get("hidden_act", "silu") not in ACTIVATIONS:
            raise unknown_name("VAE activation", str(config["hidden_act"]), ACTIVATIONS, where=f"{where} hidden_act")
        if not read.hidden_size_mult:
            raise EvditError("hidden_size_mult is empty: it needs a level", where=f"{where} hidden_size_mult")
        if odd := [channels for channels in read.channels if channels % read.norm_num_groups]:
            rule = f"norm_num_groups is {read.norm_num_groups}: it must divide the channels of each level, {odd[0]}"
            raise EvditError(rule, where=f"{where} norm_num_groups")
        for name in _ONE_A_LEVEL:
            if len(getattr(read, name)) != len(read.hidden_size_mult):
                raise EvditError(
                    f"{name} has {len(getattr(read, name))} entries: it needs one a level, "
                    f"and hidden_size_mult has {len(read.hidden_size_mult)}",
                    where=f"{where} {name}",
                )
        return read

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.hidden_size * mult for mult in self.hidden_size_mult)

    @property
    def ratios(self) -> tuple[int, int]:
        """(time, space): pixel frames a latent frame after the first, and pixels a latent along height and width.

        The last level is left out: upstream's encoder drops what a sampling layer there returns.
        """
        time = space = 1
        for name in self.encoder_spatial_downsample[:-1] + self.encoder_temporal_downsample[:-1]:
            if name:
                found = layer("downsampling", name, "encoder_*_downsample")
                time, space = time * found.time_factor, space * found.space_factor
        return time, space


_ONE_A_LEVEL = (
    "encoder_resnet_blocks",
    "encoder_spatial_downsample",
    "encoder_temporal_downsample",
    "decoder_resnet_blocks",
    "decoder_spatial_upsample",
    "decoder_temporal_upsample",
)


def layer(role: str, name: str, key: str) -> type[Any]:
    """The class that a config names at `key` for `role`.

    Raises EvditError for a name that is not in the role's table.
    """
    if name not in LAYERS[role]:
        raise unknown_name(f"VAE {role}", name, LAYERS[role], where=f"vae/config.json {key}")
    return LAYERS[role][name]
