"""Open-Sora-Plan v1.2 as a backbone: configurations are read when it opens, weights when a part is first needed.

Letters: B batch, C channels, F latent frames, T pixel frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedTokenizerBase

from vdit_cli.artifacts.digest import content_digest, weights_digest
from vdit_cli.attention.bind import Attend, Case, Times, bind
from vdit_cli.backbones.base import EMPTY, Cut, TextStates, TrainingSizes
from vdit_cli.backbones.devices import pick_device, pick_dtype
from vdit_cli.backbones.lora import Lora
from vdit_cli.backbones.open_sora_plan import loading, transformer_config
from vdit_cli.backbones.open_sora_plan.folders import ModelFolders
from vdit_cli.backbones.open_sora_plan.offload import Part, Parts
from vdit_cli.backbones.open_sora_plan.opening import Trained, find_model, transformer_of
from vdit_cli.backbones.open_sora_plan.prepared_text import PreparedText
from vdit_cli.backbones.open_sora_plan.prompt_cleaning import clean_prompt
from vdit_cli.backbones.open_sora_plan.text import TextEncoder, cut_of, read_tokenizer
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.transformer_layers import SelfAttention
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.backbones.open_sora_plan.vae_config import VaeConfig
from vdit_cli.backbones.open_sora_plan.weights import Weights
from vdit_cli.backbones.open_sora_plan.working_memory import block_sizes, decoding_bytes, denoising_bytes
from vdit_cli.backbones.sources import LoadOptions, ModelSource
from vdit_cli.diffusion.prediction import kind_of
from vdit_cli.errors import EvditError
from vdit_cli.reader import MOST_SIZE
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.plan import MaskPlan

WORD = re.compile(r"\w[\w'-]*")
LATENT_SCALE = 0.18215
"""What latents are multiplied by where the VAE's config has no `scaling_factor`. Source: Open-Sora-Plan v1.2.0."""


def load(source: ModelSource, options: LoadOptions) -> OpenSoraPlan:
    """Open the model: device, folders and configurations are checked, no weight is read.

    Raises EvditError: 2 for a bad argument or configuration, 3 for missing weights or an absent device.
    """
    device = pick_device(options.device)
    trained = transformer_of(options.checkpoint) if options.checkpoint else None
    return OpenSoraPlan(
        find_model(source, options),
        device=device,
        dtype=pick_dtype(options.dtype, device),
        offload=options.offload,
        vae_tiling=options.vae_tiling,
        trained=trained,
        lora=options.lora,
    )


