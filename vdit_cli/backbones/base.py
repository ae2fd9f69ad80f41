"""What a backbone answers: the protocol between the stages and a video diffusion transformer.

Letters: B batch, C channels, F latent frames, T pixel frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vdit_cli.artifacts.digest import content_digest
from vdit_cli.attention.bind import Attend, Times
from vdit_cli.backbones.lora import Lora
from vdit_cli.backbones.prompt_form import PromptForm
from vdit_cli.reader import Amount, Count, Layers, Size, Text
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.plan import MaskPlan

EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class TextStates:
    """Encoded prompts: `states_BLC` and `mask_BL` (1 = a real token, 0 = padding)."""

    states_BLC: Tensor
    mask_BL: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TextStates:
        """The same states on `device`; only the states change to `dtype`."""
        return TextStates(self.states_BLC.to(device, dtype), self.mask_BL.to(device))


@dataclass(frozen=True)
class Defaults:
    """What a model is sampled with when the person says nothing."""

    video_frames: Size
    height: Size
    width: Size
    fps: Layers
    steps: Count
    guidance: Amount
    scheduler: str
    prompt_template: Text = "{prompt}"
    negative: Text = ""


class Backbone(Protocol):
    """A loaded model. Single-device code; its parts (text, transformer, vae) are loaded when first made resident."""

    name: str
    defaults: Defaults
    prediction: str
    """What `denoise` returns: "eps", "v" or "flow"."""
    scheduler_config: dict
    """The noise schedule as diffusers writes it (betas, prediction_type, timestep_spacing)."""
    device: torch.device
    dtype: torch.dtype
    architecture: Architecture
    """What plans fit by; one attention site a layer."""
    weights_digest: str
    """Digest of the transformer's weights, which plans are searched on; reading it may take a while."""
    lineage: tuple[str, ...]
    """Digests of the weights that these were trained from."""

    def resident(self, part: str) -> AbstractContextManager[None]:
        """Inside the block the part ("text", "transformer" or "vae") is on the device; offload decides what follows."""

    def part_bytes(self, part: str) -> int:
        """Bytes of a part's weights once loaded, from file headers alone."""

    def working_bytes(self, part: str, batch: int, video_frames: int, height: int, width: int, vae_tiling: bool) -> int:
        """Bytes that the part "transformer" (a network batch) or "vae" (decoding) needs beside its weights.

        Found without loading any.
        """

    def unknown_words(self, prompt: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The words of a prompt that the model has tokens for, and those that it has none for. Loads no weights."""

    def latent_shape(self, video_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of that video's latents. Raises EvditError for a size that the model can't make."""

    def grid(self, video_frames: int, height: int, width: int, text_tokens: int = 0) -> VideoGrid:
        """The token grid of the self-attention for that video."""

    def encode_text(self, prompts: Sequence[str]) -> TextStates:
        """Cleaned, tokenised and encoded prompts."""

    def denoise(self, x_BCFhw: Tensor, t_B: Tensor, text: Any) -> Tensor:
        """The network's prediction for noisy latents at timesteps t, in the shape of x.

        `text` is a TextStates, or what the backbone's own `prepare_text` made of one.
        """

    def encode_video(self, video_BCTHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Video in [-1, 1] to scaled latents (posterior sample, or its mean without a generator)."""

    def decode_video(self, latents_BCFhw: Tensor) -> Tensor:
        """Scaled latents to video in [-1, 1], (B, C, T, H, W)."""

    def attention_sites(self) -> Sequence[nn.Module]:
        """The self-attention modules in order, one a layer; each has an `attend` attribute."""

    def apply_plan(
        self,
        plan: MaskPlan,
        batch: int,
        kernel: str = "auto",
        needs_grad: bool = False,
        costs: Times | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Attend, ...]:
        """Bind each distinct mask of the plan once and put the Attend on its sites; returns one Attend a site.

        `batch` and `dtype` are those in which q, k and v arrive: under autocast another type than the backbone's own
        (None). `costs` are measured times that decide which kernel "auto" is; generation alone gives them.
        """


@runtime_checkable
class PreparesSteps(Protocol):
    """What a backbone may offer beside `Backbone`: work that is done once a video instead of in each step."""

    def prepare_text(self, text: TextStates) -> Any:
        """Whatever of a network batch's text does not depend on the timestep; `denoise` takes it as `text`."""

    def make_fast(self, compiled: bool) -> None:
        """Ready the transformer for inference at the same numbers: joined projections, and compiled blocks if asked."""


def prepared_text(backbone: Backbone, text: TextStates) -> Any:
    """`text` as `denoise` takes it in each step of a video, prepared where the backbone can; may wait for the device.

    The transformer must be resident.
    """
    return backbone.prepare_text(text) if isinstance(backbone, PreparesSteps) else text


def make_fast(backbone: Backbone, compiled: bool) -> None:
    """Ready the transformer for inference where the backbone can."""
    if isinstance(backbone, PreparesSteps):
        backbone.make_fast(compiled)


@runtime_checkable
class Trains(Protocol):
    """What a backbone may offer beside `Backbone`, so that its transformer can be trained, distilled and adapted.

    The transformer must be resident. Parameters have the names of the stored weights; modules put beside them later
    (adapters) have names of their own.
    """

    def network(self) -> nn.Module:
        """The transformer as one module: `denoise` is a call of it, parameters have the names of its modules."""

    def trainable(self, names: Collection[str] | None = None) -> dict[str, nn.Parameter]:
        """Let gradients flow to the transformer's parameters called `names` (None: all), to no others; returns them."""

    def predict_with(self, parameters: Mapping[str, Tensor], x_BCFhw: Tensor, t_B: Tensor, text: TextStates) -> Tensor:
        """What `denoise` gives with these values in the place of the parameters of their names."""

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks in order: what is adapted, computed again in the backward pass, or shared out."""

    def compile_blocks(self) -> None:
        """Let each block run compiled, for training; a second call changes nothing."""

    def write_transformer(
        self,
        folder: Path,
        values: Mapping[str, Tensor],
        deltas: Mapping[str, Tensor] = EMPTY,
        metadata: Mapping[str, str] = EMPTY,
    ) -> None:
        """Write the transformer to the new `folder`, so that it opens as a checkpoint.

        It is the stored one, bit for bit, but for `values` (which take the stored tensors' places) and `deltas` (which
        are added to them in float32), each written as `tensor_file.trained_tensor` says. `metadata` goes into the
        weight files.
        """


class Trainable(Backbone, Trains, Protocol):
    """A backbone that can be trained."""


class TrainingSizes(NamedTuple):
    """How large a training of the transformer is: numbers of all weights and, a rank, of LoRA pairs beside its blocks.

    `matrices` are the numbers of the weights that are linear layers of its blocks. `block_bytes` is what one block
    keeps for its backward pass, `stream_bytes` its input, for the whole batch.
    """

    weights: int
    pairs: int
    matrices: int
    block_bytes: int
    stream_bytes: int


@runtime_checkable
class TellsLayers(Protocol):
    """What a backbone may offer beside `Trains`, so that a student can be taught layer by layer (`distill-kd`)."""

    def layerwise(self, x_BCFhw: Tensor, t_B: Tensor, text: TextStates) -> Iterator[tuple[Tensor, ...]]:
        """What `denoise` computes, block by block as it is asked for: (attended, hidden) of each, then (prediction,).

        `attended` is the self-attention's output after its projection and before its gate, `hidden` the block's output,
        both (B, N, C) with tokens frame after frame. Gradients flow where they do in `denoise`, also through blocks
        that are computed again in the backward pass.
        """

    def training_sizes(self, batch: int, size: tuple[int, int, int], products: torch.dtype) -> TrainingSizes:
        """Sizes of a training on videos of `size` (frames, height, width), whose matrix products run in that type.

        Found without loading weights.
        """


class LayerwiseTrainable(Trainable, TellsLayers, Protocol):
    """A backbone that can be taught layer by layer."""


@runtime_checkable
class KnowsSentences(Protocol):
    """What a backbone may offer beside `Backbone`, where it was trained on sentences of one form."""

    prompt_form: PromptForm | None
    """The form; None for a model that takes any words."""


def prompt_form(backbone: Backbone) -> PromptForm | None:
    """The form of sentences that the backbone knows; None where it takes any words."""
    return backbone.prompt_form if isinstance(backbone, KnowsSentences) else None


def as_read(backbone: Backbone, prompt: str) -> str:
    """A prompt as the text encoder is given it: in the model's template, a known sentence without foreign marks."""
    form = prompt_form(backbone)
    if form is not None and form.is_whole(prompt):
        prompt = form.completed(prompt)
    return backbone.defaults.prompt_template.replace("{prompt}", prompt)


@dataclass(frozen=True)
class Cut:
    """A text that is longer than the text encoder reads: its tokens, the encoder's limit, and the words left out."""

    tokens: int
    limit: int
    words: tuple[str, ...]


@runtime_checkable
class CutsText(Protocol):
    """What a backbone may offer beside `Backbone`, where its text encoder reads so many tokens and no more."""

    def cut_of(self, text: str) -> Cut | None:
        """What is left out of a text as it is given to `encode_text`; None where nothing is. Loads no weights."""


def cut_of(backbone: Backbone, text: str) -> Cut | None:
    """What the backbone leaves out of a text; None where that is nothing, or where it does not say."""
    return backbone.cut_of(text) if isinstance(backbone, CutsText) else None


@runtime_checkable
class DigestsParts(Protocol):
    """What a backbone may offer beside `Backbone`: digests of the parts that prepared data come from."""

    def part_digest(self, part: str) -> str:
        """Digest of all that decides what the part "vae" or "text" makes: weights, configuration, tokenizer."""


def part_digest(backbone: Backbone, part: str) -> str:
    """Digest of the part "vae" or "text"; of the backbone's name alone where it offers none. May read whole files."""
    if isinstance(backbone, DigestsParts):
        return backbone.part_digest(part)
    return content_digest([backbone.name, part])


@runtime_checkable
class AddsAdapters(Protocol):
    """What a backbone may offer beside `Backbone`, where it adds LoRA adapters to its transformer's weights."""

    loras: tuple[Lora, ...]
    """Those of `LoadOptions.lora`, and the one that the checkpoint is; `weights_digest` tells them apart."""

    def trained_elsewhere(self) -> Sequence[Lora]:
        """Those that say that they were trained on other weights than they are added to. May read a whole file."""


@runtime_checkable
class BringsPlan(Protocol):
    """What a backbone may offer beside `Backbone`, where a mask plan may lie with its weights."""

    def own_plan(self) -> MaskPlan | None:
        """The plan that lies with the transformer's weights, None where there is none. Loads no weights.

        Raises EvditError (2) where the weights were trained under a plan that does not lie there.
        """


def own_plan(backbone: Backbone) -> MaskPlan | None:
    """The plan that lies with the backbone's weights; None where there is none, or where it does not say."""
    return backbone.own_plan() if isinstance(backbone, BringsPlan) else None
