"""All stages of a recipe: each fed by the one before, gone on with anywhere, refused where something changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.forked import run_forked
from tests.pipeline.conftest import Whole
from tests.pipeline.tiny import PROMPTS, STAGES, write_inputs
from vdit_cli.artifacts.digest import file_digests, weights_digest
from vdit_cli.cli.app import main
from vdit_cli.errors import INTERRUPTED, EvditError, Interrupted
from vdit_cli.pipeline import run as pipeline
from vdit_cli.recipe import load
from vdit_cli.search.sensitivity_pass import PairNumbers
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Silent


def told(folder: Path) -> dict[str, Any]:
    """The run.json of a folder."""
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def student(folder: Path) -> str:
    """The digest of the weights that a distillation made."""
    return weights_digest((folder / "student").glob("*.safetensors"))


def made(folder: Path) -> dict[str, str]:
    """The digests of all files of the stages but for what tells when and how long."""
    timed = ("run.json", "README.md", "receipt.json")
    return {name: digest for name, digest in file_digests(folder).items() if Path(name).name not in timed}


def test_each_stage_takes_what_the_one_before_made(whole: Whole):
    """By content: data, weights and plan that went in are those that came out."""
    run = whole.path
    assert [each.name for each in sorted(run.iterdir()) if each.is_dir()] == sorted(STAGES)
    plan, four, sparse = MaskPlan.read(run / "search-masks"), student(run / "distill-mlcd"), student(run / "distill-kd")
    data = file_digests(run / "prepare-data")["index.json"]
    values = {stage: told(run / stage)["values"] for stage in STAGES}
    for stage in ("distill-mlcd", "distill-kd"):
        assert told(run / stage)["inputs"]["data"]["sha256"] == data
    assert values["search-masks"]["weights"] == values["distill-kd"]["start_weights"] == four
    assert values["distill-kd"]["plan"] == values["generate"]["plan"] == plan.digest
    assert not plan.masks[0].is_dense and values["generate"]["weights"] == sparse != four
    assert values["generate"]["prompts"] == list(PROMPTS)
    score = json.loads((run / "score" / "score.json").read_text(encoding="utf-8"))
    assert [video["prompt"] for video in score["videos"]] == list(PROMPTS) and score["schema"] == "evdit.score/1"


def test_the_whole_says_what_was_asked_and_where_each_stage_is(whole: Whole):
    manifest = told(whole.path)
    assert (manifest["command"], manifest["state"]) == ("run", "done")
    assert manifest["values"]["distill_mlcd.iterations"] == 3 and manifest["inputs"]["prompts"]["name"] == "prompts.txt"
    assert manifest["origins"]["distill_mlcd.iterations"] == "--set distill_mlcd.iterations=3"
    assert manifest["origins"]["prepare_data.source"].endswith("shapes.yaml:8 prepare_data.source")
    assert [(each["folder"], each["state"]) for each in manifest["stages"]] == [(stage, "done") for stage in STAGES]
    for each in manifest["stages"]:
        assert each["key"] == told(whole.path / each["folder"])["key"] and each["outputs"]


def test_what_is_done_is_said_and_stays(whole: Whole, evdit):
    run = whole.copied()
    before = made(run), told(run)["stages"]
    code, out, err = evdit(*whole.words)
    assert (code, out) == (0, "run\n") and err.count("done already") == len(STAGES)
    assert (made(run), told(run)["stages"]) == before
    assert told(run)["state"] == "done"
    absolute = [str(Path("run").absolute()) if word == "run" and at else word for at, word in enumerate(whole.words)]
    assert evdit(*absolute)[0] == 0, "one folder, whatever it is called"


LINKS = {
    "prepare-data to distill-mlcd": ("prepare_data.seed=1", "prepare-data", "distill-mlcd", "input data: was"),
    "distill-mlcd to search-masks": ("distill_mlcd.seed=1", "distill-mlcd", "search-masks", "weights: was"),
    "search-masks to distill-kd": ("search_masks.fix=0=dense", "search-masks", "distill-kd", "plan: was"),
    "distill-kd to generate": ("distill_kd.seed=1", "distill-kd", "generate", "weights: was"),
    "generate to score": ("generate.seed=1", "generate", "score", "videos: was"),
}
SHORT = "run.stages=[prepare_data,distill_mlcd,distill_kd]"
LINKS |= {
    "prepare-data to distill-kd": ("prepare_data.seed=1", "prepare-data distill-mlcd", "distill-kd", "input data: was"),
    "distill-mlcd to distill-kd": ("distill_mlcd.seed=1", "distill-mlcd", "distill-kd", "start_weights: was"),
}


@pytest.mark.parametrize("link", LINKS)
def test_a_stage_whose_input_has_changed_is_refused(whole: Whole, evdit, link: str):
    """The stage before was made anew under another section; nothing of the later stage is touched."""
    change, removed, refused, why = LINKS[link]
    run, words = whole.copied(), [*whole.words, "--set", change]
    if link in list(LINKS)[-2:]:
        words += ["--set", SHORT, "--set", "distill_kd.masks=run/search-masks"]
        words += ["--set", "distill_kd.allow_other_weights=true"]  # the plan would be refused before the folder
    for stage in removed.split():
        shutil.rmtree(run / stage)
    before = made(run / refused), told(run / refused)
    code, _, err = evdit(*words)
    assert code == 2 and why in err, err
    assert (made(run / refused), told(run / refused)) == before
    if why != "masks is":
        assert (
            f"  from:  run/{refused}/run.json\n  try:   rm -r run/{refused}" in err and "another folder with -o" in err
        )
    assert told(run)["state"] == "failed", "what was made anew does not fit the rest any more"


@pytest.mark.parametrize("section", ["prepare_data", "distill_mlcd", "distill_kd", "generate"])
def test_a_stage_under_another_section_is_refused_and_nothing_is_touched(whole: Whole, evdit, section: str):
    run, stage = whole.copied(), section.replace("_", "-")
    before = made(run), told(run)
    code, _, err = evdit(*whole.words, "--set", f"{section}.seed=1")
    later = " ".join(f"run/{each}" for each in STAGES[STAGES.index(stage) :])
    assert code == 2 and f"  from:  run/{stage}/run.json\n  try:   rm -r {later}  (they are then" in err
    assert "seed: was 0, is 1" in err and "--overwrite" not in err
    assert (made(run), told(run)) == before


def test_a_folder_from_elsewhere_is_refused(whole: Whole, evdit):
    """A stage's of another command, and a whole that is none."""
    run = whole.copied()
    shutil.rmtree(run / "search-masks")
    shutil.copytree(run / "prepare-data", run / "search-masks")
    code, _, err = evdit(*whole.words)
    assert code == 2 and "run/search-masks is a run of evdit prepare-data: evdit search-masks leaves it alone" in err
    shutil.copytree(run / "generate", "videos")
    code, _, err = evdit(*["videos" if word == "run" and at else word for at, word in enumerate(whole.words)])
    assert code == 2 and "videos is a run of evdit generate: evdit run leaves it alone" in err


