import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.backbones.open_sora_plan.opened import PROMPT, SHAPE, latents, made, opened, refused
from tests.closeness import assert_close
from tests.tiny_pipeline import (
    HEIGHT,
    TEXT_WIDTH,
    TRANSFORMER_CONFIG,
    VIDEO_FRAMES,
    WIDTH,
    copied,
    write_transformer,
    write_vae,
)
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan


def test_our_folder_says_how_it_is_sampled(ours):
    backbone = opened(ours)
    assert (backbone.name, backbone.prediction) == ("tiny", "v")
    assert backbone.defaults.video_frames == VIDEO_FRAMES
    assert (backbone.defaults.steps, backbone.defaults.scheduler, backbone.defaults.negative) == (3, "ddim", "")
    assert backbone.scheduler_config["timestep_spacing"] == "trailing"
    assert backbone.latent_scale == 0.5
    assert backbone.parts.loaded == {}


def test_the_published_folder_is_sampled_as_its_repository_does(published):
    backbone = opened(published)
    assert (backbone.name, backbone.prediction) == ("open-sora-plan", "eps")
    assert backbone.latent_scale == 0.18215
    defaults = backbone.defaults
    assert (defaults.video_frames, defaults.height, defaults.width, defaults.fps) == (29, 720, 1280, 24)
    assert (defaults.steps, defaults.guidance, defaults.scheduler) == (100, 7.5, "euler-ancestral")
    assert defaults.prompt_template.format(prompt="x") == "(masterpiece), (best quality), (ultra-detailed), x."
    assert defaults.negative.startswith("nsfw, lowres") and defaults.negative.endswith("blurry")
    assert backbone.grid(29, 720, 1280) == VideoGrid(8, 45, 80)
    assert backbone.grid(93, 720, 1280).tokens == 86_400


@pytest.mark.parametrize(
    ("frames", "folder", "name"),
    [(None, "29x720p", "open-sora-plan"), (29, "29x720p", "open-sora-plan"), (93, "93x720p", "open-sora-plan-93")],
)
def test_the_published_folder_whose_size_fits_is_taken(published, frames, folder, name):
    backbone = opened(published, video_frames=frames)
    assert backbone.transformer_folder.name == folder
    assert backbone.name == name


def test_a_published_size_folder_may_be_named_itself(published):
    backbone = opened(published / "93x720p")
    assert (backbone.name, backbone.defaults.video_frames) == ("open-sora-plan-93", 93)


@pytest.mark.parametrize("layout", ["ours", "published"])
def test_all_parts_work_in_both_layouts(layout, request):
    backbone = opened(request.getfixturevalue(layout))
    states, output, video = made(backbone)
    assert states.shape[0] == 2 and states.shape[2] == TEXT_WIDTH
    assert output.shape == (2, *SHAPE)
    assert video.shape == (2, 3, VIDEO_FRAMES, HEIGHT, WIDTH)
    assert torch.isfinite(video).all() and video.abs().max() <= 1
    coded = backbone.encode_video(video)
    assert coded.shape == (2, *SHAPE)
    noisy = backbone.encode_video(video, torch.Generator().manual_seed(1))
    assert not torch.equal(coded, noisy)


@pytest.mark.numerical
def test_latents_are_scaled_by_the_vae_config(tmp_path, ours):
    other = copied(ours, tmp_path / "other")
    write_vae(other / "vae", scaling_factor=1.0)
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    half, whole = opened(ours).encode_video(video), opened(other).encode_video(video)
    assert_close(half, whole * 0.5)
    assert_close(opened(ours).decode_video(half), opened(other).decode_video(whole))


