"""What a knob takes, and what is advised where a value is none of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdit_cli.errors import EvditError
from vdit_cli.knobs import deciding, find_knob, flat, rule_of
from vdit_cli.recipe import Recipe, load


@pytest.mark.parametrize(
    ("text", "sets", "flags", "step"),
    [
        ("generate: {height: 128.0}", [], {}, "height: 128"),
        ("", ["generate.height=128.0"], {}, "--set generate.height=128"),
        ("generate: {height: 8.0}", [], {}, None),
        ("", ["generate.steps=0x10"], {}, "--set generate.steps=16"),
        ("generate: {steps: 1_0}", [], {}, "steps: 10"),
        ("generate: {steps: '8'}", [], {}, "steps: 8"),
        ("", ["generate.guidance=2,5"], {}, "--set generate.guidance=2.5"),
        ("", ["generate.steps=2,5"], {}, None),
        ("", ["generate.steps=0x1000000"], {}, None),
        ("", ["generate.steps=1e999"], {}, None),
        ("", ["distill_mlcd.milestones=2,5"], {}, '--set "distill_mlcd.milestones=[2,5]"'),
        ("distill_mlcd: {milestones: [5.0, 0x2]}", [], {}, "milestones: [5, 2]"),
        ("", ["distill_mlcd.milestones=7"], {}, '--set "distill_mlcd.milestones=[7]"'),
        ("", ["distill_mlcd.milestones=[7,a]"], {}, None),
        ("", ["distill_mlcd.milestones=[[7]]"], {}, None),
        ("", ["run.stages=search_masks,generate"], {}, '--set \'run.stages=["search_masks","generate"]\''),
        ("", [], {"generate.files": "avi"}, "--files gif"),
        ("", ["generate.files=avi"], {}, "--set generate.files=gif"),
        ("generate: {files: avi}", [], {}, "files: gif"),
    ],
)
def test_what_was_meant_is_advised(tmp_path: Path, text: str, sets: list[str], flags: dict, step: str | None):
    """Numbers as people write them, lists without brackets, the nearest of several words, each as it was given."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(EvditError) as caught:
        load(recipe, sets, flags)
    assert caught.value.next_steps == ((step,) if step else ())


def test_each_knob_tells_its_own_bounds():
    """As docs/recipes.md and an error have them."""
    keys = (
        "search_masks.r",
        "search_masks.max_loss",
        "generate.fps",
        "generate.seed",
        "generate.steps",
        "generate.kernel",
    )
    assert [rule_of(*find_knob(Recipe, key, "")) for key in keys] == [
        "a finite number, at least 0, at most 1e+30",
        "a finite number or null, at least 0, at most 1e+30",
        "a number or a fraction such as 24000/1001 or null, at least 1/600, at most 1000",
        "a whole number, at least 0, at most 9223372036854775807",
        "a whole number or null, at least 1, at most 1000000",
        "text",
    ]


def test_how_a_run_is_computed_tells_no_runs_apart():
    """Device, memory and what is watched may be others when a command goes on; anything else is another run."""
    others = {
        "generate": {"strict", "offload", "device", "batch", "kernel", "compile"},
        "analyze": {"device", "offload", "prompts_file", "num_prompts"},
        "search_masks": {"device", "offload", "prompts_file", "num_prompts", "sensitivity"},
        "prepare_data": {"device", "batch", "previews"},
        "distill_mlcd": {
            *("device", "kernel", "compile", "shard", "accumulation", "gradient_checkpointing"),
            *("tensorboard", "keep_last", "log_every", "previews"),
        },
        "train_shapes": {
            "device",
            *(f"{part}.{key}" for part in ("vae", "text", "transformer") for key in ("keep_last", "log_every")),
        },
    }
    for name, expected in others.items():
        options = getattr(Recipe(), name)
        assert {key for key, _ in flat(options)} - deciding(options).keys() == expected, name
        assert deciding(options).items() <= dict(flat(options)).items()
