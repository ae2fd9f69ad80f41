"""The first steps under full attention, the others under a plan: the same bits as switching by hand."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.tiny_pipeline import write_pipeline
from vdit_cli.artifacts.video_file import read_metadata
from vdit_cli.backbones.base import make_fast, prepared_text
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.diffusion.guidance import combine
from vdit_cli.diffusion.solvers import make_scheduler, set_steps
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.recipe import GenerateOptions
from vdit_cli.sampling import generate as generating
from vdit_cli.sampling.dense_steps import kept_share, parts_of
from vdit_cli.sampling.generate import Asked, generate
from vdit_cli.sampling.noise import generators_for, initial_noise
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Silent

STEPS = 4
MADE = Architecture("OpenSoraT2V", 2, 2, 24)
MASKS = (TileMask.parse("1:2", 3), TileMask.dense(3))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a pipeline folder of ours."""
    return write_pipeline(tmp_path_factory.mktemp("model") / "tiny", scheduler="ddim")


@pytest.fixture
def backbone(tiny, monkeypatch):
    """The tiny model on the CPU, which keeps the latents that it is to decode; commands open this one."""
    made = open_backbone(find_source(str(tiny)), device="cpu")
    real, made.decoded = made.decode_video, []

    def decode(latents_BCFhw):
        made.decoded.append(latents_BCFhw.clone())
        return real(latents_BCFhw)

    made.decode_video = decode
    monkeypatch.setattr(generating, "open_backbone", lambda source, **_: made)
    return made


def _plan(backbone) -> MaskPlan:
    own = backbone.defaults
    grid = backbone.grid(own.video_frames, own.height, own.width)
    return MaskPlan(backbone.name, grid, MASKS, architecture=backbone.architecture)


def _spec(backbone) -> SampleSpec:
    own = backbone.defaults
    return SampleSpec(own.video_frames, own.height, own.width, STEPS, own.guidance, "ddim")


@torch.no_grad()
def _by_hand(backbone, dense_steps: int) -> torch.Tensor:
    """Latents (1, C, F, h, w) of seed 0 by a loop written out, the plan put on the backbone before each step."""
    spec, plan = _spec(backbone), _plan(backbone)
    full = MaskPlan.uniform(plan.backbone, plan.grid, plan.architecture, TileMask.dense(plan.grid.frames))
    # Text and network as a command has them: encoded at once, prepared, projections joined.
    texts = backbone.encode_text(["a red circle", backbone.defaults.negative])
    make_fast(backbone, False)
    text = prepared_text(backbone, texts)
    scheduler = make_scheduler("ddim", backbone.scheduler_config)
    shape = backbone.latent_shape(spec.video_frames, spec.height, spec.width)
    x = initial_noise(shape, generators_for([0]), backbone.device)
    for step, t in enumerate(set_steps(scheduler, STEPS)):
        backbone.apply_plan(full if step < dense_steps else plan, 2)
        cond, null = backbone.denoise(x.repeat(2, 1, 1, 1, 1), t.expand(2), text).chunk(2)
        x = scheduler.step(combine(cond, null, spec.guidance), t, x).prev_sample
    return x


def _generated(backbone, tmp_path: Path, **options):
    """The latents that a command decodes, and what it made."""
    plan = _plan(backbone).write(tmp_path / "plan.json")
    options = {"steps": STEPS, "masks": str(plan), "metadata": True, **options}
    place = tmp_path / f"{len(backbone.decoded)}.gif"
    (made,) = generate(GenerateOptions(**options), Asked(("a red circle",), None, place), Silent())
    return backbone.decoded[-1], made


@pytest.mark.parametrize("dense_steps", range(STEPS + 1))
def test_a_video_is_that_of_switching_by_hand(backbone, tmp_path, dense_steps):
    latents, made = _generated(backbone, tmp_path, dense_steps=dense_steps)
    assert torch.equal(latents, _by_hand(backbone, dense_steps))
    assert made.receipt.asked["dense_steps"] == made.receipt.ran.dense_steps == dense_steps


def test_all_steps_dense_are_full_attention_and_none_the_plan(backbone, tmp_path):
    found = [_generated(backbone, tmp_path, dense_steps=count)[0] for count in range(STEPS + 1)]
    assert torch.equal(found[0], _generated(backbone, tmp_path)[0])
    assert torch.equal(found[STEPS], _generated(backbone, tmp_path, masks="none")[0])
    assert not any(torch.equal(one, other) for one, other in zip(found, found[1:], strict=False))


def test_every_video_begins_with_its_dense_steps(backbone, tmp_path):
    """The backbone is under the plan when a second video begins."""
    plan = _plan(backbone).write(tmp_path / "plan.json")
    options = GenerateOptions(steps=STEPS, masks=str(plan), dense_steps=2, num=2)
    generate(options, Asked(("a red circle",), None, tmp_path / "both"), Silent())
    first, second = backbone.decoded
    alone, _ = _generated(backbone, tmp_path, dense_steps=2, seed=1)
    assert torch.equal(second, alone) and not torch.equal(first, second)


