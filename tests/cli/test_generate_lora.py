"""`evdit generate --lora`: what was asked and added stands in the receipt, and a folder goes on only with the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.backbones.adapters import pairs_in, write_diffusers, write_peft
from tests.backbones.open_sora_plan.opened import opened
from tests.tiny_pipeline import write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.artifacts.video_file import read_video
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.lora import write_adapter
from vdit_cli.errors import DONE, USAGE
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

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


def student_adapter(tiny: Path, trained_on: str, folder: str = "adapter", seed: int = 0) -> MaskPlan:
    """The folder of an adapter, as a student of two steps under 1:2 leaves it; its plan."""
    backbone = opened(tiny)
    own = backbone.defaults
    grid = backbone.grid(own.video_frames, own.height, own.width)
    plan = MaskPlan.uniform("tiny", grid, backbone.architecture, TileMask.parse("1:2", grid.frames))
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, 48), (48, 2)))
    pairs = {"transformer_blocks.0.attn1.to_q": (down, up)}
    write_adapter(Path(folder), pairs, Lineage((trained_on,), plan.digest).metadata())
    Sampler("milestones", (999, 499 + seed), 1.0).write(Path(folder))
    plan.write(Path(folder))
    return plan


def warnings_of(evdit, *words: str) -> list[str]:
    """The warnings in the receipt of a video, all of which stand on stderr too."""
    code, _, err = evdit("generate", PROMPT, *words, "-o", "out.mp4", "--overwrite")
    assert code == DONE, err
    found = list(Receipt.read("out.json").ran.warnings)
    assert {f"warning: {line}" for line in found} <= set(err.splitlines())
    return found


def test_what_lora_leaves_out_of_a_student_is_told(evdit, tiny):
    """Its sampler, and its plan unless masks were asked for; as a checkpoint, which the line names, it takes both."""
    plan = student_adapter(tiny, opened(tiny).weights_digest)
    command = ("--model", str(tiny), "--lora", "adapter:0.5", "--steps", "1")
    told = "--lora adapter adds weights alone, not the adapter's sampler (2 steps of milestones, guidance 1)"
    step = " (--checkpoint adapter takes that too)"
    assert f"{told} and plan {plan.digest[:12]}{step}" in warnings_of(evdit, *command)
    assert told + step in warnings_of(evdit, *command, "--masks", "none")
    assert not any("adapter" in line for line in warnings_of(evdit, "--model", str(tiny), "--checkpoint", "adapter"))
    assert Receipt.read("out.json").ran.plan == plan.digest
    student_adapter(tiny, opened(tiny).weights_digest, "other", seed=1)
    beside = warnings_of(evdit, "--model", str(tiny), "--checkpoint", "adapter", "--lora", "other")
    assert told.replace("adapter adds", "other adds") in beside


def test_a_sampler_that_runs_is_not_left_out(evdit, tiny):
    """Whoever asked for it: the student's checkpoint or flags; with other guidance or times it is."""
    plan = student_adapter(tiny, opened(tiny).weights_digest)
    Sampler("milestones", (999, 499), 1.0).write(Path("adapter"))
    flags = ("--model", str(tiny), "--lora", "adapter", "--scheduler", "milestones", "--steps")
    told = f"--lora adapter adds weights alone, not the adapter's plan {plan.digest[:12]} (--checkpoint adapter"
    assert any(line.startswith(told) for line in warnings_of(evdit, *flags, "2", "--guidance", "1"))
    assert not any("adapter" in line for line in warnings_of(evdit, *flags, "2", "--guidance", "1", "--masks", "none"))
    for other in (("1", "--guidance", "1"), ("2", "--guidance", "2")):
        assert any("adapter's sampler (2 steps" in line for line in warnings_of(evdit, *flags, *other))
    Sampler("milestones", (999, 500), 1.0).write(Path("adapter"))
    assert any("adapter's sampler" in line for line in warnings_of(evdit, *flags, "2", "--guidance", "1"))


@pytest.mark.parametrize("case", ["bare file", "plan lost", "other plan", "other weights", "on another", "transformer"])
def test_a_checkpoint_is_advised_only_where_it_is_taken(evdit, tiny, case):
    """And a plan that the adapter says and does not bring is told as that."""
    plan = student_adapter(tiny, opened(tiny).weights_digest)
    folder, rows = Path("adapter"), ["adapter"]
    if case == "bare file":
        (folder / "adapter_config.json").unlink()
        rows = ["adapter/adapter_model.safetensors"]
    elif case == "plan lost":
        (folder / "plan.json").unlink()
    elif case == "other plan":
        MaskPlan.uniform("tiny", plan.grid, plan.architecture, TileMask.parse("2:1", plan.grid.frames)).write(folder)
    elif case == "other weights":
        student_adapter(tiny, "0123456789abcdef", "others")
        rows = ["others"]
    elif case == "on another":
        student_adapter(tiny, opened(tiny, lora=("adapter",)).weights_digest, "second", seed=1)
        rows = ["adapter", "second"]
    elif case == "transformer":
        (folder / "config.json").write_text("{}")
    words = [word for row in rows for word in ("--lora", row)]
    found = warnings_of(evdit, "--model", str(tiny), "--steps", "1", *words)
    (told,) = [line for line in found if line.startswith(f"--lora {rows[-1]} adds weights alone")]
    assert f"plan {plan.digest[:12]}" in told and "--checkpoint" not in told
    assert ("which does not lie beside it" in told) == (case in ("plan lost", "other plan"))
    folder = str(Path(rows[-1]).parent if case == "bare file" else rows[-1])
    code, _, _ = evdit("generate", PROMPT, "--model", str(tiny), "--steps", "1", "--checkpoint", folder, "-o", "no.mp4")
    assert code != DONE
    if "plan" in case:  # without it the folder is taken
        found = warnings_of(evdit, "--model", str(tiny), "--steps", "1", *words, "--masks", "none")
        assert any("(--checkpoint adapter takes that too)" in line for line in found)


def test_an_adapter_to_other_weights_is_told(evdit, tiny):
    """It is added, as was asked; as a checkpoint it would be refused, so that is not proposed."""
    student_adapter(tiny, "0123456789abcdef")
    found = warnings_of(evdit, "--model", str(tiny), "--lora", "adapter", "--steps", "1")
    first, second = (line for line in found if "adapter" in line)
    assert first.startswith("the adapter adapter was trained on weights 0123456789ab, and the model's are others")
    assert second.startswith("--lora adapter adds weights alone") and "--checkpoint" not in second


def test_an_adapter_of_others_is_not_judged(evdit, tiny):
    """It says nothing of its past, and what lies beside it may be anything."""
    folder = write_peft(Path("adapter"), tiny / "transformer")
    (folder / "sampler.json").write_text("[]")
    found = warnings_of(evdit, "--model", str(tiny), "--lora", "adapter", "--steps", "1")
    assert not any("adapter" in line for line in found)
