"""Preparing data with a tiny model: latents and states are the model's own, however often it is stopped or damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.closeness import assert_close
from tests.tiny_pipeline import VIDEO_FRAMES, write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.artifacts.video_file import read_metadata, read_video
from vdit_cli.backbones.base import Backbone
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.data import encoding
from vdit_cli.data import prepare_data as preparing
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.prepare_data import Prepared, prepare_data
from vdit_cli.data.shapes_world import draw_scenes, render
from vdit_cli.data.shards import Clips, open_data
from vdit_cli.errors import FAILED, USAGE, EvditError, Interrupted
from vdit_cli.recipe import PrepareDataOptions
from vdit_cli.timing import Silent

SMALL = {"source": "shapes", "height": 32, "width": 32, "device": "cpu", "previews": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline whose captions go into a template; it reads 24 tokens."""
    template = {"prompt_template": "a black {prompt}", "negative": "green left"}
    return write_pipeline(tmp_path_factory.mktemp("models") / "tiny", **template)


def opened(model: Path) -> Backbone:
    """The model, to be asked itself."""
    return open_backbone(find_source(str(model)), device="cpu")


def prepared(model: Path, out: Path, progress: Silent | None = None, **options: object) -> Prepared:
    """Prepare small clips on the CPU."""
    asked = PrepareDataOptions(model=str(model), **(SMALL | options))  # type: ignore[arg-type]
    return prepare_data(asked, out, progress or Silent())


