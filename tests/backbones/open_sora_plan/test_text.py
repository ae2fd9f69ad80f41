"""Prompt cleaning against the original, and encoder halves against whole models of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.backbones.open_sora_plan.vocabulary import vocabulary
from tests.closeness import assert_close
from tests.tiny_pipeline import write_text_encoder
from vdit_cli.backbones.open_sora_plan.prompt_cleaning import clean_caption, clean_prompt, simple_prompt
from vdit_cli.backbones.open_sora_plan.text import TextEncoder, read_encoder, read_tokenizer, text_dtype
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError

GOLDEN = Path(__file__).parents[2] / "golden" / "open_sora_plan"
PAIRS = json.loads((GOLDEN / "prompt_cleaning.json").read_text(encoding="utf-8"))["pairs"]
PROMPTS = ["A large RED circle moving right over a black background", "a cat"]
LINES = [
    "a large red circle moving right over a black background",
    "a small blue square over a beige background",
    "a cat",
]
WORDS = ["a", "large", "red", "circle", "moving", "right", "over", "the", "black", "checkered", "background"]
SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}


@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_cleaning_of_the_original(pair: dict[str, str]) -> None:
    assert clean_prompt(pair["raw"]) == pair["pipeline"]
    assert clean_caption(pair["raw"]) == pair["dataset"]


def test_the_simple_variant_only_lowers_and_strips() -> None:
    assert simple_prompt("  See (https://example.com) NOW ") == "see (https://example.com) now"


@given(st.lists(st.sampled_from(WORDS), min_size=1))
def test_plain_words_pass_unchanged(words: list[str]) -> None:
    assert clean_prompt(" ".join(words)) == " ".join(words)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return vocabulary(tmp_path_factory.mktemp("spiece"), LINES)


@pytest.fixture(scope="module")
def whole() -> MT5ForConditionalGeneration:
    torch.manual_seed(0)
    config = MT5Config(vocab_size=80, num_decoder_layers=1, tie_word_embeddings=False, **SIZES)
    return MT5ForConditionalGeneration(config).eval()


@pytest.fixture
def bare(tmp_path: Path, spiece: bytes, whole: MT5ForConditionalGeneration) -> Path:
    """A folder as a person brings it: config.json, spiece.model and a `.bin` of the whole model."""
    (tmp_path / "spiece.model").write_bytes(spiece)
    whole.config.save_pretrained(tmp_path)
    torch.save(whole.state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path


def truth(whole: MT5ForConditionalGeneration, spiece: bytes, prompt: str) -> torch.Tensor:
    """Encoder states of one prompt by sentencepiece and the whole model, without padding."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    ids = torch.tensor([[*pieces.encode(clean_prompt(prompt)), pieces.eos_id()]])
    with torch.no_grad():
        return whole.get_encoder()(input_ids=ids).last_hidden_state[0]