def test_a_stage_that_its_own_command_made_is_one_of_the_whole(tmp_path: Path, evdit):
    """As where it was made on several GPUs: it is the same run, and is done."""
    words = write_inputs(tmp_path)
    assert evdit(*words, "--set", "run.stages=[prepare_data]")[0] == 0
    own = [word for at, word in enumerate(words) if words[at - 1] == "--set" and word.startswith("search_masks")]
    sets = [word for each in own for word in ("--set", each)]
    flags = ["--config", words[1], *sets, "--model", str(tmp_path / "model"), "-o", "run/search-masks"]
    assert evdit("search-masks", *flags)[0] == 0
    code, _, err = evdit(*words, "--set", "run.stages=[prepare_data,search_masks]")
    assert code == 0 and err.count("is done already") == 2


def killed_in_the_search(words: list[str]) -> int:
    """The command in this process, which is killed once the first trajectory's file is there."""
    write = PairNumbers.write

    def last(self: PairNumbers, path: Path) -> None:
        write(self, path)
        assert path.exists()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairNumbers, "write", last)
        return main(words)


def test_a_killed_run_goes_on_to_the_same_bytes(whole: Whole, evdit):
    """Killed in the third stage: two are done, the third goes on at its second trajectory, plan and score are equal."""
    assert run_forked(1, killed_in_the_search, whole.words).codes == [-signal.SIGKILL]
    run = Path("run")
    assert [path.name for path in (run / "search-masks" / "samples").iterdir()] == ["pair-0000.json"]
    code, out, _ = evdit("status", "run", "--json")
    states = [each["state"] for each in json.loads(out)["stages"]]
    assert code == 0 and states == ["done", "done", "interrupted", "not begun", "not begun", "not begun"]
    code, _, err = evdit(*whole.words)
    assert code == 0 and err.count("done already") == 3 and "1 of 2 trajectories in run/search-masks are done" in err
    for file in ("search-masks/plan.json", "score/score.json", "search-masks/sensitivity.json"):
        assert (run / file).read_bytes() == (whole.path / file).read_bytes(), file


