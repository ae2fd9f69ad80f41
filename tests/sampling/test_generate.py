"""`evdit generate` on a backbone without weights: files, receipts, folders, and everything it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.closeness import assert_close
from tests.sampling.fakes import GaussianBackbone
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.artifacts.video_file import read_metadata, read_video
from vdit_cli.errors import FALLBACK, INTERRUPTED, OUT_OF_MEMORY, USAGE, EvditError, Interrupted
from vdit_cli.recipe import GenerateOptions
from vdit_cli.sampling import generate as generating
from vdit_cli.sampling import memory, plans
from vdit_cli.sampling.generate import Asked, generate
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Silent


@pytest.fixture
def backbone(monkeypatch) -> GaussianBackbone:
    made = GaussianBackbone()
    monkeypatch.setattr(generating, "open_backbone", lambda source, **_: made)
    return made


def _make(out, *prompts, progress=None, prompts_file=None, overwrite=False, **options):
    asked = Asked(prompts, prompts_file, None if out is None else Path(out), overwrite)
    return generate(GenerateOptions(**options), asked, progress or Silent())


@pytest.mark.numerical
def test_one_video_with_its_receipt_and_metadata(backbone, tmp_path):
    (made,) = _make(tmp_path / "out.mp4", "7", seed=3, masks="1:1", steps=5)
    frames, fps = read_video(made.path)
    assert frames.shape == (5, 32, 48, 3)
    assert fps == 8
    told = read_metadata(made.path)
    assert (told["prompt"], told["seed"], told["model"]) == ("7", "3", "gaussian")
    assert (told["masks"], told["steps"]) == ("1:1", "5")
    assert "torch" in told["versions"]
    receipt = Receipt.read(tmp_path / "out.json")
    assert receipt == made.receipt
    assert receipt.asked["prompt"] == "7"
    assert receipt.asked["steps"] == 5
    assert receipt.asked["guidance"] == 2.0
    assert receipt.asked["scheduler"] == "ddim"
    assert receipt.ran.timesteps == (999, 799, 599, 399, 199)
    assert [layer["mask"] for layer in receipt.ran.layers] == ["1:1", "1:1"]
    assert {layer["kernel"] for layer in receipt.ran.layers} == {"sdpa"}
    assert_close(receipt.ran.kept_share + receipt.ran.skipped_share, 1)
    assert set(receipt.seconds) == {"load", "text", "denoise", "decode", "write"}
    assert all(seconds >= 0 for seconds in receipt.seconds.values())
    assert receipt.peak_memory_bytes > 50 * 2**20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.mp4"]
    assert backbone.loads == ["text", "transformer", "vae"]


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "unipc", "milestones"])
def test_timesteps_by_number_are_those_that_run(backbone, tmp_path, scheduler):
    (made,) = _make(tmp_path / "out.mp4", "7", scheduler=scheduler, timesteps="800, 300,7")
    ran = made.receipt.ran
    assert (ran.timesteps, ran.scheduler, made.receipt.asked["steps"]) == ((800, 300, 7), scheduler, 3)
    assert made.receipt.asked["timesteps"] == read_metadata(made.path)["timesteps"] == "800, 300,7"
    assert len(backbone.batches) == 3


def test_a_spacing_takes_the_place_of_the_models(backbone, tmp_path):
    (made,) = _make(tmp_path / "out.mp4", "7", scheduler="dpm++2m", timesteps="leading", steps=4)
    assert made.receipt.ran.timesteps == (800, 600, 400, 200)


def test_a_student_at_other_timesteps_than_its_own_is_a_warning(backbone, tmp_path):
    backbone.sampler = Sampler("ddim", (999, 499), 2.0)
    progress = Silent()
    _make(tmp_path / "own.mp4", "7", timesteps="999,499", progress=progress)
    assert not any("trained for" in line for line in progress.lines)
    _make(tmp_path / "other.mp4", "7", timesteps="800,499", progress=progress)
    (told,) = (line for line in progress.lines if "trained for" in line)
    assert "trained for timesteps 999,499: timesteps 800,499 may look worse" in told


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"timesteps": "leading", "steps": 2}, ["timesteps 500,0"]),
        ({"timesteps": "trailing", "steps": 4}, ["steps 4", "timesteps 999,749,499,249"]),
        ({"steps": 2}, ["timesteps 999,499"]),
        ({"scheduler": "milestones", "steps": 2}, ["scheduler milestones", "timesteps 999,499"]),
        ({"steps": 4}, ["steps 4"]),
        ({"timesteps": "999,149"}, []),
    ],
)
def test_a_student_whose_timesteps_others_lay_out_is_a_warning(backbone, tmp_path, asked, told):
    """By a spacing, or by a scheduler as it likes; where only their number is another, that says it."""
    backbone.sampler = Sampler("ddim", (999, 149), 2.0)
    progress = Silent()
    _make(tmp_path / "out.mp4", "7", progress=progress, **asked)
    said = [line.rpartition(": ")[2] for line in progress.lines if "this student was trained for" in line]
    assert said == [f"{each} may look worse" for each in told]


@pytest.mark.parametrize(
    ("asked", "is_idle"),
    [({"steps": 1, "timesteps": "leading"}, True), ({"steps": 1, "timesteps": "trailing"}, False)]
    + [({"steps": 2, "timesteps": "leading"}, False), ({"timesteps": "400"}, False)],
)
def test_a_single_step_has_no_spacing(backbone, tmp_path, asked, is_idle):
    """It lies at the noisiest timestep whatever was asked for but a number, and that is said."""
    progress = Silent()
    (made,) = _make(tmp_path / "out.mp4", "7", progress=progress, **asked)
    why = "warning: generate.timesteps has no effect: a single step lies at the noisiest timestep under any spacing"
    assert ([line for line in progress.lines if "no effect" in line] == [why]) is is_idle
    assert not is_idle or made.receipt.ran.timesteps == (999,)


def test_no_metadata_leaves_the_file_bare(backbone, tmp_path):
    (made,) = _make(tmp_path / "out.mp4", "7", metadata=False)
    assert "7" not in read_metadata(made.path).values()
    assert made.receipt.asked["prompt"] == "7"


@pytest.mark.parametrize("name", ["out.gif", "out.webp", "frames"])
def test_other_kinds_of_video(backbone, tmp_path, name):
    (made,) = _make(tmp_path / name, "7")
    frames, _ = read_video(made.path)
    assert frames.shape == (5, 32, 48, 3)
    assert (tmp_path / f"{Path(name).stem}.json").exists()


def test_the_same_seed_is_the_same_video_whatever_the_batch(backbone, tmp_path):
    made = _make(tmp_path / "three", "7", num=3, seed=10, batch=3)
    assert [video.receipt.asked["seed"] for video in made] == [10, 11, 12]
    assert backbone.batches == [6] * 4
    (alone,) = _make(tmp_path / "alone.mp4", "7", seed=11)
    difference = read_video(alone.path)[0].astype(int) - read_video(made[1].path)[0].astype(int)
    assert np.abs(difference).max() <= 1
    assert not np.array_equal(read_video(made[0].path)[0], read_video(made[1].path)[0])


def test_several_prompts_go_into_a_folder_that_the_same_command_goes_on_from(backbone, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1\n\n  2 \n3\n", encoding="utf-8")
    made = _make(tmp_path / "out", prompts_file=prompts, batch=2)
    assert [video.path.name for video in made] == ["0000-1.mp4", "0001-2.mp4", "0002-3.mp4"]
    assert [video.receipt.asked["prompt"] for video in made] == ["1", "2", "3"]
    times = {video.path: video.path.stat().st_mtime_ns for video in made}
    backbone.loads.clear()
    progress = Silent()
    again = _make(tmp_path / "out", prompts_file=prompts, batch=2, offload="model", progress=progress)
    assert {video.path: video.path.stat().st_mtime_ns for video in again} == times
    assert backbone.loads == []
    assert any("3 of 3 videos" in line for line in progress.lines)
    made[1].path.unlink()
    _make(tmp_path / "out", prompts_file=prompts, batch=2)
    assert made[1].path.exists()
    assert made[0].path.stat().st_mtime_ns == times[made[0].path]


def test_several_videos_can_be_folders_of_pngs_or_another_kind(backbone, tmp_path):
    """Exact frames; a lost one is made again, what somebody put into one of them stays."""
    made = _make(tmp_path / "png", "1", "2", files="png")
    assert [video.path.name for video in made] == ["0000-1", "0001-2"]
    frames = read_video(made[1].path)[0]
    assert np.array_equal(frames, read_video(_make(tmp_path / "alone", "2", seed=1)[0].path)[0])
    (made[1].path / "00002.png").unlink()
    (made[1].path / "note.txt").write_text("mine", encoding="utf-8")
    progress = Silent()
    _make(tmp_path / "png", "1", "2", files="png", progress=progress)
    assert any("0001-2 or its receipt is gone or damaged" in line for line in progress.lines)
    assert np.array_equal(read_video(made[1].path)[0], frames)
    assert [file.read_text(encoding="utf-8") for file in (tmp_path / "png").rglob("note.txt")] == ["mine"]
    with pytest.raises(EvditError, match="files"):
        _make(tmp_path / "png", "1", "2", files="gif")
    names = [video.path.name for video in _make(tmp_path / "gif", "1", "2", files="gif")]
    assert names == ["0000-1.gif", "0001-2.gif"] and read_video(tmp_path / "gif" / names[0])[0].shape == frames.shape


def test_one_video_is_written_as_its_name_tells(backbone, tmp_path):
    progress = Silent()
    _make(tmp_path / "out.gif", "1", files="png", progress=progress)
    assert (tmp_path / "out.gif").is_file()
    assert any(line.startswith("generate.files has no effect") for line in progress.lines)


def test_a_folder_of_another_command_is_refused_with_what_differs(backbone, tmp_path):
    _make(tmp_path / "out", "1", "2", steps=2)
    with pytest.raises(EvditError, match=r"steps: was 2, is 3") as caught:
        _make(tmp_path / "out", "1", "2", steps=3)
    assert caught.value.exit_code == USAGE
    assert "--overwrite" in caught.value.next_steps
    _make(tmp_path / "out", "1", "5", steps=3, overwrite=True)
    names = {path.name for path in (tmp_path / "out").glob("*.mp4")}
    assert names == {"0000-1.mp4", "0001-5.mp4"}


def test_without_an_output_each_recipe_has_its_dated_folder(backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (first,) = _make(None, "1")
    (again,) = _make(None, "1")
    (other,) = _make(None, "2")
    assert first.path == again.path
    assert first.path.parent.name.endswith("-generate-shapes")
    assert other.path.parent.name.endswith("-generate-shapes-2")


class _StopAtVideo(Silent):
    def __init__(self, folder: Path, videos: int) -> None:
        super().__init__()
        self.folder, self.videos = folder, videos

    def should_stop(self) -> bool:
        return len(list(self.folder.glob("*.mp4"))) >= self.videos


def test_ctrl_c_keeps_finished_videos_and_the_same_command_goes_on(backbone, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="2 videos are finished, 2 are left") as caught:
        _make(out, "1", num=4, progress=_StopAtVideo(out, 2))
    assert caught.value.exit_code == INTERRUPTED
    assert len(list(out.glob("*.mp4"))) == 2
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["state"] == "interrupted"
    assert len(_make(out, "1", num=4)) == 4
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["state"] == "done"


def test_ctrl_c_on_a_single_video_leaves_nothing(backbone, tmp_path):
    with pytest.raises(Interrupted, match="nothing was written"):
        _make(tmp_path / "out.mp4", "1", progress=_StopAtVideo(tmp_path, 0))
    assert list(tmp_path.iterdir()) == []


BAD = {
    "no prompt": ((), {}, "no prompt was given"),
    "empty prompt": (("  ",), {}, "the prompt is empty"),
    "no known word": (("dragon breath",), {}, "knows none of the words"),
    "frames": (("1",), {"video_frames": 6}, "6 x 32 x 48 does not fit"),
    "width": (("1",), {"width": 40}, "does not fit"),
    "steps": (("1",), {"steps": 0}, "steps is 0"),
    "too many steps": (("1",), {"steps": 1001}, "1001 steps"),
    "num": (("1",), {"num": 0}, "num is 0"),
    "guidance": (("1",), {"guidance": float("nan")}, "guidance is nan"),
    "scheduler": (("1",), {"scheduler": "dimm"}, "unknown scheduler 'dimm'"),
    "spacing": (("1",), {"timesteps": "trailling"}, "unknown spacing 'trailling'"),
    "rising timesteps": (("1",), {"timesteps": "249,999"}, "the timesteps 249,999 don't fall"),
    "a timestep too high": (("1",), {"timesteps": "1000,3"}, "timestep 1000 is not on the noise schedule"),
    "two counts of steps": (("1",), {"steps": 3, "timesteps": "999,3"}, "3 steps and 2 timesteps are asked for"),
    "no spacing": (("1",), {"scheduler": "milestones", "timesteps": "leading"}, "milestones can't lay out"),
    "no numbers": (("1",), {"scheduler": "euler-ancestral", "timesteps": "999,3"}, "euler-ancestral can't lay out"),
    "kernel": (("1",), {"kernel": "flesh"}, "unknown kernel 'flesh'"),
    "model": (("1",), {"model": "shaeps"}, "unknown model 'shaeps'"),
    "mask": (("1",), {"masks": "3:4"}, "mask 3:4 is for 7 frames"),
    "no plan": (("1",), {"masks": "nowhere.json"}, "nowhere.json is no mask plan"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_loads(backbone, tmp_path, case):
    prompts, options, says = BAD[case]
    with pytest.raises(EvditError, match=says) as caught:
        _make(tmp_path / "out.mp4", *prompts, **options)
    assert caught.value.exit_code == USAGE
    assert backbone.loads == []
    assert list(tmp_path.iterdir()) == []


def test_several_prompts_and_a_file_name_suggest_quotes(backbone, tmp_path):
    with pytest.raises(EvditError, match="quote the prompt") as caught:
        _make(tmp_path / "out.mp4", "a", "red", "circle")
    assert '"a red circle"' in caught.value.next_steps
    with pytest.raises(EvditError, match="2 videos don't fit into the file"):
        _make(tmp_path / "out.mp4", "1", num=2)


def test_places_that_are_taken_or_can_not_be_written(backbone, tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"mine")
    with pytest.raises(EvditError, match="exists"):
        _make(tmp_path / "out.mp4", "1")
    assert (tmp_path / "out.mp4").read_bytes() == b"mine"
    (tmp_path / "other.json").write_text("mine", encoding="utf-8")
    with pytest.raises(EvditError, match="would hold this video's receipt"):
        _make(tmp_path / "other.mp4", "1")
    with pytest.raises(EvditError, match="can't be written"):
        _make(tmp_path / "out.mp4" / "deep.mp4", "1")
    with pytest.raises(EvditError, match="is a file: several videos go into a folder"):
        _make(tmp_path / "other.json", "1", num=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("", encoding="utf-8")
    with pytest.raises(EvditError, match="was not made by evdit"):
        _make(tmp_path / "full", "1", num=2)
    assert backbone.loads == []
    (made,) = _make(tmp_path / "out.mp4", "1", overwrite=True)
    assert made.path.stat().st_size > 100


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "can't be read"), (b"1\nr\xe9d\n", "line 2 holds the byte 0xe9"), (b"\n \n", "holds no prompt")],
)
def test_prompts_files_that_are_none(backbone, tmp_path, content, says):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EvditError, match=says) as caught:
        _make(tmp_path / "out", prompts_file=file)
    assert caught.value.exit_code == USAGE
    with pytest.raises(EvditError, match="give one"):
        _make(tmp_path / "out", "1", prompts_file=file)


def test_what_is_odd_but_possible_is_a_warning(backbone, tmp_path):
    progress = Silent()
    _make(tmp_path / "out.mp4", "1 dragon", video_frames=9, progress=progress)
    assert any("made for 5 frames: 9 may look worse" in line for line in progress.lines)
    assert any("does not know 'dragon'" in line for line in progress.lines)


def _plan(**changes) -> MaskPlan:
    plan = MaskPlan.uniform("gaussian", VideoGrid(2, 2, 3), GaussianBackbone.architecture, TileMask.parse("1:1", 2))
    return replace(plan, **changes)


def test_plans_are_checked_for_backbone_grid_and_weights(backbone, tmp_path):
    file = tmp_path / "plan.json"
    for changes, says in (
        (
            {"architecture": Architecture("Gaussian", 2, 3, 4)},
            "3 heads x 4 .* not for Gaussian of 2",
        ),
        ({"grid": VideoGrid(2, 4, 3)}, "does not fit the plan"),
        ({"searched_on": "0" * 64}, "the plan was searched on weights"),
    ):
        _plan(**changes).write(file)
        with pytest.raises(EvditError, match=says) as caught:
            _make(tmp_path / "out.mp4", "1", masks=str(file))
        assert caught.value.exit_code == USAGE
    _make(tmp_path / "out.mp4", "1", masks=str(file), allow_other_weights=True)
    _plan(searched_on=backbone.lineage[0]).write(file)
    (made,) = _make(tmp_path / "out.mp4", "1", masks=str(file), overwrite=True)
    assert made.receipt.ran.plan == MaskPlan.read(file).digest
    assert backbone.loads.count("vae") == 2


def test_a_fallback_is_told_kept_in_the_receipt_and_an_error_under_strict(backbone, tmp_path, monkeypatch):
    real = backbone.apply_plan
    refused = (("flex", "no compiler"),)
    apply = lambda plan, batch, kernel, costs: tuple(replace(a, refused=refused) for a in real(plan, batch))  # noqa: E731
    monkeypatch.setattr(backbone, "apply_plan", apply)
    monkeypatch.setattr(plans, "KERNELS", ("sdpa", "flex"))
    with pytest.raises(EvditError, match="--strict: kernel flex could not take mask 2:0") as caught:
        _make(tmp_path / "out.mp4", "1", kernel="flex", strict=True)
    assert caught.value.exit_code == FALLBACK
    assert backbone.loads == []
    progress = Silent()
    (made,) = _make(tmp_path / "out.mp4", "1", kernel="flex", progress=progress)
    assert sum("sdpa runs instead, in 2 layers" in line for line in progress.lines) == 1
    assert "no compiler" in made.receipt.ran.fallbacks[0]


def test_what_can_not_fit_is_told_with_what_would(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 300_000)
    with pytest.raises(EvditError, match="9 frames of 128 x 128 need about") as caught:
        _make(tmp_path / "out.mp4", "1", video_frames=9, height=128, width=128)
    assert caught.value.exit_code == OUT_OF_MEMORY
    assert caught.value.next_steps
    assert backbone.loads == []
    assert list(tmp_path.iterdir()) == []


def test_no_memory_in_the_middle_names_the_stage(backbone, tmp_path, monkeypatch):
    def denoise(x, t, text):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(backbone, "denoise", denoise)
    with pytest.raises(EvditError, match="out of memory to denoise") as caught:
        _make(tmp_path / "out.mp4", "1")
    assert caught.value.exit_code == OUT_OF_MEMORY
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_is_not_finite_is_not_written(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "decode_video", lambda latents: torch.full((1, 3, 5, 32, 48), float("nan")))
    with pytest.raises(EvditError, match="not finite, in float32"):
        _make(tmp_path / "out.mp4", "1")
    assert list(tmp_path.iterdir()) == []
