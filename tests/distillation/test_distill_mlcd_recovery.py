"""What goes wrong in a distillation, and that the same command, or the advised one, gets it right afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distillation.prepared import write_data
from tests.distillation.small_mlcd import StopsAt, distill_small
from tests.tiny_pipeline import copied
from vdit_cli.artifacts.digest import weights_digest
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.data.shards import open_data
from vdit_cli.distillation import distill_mlcd as stage
from vdit_cli.distillation.mlcd_job import prepare
from vdit_cli.distillation.previews import Previews
from vdit_cli.distillation.watch import Look
from vdit_cli.errors import FAILED, USAGE, EvditError, Interrupted
from vdit_cli.parallel.groups import ALONE
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.timing import Silent

WEIGHTS = "student/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def undisturbed(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a student of 6 iterations, a checkpoint every 2."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    distill_small(*made, run)
    return run


def plant_nan(patch: pytest.MonkeyPatch, at: int) -> None:
    """One gradient of a student is NaN in the iteration `at` (from 1 on)."""
    now = [0]
    parameters, loss = stage.trained_parameters, stage.Lesson.of

    def hooked(student):
        trained = parameters(student)
        list(trained.values())[3].register_hook(lambda gradient: gradient * float("nan") if now[0] == at else None)
        return trained

    def of(self, samples):
        now[0] = samples.iteration + 1
        return loss(self, samples)

    patch.setattr(stage, "trained_parameters", hooked)
    patch.setattr(stage.Lesson, "of", of)


NOTED = Previews.noted


def still_at(iteration: int, self: Previews) -> dict[int, Look]:
    """The looks noted, but that the videos at that iteration are suddenly still."""
    looks = NOTED(self)
    return {i: Look(look.sharpness, 0.0 if i == iteration else look.motion, look.gap) for i, look in looks.items()}


def still_at_4(self: Previews) -> dict[int, Look]:
    """Still at iteration 4."""
    return still_at(4, self)


def check_finite(folder: Path) -> None:
    """No file below `folder` holds a number that is not finite."""
    for file in folder.rglob("*.safetensors"):
        assert all(each.isfinite().all() for each in load_file(file).values()), file
    for file in (*folder.rglob("*.json"), *folder.rglob("*.jsonl")):
        text = file.read_text(encoding="utf-8")
        assert "NaN" not in text and "Infinity" not in text, file


NOTHING = "nothing was saved yet: the same command begins from the start"


def last_good(iteration: int) -> str:
    """The words for a checkpoint that is kept."""
    return f"the checkpoint of iteration {iteration} is kept"


@pytest.mark.parametrize(("at", "kept"), [(1, NOTHING), (3, last_good(2)), (6, last_good(4))])
def test_a_gradient_that_is_not_finite_stops_before_it_is_taken(
    made: tuple[Path, Path], undisturbed: Path, tmp_path: Path, at: int, kept: str
):
    """In the first, a middle and the last iteration: nothing of it is on the disk, and the same command goes on.

    What is kept until then is told.
    """
    with pytest.MonkeyPatch.context() as patch:
        plant_nan(patch, at)
        with pytest.raises(
            EvditError, match=f"the gradient of student/.* is not finite at iteration {at}; {kept}$"
        ) as caught:
            distill_small(*made, tmp_path / "run")
    assert caught.value.exit_code == FAILED
    assert not (tmp_path / "run" / "student").exists()
    check_finite(tmp_path / "run")
    distill_small(*made, tmp_path / "run")
    expected = load_file(undisturbed / WEIGHTS)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(tmp_path / "run" / WEIGHTS).items())


def test_a_collapse_is_recovered_from_as_advised(made: tuple[Path, Path], tmp_path: Path):
    """keep_last 1: the good checkpoint is still there, the stale look is forgotten, and a smaller rate ends well."""
    run = tmp_path / "run"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Previews, "noted", still_at_4)
        for again in ("", "-2"):
            with pytest.raises(EvditError, match="collapsed at iteration 4") as caught:
                distill_small(*made, run, previews=1, keep_last=1)
            names = {path.name for path in (run / "checkpoints").iterdir()}
            assert "step-000002" in names and f"collapsed-000004{again}" in names and "step-000004" not in names
    assert "--set distill_mlcd.learning_rate=... (smaller) --allow-changed" in caught.value.next_steps
    progress = Silent()
    distill_small(*made, run, progress, allow_changed=True, previews=1, keep_last=1, learning_rate=1e-4)
    looks = [json.loads(line) for line in (run / "previews" / "looks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [each["iteration"] for each in looks] == [0, 2, 4, 6]
    assert any("iteration 4: sharpness" in line for line in progress.lines), "it was looked at again"
    assert RunDir.open(run).state() == "done"


def test_a_collapse_at_the_first_checkpoint_leaves_none(made: tuple[Path, Path], tmp_path: Path):
    """Which is told: the same command begins from the start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Previews, "noted", lambda self: still_at(2, self))
        with pytest.raises(EvditError, match=f"collapsed at iteration 2: .*; {NOTHING}$"):
            distill_small(*made, tmp_path / "run", previews=1)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["collapsed-000002"]