class StopsIn(Silent):
    """Ctrl-C once a part of this name has begun."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part, self.is_asked = part, False

    def stage(self, label: str, total: int) -> None:
        """Look for the part."""
        self.is_asked |= label == self.part

    def should_stop(self) -> bool:
        """From then on."""
        return self.is_asked


def test_an_interrupted_stage_is_gone_on_with(tmp_path: Path):
    """Ctrl-C in the second stage's training: saved there."""
    words = write_inputs(tmp_path)
    recipe = load(Path(words[1]), words[5::2])
    with pytest.raises(Interrupted) as stopped:
        pipeline.run(recipe, Path("run"), StopsIn("student of 4 steps"))
    assert stopped.value.exit_code == INTERRUPTED
    states = [each["state"] for each in told(Path("run"))["stages"]]
    assert (told(Path("run"))["state"], states[:3]) == ("interrupted", ["done", "interrupted", "not begun"])
    progress = Silent()
    short = replace(recipe, run=replace(recipe.run, stages=("prepare_data", "distill_mlcd")))
    pipeline.run(short, Path("run"), progress)
    assert "run/prepare-data is done already" in progress.lines and told(Path("run"))["state"] == "done"


def test_ctrl_c_at_the_end_of_a_stage_begins_no_other(tmp_path: Path):
    """What the stage itself is too late to stop for; the last one is just done."""
    words = write_inputs(tmp_path)
    recipe = load(Path(words[1]), [*words[5::2], "prepare_data.previews=1"])
    two = replace(recipe, run=replace(recipe.run, stages=("prepare_data", "distill_mlcd")))
    with pytest.raises(Interrupted, match="stopped after prepare-data"):
        pipeline.run(two, Path("run"), StopsIn("decoding previews"))
    assert (told(Path("run"))["state"], Path("run/distill-mlcd").exists()) == ("interrupted", False)
    one = replace(recipe, run=replace(recipe.run, stages=("prepare_data",)))
    assert pipeline.run(one, Path("one"), StopsIn("decoding previews")) == Path("one")


def fed(monkeypatch: pytest.MonkeyPatch, *sets: str, stages: str) -> dict[str, Any]:
    """The options with which each stage is called, none of them carried out."""
    seen: dict[str, Any] = {}
    for name, stage in pipeline.STAGES.items():
        record = replace(stage, carry_out=lambda work, _: seen.update({work.name: work.options}))
        monkeypatch.setitem(pipeline.STAGES, name, record)
    Path("prompts.txt").write_text("a red circle", encoding="utf-8")
    given = ["prepare_data.source=shapes", f"run.stages=[{stages}]", "run.prompts_file=prompts.txt", *sets]
    pipeline.run(load(None, given), Path("run"), Silent())
    return seen


