"""What a stage advises inside `evdit run` is something that `evdit run` takes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.pipeline.tiny import write_inputs
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.pipeline.run import settings_told
from vdit_cli.recipe import Recipe, load


@pytest.mark.parametrize(
    ("section", "step", "told"),
    [
        ("distill_kd", "--lora-rank 64", "--set distill_kd.lora_rank=64"),
        ("generate", "--vae-tiling", "--set generate.vae_tiling=true"),
        ("generate", "--vae-tiling --offload block", "--set generate.vae_tiling=true --set generate.offload=block"),
        ("generate", "--frames 29", "--set generate.video_frames=29"),
        ("generate", "fewer --frames", "fewer generate.video_frames"),
        ("generate", '--checkpoint "a b"  (as it is)', '--set generate.checkpoint="a b"  (as it is)'),
        ("distill_mlcd", "--set distill_mlcd.shard=none --lora-rank 8", None),
        ("distill_mlcd", "evdit prepare-data --model m --source shapes -o data", None),
        ("distill_mlcd", "--gpus 2", "--gpus 2"),
        (
            "search_masks",
            "--r 0.1  (takes each layer by itself)",
            "--set search_masks.r=0.1  (takes each layer by itself)",
        ),
        ("search_masks", "a new folder with -o", "a new folder with -o"),
    ],
)
def test_flags_of_the_stages_command_are_settings(section: str, step: str, told: str | None):
    """Of its section; commands, settings and flags of no knob stay."""
    expected = told or step.replace("--lora-rank 8", "--set distill_mlcd.lora_rank=8")
    with pytest.raises(EvditError) as caught, settings_told(section, getattr(Recipe(), section)):
        raise EvditError("no", next_steps=[step])
    assert caught.value.next_steps == (expected,)
    sets = [word for word in shlex.split(expected.partition("  (")[0]) if word.startswith(f"{section}.")]
    if expected.startswith("--set"):
        assert load(None, sets)


def test_a_run_that_is_refused_can_be_mended_as_it_says(tmp_path: Path, evdit):
    """Whether the stage is asked before the first one begins, or refuses when it is its turn."""
    words = [*write_inputs(tmp_path), "--set", "run.stages=[prepare_data,distill_mlcd]"]
    code, _, err = evdit(*words, "--set", "distill_mlcd.steps=4,8")
    assert code == USAGE and "  try:   --set distill_mlcd.steps=8,4\n" in err
    code, _, err = evdit(*words, "--set", "distill_mlcd.steps=2000")
    assert code == USAGE and "  try:   --set distill_mlcd.steps=20\n" in err
    assert json.loads(Path("run/prepare-data/run.json").read_text(encoding="utf-8"))["state"] == "done"