def test_a_killed_judgement_is_made_up_for(made: tuple[Path, Path], tmp_path: Path):
    """The process dies between the checkpoint and its look: going on looks first, and sets a collapsed one aside."""
    run = tmp_path / "run"
    keep = Previews.keep

    def dies(self, iteration: int, latents: torch.Tensor) -> Look:
        if iteration == 4:
            raise KeyboardInterrupt
        return keep(self, iteration, latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Previews, "keep", dies)
        with pytest.raises(KeyboardInterrupt):
            distill_small(*made, run, previews=1)
    assert (run / "checkpoints" / "step-000004").is_dir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Previews, "noted", still_at_4)
        with pytest.raises(EvditError, match="collapsed at iteration 4"):
            distill_small(*made, run, previews=1)
    assert not (run / "checkpoints" / "step-000004").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"previews": 0}, {"previews": 1}),
        ({"previews": 1}, {"previews": 2}),
        ({"previews": 1}, {"previews": 0}),
    ],
)
def test_previews_may_change_between_two_halves(made: tuple[Path, Path], tmp_path: Path, before: dict, after: dict):
    """Each half's looks are compared among themselves; the teacher's videos are those of the looks."""
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill_small(*made, run, StopsAt(2), **before)
    distill_small(*made, run, **after)
    count = after["previews"]
    if not count:
        return
    teacher = load_file(run / "previews" / "teacher.safetensors")["latents"]
    assert len(teacher) == count and len(list((run / "previews" / "teacher").glob("*.mp4"))) == count
    looks = [json.loads(line) for line in (run / "previews" / "looks.jsonl").read_text(encoding="utf-8").splitlines()]
    key = json.loads((run / "previews" / "teacher.json").read_text(encoding="utf-8"))["key"]
    assert [each["iteration"] for each in looks if each["key"] == key] == [2, 4, 6]