def assert_equal(first: Clips, second: Clips) -> None:
    """Two preparations hold the same clips, bit for bit, under the same digests."""
    every = range(len(first))
    assert (first.captions, first.sources, first.facts) == (second.captions, second.sources, second.facts)
    assert torch.equal(first.latents(every), second.latents(every))
    pairs = zip((*first.text(every), *first.null_text()), (*second.text(every), *second.null_text()), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert [shard.sha256 for shard in first.shards] == [shard.sha256 for shard in second.shards]


@pytest.mark.numerical
def test_data_are_what_the_model_makes_of_the_clips(model: Path, tmp_path: Path, monkeypatch):
    """Latents of the rendered clips encoded again, one by one; states of each caption in the template by itself."""
    backbone, sizes = opened(model), []
    encode = type(backbone).encode_video
    with monkeypatch.context() as patch:
        patch.setattr(type(backbone), "encode_video", lambda self, x: (sizes.append(len(x)), encode(self, x))[1])
        clips = prepared(model, tmp_path / "data", count=5, seed=5, shard_clips=3, batch=2).clips
    assert sizes == [2, 1, 2], "batches of 2 in shards of 3"
    assert clips.facts == DataFacts.of(backbone) and clips.latent_shape == (4, 3, 4, 4)
    assert clips.size == {"video_frames": 9, "height": 32, "width": 32, "fps": 8, "latent_shape": [4, 3, 4, 4]}
    scenes = draw_scenes(5, 5, "train", 0.25)
    pixels = render(scenes, frames=VIDEO_FRAMES, size=32) * 2 - 1
    assert_close(clips.latents(range(5)), torch.cat([backbone.encode_video(clip[None]) for clip in pixels]), atol=1e-5)
    states, mask = clips.text(range(5))
    for number, caption in enumerate(clips.captions):
        alone = backbone.encode_text([f"a black {caption}"])
        length = alone.mask_BL.shape[1]
        assert mask[number].tolist() == [1] * length + [0] * (clips.text_length - length)
        assert_close(states[number, :length], alone.states_BLC[0], atol=1e-5)
    null, null_mask = clips.null_text()
    alone = backbone.encode_text(["green left"])
    assert null_mask.sum() == alone.mask_BL.shape[1]
    assert_close(null[:, : alone.mask_BL.shape[1]], alone.states_BLC, atol=1e-5)


def test_previews_are_the_first_clips_decoded_back(model: Path, tmp_path: Path, monkeypatch):
    """As many as are asked for, with their captions; made again when one is lost."""
    decoded: list[torch.Tensor] = []
    kind = type(opened(model))
    decode = kind.decode_video
    monkeypatch.setattr(kind, "decode_video", lambda self, x: (decoded.append(x), decode(self, x))[1])
    made = prepared(model, tmp_path / "data", count=3, previews=2)
    assert torch.equal(torch.cat(decoded), made.clips.latents([0, 1]))
    files = sorted((made.folder / "previews").iterdir())
    assert [file.name for file in files] == ["000000.mp4", "000001.mp4"]
    assert read_video(files[1])[0].shape == (9, 32, 32, 3) and read_video(files[1])[1] == 8
    assert read_metadata(files[1])["prompt"] == made.clips.captions[1]
    files[0].unlink()
    progress = Silent()
    prepared(model, tmp_path / "data", progress, count=3, previews=2)
    assert files[0].is_file() and "3 of 3 clips are done already" in progress.lines
    prepared(model, tmp_path / "data", count=3, previews=3)
    assert len(list((made.folder / "previews").iterdir())) == 3
    prepared(model, tmp_path / "data", progress, count=3, previews=0)
    assert "is done already" in progress.lines[-1]


def test_a_folder_says_what_made_it(model: Path, tmp_path: Path):
    """What is said first; run.json is done and knows each file; the receipt has seconds and no machine's path."""
    progress = Silent()
    made = prepared(model, tmp_path / "data", progress, count=3, shard_clips=2)
    assert progress.lines[0].startswith("tiny: 3 clips of shapes, 9 x 32 x 32, cpu float32, 2 kB of latents")
    run = RunDir.open(made.folder)
    shards = {f"shards/00000{number}.{kind}" for number in (0, 1) for kind in ("safetensors", "json")}
    data = {"index.json", "null.safetensors", "receipt.json"} | shards
    assert run.is_done() and run.manifest["outputs"]["data"]["files"].keys() == data
    files = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert files == data | {"run.json", "README.md", ".lock"}
    assert str(tmp_path) not in (made.folder / "index.json").read_text(encoding="utf-8")
    receipt = Receipt.read(made.folder / "receipt.json")
    assert receipt.seconds.keys() == {"load", "encode", "previews"} and receipt.peak_memory_bytes
    assert made.made == 3 and made.clips_per_second and made.bytes > 1000


def test_the_same_again_is_done_already_and_another_request_is_refused(model: Path, tmp_path: Path):
    """How many go through the VAE at once does not make another request; how many there are does."""
    first = prepared(model, tmp_path / "data", count=2)
    progress = Silent()
    again = prepared(model, tmp_path / "data", progress, count=2, batch=2)
    assert "is done already" in progress.lines[-1] and again.clips_per_second is None
    assert_equal(first.clips, again.clips)
    with pytest.raises(EvditError, match="count: was 2, is 3") as told:
        prepared(model, tmp_path / "data", count=3)
    assert told.value.exit_code == USAGE


class StopsAfter(Silent):
    """A person who presses Ctrl-C after so many clips."""

    def __init__(self, clips: int) -> None:
        super().__init__()
        self.clips = clips

    def advance(self, note: str = "") -> None:
        """Count."""
        assert note.endswith(" clips/s")
        self.clips -= 1

    def should_stop(self) -> bool:
        """Whether enough was seen."""
        return self.clips <= 0


def test_a_stop_keeps_whole_shards_and_the_rest_is_made_later(model: Path, tmp_path: Path):
    """The end is as if nothing had happened."""
    options = {"count": 7, "shard_clips": 2}
    with pytest.raises(Interrupted, match="stopped: 4 of 7 clips are on the disk"):
        prepared(model, tmp_path / "data", StopsAfter(5), **options)
    other = RunDir.start(tmp_path / "other", Request("distill-kd", "tiny", {}))
    with other:
        pass
    with pytest.raises(EvditError, match="holds no prepared data: it is a run of evdit distill-kd") as told:
        open_data(tmp_path / "other")
    assert [step.split(" -o ")[0] for step in told.value.next_steps] == ["evdit prepare-data --source shapes"]
    with pytest.raises(EvditError, match="its run is interrupted, not done") as told:
        open_data(tmp_path / "data")
    assert "run.json again" in told.value.next_steps[0]
    progress = Silent()
    made = prepared(model, tmp_path / "data", progress, **options)
    assert "4 of 7 clips are done already" in progress.lines and made.made == 3
    assert_equal(made.clips, prepared(model, tmp_path / "whole", **options).clips)


@pytest.mark.parametrize("harm", ["flipped", "lost", "record lost", "record damaged", "record edited", "another's"])
def test_a_shard_that_was_damaged_or_lost_is_made_again_and_no_other(model: Path, tmp_path: Path, harm: str):
    """Also of a finished run, which then isn't "done already"."""
    options = {"count": 3, "shard_clips": 1}
    whole = prepared(model, tmp_path / "whole", **options).clips
    data = tmp_path / "data"
    prepared(model, data, **options)
    file, record = data / "shards/000001.safetensors", data / "shards/000001.json"
    times = {number: (data / f"shards/00000{number}.safetensors").stat().st_mtime_ns for number in (0, 2)}
    if harm == "flipped":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    elif harm == "another's":
        file.write_bytes((data / "shards/000000.safetensors").read_bytes())
        record.write_bytes((data / "shards/000000.json").read_bytes())
    elif harm == "record edited":
        told = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({**told, "cut": 99}), encoding="utf-8")
    elif harm == "record damaged":
        record.write_text('{"schema": "evdit.data-shard/1", "shard": {}, "cut": 0}', encoding="utf-8")
    else:
        (file if harm == "lost" else record).unlink()
    progress = Silent()
    made = prepared(model, data, progress, **options)
    assert "2 of 3 clips are done already" in progress.lines and made.made == 1
    assert_equal(made.clips, whole)
    assert times == {number: (data / f"shards/00000{number}.safetensors").stat().st_mtime_ns for number in (0, 2)}


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_kill_9_loses_at_most_one_shard(model: Path, tmp_path: Path):
    """A real process, killed once its second shard stands; the same command keeps what is finished."""
    options = {"count": 60, "shard_clips": 4}
    command = [sys.executable, "-m", "vdit_cli", "prepare-data", "--model", str(model), "--device", "cpu"]
    command += ["--source", "shapes", "-o", str(tmp_path / "data"), "--count", "60", "--height", "32", "--width", "32"]
    command += ["--set", "prepare_data.shard_clips=4", "--set", "prepare_data.previews=0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = tmp_path / "data" / "shards" / "000001.json"
    while not second.exists():
        try:
            process.wait(0.005)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"it ended by itself with {process.returncode}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    shards = tmp_path / "data" / "shards"
    finished = {path.with_suffix(".safetensors"): 0 for path in shards.glob("0*.json")}
    finished = {path: path.stat().st_mtime_ns for path in finished}
    assert 2 <= len(finished) < 15 and len(list(shards.glob("0*.safetensors"))) <= len(finished) + 1
    made = prepared(model, tmp_path / "data", **options)
    assert made.made == 60 - 4 * len(finished)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert_equal(made.clips, prepared(model, tmp_path / "whole", **options).clips)
    assert not list(shards.glob(".*"))


def test_captions_that_the_text_encoder_cuts_are_counted(model: Path, tmp_path: Path):
    """By the tokens of the caption in its template; said, in the receipt, and told again when all is done."""
    count = 30
    progress = Silent()
    made = prepared(model, tmp_path / "data", progress, count=count, shard_clips=7)
    tokenizer = opened(model)._tokenizer
    lengths = [len(tokenizer(f"a black {caption}")["input_ids"]) for caption in made.clips.captions]
    longer = sum(length > 24 for length in lengths)
    assert 0 < longer < count and made.cut == longer
    line = f"{longer} of {count} captions are longer than the text encoder reads: their ends are left out"
    assert progress.lines[-1] == f"warning: {line}"
    assert Receipt.read(made.folder / "receipt.json").ran.warnings == (line,)
    assert prepared(model, tmp_path / "data", count=count, shard_clips=7).cut == longer


def test_latents_that_are_no_numbers_are_never_written(model: Path, tmp_path: Path, monkeypatch):
    """What overflowed in the VAE would spoil a training: exit 1 and the clips."""
    kind = type(opened(model))
    monkeypatch.setattr(kind, "encode_video", lambda self, video: torch.full((len(video), 4, 3, 4, 4), torch.nan))
    with pytest.raises(EvditError, match=r"latents of the clips shapes 0 0 to shapes 0 1 are not finite") as told:
        prepared(model, tmp_path / "data", count=2)
    assert told.value.exit_code == FAILED and not list((tmp_path / "data").rglob("*.safetensors"))


def test_a_disk_that_fills_up_ends_it_and_it_goes_on_later(model: Path, tmp_path: Path, monkeypatch):
    """What the writing thread meets ends the command; the shard before it stays."""
    options = {"count": 6, "shard_clips": 2}
    write = encoding.write_shard

    def filling(folder: Path, path: str, *others: object):
        if path.endswith("1.safetensors"):
            raise EvditError("the disk is full", exit_code=FAILED)
        return write(folder, path, *others)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_shard", filling)
        with pytest.raises(EvditError, match="the disk is full"):
            prepared(model, tmp_path / "data", **options)
    assert RunDir.open(tmp_path / "data").state() == "failed"
    assert [path.name for path in (tmp_path / "data").rglob("*.safetensors")] == ["000000.safetensors"]
    assert prepared(model, tmp_path / "data", **options).made == 4


def test_a_disk_too_small_is_told_before_the_work(model: Path, tmp_path: Path, monkeypatch):
    """What the latents alone need, what is free, and how many clips would fit."""
    usage = preparing.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(EvditError, match="100 clips need more than 77 kB in .* 10 kB are free") as told:
        prepared(model, tmp_path / "data", count=100)
    assert told.value.exit_code == FAILED and "--count 6 " in told.value.next_steps[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"source": None}, "there is nothing to prepare"),
        ({"height": None, "width": None}, "scenes of shapes are square"),
        ({"video_frames": 10}, "must be 4k\\+1"),
        ({"height": 40, "width": 40}, "multiple of 16"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_made(model: Path, tmp_path: Path, options: dict, told: str):
    """Exit 2, and no folder."""
    with pytest.raises(EvditError, match=told) as error:
        prepared(model, tmp_path / "data", **options)
    assert error.value.exit_code == USAGE and not (tmp_path / "data").exists()


def test_data_fit_the_model_that_made_them_alone(model: Path, tmp_path: Path):
    """Another VAE is refused, with the command that makes data for it in a new folder."""
    data = prepared(model, tmp_path / "data", count=1).folder
    facts = DataFacts.of(opened(model))
    assert len(open_data(data, facts)) == 1
    with pytest.raises(EvditError, match="were made with VAE") as told:
        open_data(data, replace(facts, vae="0" * 64))
    assert told.value.next_steps[0] == f"evdit prepare-data --model tiny --source shapes -o {tmp_path / 'data-2'}"
    assert json.loads((data / "index.json").read_text(encoding="utf-8"))["settings"]["source"] == "shapes"
