"""Prompts to text states by the encoder half of a T5, mT5 or umT5, read from a local folder.

The folder holds config.json, weights (safetensors or PyTorch's `.bin`, whole models too: decoder weights are left in
the file) and a tokenizer (tokenizer.json or spiece.model). Letters: B batch, L text tokens, C channels.
"""

from __future__ import annotations

import pickle
import zipfile
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    MT5Config,
    MT5EncoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.activations import ACT2FN

from vdit_cli.artifacts.digest import content_digest, file_digest, weights_digest
from vdit_cli.backbones.base import Cut, TextStates
from vdit_cli.backbones.open_sora_plan import loading
from vdit_cli.backbones.open_sora_plan.foreign import tokenizer_files
from vdit_cli.backbones.open_sora_plan.prompt_cleaning import clean_prompt
from vdit_cli.errors import ENVIRONMENT, EvditError, unknown_name
from vdit_cli.reader import Amount, Count, Index, Layers, Share, Size, advising, read_bytes, read_object, shaped

ENCODERS: dict[str, tuple[type[Any], type[Any]]] = {
    "t5": (T5Config, T5EncoderModel),
    "mt5": (MT5Config, MT5EncoderModel),
    "umt5": (UMT5Config, UMT5EncoderModel),
}
"""Configuration and encoder by the `model_type` of config.json."""

MAX_LENGTH = 512
"""Longer prompts are cut here, or at the tokenizer's own limit where that is lower. Source: Open-Sora-Plan v1.2.0."""
BIG_PARAMETERS = 1_000_000_000
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
"""Two names of one matrix; a file may hold either or both."""
OTHER_HALF = ("decoder.", "lm_head.")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
NO_TOKENIZER = (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError)
"""What transformers raises for the files of a tokenizer that are damaged or of another kind."""
BIN = "pytorch_model.bin"


NumberFormat = Literal["float32", "float64", "bfloat16", "float16", "auto"] | None


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes in an encoder's config, which transformers takes as they come."""

    d_model: Size = 512
    d_kv: Size = 64
    d_ff: Size = 2048
    num_layers: Layers = 6
    num_decoder_layers: Layers | None = None
    num_heads: Layers = 8
    vocab_size: Count = 32128
    relative_attention_num_buckets: Size = 32
    relative_attention_max_distance: Count = 128
    dropout_rate: Share = 0.1
    layer_norm_epsilon: Share = 1e-6
    initializer_factor: Amount = 1.0
    hidden_act: str = ""
    dense_act_fn: str = ""
    dtype: NumberFormat = None
    torch_dtype: NumberFormat = None


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer's config may say of its length (1e30: no limit), and of sentinels, which are made in full."""

    model_max_length: float | None = None
    extra_ids: Index | None = None