def test_previews_are_keyed_by_what_decides_them(made: tuple[Path, Path], undisturbed: Path, tmp_path: Path):
    """Another count, seed, sampling, precision or plan is another key; the same again is the same."""
    options = DistillMlcdOptions(model=str(made[0]), data=str(made[1]), device="cpu", guidance="kept")
    clips = open_data(made[1])
    job = prepare(options, (4,), clips, ALONE, Silent())

    def key(count: int = 1, seed: int = 0, guidance: float = 1.0, beside: tuple[str | None, ...] = ("float32", None)):
        spec = job.spec(4, 1.0)
        teacher = job.spec(4, guidance)
        return Previews(job.pair, clips, tmp_path, count, seed, spec, teacher, torch.no_grad, beside).key

    others = [
        key(count=2),
        key(seed=1),
        key(guidance=3.0),
        key(beside=("bfloat16", None)),
        key(beside=("float32", "p")),
    ]
    assert key() == key() and len({key(), *others}) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": "2"},
        {"lora_rank": 2},
        {"target": "average"},
        {"seed": 3},
        {"guidance": "kept"},
        {"teacher_guidance": 2.0},
        {"masks": "1:2"},
    ],
)
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_what_shapes_a_run_can_not_change_in_it(
    made: tuple[Path, Path], undisturbed: Path, tmp_path: Path, state: str, changes: dict
):
    """Not with --allow-changed either: the run is as it was, and no flag that would be refused is offered."""
    run = copied(undisturbed, tmp_path / "run")
    if state == "stopped":
        manifest = run / "run.json"
        manifest.write_text(manifest.read_text(encoding="utf-8").replace('"done"', '"interrupted"'), encoding="utf-8")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = next(iter(changes))
    for allow_changed, words in ((False, "was made by another recipe"), (True, "was begun with what can't change")):
        with pytest.raises(EvditError, match=f"{words}.*{told}: was") as caught:
            distill_small(*made, run, allow_changed=allow_changed, **changes)
        assert caught.value.exit_code == USAGE and caught.value.next_steps == ("a new folder with -o",)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_finished_run_is_made_longer(made: tuple[Path, Path], undisturbed: Path, tmp_path: Path):
    """From its last checkpoint, where one insists; not where that is gone, nor shorter, nor with another rate."""
    run = copied(undisturbed, tmp_path / "run")
    with pytest.raises(EvditError, match="iterations: was 6, is 8") as caught:
        distill_small(*made, run, iterations=8)
    assert "--allow-changed" in caught.value.next_steps
    for refused in ({"iterations": 4}, {"learning_rate": 1e-3}, {"iterations": 8, "learning_rate": 1e-3}):
        with pytest.raises(EvditError, match="is finished, with other values"):
            distill_small(*made, run, allow_changed=True, **refused)
    distill_small(*made, run, allow_changed=True, iterations=8)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 9))
    assert RunDir.open(run).state() == "done" and RunDir.open(run).is_whole("transformer")
    longer, shorter = load_file(run / WEIGHTS), load_file(undisturbed / WEIGHTS)
    assert any(not torch.equal(longer[name], shorter[name]) for name in longer)
    lost = copied(undisturbed, tmp_path / "lost")
    for file in (lost / "checkpoints").rglob("*"):
        if file.is_file():
            file.unlink()
    for folder in (lost / "checkpoints").iterdir():
        folder.rmdir()
    with pytest.raises(EvditError, match="holds no whole checkpoint any more") as caught:
        distill_small(*made, lost, allow_changed=True, iterations=8)
    assert caught.value.exit_code == USAGE and RunDir.open(lost).state() == "done"


@pytest.mark.parametrize("damage", ["model.safetensors", "optimiser-0.safetensors", "[]", "iteration", "nothing"])
def test_a_checkpoint_that_is_not_what_was_written_is_passed_over(
    made: tuple[Path, Path], undisturbed: Path, tmp_path: Path, damage: str
):
    """Two bytes of a file, a state that is no object, a digit of it: the one before is taken, and that is said."""
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill_small(*made, run, StopsAt(5))
    newest = run / "checkpoints" / "step-000005"
    state = newest / "state.json"
    if damage == "[]":
        state.write_text("[]", encoding="utf-8")
    elif damage == "iteration":
        text = state.read_text(encoding="utf-8")
        state.write_text(text.replace('"iteration": 5', '"iteration": 3'), encoding="utf-8")
        assert text != state.read_text(encoding="utf-8")
    elif damage != "nothing":
        content = bytearray((newest / damage).read_bytes())
        content[-9] ^= 1
        content[-5] ^= 1
        (newest / damage).write_bytes(bytes(content))
    progress = Silent()
    distill_small(*made, run, progress)
    told = [line for line in progress.lines if "is damaged" in line]
    assert len(told) == (damage != "nothing") and all("checkpoint step-000005 is damaged" in line for line in told)
    expected = load_file(undisturbed / WEIGHTS)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(run / WEIGHTS).items())


