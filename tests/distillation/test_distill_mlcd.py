"""A distillation on the CPU: it learns, resumes bit-equal, chains, wears masks, watches, and refuses misfits."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.closeness import assert_close
from tests.distillation.small_mlcd import KillsAt, StopsAt, distill_small
from tests.forked import run_forked
from tests.tiny_pipeline import copied, write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.artifacts.video_file import read_video
from vdit_cli.attention.bind import Attend, Case, bind
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.open_sora_plan import backbone
from vdit_cli.distillation import distill_mlcd as stage
from vdit_cli.distillation import student_job
from vdit_cli.distillation.mlcd_job import idle_options
from vdit_cli.distillation.previews import Previews
from vdit_cli.distillation.student_job import idle_told
from vdit_cli.distillation.watch import Look
from vdit_cli.errors import FAILED, EvditError, Interrupted
from vdit_cli.recipe import load
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Silent

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def student(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a finished student of 4 steps, without previews."""
    run = tmp_path_factory.mktemp("student") / "run"
    distill_small(*made, run)
    return run


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_student_learns(made: tuple[Path, Path], tmp_path: Path):
    """A few dozen iterations: the loss of fresh noise falls, and the weights are no longer the teacher's."""
    folder = distill_small(
        *made, tmp_path / "run", iterations=60, checkpoint_every=60, learning_rate=1e-2, teacher_points=(2,)
    )
    losses = [line["loss"] for line in _lines(tmp_path / "run")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    teacher, made_now = load_file(made[0] / "transformer" / WEIGHTS), _weights(folder)
    assert made_now.keys() == teacher.keys()
    assert not torch.equal(made_now["proj_out.weight"], teacher["proj_out.weight"])


def test_substeps_of_the_teacher_move_the_target(made: tuple[Path, Path], tmp_path: Path):
    """With one point a segment the student is held against where the teacher leads, in one step of it or in several."""
    first = {}
    for substeps in (1, 5):
        run = tmp_path / str(substeps)
        distill_small(*made, run, iterations=1, teacher_points=(1,), teacher_substeps=substeps, teacher_guidance=1.0)
        first[substeps] = _lines(run)[0]["loss"]
    assert first[1] * 1000 < first[5]  # it starts as its teacher
    assert "| teacher points a segment | 1, 5 substeps to each |" in (run / "student" / "README.md").read_text()


def test_a_finished_run_tells_what_it_made(made: tuple[Path, Path], student: Path):
    """Sampler, card, receipt and lineage; the same again is done already."""
    folder = student / "student"
    assert Sampler.read(folder) == Sampler("milestones", (999, 749, 499, 249), 1.0)
    assert "4 steps, without guidance" in (folder / "README.md").read_text(encoding="utf-8")
    receipt, run = Receipt.read(student / "receipt.json"), RunDir.open(student)
    assert receipt.ran.timesteps == (999, 749, 499, 249) and receipt.ran.weights == run.lineage()[0]
    assert run.find("transformer") == folder and len(run.lineage()) == 1
    progress = Silent()
    assert distill_small(*made, student, progress) == folder
    assert progress.lines == [f"{student} is done already"]


def test_a_student_keeps_the_milestones_that_were_asked_for(made: tuple[Path, Path], tmp_path: Path, evdit):
    """Card, receipt and generate have them, `--timesteps` with the same numbers changes nothing; they can't change."""
    given = {"milestones": (999, 749, 499, 149), "segment_shares": (1.0, 1.0, 1.0, 2.5), "clips": 5}
    with pytest.raises(Interrupted):
        distill_small(*made, tmp_path / "run", StopsAt(3), **given)
    for other in ({"milestones": (999, 749, 499, 99)}, {"milestones": ()}, {"clips": 4}):
        with pytest.raises(EvditError, match=f"can't change any more: {next(iter(other))}: was"):
            distill_small(*made, tmp_path / "run", allow_changed=True, **{**given, **other})
    progress = Silent()
    folder = distill_small(*made, tmp_path / "run", progress, **given)
    assert "out of the first 5 of 6 (0 held out)" in progress.lines[0]
    assert Receipt.read(tmp_path / "run" / "receipt.json").ran.timesteps == given["milestones"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "timesteps 999, 749, 499, 149 |" in card and "| samples for each step | 1 : 1 : 1 : 2.5 |" in card
    assert "| data | the first 5 of 6 clips, 0 of them held out |" in card
    ask = ("generate", "a red circle", "--model", str(made[0]), "--checkpoint", str(folder), "--device", "cpu")
    videos = []
    for name, numbers in (("own", None), ("same", "999,749,499,149"), ("even", "999,749,499,249")):
        code, _, err = evdit(*ask, "-o", str(tmp_path / f"{name}.mp4"), *(["--timesteps", numbers] if numbers else []))
        assert code == 0 and ("trained for timesteps 999,749,499,149" in err) == (name == "even"), err
        videos.append(np.stack(list(read_video(tmp_path / f"{name}.mp4")[0])))
    assert np.array_equal(videos[0], videos[1]) and not np.array_equal(videos[0], videos[2])


def test_a_killed_process_resumes_bit_equal(made: tuple[Path, Path], tmp_path: Path):
    """Student, average target and kept average, killed one iteration behind a checkpoint."""
    whole = distill_small(*made, tmp_path / "whole", target="average")
    begin = partial(distill_small, progress=KillsAt(3), target="average")
    killed = run_forked(1, begin, *made, tmp_path / "cut")
    assert killed.codes == [-signal.SIGKILL], killed.err
    resumed = distill_small(*made, tmp_path / "cut", target="average")
    last = Path("checkpoints/step-000006")
    for file in ("model.safetensors", "average.safetensors", "optimiser-0.safetensors"):
        ends = [load_file(tmp_path / run / last / file) for run in ("whole", "cut")]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0].keys() | ends[1].keys()), file
    assert all(torch.equal(value, _weights(resumed)[name]) for name, value in _weights(whole).items())
    assert [line["iteration"] for line in _lines(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


def test_a_stopped_run_goes_on_and_a_changed_one_is_refused(made: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(Interrupted, match="3 of 6"):
        distill_small(*made, tmp_path / "run", StopsAt(3))
    assert RunDir.open(tmp_path / "run").state() == "interrupted"
    with pytest.raises(EvditError, match="weight_cap: was 5.0, is 2.0") as caught:
        distill_small(*made, tmp_path / "run", weight_cap=2.0)
    assert caught.value.exit_code == 2 and "--allow-changed" in caught.value.next_steps
    distill_small(*made, tmp_path / "run", allow_changed=True, weight_cap=2.0)
    assert RunDir.open(tmp_path / "run").manifest["values"]["weight_cap"] == 2.0


def test_a_damaged_checkpoint_falls_back_to_the_one_before(made: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(Interrupted):
        distill_small(*made, tmp_path / "run", StopsAt(5))
    broken = tmp_path / "run" / "checkpoints" / "step-000005" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    progress = Silent()
    distill_small(*made, tmp_path / "run", progress)
    assert any("step-000005 is damaged" in line for line in progress.lines)


@pytest.mark.numerical
def test_each_student_starts_the_next_and_a_run_starts_another(made: tuple[Path, Path], student: Path, tmp_path: Path):
    """Without learning, a chained student is its start, which shows that it was taken."""
    folder = distill_small(*made, tmp_path / "run", checkpoint=str(student), steps="3,2", learning_rate=0.0)
    assert folder == tmp_path / "run" / "steps-2" / "student"
    assert Sampler.read(folder) == Sampler("milestones", (999, 499), 1.0)
    for each in (folder, tmp_path / "run" / "steps-3" / "student"):
        start = _weights(student / "student")
        assert_close(_weights(each), start, planted={name: 2 * x for name, x in start.items()})
    run = RunDir.open(tmp_path / "run")
    assert len(run.lineage()) == 2 and run.lineage()[1:] == RunDir.open(student).lineage()
    assert run.find("transformer") == folder and run.find("transformer-3").is_dir()


def test_lora_is_merged_and_only_its_pairs_are_saved(made: tuple[Path, Path], tmp_path: Path):
    """The student has the teacher's keys; what lies outside of the blocks' linear layers is the teacher's own."""
    folder = distill_small(*made, tmp_path / "run", lora_rank=2, gradient_checkpointing=True, accumulation=2)
    teacher, mine = load_file(made[0] / "transformer" / WEIGHTS), _weights(folder)
    changed = {name for name in teacher if not torch.equal(teacher[name], mine[name])}
    assert mine.keys() == teacher.keys()
    assert changed and all("transformer_blocks." in name and name.endswith(".weight") for name in changed)
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-000006" / "model.safetensors")
    assert all("lora_" in name for name in saved)
    pair = [saved[f"student/transformer_blocks/0/attn1/to_q/lora_{side}/default/weight"] for side in "AB"]
    name = "transformer_blocks.0.attn1.to_q.weight"
    rank = torch.linalg.matrix_rank(mine[name] - teacher[name], atol=1e-6)
    assert [list(each.shape) for each in pair] == [[2, 48], [48, 2]] and rank == 2


@pytest.fixture(scope="module")
def masked(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a student of 4 steps under mask 1:2 that keeps its guidance."""
    run = tmp_path_factory.mktemp("masked") / "run"
    distill_small(*made, run, masks="1:2", guidance="kept", teacher_guidance=3.0)
    return run


def test_masks_are_worn_and_guidance_is_kept(masked: Path):
    ran = Receipt.read(masked / "receipt.json").ran
    assert [layer["mask"] for layer in ran.layers] == ["1:2", "1:2"] and ran.kept_share < 1
    assert Sampler.read(masked / "student").guidance == 3.0
    plan = MaskPlan.read(masked)
    assert (plan.masks_text(), plan.digest, plan.origin) == (ran.masks, ran.plan, str(masked / "student/plan.json"))


def test_a_masked_student_is_one_wherever_it_goes(made: tuple[Path, Path], masked: Path, tmp_path: Path, evdit):
    """A copy of its folder alone says what it wore and where it comes from, and generates under it."""
    copy = copied(masked / "student", tmp_path / "copy")
    lineage = Lineage.read(copy / WEIGHTS)
    assert lineage == Lineage(RunDir.open(masked).lineage(), MaskPlan.read(copy).digest)
    flags = ("--model", str(made[0]), "--checkpoint", str(copy), "--steps", "1")
    code, _, err = evdit("generate", "a red circle", *flags, "-o", str(tmp_path / "out.mp4"))
    assert code == 0, err
    assert [layer["mask"] for layer in Receipt.read(tmp_path / "out.json").ran.layers] == ["1:2", "1:2"]


@pytest.mark.parametrize(("asked", "worn"), [({}, "1:2"), ({"masks": "none"}, "none")])
def test_a_checkpoints_plan_goes_on_being_worn(made: tuple[Path, Path], masked: Path, tmp_path: Path, asked, worn):
    """Unless full attention is asked for; the next student's folder says which."""
    changes = {**asked, "steps": "3,2", "iterations": 1}
    progress = Silent()
    distill_small(*made, tmp_path / "run", progress, checkpoint=str(masked), **changes)
    masks_said = "full attention" if worn == "none" else f"masks 1:2 by {masked / 'student/plan.json'}"
    assert any(line.endswith(f"cpu float32, {masks_said}") for line in progress.lines)
    assert Receipt.read(tmp_path / "run" / "receipt.json").ran.masks == worn
    for steps in (3, 2):
        folder = tmp_path / "run" / f"steps-{steps}" / "student"
        assert (folder / "plan.json").exists() == (worn != "none")
        assert (Lineage.read(folder / WEIGHTS).plan is None) == (worn == "none")


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_masks_are_bound_for_what_runs(made: tuple[Path, Path], tmp_path: Path, monkeypatch, precision, dtype):
    """A part of the batch, the larger one, in the type of the matrix products; each call of the sites agrees."""
    cases: list[Case] = []

    def bound(mask: TileMask, case: Case, *rest: object) -> Attend:
        cases.append(case)
        return bind(mask, case, *rest)

    monkeypatch.setattr(backbone, "bind", bound)
    changes = {"iterations": 1, "batch_size": 5, "accumulation": 2}
    distill_small(*made, tmp_path / "run", masks="1:2", precision=precision, **changes)
    assert [(case.batch, case.dtype, case.needs_grad) for case in cases] == [(3, dtype, True)]


def test_previews_are_made_at_step_0_and_at_each_checkpoint(made: tuple[Path, Path], tmp_path: Path):
    progress = Silent()
    distill_small(*made, tmp_path / "run", progress, previews=1, iterations=3)
    folder = tmp_path / "run" / "previews"
    names = ["step-000000", "step-000002", "step-000003", "teacher"]
    assert sorted(path.stem for path in folder.glob("*.png")) == names
    assert all(len(read_video(folder / name / "0.mp4")[0]) == 9 for name in names)
    assert sum("gap to the teacher" in line for line in progress.lines) == 3
    looks = [json.loads(line) for line in (folder / "looks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [look["iteration"] for look in looks] == [0, 2, 3] and all(look["gap"] > 0 for look in looks)
    before = load_file(tmp_path / "run" / "checkpoints" / "step-000003" / "average.safetensors")
    plain = distill_small(*made, tmp_path / "plain", iterations=3)
    again = load_file(plain.parent / "checkpoints" / "step-000003" / "average.safetensors")
    assert all(torch.equal(before[name], again[name]) for name in before), "looking changes nothing"


def test_a_collapse_stops_with_the_last_good_checkpoint(made: tuple[Path, Path], tmp_path: Path, monkeypatch):
    """A student whose videos are suddenly still: the checkpoint that held it is set aside, the one before stays."""
    noted = Previews.noted

    def still(self) -> dict[int, Look]:
        found = noted(self)
        return {i: Look(look.sharpness, 0.0 if i == 4 else look.motion, look.gap) for i, look in found.items()}

    monkeypatch.setattr(Previews, "noted", still)
    with pytest.raises(EvditError, match="collapsed at iteration 4: motion is 0.*of iteration 2 is kept") as caught:
        distill_small(*made, tmp_path / "run", previews=1)
    assert caught.value.exit_code == FAILED
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["collapsed-000004", "step-000002"]
    run = RunDir.open(tmp_path / "run")
    assert run.state() == "failed" and "collapsed" in run.manifest["failure"]
    with pytest.raises(EvditError, match="collapsed at iteration 4: motion is 0"):
        distill_small(*made, tmp_path / "run", previews=1)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["collapsed-000004", "collapsed-000004-2", "step-000002"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iterations": 1}, "has 2 of 1 iterations: with other values nothing would be left to train"),
        ({"iterations": 2}, "has 2 of 2 iterations"),
    ],
)
def test_other_values_that_a_checkpoint_does_not_go_on_to(made, tmp_path: Path, monkeypatch, changes: dict, told: str):
    """`--allow-changed` is refused, and run.json is as it was: the first command still goes on."""
    with pytest.raises(Interrupted):
        distill_small(*made, tmp_path / "run", StopsAt(2))
    before = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    with pytest.raises(EvditError, match=told) as error:
        distill_small(*made, tmp_path / "run", allow_changed=True, **changes)
    assert error.value.exit_code == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["values"] == before["values"]


def test_a_loss_that_is_not_finite_stops(made: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(EvditError, match="the loss is (nan|inf)") as caught:
        distill_small(*made, tmp_path / "run", learning_rate=1e30)
    assert caught.value.exit_code == FAILED


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": "0"}, "steps is '0'"),
        ({"steps": "4,four"}, "steps is '4,four'"),
        ({"steps": "20," + "9" * 5000}, "it must be a whole number from 1 to 1000000, or several"),
        ({"steps": "20,1000001"}, "it must be a whole number from 1 to 1000000, or several"),
        ({"steps": "4,8"}, "fewer steps than the one before"),
        ({"steps": "1001"}, "steps is '1001': the noise schedule has 1000 timesteps"),
        ({"steps": "300"}, "1500 points: the noise schedule has 1000 timesteps"),
        ({"teacher_points": (0,)}, "0 teacher points"),
        ({"teacher_points": ()}, "0 teacher_points"),
        ({"teacher_shares": (1.0,)}, "2 teacher_points and 1 teacher_shares"),
        ({"milestones": (999, 499)}, r"milestones \[999,499\] are 2 numbers: a student of --steps 20 has 20 of them"),
        ({"steps": "2", "milestones": (999, 3)}, "leave 4 timesteps to a segment of 5 teacher points"),
        ({"segment_shares": (1.0, 2.0)}, r"segment_shares \[1,2\] are 2 numbers: a student of --steps 20"),
        ({"clips": 7}, "clips is 7: .* holds 6 clips, 0 of them held out"),
        ({"data": None}, "there is no data to train on"),
        ({"data": "nowhere"}, "nowhere holds no prepared data"),
        ({"checkpoint": "nowhere"}, "nowhere is no checkpoint"),
        ({"masks": "9:9"}, "9:9"),
        ({"batch_size": 3, "accumulation": 4}, "batch_size is 3: 4 parts need at least 4 clips"),
        ({"shard": "full", "target": "average"}, "shard=full can't go with target=average"),
        ({"shard": "full", "adam": "adamw-8bit"}, "shard=full can't go with adam=adamw-8bit"),
        ({"shard": "full", "muon_rate": 1e-3}, "shard=full can't go with Muon"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run_is_made(made: tuple[Path, Path], tmp_path: Path, changes, told):
    options = {"data": str(made[1]), **changes}
    with pytest.raises(EvditError, match=told) as caught:
        stage.distill_mlcd(
            DistillMlcdOptions(model=str(made[0]), device="cpu", **{"teacher_points": (2, 5), **options}),
            tmp_path / "run",
            Silent(),
        )
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_data_of_another_model_are_refused(made: tuple[Path, Path], tmp_path: Path):
    other = write_pipeline(copied(made[0], tmp_path / "other"), seed=5)
    with pytest.raises(EvditError, match="do not fit tiny") as caught:
        distill_small(other, made[1], tmp_path / "run")
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_options_without_effect_are_said():
    """Those that were set, and only where they have none."""
    idle = ["distill_mlcd.null_share=0.2", "distill_mlcd.allow_other_weights=true", "distill_mlcd.collapse_factor=3"]
    beside = ["distill_mlcd.previews=0", "distill_mlcd.masks=none"]
    said = idle_options(load(None, [*idle, *beside]).distill_mlcd)
    assert [line.partition(" has no effect: ")[0] for line in said] == [f"--set {each}" for each in idle]
    assert idle_options(load(None, [*idle[:2], "distill_mlcd.guidance=kept"]).distill_mlcd) == []
    assert idle_options(load(None, ["distill_mlcd.previews=0"]).distill_mlcd) == []
    kd = load(None, ["distill_kd.collapse_factor=3", "distill_kd.previews=0"]).distill_kd
    assert idle_told(kd, {"null_share": None}) == [
        "--set distill_kd.collapse_factor=3 has no effect: without previews nothing is watched"
    ]


def test_previews_need_an_encoder_before_anything_loads(made: tuple[Path, Path], tmp_path: Path, monkeypatch):
    model, data = made

    def missing(kind: str) -> None:
        raise EvditError("mp4 files can't be written")

    monkeypatch.setattr(student_job, "check_encoder", missing)
    options = load(None, (), {"distill_mlcd.model": str(model), "distill_mlcd.data": str(data)}).distill_mlcd
    with pytest.raises(EvditError, match="mp4 files can't be written"):
        stage.distill_mlcd(options, tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()