def check_states(text: TextEncoder, whole: MT5ForConditionalGeneration, spiece: bytes) -> None:
    encoded = text.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        expected = truth(whole, spiece, prompt)
        assert encoded.mask_BL[row].tolist() == [1] * len(expected) + [0] * (encoded.mask_BL.shape[1] - len(expected))
        assert_close(encoded.states_BLC[row, : len(expected)], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.numerical
def test_a_bin_and_spiece_model_give_the_states_of_the_whole_model(bare, whole, spiece) -> None:
    text = TextEncoder.from_pretrained(bare)
    assert not [name for name, _ in text.encoder.named_parameters() if "decoder" in name]
    assert text.encoder.encoder.embed_tokens.weight is text.encoder.shared.weight
    check_states(text, whole, spiece)


@pytest.mark.numerical
def test_an_old_bin_that_is_no_archive_is_read(bare, whole, spiece) -> None:
    torch.save(whole.state_dict(), bare / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    check_states(TextEncoder.from_pretrained(bare), whole, spiece)


@pytest.mark.numerical
def test_bin_shards_are_read_and_a_lost_one_is_named(bare, whole, spiece) -> None:
    state = whole.state_dict()
    (bare / "pytorch_model.bin").unlink()
    shards = [bare / f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for start, shard in enumerate(shards):
        torch.save({key: state[key] for key in list(state)[start::2]}, shard)
    check_states(TextEncoder.from_pretrained(bare), whole, spiece)
    shards[1].unlink()
    refused(bare, "1 of its 2 files")


@pytest.mark.numerical
@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_safetensors_win_and_either_name_of_the_embedding_is_enough(bare, whole, spiece, kept: str) -> None:
    state = {key: value.clone() for key, value in whole.state_dict().items() if "shared" not in key}
    state.pop("encoder.embed_tokens.weight")
    save_file(state | {kept: whole.shared.weight.detach().clone()}, bare / "model.safetensors")
    (bare / "pytorch_model.bin").write_bytes(b"not looked at")
    check_states(TextEncoder.from_pretrained(bare), whole, spiece)


@pytest.mark.numerical
@pytest.mark.parametrize(("config", "model"), [(T5Config, T5EncoderModel), (UMT5Config, UMT5EncoderModel)])
def test_folders_of_transformers_are_read(tmp_path: Path, config, model) -> None:
    torch.manual_seed(1)
    theirs = model(config(vocab_size=70, **SIZES)).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        expected = theirs(input_ids=ids).last_hidden_state
        assert_close(read_encoder(tmp_path)(input_ids=ids).last_hidden_state, expected)
    assert TextEncoder.weights_bytes(tmp_path) == sum(weight.numel() for weight in theirs.parameters()) * 4


def test_long_prompts_are_cut_at_the_limit(bare) -> None:
    text = TextEncoder.from_pretrained(bare)
    text.max_length = 6
    encoded = text.encode(["a cat " * 40])
    assert encoded.states_BLC.shape == (1, 6, SIZES["d_model"])
    text.tokenizer.model_max_length = 9
    assert TextEncoder(text.tokenizer, text.encoder).max_length == 9


def test_types() -> None:
    assert text_dtype(6_000_000_000, None) is torch.bfloat16
    assert text_dtype(6_000_000_000, torch.float32) is torch.float32
    assert text_dtype(1_000_000, None) is torch.float32
    assert text_dtype(1_000_000, torch.float16) is torch.bfloat16


def test_bfloat16_halves_the_bytes(bare) -> None:
    text = TextEncoder.from_pretrained(bare, dtype=torch.bfloat16)
    assert {weight.dtype for weight in text.encoder.parameters()} == {torch.bfloat16}
    assert TextEncoder.weights_bytes(bare, torch.bfloat16) * 2 == TextEncoder.weights_bytes(bare)


def refused(folder: Path, match: str, code: int = ENVIRONMENT) -> None:
    with pytest.raises(EvditError, match=match) as caught:
        TextEncoder.from_pretrained(folder)
    assert caught.value.exit_code == code


def test_missing_files_are_named(bare) -> None:
    (bare / "pytorch_model.bin").unlink()
    refused(bare, r"model\.safetensors, pytorch_model\.bin")
    (bare / "spiece.model").unlink()
    refused(bare, r"tokenizer\.json, spiece\.model")


def test_a_missing_config_is_named(bare) -> None:
    (bare / "config.json").unlink()
    refused(bare, r"config\.json is missing")


def test_another_kind_of_encoder_is_refused(bare) -> None:
    (bare / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    refused(bare, "unknown text encoder model_type 'bert'", USAGE)


def test_damaged_files_are_named(bare) -> None:
    weights = bare / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-2000])
    refused(bare, r"pytorch_model\.bin \(\d+ bytes\) is damaged")
    (bare / "spiece.model").write_bytes(b"nothing")
    refused(bare, "tokenizer in .* can't be read")


class Hostile:
    """Unpickling it would call a function."""

    def __reduce__(self):
        return (print, ("code of a pickle ran",))


def test_a_bin_with_code_in_it_is_refused_and_not_run(bare, capsys) -> None:
    torch.save({"shared.weight": Hostile()}, bare / "pytorch_model.bin")
    with pytest.raises(EvditError, match="no file of plain weights: it holds more, which is not run") as caught:
        TextEncoder.from_pretrained(bare)
    assert "weights_only" not in caught.value.text() and caught.value.exit_code == ENVIRONMENT
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "null", "{}", '{"added_tokens": 3}', '{"model": {"type": "zzz"}}'])
def test_a_tokenizer_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    """Whichever exception its library raises for it; one that is none of its own passes."""
    write_text_encoder(tmp_path, tmp_path)
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    refused(tmp_path, f"the tokenizer in {tmp_path} can't be read")


def test_what_no_tokenizer_raises_passes(tmp_path: Path, monkeypatch) -> None:
    write_text_encoder(tmp_path, tmp_path)
    monkeypatch.setattr(T5Tokenizer, "from_pretrained", lambda *_, **__: exec("raise MemoryError"))
    with pytest.raises(MemoryError):
        read_tokenizer(tmp_path)


def test_weights_and_tokenizer_must_fit(bare, whole) -> None:
    state = whole.state_dict()
    state["encoder.surplus"] = torch.zeros(1)
    del state["encoder.final_layer_norm.weight"]
    torch.save(state, bare / "pytorch_model.bin")
    refused(bare, r"1 missing \(encoder\.final_layer_norm\.weight\); 1 unknown \(encoder\.surplus\)")
    small = T5EncoderModel(T5Config(vocab_size=10, **SIZES))
    small.save_pretrained(bare)
    refused(bare, "the encoder in .* knows 10")