class OpenSoraPlan:
    """A text-to-video model of a T5 encoder, an OpenSoraT2V transformer and a causal VAE; a `base.Backbone`.

    `trained` takes the place of the folder's own transformer. Raises EvditError for configurations that do not fit.
    """

    def __init__(
        self,
        folders: ModelFolders,
        *,
        device: torch.device,
        dtype: torch.dtype,
        offload: str = "none",
        vae_tiling: bool = False,
        trained: Trained | None = None,
        lora: Sequence[str] = (),
    ) -> None:
        self.name = folders.name
        self.defaults = folders.defaults
        self.scheduler_config = folders.scheduler_config
        self.prompt_form = folders.prompt_form
        self.sampler = trained.sampler if trained else None
        if self.sampler is not None:
            told = self.sampler
            self.defaults = replace(self.defaults, scheduler=told.scheduler, steps=told.steps, guidance=told.guidance)
            self.scheduler_config = {**self.scheduler_config, "milestones": told.timesteps}
        self.prediction = kind_of(folders.scheduler_config.get("prediction_type", "epsilon"))
        self.device = device
        self.dtype = dtype
        self.vae_tiling = vae_tiling
        if folders.text_encoder is None or folders.tokenizer is None:
            raise ValueError(f"{folders.root} has no text encoder: find_model gives folders that do")
        self.text_folder, self.tokenizer_folder = folders.text_encoder, folders.tokenizer
        self.folders = folders
        self.weights = Weights(folders, trained, lora)
        self.transformer_folder, self.loras = self.weights.folder, self.weights.loras
        file = self.transformer_folder / loading.CONFIG
        self.transformer_config = transformer_config.complete(loading.read_config(file.parent), str(file))
        self.vae_config = loading.read_config(folders.vae)
        built = VaeConfig.read(self.vae_config, str(folders.vae / loading.CONFIG))
        self.time_ratio, self.space_ratio = built.ratios
        if self.transformer_config["in_channels"] != built.embed_dim:
            raise EvditError(
                f"the VAE makes latents of {built.embed_dim} channels: "
                f"the transformer takes {self.transformer_config['in_channels']}",
                where=str(folders.vae / "config.json"),
            )
        self.latent_scale = _latent_scale(self.vae_config, str(folders.vae / "config.json"))
        self._attends: tuple[Attend, ...] = ()
        self._fast = self._compiled = False
        loaders: dict[str, Callable[[], Part]] = {
            "text": self._load_text,
            "transformer": self._load_transformer,
            "vae": self._load_vae,
        }
        self.parts = Parts(loaders, device, offload)

    @property
    def architecture(self) -> Architecture:
        """The transformer's class, layers, heads and their width."""
        config = self.transformer_config
        sizes = (config["num_layers"], config["num_attention_heads"], config["attention_head_dim"])
        return Architecture(OpenSoraT2V.__name__, *sizes)

    @property
    def transformer(self) -> OpenSoraT2V:
        """The transformer, loaded if it is not; with offload it may be another object later."""
        return cast(OpenSoraT2V, self.parts.get("transformer"))

    @property
    def vae(self) -> CausalVAEModel:
        """The VAE, loaded if it is not; with offload it may be another object later."""
        return cast(CausalVAEModel, self.parts.get("vae"))

    @property
    def weights_digest(self) -> str:
        """Digest of the transformer's weights, adapters included, that a plan was searched on; reads the file once."""
        return self.weights.digest

    @property
    def lineage(self) -> tuple[str, ...]:
        """Digests of the weights that the transformer's come from."""
        return self.weights.lineage

    def trained_elsewhere(self) -> list[Lora]:
        """The adapters that say that they were trained on other weights than the transformer's."""
        return self.weights.trained_elsewhere()

    def own_plan(self) -> MaskPlan | None:
        """The plan.json beside the transformer's weights, or in the folder of the model or run that they are part of.

        Raises EvditError (2) where the weights name another one, or one that is not there.
        """
        return self.weights.plan()

    def part_digest(self, part: str) -> str:
        """Digest of all that decides what the part "vae" or "text" makes; reads whole files."""
        if part == "vae":
            weights = weights_digest(loading.weight_files(self.folders.vae))
            return content_digest([weights, loading.lasting(self.vae_config)])
        return TextEncoder.digest(self.text_folder, self.tokenizer_folder)

    def resident(self, part: str) -> AbstractContextManager[None]:
        """Inside the block the part ("text", "transformer" or "vae") is on the device; offload decides what follows."""
        return self.parts.resident(part)

    def part_bytes(self, part: str) -> int:
        """Bytes of a part's weights once loaded, from file headers alone. Raises EvditError for damaged files."""
        if part == "text":
            return TextEncoder.weights_bytes(self.text_folder)
        folder = {"transformer": self.transformer_folder, "vae": self.folders.vae}[part]
        shapes = loading.stored_shapes(folder).values()
        return sum(torch.Size(shape).numel() for shape in shapes) * self.dtype.itemsize

    def working_bytes(self, part: str, batch: int, video_frames: int, height: int, width: int, vae_tiling: bool) -> int:
        """Bytes that the part "transformer" (a network batch) or "vae" (decoding) needs beside its weights.

        Found by running it on tensors without data; work space inside an operation is not seen.
        """
        shape = (batch, *self.latent_shape(video_frames, height, width))
        if part == "vae":
            return decoding_bytes(self.vae_config, self.dtype, shape, vae_tiling)
        return denoising_bytes(self.transformer_config, self.dtype, shape)

    def unknown_words(self, prompt: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The words of a prompt, cleaned, that the tokenizer has tokens for, and those that it has none for."""
        cleaned = clean_prompt(prompt)
        words = dict.fromkeys(WORD.findall(cleaned) or cleaned.split())
        unknown = tuple(word for word in words if self._is_unknown(word))
        return tuple(word for word in words if word not in unknown), unknown

    def _is_unknown(self, word: str) -> bool:
        return self._tokenizer.unk_token_id in self._tokenizer(word, add_special_tokens=False)["input_ids"]

    def cut_of(self, text: str) -> Cut | None:
        """What the text encoder leaves out of a text; None where it reads all of it."""
        return cut_of(self._tokenizer, clean_prompt(text))

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return read_tokenizer(self.tokenizer_folder)

    def latent_shape(self, video_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of the latents of a video of T frames and height x width pixels.

        Raises EvditError (2), naming the nearest sizes, for one that the model can't make.
        """
        step = self.time_ratio
        if video_frames < 1 or (video_frames - 1) % step:
            raise EvditError(
                f"{video_frames} frames do not fit {self.name}: video frames must be {step}k+1",
                where=f"--frames {video_frames}",
                next_steps=[f"--frames {frames + 1}" for frames in _around(video_frames - 1, step, least=0)],
            )
        side = self.space_ratio * self.transformer_config["patch_size"]
        for flag, size in (("height", height), ("width", width)):
            if size < 1 or size % side:
                raise EvditError(
                    f"{flag} {size} does not fit {self.name}: it must be a multiple of {side}",
                    where=f"--{flag} {size}",
                    next_steps=[f"--{flag} {fitting}" for fitting in _around(size, side, least=side)],
                )
        channels = self.transformer_config["in_channels"]
        return channels, (video_frames - 1) // step + 1, height // self.space_ratio, width // self.space_ratio

    def grid(self, video_frames: int, height: int, width: int, text_tokens: int = 0) -> VideoGrid:
        """The token grid of the self-attention; text takes no part in it here, so `text_tokens` is 0 as a rule."""
        _, frames, latent_height, latent_width = self.latent_shape(video_frames, height, width)
        patch = self.transformer_config["patch_size"]
        return VideoGrid(frames, latent_height // patch, latent_width // patch, text_after=text_tokens)

    def encode_text(self, prompts: Sequence[str]) -> TextStates:
        """States (B, L, C) and mask of the prompts as they are given: put a prompt into the template beforehand."""
        encoder = cast(TextEncoder, self.parts.get("text"))
        return encoder.encode(list(prompts))

    def denoise(self, x_BCFhw: Tensor, t_B: Tensor, text: TextStates | PreparedText) -> Tensor:
        """The transformer's prediction for noisy latents at timesteps t, differentiable where no text is prepared."""
        if isinstance(text, PreparedText):
            return self.transformer(x_BCFhw, t_B, text)
        return self.transformer(x_BCFhw, t_B, text.states_BLC, text.mask_BL)

    def prepare_text(self, text: TextStates) -> PreparedText:
        """The text of a network batch for all steps: cropped, projected and, unless blocks are outside, in keys."""
        text = text.to(self.device, self.dtype)
        return self.transformer.prepare_text(text.states_BLC, text.mask_BL, with_keys=self.parts.offload != "block")

    def make_fast(self, compiled: bool) -> None:
        """Join the projections of each site, and compile the blocks if asked; stays when offload reads weights again.

        Nothing happens with offload "block": weights that come and go can't be joined.
        """
        self._fast, self._compiled = True, compiled
        if "transformer" in self.parts.loaded:
            self._make_fast(self.transformer)

    def _make_fast(self, transformer: OpenSoraT2V) -> None:
        if self.parts.offload == "block":
            return
        if not transformer.is_fused:
            transformer.fuse()
        if self._compiled:
            transformer.compile_blocks()

    def network(self) -> nn.Module:
        """The transformer."""
        return self.transformer

    def trainable(self, names: Collection[str] | None = None) -> dict[str, nn.Parameter]:
        """Let gradients flow to the transformer's parameters called `names` (None: all), to no others; returns them."""
        named = dict(self.transformer.named_parameters())
        for name, parameter in named.items():
            parameter.requires_grad_(names is None or name in names)
        return {name: each for name, each in named.items() if each.requires_grad}

    def predict_with(self, parameters: Mapping[str, Tensor], x_BCFhw: Tensor, t_B: Tensor, text: TextStates) -> Tensor:
        """The transformer's prediction with these values for the parameters of their names."""
        given = (x_BCFhw, t_B, text.states_BLC, text.mask_BL)
        return functional_call(self.transformer, dict(parameters), given)

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks in order."""
        return list(self.transformer.transformer_blocks)

    def layerwise(self, x_BCFhw: Tensor, t_B: Tensor, text: TextStates) -> Iterator[tuple[Tensor, ...]]:
        """(attended, hidden) of each block as it is asked for, then (prediction,); see `base.TellsLayers`."""
        return self.transformer.layerwise(x_BCFhw, t_B, text.states_BLC, text.mask_BL)

    def training_sizes(self, batch: int, size: tuple[int, int, int], products: torch.dtype) -> TrainingSizes:
        """How large a training of the transformer is; see `base.TellsLayers`."""
        latents = (batch, *self.latent_shape(*size))
        pairs, matrices, tokens, kept = block_sizes(self.transformer_config, products, latents)
        weights, layers, byte = self.part_bytes("transformer"), self.architecture.layers, self.dtype.itemsize
        return TrainingSizes(weights // byte, layers * pairs, layers * matrices, kept, tokens * byte)

    def compile_blocks(self) -> None:
        """Let each block run compiled; a second call changes nothing."""
        self.transformer.compile_blocks()

    def write_transformer(
        self,
        folder: Path,
        values: Mapping[str, Tensor],
        deltas: Mapping[str, Tensor] = EMPTY,
        metadata: Mapping[str, str] = EMPTY,
    ) -> None:
        """Write the stored transformer with other values for some tensors; see `base.Trains`."""
        self.weights.write(folder, values, deltas, metadata)

    @torch.no_grad()
    def encode_video(self, video_BCTHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Video in [-1, 1] to scaled latents (posterior sample, or its mean without a generator), (B, C, F, h, w)."""
        posterior = self.vae.encode(video_BCTHW.to(self.device, self.dtype)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents * self.latent_scale

    @torch.no_grad()
    def decode_video(self, latents_BCFhw: Tensor) -> Tensor:
        """Scaled latents (B, C, F, h, w) to video in [-1, 1], (B, 3, T, H, W)."""
        return self.vae.decode(latents_BCFhw.to(self.device, self.dtype) / self.latent_scale).sample.clamp(-1, 1)

    def attention_sites(self) -> Sequence[nn.Module]:
        """The self-attention modules in order, one a layer; loads the transformer."""
        return _sites(self.transformer)

    def apply_plan(
        self,
        plan: MaskPlan,
        batch: int,
        kernel: str = "auto",
        needs_grad: bool = False,
        costs: Times | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Attend, ...]:
        """Bind each distinct mask of the plan once for a network batch of `batch`; returns one Attend a site.

        `dtype` is that of q, k and v, the backbone's own unless autocast makes it another. The transformer then holds
        frames in the plan's order. Both stay when offload reads it again. Raises EvditError for a plan that does not
        fit or a kernel that can't.
        """
        made = self.architecture
        plan.check_fits(self.name, made, plan.grid)
        case = Case(plan.grid, made.heads, made.head_dim, batch, dtype or self.dtype, self.device, needs_grad)
        order = None if plan.frame_order == tuple(range(plan.grid.frames)) else plan.frame_order
        bound = {mask: bind(mask, case, kernel, order, costs) for mask in plan.distinct()}
        self._attends = tuple(bound[mask] for mask in plan.masks)
        if "transformer" in self.parts.loaded:
            self._put_attends(self.transformer)
        return self._attends

    def _put_attends(self, transformer: OpenSoraT2V) -> None:
        for site, attend in zip(_sites(transformer), self._attends, strict=True):
            site.attend = attend
        transformer.frame_order = self._attends[0].frame_order

    def _load_text(self) -> TextEncoder:
        # Its number format follows its size, not --dtype: mT5-xxl in float32 would be 23 GB.
        return TextEncoder.from_pretrained(self.text_folder, self.tokenizer_folder, device=self.device)

    def _load_transformer(self) -> OpenSoraT2V:
        transformer = self.weights.open(self.dtype, self.device, by_blocks=self.parts.offload == "block")
        if self._attends:
            self._put_attends(transformer)
        if self._fast:
            self._make_fast(transformer)
        return transformer

    def _load_vae(self) -> CausalVAEModel:
        vae = CausalVAEModel.from_pretrained(self.folders.vae, self.dtype, self.device)
        if self.vae_tiling:
            vae.enable_tiling()
        return vae


def _sites(transformer: OpenSoraT2V) -> list[SelfAttention]:
    return [cast(SelfAttention, block.attn1) for block in transformer.transformer_blocks]


def _latent_scale(config: dict, where: str) -> float:
    scale = config.get("scaling_factor", LATENT_SCALE)
    if type(scale) not in (int, float) or not 0 < scale < math.inf:
        raise EvditError(f"scaling_factor is {scale!r}: it must be a number above 0", where=where)
    return float(scale)


def _around(value: int, step: int, least: int) -> list[int]:
    """The multiples of `step` just below and above `value`, none under `least` or of MOST_SIZE, the nearer first."""
    found = {max(least, each) for each in range(value // step * step, value + step, step) if each < MOST_SIZE}
    return sorted(found, key=lambda multiple: (abs(multiple - value), multiple))
