"""More videos in a folder that has some, and two kinds of one name: what is there already stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sampling.fakes import GaussianBackbone
from vdit_cli.errors import USAGE, EvditError, Interrupted
from vdit_cli.recipe import GenerateOptions
from vdit_cli.sampling import generate as generating
from vdit_cli.sampling.generate import Asked, Made, generate
from vdit_cli.timing import Silent


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model whose videos are known, in an empty folder."""
    monkeypatch.setattr(generating, "open_backbone", lambda source, **_: GaussianBackbone())
    monkeypatch.chdir(tmp_path)


def made(out: str, *prompts: str, progress: Silent | None = None, overwrite: bool = False, **options) -> list[Made]:
    """The videos of a command."""
    return generate(GenerateOptions(**options), Asked(prompts, None, Path(out), overwrite), progress or Silent())


def videos(folder: str) -> dict[str, bytes]:
    """Those of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.mp4"))}


def test_more_of_one_prompt_are_added():
    """Those that are there stay to the byte and are not made again; all are what one command makes."""
    made("run", "1", num=3)
    first = {path: path.stat().st_mtime_ns for path in Path("run").glob("0*")}
    progress = Silent()
    assert [each.path.name[:4] for each in made("run", "1", num=5, progress=progress)] == [f"{i:04d}" for i in range(5)]
    assert "3 of 5 videos in run are done already" in progress.lines
    assert {path: path.stat().st_mtime_ns for path in first} == first
    made("at-once", "1", num=5)
    assert videos("run") == videos("at-once") and len(videos("run")) == 5
    told = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert (told["values"]["num"], told["changes"]) == (5, [{"key": "num", "from": 3, "to": 5}])


def test_an_interrupted_run_is_added_to_as_well():
    """And goes on where it stopped."""
    stop = Silent()
    stop.should_stop = lambda: True  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        made("run", "1", num=2, progress=stop)
    assert len(made("run", "1", num=3)) == 3 and len(videos("run")) == 3


@pytest.mark.parametrize(
    ("prompts", "options", "told"),
    [
        (("1",), {"num": 2}, "num: was 3, is 2"),
        (("1",), {"num": 5, "seed": 1}, "seed: was 0, is 1; num: was 3, is 5"),
        (("1", "2"), {"num": 3}, "prompts: was"),
    ],
)
def test_what_is_not_more_of_the_same_is_refused(prompts: tuple[str, ...], options: dict[str, int], told: str):
    """Fewer, other seeds, other prompts."""
    made("run", "1", num=3)
    before = videos("run")
    with pytest.raises(EvditError, match=f"run was made by another recipe: {told}") as caught:
        made("run", *prompts, **options)
    assert caught.value.exit_code == USAGE and videos("run") == before


def test_of_several_prompts_none_are_added():
    """Each has its own number of videos: later ones would have other seeds and names, which the advice says."""
    made("run", "1", "2", num=1)
    for num, steps, insist in (
        (2, None, "--overwrite  (all are made anew: of several prompts, the later ones' videos get other seeds)"),
        (2, 3, "--overwrite"),
        (1, 3, "--overwrite"),
    ):
        with pytest.raises(EvditError, match="was made by another recipe") as caught:
            made("run", "1", "2", num=num, steps=steps)
        assert caught.value.next_steps == ("a new folder with -o", insist)


def test_two_kinds_of_one_name_would_share_a_receipt():
    """The first keeps it, also where one says to overwrite; once it is gone its receipt may go."""
    made("out.gif", "1")
    receipt = Path("out.json").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(EvditError, match="out.json is the receipt of out.gif: out.mp4 would have the same") as told:
            made("out.mp4", "1", overwrite=overwrite)
        assert (told.value.next_steps, told.value.where) == (("-o out-2.mp4",), "-o out.mp4")
    assert Path("out.json").read_bytes() == receipt and not Path("out.mp4").exists()
    Path("out.gif").unlink()
    made("out.mp4", "1", overwrite=True)
    assert json.loads(Path("out.json").read_text(encoding="utf-8"))["output"] == "out.mp4"


@pytest.mark.parametrize("output", ["../out.gif", "", "/", "a\0b", "x" * 300, "gone.mp4"])
def test_a_receipt_that_names_no_video_beside_it_is_replaced(output: str):
    """As any older one, where one says so; whatever it holds."""
    made("out.mp4", "1")
    told = json.loads(Path("out.json").read_text(encoding="utf-8"))
    Path("out.json").write_text(json.dumps({**told, "output": output or "."}), encoding="utf-8")
    made("out.mp4", "2", overwrite=True)
    assert json.loads(Path("out.json").read_text(encoding="utf-8"))["output"] == "out.mp4"


def test_a_damaged_number_of_videos_is_another_recipe():
    """Which is refused, not compared."""
    made("run", "1", num=3)
    told = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    for num in (None, "3", [3]):
        told["values"]["num"], told["key"] = num, "0"
        Path("run/run.json").write_text(json.dumps(told), encoding="utf-8")
        with pytest.raises(EvditError, match="run was made by another recipe: num: was"):
            made("run", "1", num=5)