def test_the_latest_student_and_the_plan_are_taken(monkeypatch: pytest.MonkeyPatch):
    """In either order of the stages; a student that was trained under the plan brings it along."""
    usual = fed(monkeypatch, stages="prepare_data,distill_mlcd,search_masks,distill_kd,generate,score")
    assert (usual["search_masks"].checkpoint, usual["distill_kd"].checkpoint) == ("run/distill-mlcd",) * 2
    assert (usual["generate"].checkpoint, usual["generate"].masks) == ("run/distill-kd", "auto")
    assert (usual["distill_mlcd"].checkpoint, usual["distill_mlcd"].masks) == (None, "auto")
    other = fed(monkeypatch, stages="prepare_data,search_masks,distill_kd,distill_mlcd,generate")
    assert (other["search_masks"].checkpoint, other["distill_kd"].masks) == (None, "run/search-masks")
    assert (other["distill_mlcd"].checkpoint, other["distill_mlcd"].masks) == ("run/distill-kd", "auto")
    assert other["generate"].checkpoint == "run/distill-mlcd"
    alone = fed(monkeypatch, stages="search_masks,generate")
    assert (alone["generate"].checkpoint, alone["generate"].masks) == (None, "run/search-masks")


def test_a_section_that_names_another_input_keeps_it(monkeypatch: pytest.MonkeyPatch):
    """Data, checkpoint, masks and model; run.model is for the others."""
    sets = ("distill_mlcd.data=mine", "search_masks.checkpoint=old", "generate.masks=2:6", "generate.model=other")
    seen = fed(monkeypatch, *sets, "run.model=big", stages="prepare_data,distill_mlcd,search_masks,generate")
    assert (seen["distill_mlcd"].data, seen["search_masks"].checkpoint) == ("mine", "old")
    assert (seen["generate"].masks, seen["generate"].model) == ("2:6", "other")
    assert {seen[name].model for name in ("prepare_data", "distill_mlcd", "search_masks")} == {"big"}
    assert seen["generate"].where("checkpoint") == "run: the stage before, distill-mlcd"
    again = fed(monkeypatch, "search_masks.sensitivity=table", stages="prepare_data,distill_mlcd,search_masks")
    assert again["search_masks"].checkpoint is None, "a table that is there needs no model"


@pytest.mark.parametrize(
    ("stages", "sets", "why"),
    [
        ("prepare_data,distil_kd", (), "unknown stage 'distil_kd'"),
        ("prepare_data,prepare_data", (), "prepare_data stands twice"),
        ("", (), "no stage is named"),
        ("distill_mlcd,prepare_data", (), "distill_mlcd needs data"),
        ("score", (), "score needs videos"),
        ("generate", ("run.prompts_file=null",), "generate needs prompts"),
        ("generate", ("run.prompts_file=gone.txt",), "gone.txt can't be read"),
        ("prepare_data,generate", ("prepare_data.source=films",), "unknown source 'films'"),
        ("prepare_data,distill_mlcd", ("distill_mlcd.steps=few",), "steps is 'few'"),
        ("prepare_data,distill_mlcd", ("distill_mlcd.kernel=flash",), "unknown kernel 'flash'"),
        ("prepare_data,search_masks", ("search_masks.kernel=flash",), "unknown kernel 'flash'"),
        ("prepare_data,distill_kd", ("distill_kd.kernel=flash",), "unknown kernel 'flash'"),
        ("prepare_data,generate", ("generate.scheduler=euler",), "unknown scheduler 'euler'"),
    ],
)
def test_stages_that_do_not_fit_are_refused_first(
    monkeypatch: pytest.MonkeyPatch, stages: str, sets: tuple[str, ...], why: str
):
    with pytest.raises(EvditError, match=why) as refused:
        fed(monkeypatch, *sets, stages=stages)
    assert refused.value.exit_code == 2 and refused.value.where and not Path("run").exists()
    assert not any("recipes/" in step for step in refused.value.next_steps), "which lies beside the sources alone"


def test_ranks_are_for_a_stage_alone(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(EvditError, match="works in one process"):
        fed(monkeypatch, stages="generate")
