"""Every entry of the literal tables resolves to what it promises."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from vdit_cli.attention.bind import KERNELS
from vdit_cli.backbones.registry import ENTRIES
from vdit_cli.diffusion.schedules import linear_betas
from vdit_cli.diffusion.solvers import SCHEDULERS, make_scheduler
from vdit_cli.recipe import load
from vdit_cli.tiles.mask import FAMILIES, TileMask

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_answers_three_questions(name: str):
    """NAME, supports(case) and run(q, k, v, passes), in the file of its name."""
    kernel = importlib.import_module(f"vdit_cli.attention.kernels.{name.replace('-', '_')}")
    assert name == kernel.NAME
    assert callable(kernel.supports) and callable(kernel.run)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_backbone_is_where_the_registry_says(entry):
    """Its module imports, and its sizes are ones that its own rule allows."""
    assert importlib.import_module(entry.module)
    assert entry.video_frames % 4 == 1 and entry.height % 16 == 0 and entry.width % 16 == 0


def test_backbones_have_names_of_their_own():
    """No two entries answer to one name."""
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_can_be_made(name: str):
    """Its class exists and takes a linear schedule."""
    assert make_scheduler(name, {"num_train_timesteps": 1000, "trained_betas": linear_betas().tolist()})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mask_family_makes_masks(name: str):
    """(frames, k) gives a mask over that many frames, or None."""
    made = [FAMILIES[name](8, k) for k in range(1, 9)]
    assert any(made) and all(mask is None or (isinstance(mask, TileMask) and mask.frames == 8) for mask in made)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads_and_opens_with_three_lines(path: Path):
    """What it makes, its cost, the result to expect; then keys that exist, each with a reason beside it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("# ") for line in lines[:3])
    assert load(path).origins
    keys = [line for line in lines[3:] if ": " in line and not line.lstrip().startswith("#")]
    assert [line for line in keys if "#" not in line] == []
