"""`evdit generate` as a person runs it, on a tiny pipeline: what it makes, what it refuses, what survives a kill."""

import errno
import json
import math
import os
import signal
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.closeness import assert_close
from tests.forked import run_forked
from tests.tensors import LargestTensor, parameters_made
from tests.tiny_pipeline import copied, write_pipeline
from vdit_cli.artifacts import mp4
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.video_file import read_metadata, read_video
from vdit_cli.backbones.open_sora_plan import vae
from vdit_cli.backbones.open_sora_plan.loading import stored_shapes
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.cli.app import main
from vdit_cli.cli.console import Console
from vdit_cli.errors import ENVIRONMENT, FAILED, INTERRUPTED, OUT_OF_MEMORY, USAGE

PROMPT = "a large red circle moving right over black"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The tiny pipeline folder."""
    return str(write_pipeline(tmp_path_factory.mktemp("tiny") / "model"))


def killed_on_the_way(command: list[str]) -> None:
    """In a process of its own: as its third video of four begins."""
    begin = Console.stage

    def begin_or_die(self, label, total):
        if label == "denoising 3-3 of 4":
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, label, total)

    Console.stage = begin_or_die
    main(command)


@pytest.mark.numerical
def test_a_video_its_receipt_and_json(evdit, tiny):
    code, out, err = evdit(
        "generate", PROMPT, "--model", tiny, "-o", "out.mp4", "--masks", "1:2", "--seed", "4", "--json"
    )
    assert code == 0, err
    printed = json.loads(out)
    assert printed["schema"] == "evdit.generate/1"
    (video,) = printed["videos"]
    assert video["path"] == "out.mp4"
    assert video["receipt"] == json.loads(Path("out.json").read_text(encoding="utf-8"))
    receipt = Receipt.read("out.json")
    assert (receipt.ran.model, receipt.ran.dtype, receipt.ran.device) == ("tiny", "float32", "cpu")
    assert len(receipt.ran.timesteps) == receipt.asked["steps"] == 3
    assert [(layer["mask"], layer["kernel"]) for layer in receipt.ran.layers] == [("1:2", "sdpa")] * 2
    assert_close(receipt.ran.kept_share, 7 / 9)
    assert read_video("out.mp4")[0].shape == (9, 32, 48, 3)
    assert read_metadata("out.mp4")["prompt"] == PROMPT
    assert "tiny: 9 x 32 x 48, 3 steps of ddim, guidance 2, masks 1:2, seed 4, cpu float32, about" in err
    assert 'generate.masks: "1:2"  # --masks 1:2' in err
    assert "denoising: 3/3" in err


def test_without_json_the_place_is_printed_and_again_is_the_same_video(evdit, tiny):
    code, out, _ = evdit("generate", PROMPT, "--model", tiny, "-o", "one.mp4")
    assert (code, out) == (0, "one.mp4\n")
    code, out, _ = evdit("generate", PROMPT, "--model", tiny, "-o", "two.mp4", "--kernel", "sdpa")
    assert code == 0
    assert (read_video("one.mp4")[0] == read_video("two.mp4")[0]).all()


BAD = {
    "long name": ([PROMPT, "-o", "x" * 300 + ".mp4"], USAGE, "can't be written: File name too long"),
    "no prompt": (["--steps", "2"], USAGE, "no prompt was given"),
    "empty prompt": ([""], USAGE, "the prompt is empty"),
    "unknown words only": (["dragon"], USAGE, "knows none of the words"),
    "frames": ([PROMPT, "--frames", "8"], USAGE, "8 frames do not fit tiny: video frames must be 4k+1"),
    "height": ([PROMPT, "--height", "40"], USAGE, "height 40 does not fit tiny: it must be a multiple of 16"),
    "width": ([PROMPT, "--width", "50"], USAGE, "width 50 does not fit tiny: it must be a multiple of 16"),
    "steps": ([PROMPT, "--steps", "0"], USAGE, "generate.steps is 0"),
    "too many steps": ([PROMPT, "--steps", "2000"], USAGE, "2000 steps can't be taken"),
    "num": ([PROMPT, "--num", "0"], USAGE, "generate.num is 0"),
    **{
        f"fps {fps}": (
            [PROMPT, "--fps", fps],
            USAGE,
            f"generate.fps is {fps!r}: it must be a number or a fraction such",
        )
        for fps in ("0", "-1", "nan", "1/0", "abc", str(10**30), "1001", "1/601")
    },
    "fps, how much": ([PROMPT, "--set", "generate.fps=1e30"], USAGE, "or null, at least 1/600, at most 1000"),
    "scheduler": ([PROMPT, "--scheduler", "dimm"], USAGE, "unknown scheduler 'dimm'"),
    "kernel": ([PROMPT, "--kernel", "flash9"], USAGE, "unknown kernel 'flash9'"),
    "dtype": ([PROMPT, "--dtype", "float8"], USAGE, "generate.dtype is 'float8'"),
    "offload": ([PROMPT, "--offload", "disk"], USAGE, "generate.offload is 'disk'"),
    "device": ([PROMPT, "--device", "gpu"], USAGE, "unknown device 'gpu'"),
    "mask": ([PROMPT, "--masks", "2:6"], USAGE, "mask 2:6 is for 8 frames"),
    "no plan": ([PROMPT, "--masks", "plan.json"], USAGE, "plan.json is no mask plan"),
    "prompts file": (["--prompts-file", "none.txt"], USAGE, "none.txt can't be read"),
    "too large": ([PROMPT, "--height", "16384", "--width", "16384"], OUT_OF_MEMORY, "9 frames of 16384 x 16384 need"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_has_its_message_and_exit_code_and_leaves_nothing(evdit, tiny, case, tmp_path):
    flags, exit_code, says = BAD[case]
    code, out, err = evdit("generate", "-o", "out.mp4", "--model", tiny, *flags)
    assert (code, out) == (exit_code, ""), err
    assert says in err
    assert err.startswith("error: ") or "\nerror: " in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "kept"), [("24000/1001", "24000/1001"), ("23.976", "2997/125"), ("24", 24)])
def test_a_rate_is_kept_exactly(evdit, tiny, given, kept):
    """In the file, in the receipt and in what is said; a whole one stays a number of JSON."""
    code, _, err = evdit("generate", PROMPT, "--model", tiny, "-o", "12:30.mp4", "--steps", "1", "--fps", given)
    assert code == 0, err
    assert read_video("12:30.mp4")[1] == Fraction(kept)
    assert Receipt.read("12:30.json").asked["fps"] == kept
    assert f"generate.fps: {json.dumps(kept)}  # --fps {given}" in err


@pytest.mark.parametrize("output", [["-o", "out.mp4"], ["-o", "run", "--num", "2"], []])
def test_an_encoder_is_asked_for_before_weights_load(evdit, tiny, output, monkeypatch, tmp_path):
    """Exit 3 with the fix and nothing made; a GIF needs none."""
    monkeypatch.setattr(mp4, "ENCODER", "libx999")
    monkeypatch.setattr(
        "vdit_cli.sampling.generate.open_backbone", lambda *_, **__: pytest.fail("the model was opened")
    )
    code, out, err = evdit("generate", PROMPT, "--model", tiny, *output)
    assert (code, out) == (ENVIRONMENT, "") and "built without libx999" in err and "pip install" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_that_is_not_here(evdit, tiny, tmp_path):
    code, _, err = evdit("generate", PROMPT, "--model", tiny, "-o", "out.mp4", "--device", "cuda")
    assert code == ENVIRONMENT
    assert "cuda was asked for" in err
    assert list(tmp_path.iterdir()) == []


def test_unknown_model_and_several_prompts(evdit, tiny, tmp_path):
    code, _, err = evdit("generate", PROMPT, "--model", "shape", "-o", "out.mp4")
    assert code == USAGE
    assert "unknown model 'shape'" in err
    assert "shapes" in err.splitlines()[-1]
    code, _, err = evdit("generate", *PROMPT.split(), "--model", tiny, "-o", "out.mp4")
    assert code == USAGE
    assert f'"{PROMPT}"' in err
    assert list(tmp_path.iterdir()) == []


def test_truncated_weights(evdit, tiny, tmp_path):
    broken = copied(Path(tiny), tmp_path / "broken")
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, _, err = evdit("generate", PROMPT, "--model", str(broken), "-o", "out.mp4")
    assert code == ENVIRONMENT
    assert "diffusion_pytorch_model.safetensors" in err
    assert not Path("out.mp4").exists()


def test_a_full_disk_keeps_what_was_there(evdit, tiny, tmp_path, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mp4, "write", full)
    Path("out.mp4").write_bytes(b"mine")
    code, _, err = evdit("generate", PROMPT, "--model", tiny, "-o", "out.mp4", "--overwrite")
    assert code == FAILED
    assert "the disk is full" in err
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert Path("out.mp4").read_bytes() == b"mine"


def _check_whole(folder: Path) -> list[Path]:
    """Every video that has its name can be read; its receipt, where there is one, too."""
    videos = sorted(folder.glob("0*.mp4"))
    for video in videos:
        assert len(read_video(video)[0]) == 9
    for receipt in folder.glob("0*.json"):
        assert Receipt.read(receipt).asked["prompt"] == PROMPT
    return videos


@pytest.mark.numerical
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_killed_then_interrupted_then_finished(evdit, tiny, tmp_path, monkeypatch):
    """Killed as its third video begins, interrupted as the second of those that are left begins."""
    out = tmp_path / "out"
    command = [PROMPT, "--model", tiny, "--num", "4", "-o", str(out), "--steps", "2"]
    died = run_forked(1, killed_on_the_way, ["generate", *command])
    assert died.codes == [-signal.SIGKILL], died.err
    killed = _check_whole(out)
    assert len(killed) == 2
    times = {path: path.stat().st_mtime_ns for path in killed}
    half, mine = out / ".evdit-0123abcd.mp4", out / ".0003-a-large.0123abcd.mp4"
    half.write_bytes(b"half")  # as a write that was killed half-way leaves it, with its note
    mine.write_bytes(b"mine")
    (out / ".unfinished").write_text(json.dumps([half.name, "0003-a-large.mp4"]), encoding="utf-8")

    begin = Console.stage

    def begin_and_interrupt(self, label, total):
        begin(self, label, total)
        if label == "denoising 2-2 of 2":
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Console, "stage", begin_and_interrupt)
        code, _, err = evdit("generate", *command)
    assert code == INTERRUPTED, err
    assert "3 videos are finished, 1 are left" in err
    assert not half.exists() and mine.read_bytes() == b"mine"
    assert "Traceback" not in err
    assert len(_check_whole(out)) == 3
    assert {path: path.stat().st_mtime_ns for path in times} == times

    code, _, err = evdit("generate", *command[:-1], "3")
    assert code == USAGE
    assert "steps: was 2, is 3" in err
    code, printed, err = evdit("generate", *command)
    assert code == 0, err
    assert len(printed.splitlines()) == len(_check_whole(out)) == 4
    beside = {path.name for path in out.iterdir() if not path.name.startswith("0")}
    assert beside == {"run.json", "receipt.json", "README.md", ".lock", mine.name}
    receipts = [Receipt.read(path) for path in sorted(out.glob("0*.json"))]
    whole = Receipt.read(out / "receipt.json")
    assert whole.ran == receipts[0].ran and whole.asked["prompts"] == [PROMPT]
    assert_close(whole.seconds["denoise"], sum(each.seconds["denoise"] for each in receipts), atol=1e-3)


def test_a_run_is_begun_anew_only_when_nobody_works_in_it(evdit, tiny, tmp_path):
    command = ["generate", PROMPT, "--model", tiny, "--num", "2", "--steps", "1"]
    code, _, err = evdit(*command, "-o", "out")
    assert code == 0, err
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("0*")}
    assert len(before) == 4
    with RunDir.open("out"):
        code, _, err = evdit(*command, "--seed", "5", "--overwrite", "-o", "out")
        assert code == USAGE
        assert f"in use by process {os.getpid()}" in err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    code, _, err = evdit(*command, "--seed", "5", "--overwrite", "-o", "out")
    assert code == 0, err
    assert Receipt.read(next(Path("out").glob("0001*.json"))).asked["seed"] == 6
    anew = [Receipt.read(path).seconds["denoise"] for path in sorted(Path("out").glob("0*.json"))]
    assert Receipt.read("out/receipt.json").seconds["denoise"] == round(sum(anew), 4)
    for flags in ([], ["--overwrite"]):
        code, _, err = evdit(*command, *flags)
        assert code == 0, err
        assert "done already" not in err
    assert len(list(Path("runs").iterdir())) == 1


def _watch(monkeypatch, at, begins=True):
    """Call `at(label)` when a stage of that label has begun, or when a unit of it is done."""
    name = "stage" if begins else "advance"
    real = getattr(Console, name)

    def watched(self, *args):
        real(self, *args)
        at(args[0] if begins else self.shown.label)

    monkeypatch.setattr(Console, name, watched)


@pytest.mark.parametrize("offload", ["none", "model", "block"])
def test_offload_frees_what_is_not_in_use(evdit, tiny, monkeypatch, offload):
    """Bytes of parameters between two steps and while decoding."""
    backbone = open_backbone(find_source(tiny), device="cpu")
    transformer, vae = backbone.part_bytes("transformer"), backbone.part_bytes("vae")
    shapes = stored_shapes(Path(tiny) / "transformer")
    blocks = sum(4 * math.prod(shape) for key, shape in shapes.items() if key.startswith("transformer_blocks."))
    alive = {}
    with parameters_made() as alive_bytes:
        _watch(monkeypatch, lambda label: alive.update({label: alive_bytes()}), begins=False)
        code, _, err = evdit("generate", PROMPT, "--model", tiny, "--steps", "1", "--offload", offload)
    assert code == 0, err
    expected = {"none": (transformer, transformer + vae), "model": (transformer, vae)}
    assert (alive["denoising"], alive["decoding"]) == expected.get(offload, (transformer - blocks, vae))
    assert blocks > 0.5 * transformer


def test_tiling_makes_no_large_tensor(evdit, tiny, monkeypatch):
    """Tiles of 5 of 17 frames: the largest tensor of decoding is a fraction."""
    monkeypatch.setattr(vae, "TILE_FRAMES", 5)
    largest = {}
    for flags in ([], ["--vae-tiling"]):
        with LargestTensor() as made, monkeypatch.context() as patched:
            _watch(patched, lambda _, made=made: setattr(made, "bytes", 0))
            code, _, err = evdit("generate", PROMPT, "--model", tiny, "--steps", "1", "--frames", "17", *flags)
            assert code == 0, err
            largest[len(flags)] = made.bytes
    assert largest[0] >= 4 * 8 * 17 * 32 * 48, "the VAE's 8 channels of all pixels"
    assert largest[1] < 0.5 * largest[0]