def test_compiled_blocks_follow_the_switch(backbone, tmp_path):
    apart, _ = _generated(backbone, tmp_path, dense_steps=2)
    backbone.transformer.compile_blocks("eager")
    assert torch.equal(_generated(backbone, tmp_path, dense_steps=2)[0], apart)


def test_receipt_and_file_tell_what_the_trajectory_kept(backbone, tmp_path):
    """1:2 keeps 7 of 9 tiles in one layer of two: 8/9, in 3 steps of 4."""
    _, made = _generated(backbone, tmp_path, dense_steps=1)
    ran = made.receipt.ran
    expected = Fraction(1, 4) + Fraction(3, 4) * Fraction(8, 9)
    assert Fraction(ran.kept_share).limit_denominator(1000) == expected == Fraction(11, 12)
    assert Fraction(ran.skipped_share).limit_denominator(1000) == 1 - expected
    assert (ran.dense_kernel, [layer["mask"] for layer in ran.layers]) == ("sdpa", ["1:2", "3:0"])
    _, whole = _generated(backbone, tmp_path, dense_steps=STEPS)
    assert (whole.receipt.ran.kept_share, whole.receipt.ran.skipped_share) == (1, 0)
    assert [layer["mask"] for layer in whole.receipt.ran.layers] == ["3:0", "3:0"]
    _, none = _generated(backbone, tmp_path)
    assert (none.receipt.ran.dense_steps, none.receipt.ran.dense_kernel) == (0, None)
    assert read_metadata(made.path).get("dense_steps") == "1"
    assert "dense_steps" not in read_metadata(none.path)


def test_the_first_line_tells_it(backbone, tmp_path):
    progress = Silent()
    plan = _plan(backbone).write(tmp_path / "plan.json")
    options = GenerateOptions(steps=STEPS, masks=str(plan), dense_steps=1)
    generate(options, Asked(("a red circle",), None, tmp_path / "out.gif"), progress)
    assert "1 step of full attention, then masks 1x3:0 1x1:2 by " in progress.lines[0]
    assert ", kept 0.92 and skipped 0.08 of all steps' tiles, seed 0" in progress.lines[0]
    generate(
        GenerateOptions(steps=STEPS, masks=str(plan), dense_steps=STEPS),
        Asked(("a red circle",), None, tmp_path / "whole.gif"),
        progress,
    )
    assert any(f"{STEPS} steps of full attention, none under masks 1x3:0 1x1:2 by " in line for line in progress.lines)


def test_a_folder_of_another_number_is_another_request(backbone, tmp_path):
    plan = _plan(backbone).write(tmp_path / "plan.json")
    made = [GenerateOptions(steps=STEPS, masks=str(plan), dense_steps=count, num=2) for count in (1, 2)]
    asked = Asked(("a red circle",), None, tmp_path / "out")
    generate(made[0], asked, Silent())
    generate(made[0], asked, Silent())
    assert len(backbone.decoded) == 2
    with pytest.raises(EvditError, match="dense_steps") as caught:
        generate(made[1], asked, Silent())
    assert caught.value.exit_code == USAGE


@pytest.mark.parametrize(
    ("options", "what", "step"),
    [
        ({"dense_steps": 5}, "5 dense steps are more than the 4", "--dense-steps 4"),
        ({"dense_steps": 1, "masks": "none"}, "--masks none is full attention", "--dense-steps 1 --masks 1:2"),
        ({"dense_steps": 1, "masks": "auto"}, "--masks auto is full attention", "--dense-steps 1 --masks 1:2"),
        ({"dense_steps": 1, "masks": "3:0"}, "--masks 3:0 is full attention", "no --dense-steps"),
    ],
)
def test_what_means_nothing_is_refused_before_weights_load(backbone, tmp_path, options, what, step):
    with pytest.raises(EvditError, match=what) as caught:
        _generated(backbone, tmp_path, **options)
    assert (caught.value.exit_code, caught.value.where) == (USAGE, f"--dense-steps {options['dense_steps']}")
    assert step in caught.value.next_steps
    assert not backbone.parts.loaded


def test_the_parts_of_a_trajectory():
    plan = MaskPlan("tiny", VideoGrid(3, 2, 3), MASKS, architecture=MADE)
    assert [each.is_dense for each in parts_of(plan, 0, STEPS)] == [False]
    assert [each.is_dense for each in parts_of(plan, 1, STEPS)] == [True, False]
    assert [each.is_dense for each in parts_of(plan, STEPS, STEPS)] == [True]
    assert parts_of(plan, 1, STEPS)[1] is plan
    assert kept_share(0.5, 1, 4) == 0.625
