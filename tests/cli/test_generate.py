"""`evdit generate` as a person runs it, on a tiny pipeline: what it makes, what it refuses, what survives a kill."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.closeness import assert_close
from tests.tiny_pipeline import copied, write_pipeline, write_transformer
from vdit_cli.artifacts import mp4
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.video_file import read_metadata, read_video
from vdit_cli.errors import ENVIRONMENT, FAILED, INTERRUPTED, OUT_OF_MEMORY, USAGE

PROMPT = "a large red circle moving right over black"
WAIT_SECONDS = 60


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The tiny pipeline folder."""
    return str(write_pipeline(tmp_path_factory.mktemp("tiny") / "model"))


def _script() -> list[str]:
    script = shutil.which("evdit", path=sysconfig.get_path("scripts"))
    return [script] if script else [sys.executable, "-m", "vdit_cli"]


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
    assert "generate.steps: 3  # default of tiny" in err
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


def _start(*args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*_script(), "generate", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def _wait_for_video(process: subprocess.Popen, number: int) -> None:
    """Until the process says that it begins its video of that number, so that those before are finished."""
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(f"denoising {number}-{number} of"):
            return
    raise AssertionError("".join(said))


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
def test_killed_then_interrupted_then_finished(evdit, tiny, tmp_path):
    out = tmp_path / "out"
    command = [PROMPT, "--model", tiny, "--num", "6", "-o", str(out), "--steps", "20"]
    process = _start(*command)
    _wait_for_video(process, 3)
    process.kill()
    process.communicate()
    killed = _check_whole(out)
    assert 2 <= len(killed) < 6
    times = {path: path.stat().st_mtime_ns for path in killed[:1]}
    half = out / ".0005-a-large.0123abcd.mp4"  # as a write that was killed half-way leaves it
    half.write_bytes(b"half")

    process = _start(*command)
    _wait_for_video(process, 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == INTERRUPTED, err
    assert "videos are finished" in err
    assert not half.exists()
    assert "Traceback" not in err
    interrupted = _check_whole(out)
    assert len(killed) < len(interrupted) < 6
    assert {path: path.stat().st_mtime_ns for path in times} == times

    code, _, err = evdit("generate", *command[:-1], "19")
    assert code == USAGE
    assert "steps: was 20, is 19" in err
    code, printed, err = evdit("generate", *command)
    assert code == 0, err
    assert len(printed.splitlines()) == len(_check_whole(out)) == 6
    beside = {path.name for path in out.iterdir() if not path.name.startswith("0")}
    assert beside == {"run.json", "receipt.json", "README.md", ".lock"}
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
    assert Receipt.read("out/receipt.json").seconds["denoise"] < 60
    for flags in ([], ["--overwrite"]):
        code, _, err = evdit(*command, *flags)
        assert code == 0, err
        assert "done already" not in err
    assert len(list(Path("runs").iterdir())) == 1


def test_offload_and_tiling_lower_the_peak(tmp_path):
    """A model of 200 MB whose decoding takes another 200 MB; a process each, since memory may be kept."""
    model = write_pipeline(tmp_path / "model", steps=1, guidance=1.0, video_frames=57, height=64, width=64)
    shutil.rmtree(model / "transformer")
    write_transformer(
        model / "transformer", num_layers=20, num_attention_heads=8, cross_attention_dim=384, attention_head_dim=48
    )
    peaks = {}
    for name, flags in {
        "block and tiling": ["--offload", "block", "--vae-tiling"],
        "model and tiling": ["--offload", "model", "--vae-tiling"],
        "tiling": ["--vae-tiling"],
        "none": [],
    }.items():
        command = [sys.executable, "-m", "vdit_cli", "generate", PROMPT, "--model", str(model), "-o", f"{name}.mp4"]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, encoding="utf-8", timeout=120)
        assert done.returncode == 0, done.stderr
        peaks[name] = Receipt.read(f"{name}.json").peak_memory_bytes / 1e6
    assert peaks["tiling"] < peaks["none"] - 50, peaks
    assert peaks["model and tiling"] < peaks["tiling"] - 50, peaks
    assert peaks["block and tiling"] < peaks["model and tiling"] - 50, peaks