def test_predictions_depend_on_noise_time_and_text_and_have_gradients(ours):
    backbone = opened(ours)
    text = backbone.encode_text([PROMPT, "a blue square"])
    x, t = latents(), torch.tensor([900, 900])
    base = backbone.denoise(x, t, text)
    swapped = TextStates(text.states_BLC.flip(0), text.mask_BL.flip(0))
    assert (base - backbone.denoise(x, t // 2, text)).abs().max() > 0.01
    assert (base - backbone.denoise(x, t, swapped)).abs().max() > 0.01
    base.square().mean().backward()
    assert all(parameter.grad is not None for parameter in backbone.transformer.transformer_blocks.parameters())


@pytest.mark.parametrize(
    ("size", "flag", "steps"),
    [
        ((31, 32, 48), "--frames 31", ("--frames 29", "--frames 33")),
        ((32, 32, 48), "--frames 32", ("--frames 33", "--frames 29")),
        ((0, 32, 48), "--frames 0", ("--frames 1",)),
        ((-3, 32, 48), "--frames -3", ("--frames 1",)),
        ((9, 40, 48), "--height 40", ("--height 32", "--height 48")),
        ((9, 32, 5), "--width 5", ("--width 16",)),
        ((9, 0, 48), "--height 0", ("--height 16",)),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(ours, size, flag, steps):
    with pytest.raises(EvditError) as caught:
        opened(ours).latent_shape(*size)
    assert caught.value.exit_code == USAGE
    assert caught.value.where == flag
    assert caught.value.next_steps == steps


def test_the_message_for_frames_is_the_one_of_the_manual(published):
    with pytest.raises(EvditError) as caught:
        opened(published).latent_shape(31, 720, 1280)
    assert caught.value.text() == (
        "error: 31 frames do not fit open-sora-plan: video frames must be 4k+1\n"
        "  from:  --frames 31\n"
        "  try:   --frames 29  or  --frames 33"
    )


def test_latent_shapes_and_grids(ours):
    backbone = opened(ours)
    assert backbone.latent_shape(29, 128, 160) == (4, 8, 16, 20)
    assert backbone.latent_shape(1, 16, 16) == (4, 1, 2, 2)
    assert backbone.grid(29, 128, 160) == VideoGrid(8, 8, 10)
    assert backbone.grid(29, 128, 160, text_tokens=7).tokens == 8 * 80 + 7


def test_a_plan_binds_each_distinct_mask_once(ours):
    backbone = opened(ours)
    grid = backbone.grid(VIDEO_FRAMES, HEIGHT, WIDTH)
    dense, sparse = TileMask.dense(3), TileMask.from_stride(3, 2)
    plan = MaskPlan("tiny", grid, (dense, sparse))
    attends = backbone.apply_plan(plan, batch=2)
    assert [attend.mask for attend in attends] == [dense, sparse]
    assert [site.attend for site in backbone.attention_sites()] == list(attends)
    uniform = backbone.apply_plan(MaskPlan.uniform("tiny", grid, backbone.architecture, sparse), batch=2)
    assert uniform[0] is uniform[1]


@pytest.mark.numerical
@pytest.mark.parametrize("offload", ["none", "model", "block"])
def test_a_plan_changes_the_output_and_outlives_offload(ours, offload):
    expected = made(opened(ours))[1]
    backbone = opened(ours, offload=offload)
    grid = backbone.grid(VIDEO_FRAMES, HEIGHT, WIDTH)
    backbone.apply_plan(MaskPlan.uniform("tiny", grid, backbone.architecture, TileMask.dense(3)), batch=2)
    assert_close(made(backbone)[1], expected)
    backbone.apply_plan(MaskPlan.uniform("tiny", grid, backbone.architecture, TileMask.from_stride(3, 3)), batch=2)
    sparse = made(backbone)[1]
    assert (sparse - expected).abs().max() > 0.01
    assert torch.equal(made(backbone)[1], sparse)


def test_a_plan_for_another_model_is_refused(ours):
    backbone = opened(ours)
    grid = backbone.grid(VIDEO_FRAMES, HEIGHT, WIDTH)
    for plan in (
        MaskPlan.uniform("tiny", grid, replace(backbone.architecture, heads=3), TileMask.dense(3)),
        MaskPlan.uniform("tiny", grid, replace(backbone.architecture, layers=3), TileMask.dense(3)),
    ):
        with pytest.raises(EvditError):
            backbone.apply_plan(plan, batch=2)
    with pytest.raises(EvditError, match="kernel"):
        backbone.apply_plan(
            MaskPlan.uniform("tiny", grid, backbone.architecture, TileMask.dense(3)), batch=2, kernel="magic"
        )


def test_a_checkpoint_folder_takes_the_transformers_place(ours, tmp_path):
    write_transformer(tmp_path / "student", seed=5)
    backbone = opened(ours, checkpoint=str(tmp_path / "student"))
    assert backbone.lineage == ()
    assert backbone.weights_digest != opened(ours).weights_digest
    assert (made(backbone)[1] - made(opened(ours))[1]).abs().max() > 0.1
    refused(ours, USAGE, "is no checkpoint", checkpoint=str(tmp_path / "absent"))


def test_a_run_gives_its_transformer_and_what_it_came_from(ours, tmp_path):
    parent = opened(ours).weights_digest
    run = RunDir.create(tmp_path / "run", Request("distill-kd", "tiny", {"r": 0.1}))
    refused(ours, USAGE, "transformer", checkpoint=str(run.path))
    student = run.path / "student"
    write_transformer(student, seed=5, metadata=Lineage((parent,)).metadata())
    run.add_output("transformer", "student")
    backbone = opened(ours, checkpoint=str(run.path))
    assert backbone.transformer_folder == student and backbone.own_plan() is None
    shipped = shutil.copytree(student, tmp_path / "shipped")
    assert backbone.lineage == opened(ours, checkpoint=str(shipped)).lineage == (parent,)
    assert opened(ours).lineage == ()


def test_the_plan_that_lies_with_the_weights(ours, tmp_path):
    """Beside a checkpoint's, else in its run; in a model's transformer folder, else beside model_index.json."""
    model, run = copied(ours, tmp_path / "model"), RunDir.create(tmp_path / "run", Request("distill-kd", "tiny", {}))
    write_transformer(run.path / "student", seed=5)
    run.add_output("transformer", "student")
    grid = opened(model).grid(VIDEO_FRAMES, HEIGHT, WIDTH)
    for folder, inner, options in (
        (model, "transformer", {}),
        (run.path, "student", {"checkpoint": str(run.path)}),
    ):
        assert opened(model, **options).own_plan() is None or folder != model
        for place in (folder, folder / inner):
            plan = MaskPlan("any", grid, (TileMask.dense(3), TileMask.from_stride(3, 3)), made_by={"at": str(place)})
            plan.write(place)
            found = opened(model, **options).own_plan()
            assert found == plan and found.origin == str(place / "plan.json")
    assert opened(model, checkpoint=str(run.path / "student")).own_plan().origin == str(run.path / "student/plan.json")


def test_vae_tiling_is_switched_on(ours):
    assert opened(ours, vae_tiling=True).vae.use_tiling
    assert not opened(ours).vae.use_tiling


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"device": "gpu"}, USAGE, "unknown device"),
        ({"device": "meta"}, USAGE, "unknown device"),
        ({"dtype": "float8"}, USAGE, "unknown number format"),
        ({"offload": "disk"}, USAGE, "unknown offload"),
    ],
)
def test_unknown_choices_name_the_known_ones(ours, options, code, says):
    with pytest.raises(EvditError, match=says) as caught:
        open_backbone(find_source(str(ours)), **{"device": "cpu"} | options)
    assert caught.value.exit_code == code


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_absent_is_said(ours, device):
    with pytest.raises(EvditError, match=f"{device.split(':')[0]}.* was asked for") as caught:
        open_backbone(find_source(str(ours)), device=device)
    assert caught.value.exit_code == ENVIRONMENT
    assert "--device cpu" in caught.value.text()


def test_auto_is_the_cpu_in_float32_without_a_gpu(ours):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    backbone = open_backbone(find_source(str(ours)))
    assert (backbone.device.type, backbone.dtype) == ("cpu", torch.float32)
    assert TRANSFORMER_CONFIG["num_layers"] == backbone.architecture.layers == len(backbone.attention_sites())
    assert Path(backbone.transformer_folder).is_dir()


def test_words_without_a_token_are_named(ours):
    backbone = opened(ours)
    assert backbone.unknown_words("A RED circle over Paris, a red dragon!") == (
        ("a", "red", "circle", "over"),
        ("paris", "dragon"),
    )
    assert backbone.unknown_words("quux") == ((), ("quux",))
    assert backbone.unknown_words("?!") == ((), ("?!",))
    assert backbone.parts.loaded == {}