def test_a_held_out_loss_stands_beside_the_training_loss(made: tuple[Path, Path], tmp_path: Path):
    """Of clips that are never trained on, with noise and times that stay: without learning it never changes."""
    seen: list[int] = []
    batch = stage.HeldClips.batch

    def recorded(self, items):
        if torch.is_grad_enabled():
            seen.extend(items)
        return batch(self, items)

    data = write_data(tmp_path / "data", made[0], 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.HeldClips, "batch", recorded)
        progress = Silent()
        distill_small(made[0], data, tmp_path / "run", progress, learning_rate=0.0, teacher_points=(2,))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert set(seen) == set(range(14)) and len({line["loss"] for line in lines}) == 6
    assert len({line["held_out_loss"] for line in lines}) == 1 and lines[0]["held_out_loss"] > 0
    assert "out of 16 (2 held out)" in progress.lines[0]


def test_weights_and_plan_can_not_be_swapped_under_a_run(made: tuple[Path, Path], tmp_path: Path):
    """Another teacher at the same path, a plan that appears beside it: refused by name."""
    model = copied(made[0], tmp_path / "model")
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill_small(model, made[1], run, StopsAt(2))
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    save_file({name: 1.1 * value for name, value in load_file(weights).items()}, weights)
    with pytest.raises(EvditError, match="teacher_weights: was ") as caught:
        distill_small(model, made[1], run, allow_changed=True)
    assert caught.value.exit_code == USAGE
    weights.write_bytes(before)
    masked = distill_small(model, made[1], tmp_path / "masked", masks="1:2", iterations=1)
    (model / "transformer" / "plan.json").write_bytes((masked / "plan.json").read_bytes())
    with pytest.raises(EvditError, match="plan: was None, is "):
        distill_small(model, made[1], run, allow_changed=True)
    (model / "transformer" / "plan.json").unlink()
    distill_small(model, made[1], run)


def test_a_finished_student_stays_when_those_after_it_change(made: tuple[Path, Path], tmp_path: Path):
    """Its weights and its card, which the run goes past; the next one names it as its start, in its lineage too."""
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill_small(*made, run, StopsAt(8), steps="4,2")
    first = run / "steps-4" / "student"
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    second = distill_small(*made, run, allow_changed=True, steps="4,2", teacher_points=(3,), batch_size=2)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    card = (second / "README.md").read_text(encoding="utf-8")
    assert "| start | the student of 4 steps |" in card and "full attention, 6 iterations of 2 clips" in card
    lineage = Lineage.read(second / "diffusion_pytorch_model.safetensors").weights
    assert lineage[0] == weights_digest([first / "diffusion_pytorch_model.safetensors"]) and len(lineage) == 2


def test_a_student_that_was_changed_since_is_no_checkpoint_of_its_run(
    made: tuple[Path, Path], undisturbed: Path, tmp_path: Path
):
    """Its folder may still be named, as it is."""
    run = copied(undisturbed, tmp_path / "run")
    save_file({name: 1.5 * value for name, value in load_file(run / WEIGHTS).items()}, run / WEIGHTS)
    with pytest.raises(EvditError, match="is not what its run wrote") as caught:
        distill_small(*made, tmp_path / "next", checkpoint=str(run), steps="2")
    assert caught.value.exit_code == USAGE
    distill_small(*made, tmp_path / "next", checkpoint=str(run / "student"), steps="2", iterations=1)


def test_what_hardly_makes_a_student_is_said(made: tuple[Path, Path], undisturbed: Path, tmp_path: Path):
    """A start of fewer steps, or with guidance inside where it is kept; a rate that trains nothing; another kernel."""
    progress = Silent()
    options = {
        "steps": "8",
        "guidance": "kept",
        "learning_rate": 0.0,
        "iterations": 1,
        "masks": "1:2",
        "kernel": "triton",
    }
    distill_small(
        *made,
        tmp_path / "run",
        progress,
        checkpoint=str(undisturbed),
        origins={"learning_rate": "--set distill_mlcd.learning_rate=0"},
        **options,
    )
    told = "\n".join(progress.lines)
    for words in (
        "is a student of 4 steps: it starts one of 8",
        "has its guidance distilled in",
        "--set distill_mlcd.learning_rate=0 trains nothing",
        "warning: kernel triton could not take mask 1:2",
    ):
        assert words in told
    assert Receipt.read(tmp_path / "run" / "receipt.json").ran.fallbacks