class TextEncoder:
    """A tokenizer and an encoder. `clean` is what happens to a prompt first; `max_length` counts tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: PreTrainedModel,
        max_length: int = MAX_LENGTH,
        clean: Callable[[str], str] = clean_prompt,
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.max_length = most_tokens(tokenizer, max_length)
        self.clean = clean

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        tokenizer: Path | str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The encoder in `folder` with the tokenizer in another folder or the same one.

        `dtype` is treated as `text_dtype` says. Raises EvditError (exit 3) for missing, damaged or unfitting files.
        """
        words = read_tokenizer(tokenizer or folder)
        encoder = read_encoder(folder, dtype, device)
        if len(words) > encoder.config.vocab_size:
            raise EvditError(
                f"the tokenizer in {tokenizer or folder} has {len(words)} tokens: "
                f"the encoder in {folder} knows {encoder.config.vocab_size}",
                next_steps=["a tokenizer and an encoder from one model"],
                exit_code=ENVIRONMENT,
            )
        return cls(words, encoder)

    @staticmethod
    def weights_bytes(folder: Path | str, dtype: torch.dtype | None = None) -> int:
        """Bytes that the encoder in `folder` will take once loaded, from its config alone."""
        parameters = sum(weight.numel() for weight in _empty_encoder(folder).parameters())
        return parameters * text_dtype(parameters, dtype).itemsize

    @staticmethod
    def digest(folder: Path | str, tokenizer: Path | str) -> str:
        """Digest of an encoder's weights and config and of its tokenizer's words; reads whole files."""
        folder, words = Path(folder), [Path(tokenizer) / name for name in TOKENIZER_FILES]
        files = _weight_files(folder)
        weights = [weights_digest(files)] if _is_safe(files) else [file_digest(path) for path in files]
        config = loading.lasting(loading.read_config(folder))
        return content_digest([weights, config, [file_digest(path) for path in words if path.is_file()]])

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States (B, L, C) of the prompts, padded to the longest of them, and their mask.

        Padding is masked inside the encoder, so a prompt's states do not depend on what else is in the batch.
        """
        tokens = self.tokenizer(
            [self.clean(prompt) for prompt in prompts],
            padding="longest",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.encoder.device)
        states = self.encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return TextStates(states, tokens["attention_mask"])

    def to(self, device: torch.device | str) -> Self:
        """Move the encoder to `device`."""
        self.encoder.to(device)
        return self


def most_tokens(tokenizer: PreTrainedTokenizerBase, max_length: int = MAX_LENGTH) -> int:
    """The tokens that a text is cut to, its end sign included."""
    return min(max_length, tokenizer.model_max_length)


def cut_of(tokenizer: PreTrainedTokenizerBase, cleaned: str) -> Cut | None:
    """What is left out of a cleaned text, from the word on that is not read whole; None where all of it is read."""
    read = tokenizer(cleaned, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    tokens, limit = len(read["input_ids"]), most_tokens(tokenizer)
    if tokens <= limit:
        return None
    signs = sum(read["special_tokens_mask"])
    end = max((stop for _, stop in read["offset_mapping"][: max(0, limit - signs)]), default=0)
    if not cleaned[end].isspace():
        end = cleaned.rfind(" ", 0, end) + 1
    return Cut(tokens, limit, tuple(cleaned[end:].split()))


def text_dtype(parameters: int, asked: torch.dtype | None) -> torch.dtype:
    """The type an encoder of so many parameters is used in: bfloat16 if it is big, float32 if not, unless asked.

    Asked for float16, it is bfloat16 [ours; the alternative is infinities: activations of T5 exceed float16's range].
    """
    if asked is None:
        return torch.bfloat16 if parameters >= BIG_PARAMETERS else torch.float32
    return torch.bfloat16 if asked is torch.float16 else asked


def read_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The T5 tokenizer in `folder`, from tokenizer.json or from spiece.model alone.

    Raises EvditError (exit 3) when neither is there or what is there can't be read.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise _missing(folder, "tokenizer", TOKENIZER_FILES)
    for file in (*(folder / name for name in TOKENIZER_FILES), *folder.glob("*.json")):
        with advising(loading.AGAIN, ENVIRONMENT):
            content = read_bytes(file, "part of a tokenizer") if file.exists() else b""
            if file.name == "tokenizer_config.json":
                read_object(TokenizerConfig, file, "tokenizer's config")
            if file.suffix == ".json" and content.startswith(BOM_UTF8):
                what = f"{file} begins with a byte order mark, with which transformers can't read it"
                raise EvditError(what, where=str(file), next_steps=["save it as UTF-8 without the mark"])
    # Nothing but spiece.model says how many sentinel tokens were added; prompts need none, and none is always in range.
    bare = {} if (folder / "tokenizer_config.json").is_file() else {"extra_ids": 0}
    with tokenizer_files(folder) as place, _Telling(folder):
        return T5Tokenizer.from_pretrained(place, local_files_only=True, **bare)


class _Telling:
    """A block that reads a tokenizer: what libraries raise for files that are none becomes an EvditError (exit 3)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # The tokenizers library raises plain Exception, which no `except` takes without taking every other one too.
        if kind is not None and (kind is Exception or issubclass(kind, NO_TOKENIZER)) and kind is not PermissionError:
            raise EvditError(
                f"the tokenizer in {self.folder} can't be read: {error}",
                next_steps=["fetch the folder's files again"],
                exit_code=ENVIRONMENT,
            ) from error


def read_encoder(
    folder: Path | str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """The encoder half in `folder`, one tensor at a time, as `text_dtype` says.

    Raises EvditError (exit 3) for missing or damaged files, or weights that do not fit the config.
    """
    encoder = _empty_encoder(folder)
    wanted = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    dtype = text_dtype(sum(weight.numel() for weight in encoder.parameters()), dtype)
    state: dict[str, Tensor] = {}
    stored: dict[str, tuple[int, ...]] = {}
    for key, tensor in _tensors(Path(folder)):
        if not key.startswith(OTHER_HALF):
            loading.check_floats({} if tensor.is_floating_point() else {key: tensor.dtype}, folder)
            stored[key] = tuple(tensor.shape)
            state[key] = tensor.to(device, dtype)
    for key, twin in (EMBEDDINGS, EMBEDDINGS[::-1]):
        if key not in stored and twin in stored:
            stored[key], state[key] = stored[twin], state[twin]
    loading.check_keys(wanted, stored, type(encoder).__name__, folder)
    encoder.load_state_dict(state, strict=True, assign=True)
    encoder.tie_weights()
    return encoder.eval()


def read_config(folder: Path | str) -> dict[str, Any]:
    """The encoder's config, its sizes checked. Raises EvditError (exit 3)."""
    config = loading.read_config(folder)
    with advising(loading.AGAIN, ENVIRONMENT):
        shaped(EncoderConfig, config, str(Path(folder) / loading.CONFIG), "text encoder's config", is_open=True)
    return config


def _empty_encoder(folder: Path | str) -> PreTrainedModel:
    """The encoder without weights (device "meta"), as config.json describes it."""
    config = read_config(folder)
    kind = str(config.get("model_type"))
    if kind not in ENCODERS:
        raise unknown_name("text encoder model_type", kind, ENCODERS, where=str(Path(folder) / loading.CONFIG))
    config_class, encoder_class = ENCODERS[kind]
    where = str(Path(folder) / loading.CONFIG)
    try:
        settings = config_class.from_dict(config)
    except (ValueError, TypeError, StrictDataclassError) as error:
        told = " ".join(str(error).split())
        raise EvditError(f"the text encoder's config is none: {told}", where=where, exit_code=ENVIRONMENT) from error
    names = {"hidden_act": config.get("hidden_act", settings.dense_act_fn), "dense_act_fn": settings.dense_act_fn}
    for key, name in names.items():
        if name not in ACT2FN:
            raise unknown_name("activation", str(name), ACT2FN, where=f"{where} {key}")
    with torch.device("meta"):
        return encoder_class(settings)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Keys and tensors of the folder's weights, mapped from their files."""
    files = _weight_files(folder)
    for path in files:
        yield from loading.read_tensors(path) if _is_safe(files) else _read_bin(path).items()


def _weight_files(folder: Path) -> list[Path]:
    """The files that the encoder is read from: safetensors or, where there are none, PyTorch's `.bin`."""
    return loading.weight_files(folder) if loading.has_weights(folder) else _bin_files(folder)


def _is_safe(files: Sequence[Path]) -> bool:
    return files[0].suffix == ".safetensors"


def _bin_files(folder: Path) -> list[Path]:
    if (folder / BIN).is_file():
        return [folder / BIN]
    shards = sorted(folder.glob("pytorch_model-*-of-*.bin"))
    if not shards:
        raise _missing(folder, "text encoder", ("model.safetensors", BIN))
    count = int(shards[0].stem.rpartition("-")[2]) if shards[0].stem.rpartition("-")[2].isdigit() else len(shards)
    if len(shards) != count:
        raise EvditError(
            f"the text encoder in {folder} has {len(shards)} of its {count} files pytorch_model-*.bin",
            next_steps=[f"bring the others to {folder}"],
            exit_code=ENVIRONMENT,
        )
    return shards


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        # Files older than PyTorch 1.6 are no zip archives and can't be mapped: those are read whole.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        # torch's own words for a pickle with code in it are how to run that code: they are not repeated.
        why = "it holds more, which is not run" if isinstance(error, pickle.UnpicklingError) else str(error)
        raise EvditError(
            f"{path} ({path.stat().st_size} bytes) is damaged, or no file of plain weights: {why}",
            next_steps=["fetch the file again", "a folder with model.safetensors"],
            exit_code=ENVIRONMENT,
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise EvditError(f"{path} holds no weights by name", exit_code=ENVIRONMENT)
    return state


def _missing(folder: Path, what: str, names: Sequence[str]) -> EvditError:
    return EvditError(
        f"the {what} in {folder} is missing its files: one of {', '.join(names)} must be there",
        next_steps=[f"bring {folder / names[0]}"],
        exit_code=ENVIRONMENT,
    )
