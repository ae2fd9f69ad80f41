"""`evdit generate --lora`: what was asked and added stands in the receipt, and a folder goes on only with the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backbones.adapters import pairs_in, write_diffusers, write_peft
from tests.tiny_pipeline import write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.video_file import read_video
from vdit_cli.errors import DONE, USAGE

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a pipeline folder of ours."""
    return write_pipeline(tmp_path_factory.mktemp("model") / "tiny")


def test_adapters_are_added_and_told(evdit, tiny):
    """Two of them, by folder and by file; without --lora the video and the digest of its weights are others."""
    folder = write_peft(Path("adapter"), tiny / "transformer")
    write_diffusers(Path("own.safetensors"), pairs_in(folder), ("lora_down", "lora_up"), 4.0)
    command = ("generate", PROMPT, "--model", str(tiny), "--steps", "1")
    assert evdit(*command, "-o", "plain.mp4")[0] == DONE
    code, _, err = evdit(*command, "--lora", "adapter:0.5", "--lora", "own.safetensors", "-o", "out.mp4")
    assert code == DONE, err
    plain, receipt = Receipt.read("plain.json"), Receipt.read("out.json")
    assert receipt.asked["lora"] == ["adapter:0.5", "own.safetensors"]
    assert [(each["path"], each["scale"]) for each in receipt.ran.loras] == [("adapter", 0.5), ("own.safetensors", 1.0)]
    assert all(len(each["digest"]) == 64 for each in receipt.ran.loras)
    assert plain.ran.loras == () and plain.ran.weights != receipt.ran.weights
    assert (read_video("plain.mp4")[0] != read_video("out.mp4")[0]).any()


def test_a_folder_goes_on_only_with_the_same_adapter(evdit, tiny):
    """Another content under the same path is another request."""
    write_peft(Path("adapter"), tiny / "transformer")
    command = (
        "generate",
        PROMPT,
        "--model",
        str(tiny),
        "--steps",
        "1",
        "--lora",
        "adapter",
        "--num",
        "2",
        "-o",
        "videos",
    )
    assert evdit(*command)[0] == DONE
    ((told),) = RunDir.open(Path("videos")).manifest["values"]["lora"]
    assert (told["path"], told["scale"], len(told["digest"])) == ("adapter", 1.0, 64)
    code, _, err = evdit(*command)
    assert code == DONE and "2 of 2 videos in videos are done already" in err
    write_peft(Path("adapter"), tiny / "transformer", seed=4)
    code, _, err = evdit(*command)
    assert code == USAGE and "lora: was" in err
