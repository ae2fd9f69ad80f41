"""Runs: created, resumed, refused, found; locks that a dead owner can't keep."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vdit_cli.artifacts.atomic import write_json, write_text
from vdit_cli.artifacts.lock import FolderLock
from vdit_cli.artifacts.receipt import Ran, Receipt
from vdit_cli.artifacts.run_dir import Request, RunDir, holds_files
from vdit_cli.errors import EvditError, Interrupted


@pytest.fixture
def request_of(tmp_path: Path):
    """A request whose one input is a file of the given text."""

    def make(r: float = 0.1, text: str = "plan") -> Request:
        (tmp_path / "plan.json").write_text(text, encoding="utf-8")
        return Request(
            "search-masks", "owner/name", {"search_masks.r": r}, {"plan": tmp_path / "plan.json"}, {}, ("abc",)
        )

    return make


def test_a_run_from_start_to_end(tmp_path: Path, request_of):
    """State, outputs by role, lineage; the inputs' folders are not told."""
    with RunDir.start(tmp_path / "run", request_of()) as run:
        assert run.state() == "running"
        write_text(run.path / "plan.json", "{}")
        run.add_output("plan", "plan.json")
    again = RunDir.open(tmp_path / "run")
    assert again.is_done() and again.state() == "done"
    assert again.find("plan") == tmp_path / "run" / "plan.json" and again.lineage() == ("abc",)
    text = (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
    assert json.loads(text)["schema"] == "evdit.run/1" and str(tmp_path) not in text
    assert RunDir.resume(tmp_path / "run", request_of()).is_done()


@pytest.mark.parametrize(
    ("error", "state"),
    [(Interrupted("x"), "interrupted"), (KeyboardInterrupt(), "interrupted"), (OSError("y"), "failed")],
)
def test_how_it_ended_is_kept(tmp_path: Path, request_of, error: BaseException, state: str):
    """And the same command goes on."""
    with pytest.raises(type(error)), RunDir.start(tmp_path / "run", request_of()):
        raise error
    run = RunDir.start(tmp_path / "run", request_of())
    assert run.state() == state and not run.is_done()
    with run:
        assert "failure" not in run.manifest
    assert RunDir.open(tmp_path / "run").is_done()


def test_a_list_and_a_tuple_of_the_same_are_no_change(tmp_path: Path):
    """run.json holds lists where options hold tuples; only what differs is named."""
    asked = Request("generate", "shapes", {"lora": ("a", ("b", 1.0)), "num": 1})
    with RunDir.create(tmp_path / "run", asked) as run:
        write_text(run.path / "half.txt", "x")
    assert RunDir.resume(tmp_path / "run", asked).is_done()
    with pytest.raises(EvditError, match=r"run was made by another recipe: num: was 1, is 2$"):
        RunDir.resume(tmp_path / "run", replace(asked, values={**asked.values, "num": 2}))


def test_another_recipe_or_input_is_refused(tmp_path: Path, request_of):
    """The keys that differ are named; `allow_changed` insists."""
    with pytest.raises(Interrupted), RunDir.create(tmp_path / "run", request_of()) as run:
        write_text(run.path / "half.txt", "x")
        raise Interrupted("stopped")
    for other, told in [(request_of(0.2), "search_masks.r: was 0.1, is 0.2"), (request_of(0.1, "b"), "input plan")]:
        with pytest.raises(EvditError) as error:
            RunDir.start(tmp_path / "run", other)
        assert told in error.value.what and error.value.exit_code == 2
    assert RunDir.resume(tmp_path / "run", request_of(0.2, "b"), allow_changed=True).manifest["values"] == {
        "search_masks.r": 0.2
    }


def test_places_without_a_name(tmp_path: Path, request_of):
    """-2 where another recipe has the name, the same folder for the same recipe; none is made before it is entered."""
    first = RunDir.start(None, request_of())
    assert not first.path.exists()
    with first:
        write_text(first.path / "a.txt", "x")
    assert first.path.parent == Path("runs") and first.path.name.endswith("-search-masks-name")
    with RunDir.start(None, request_of(0.2)) as second:
        write_text(second.path / "a.txt", "x")
    assert second.path.name == first.path.name + "-2"
    assert RunDir.start(None, request_of()).path == first.path
    assert RunDir.start(None, request_of(0.2)).path == second.path


def test_folders_that_are_no_runs(tmp_path: Path, request_of):
    """A folder with other files is never taken over; damaged manifests are told as such."""
    write_text(tmp_path / "home" / "letter.txt", "x")
    with pytest.raises(EvditError, match="not an empty folder"):
        RunDir.start(tmp_path / "home", request_of())
    with pytest.raises(EvditError, match="no run"):
        RunDir.open(tmp_path / "home")
    for content, why in [({"schema": "evdit.run/9"}, "evdit.run/9"), ({"schema": "evdit.run/1"}, "command is missing")]:
        write_json(tmp_path / "home" / "run.json", content)
        with pytest.raises(EvditError, match=why):
            RunDir.open(tmp_path / "home")


def test_a_large_folder_of_others_is_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """That it holds a file is known at the first one."""
    for number in range(20):
        write_text(tmp_path / str(number) / "letter.txt", "x")
    seen: list[Path] = []
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: seen.append(path) or is_dir(path))
    assert holds_files(tmp_path) and sum(path.name == "letter.txt" for path in seen) == 1


def test_outputs_never_leave_the_folder(tmp_path: Path, request_of):
    """Neither by .., nor from the root, nor through a link; what was not made is said."""
    with pytest.raises(Interrupted), RunDir.create(tmp_path / "run", request_of()) as run:
        raise Interrupted("stopped")
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    for relative in ("../plan.json", str(tmp_path / "plan.json"), "link/plan.json"):
        run.manifest["outputs"]["plan"] = {"path": relative, "sha256": ""}
        with pytest.raises(EvditError, match="leaves"):
            run.find("plan")
    with pytest.raises(EvditError, match="made no plans: it made plan, and is interrupted") as told:
        run.find("plans")
    assert "go on" in told.value.text()
    run.manifest["state"] = "done"
    with pytest.raises(EvditError, match="made no plans: it made plan, and is done") as told:
        run.find("plans")
    assert told.value.next_steps == (f"evdit status {tmp_path / 'run'}  (what was made, and where)",)


def test_one_writer_at_a_time(tmp_path: Path, request_of):
    """Another process is refused and told who; when the owner dies, the lock is free and the run interrupted."""
    with RunDir.create(tmp_path / "run", request_of()) as run:
        pass
    program = (
        "import sys; from vdit_cli.artifacts.run_dir import RunDir\n"
        f"run = RunDir.open({str(run.path)!r}).__enter__(); print('in', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline().strip() == b"in"
    assert RunDir.open(run.path).state() == "running"
    with pytest.raises(EvditError, match=f"in use by process {owner.pid}"):
        run.__enter__()
    owner.kill()
    owner.communicate()
    assert RunDir.open(run.path).state() == "interrupted"
    with run:
        assert FolderLock(run.path).is_held()
    assert not FolderLock(run.path).is_held()


def test_the_card_says_what_run_json_says(tmp_path: Path, request_of):
    """Command, state, values with their origins, inputs and outputs; a README.md of a person's own stays."""
    request = replace(
        request_of(), origins={"search_masks.r": "--r 0.1"}, values={"search_masks.r": 0.1, "note": "a|b"}
    )
    with pytest.raises(OSError), RunDir.start(tmp_path / "run", request) as run:
        raise OSError("the moon was full")
    text = (run.path / "README.md").read_text(encoding="utf-8")
    assert "# search-masks, owner/name" in text and "**failed**. the moon was full" in text
    with RunDir.start(run.path, request) as run:
        write_text(run.path / "plan.json", "{}")
        run.add_output("plan", "plan.json")
    text = (run.path / "README.md").read_text(encoding="utf-8")
    assert "**done**" in text and "moon" not in text
    assert "| `search_masks.r` | `0.1` | --r 0.1 |" in text and '`"a\\|b"`' in text
    assert "| plan | [plan.json](<plan.json>) |" in text and run.manifest["ended"] >= run.manifest["started"]
    write_text(run.path / "README.md", "mine")
    with run:
        pass
    assert (run.path / "README.md").read_text(encoding="utf-8") == "mine"


def test_what_a_killed_owner_left_is_removed_by_the_next(tmp_path: Path, request_of):
    """Under the lock, and only what it noted; and the notes go with the run's end."""
    program = (
        "import os, signal\n"
        "from vdit_cli.artifacts.atomic import replacing\n"
        "from vdit_cli.artifacts.run_dir import RunDir\n"
        f"with RunDir.open({str(tmp_path / 'run')!r}), replacing({str(tmp_path / 'run' / 'a.mp4')!r}) as video:\n"
        "    video.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with RunDir.start(tmp_path / "run", request_of()) as run:
        write_text(run.path / ".a.0123abcd.mp4", "mine")
    subprocess.run([sys.executable, "-c", program], check=False)
    assert len(list(run.path.glob(".evdit-*.mp4"))) == 1 and run.state() == "done"
    with run:
        there = {path.name for path in run.path.iterdir()}
        assert there == {".a.0123abcd.mp4", ".lock", "run.json", "README.md", ".unfinished"}
    assert {path.name for path in run.path.iterdir()} == there - {".unfinished"}


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", "run.json", "README.md")], ids=len)
def test_a_first_try_that_made_nothing_is_no_run_yet(tmp_path: Path, request_of, left: tuple[str, ...]):
    """Killed while its first run.json was written, or failed early: another request takes the folder over."""
    with pytest.raises(OSError), RunDir.start(tmp_path / "run", request_of()):
        raise OSError("no such model")
    for path in (tmp_path / "run").iterdir():
        if path.name not in left:
            path.unlink()
    with RunDir.start(tmp_path / "run", request_of(0.2)) as run:
        assert run.manifest["values"] == {"search_masks.r": 0.2}
    write_text(tmp_path / "run" / "metrics.jsonl", "{}")
    with pytest.raises(EvditError, match="another recipe: search_masks.r: was 0.2, is 0.1"):
        RunDir.start(tmp_path / "run", request_of())


def test_killed_while_the_first_run_json_is_written(tmp_path: Path, request_of):
    """The half-written one was noted: neither it nor the lock keeps the next command out."""
    program = (
        "import json, os, signal\n"
        "from vdit_cli.artifacts import atomic, run_dir\n"
        "atomic.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"run_dir.RunDir.start({str(tmp_path / 'run')!r}, run_dir.Request('generate', 'm', {{}})).__enter__()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    assert {path.name[:7] for path in (tmp_path / "run").iterdir()} == {".lock", ".unfini", ".evdit-"}
    with RunDir.start(tmp_path / "run", request_of()) as run:
        pass
    assert {path.name for path in run.path.iterdir()} == {".lock", "run.json", "README.md"}


def test_a_finished_run_is_not_taken_for_one_of_other_values(tmp_path: Path, request_of):
    """`--allow-changed` goes on with what is not finished; a run of another command is never touched."""
    with RunDir.start(tmp_path / "run", request_of()) as run:
        write_text(run.path / "plan.json", "{}")
        run.add_output("plan", "plan.json")
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(EvditError, match="is finished, with other values: search_masks.r: was 0.1, is 0.2") as told:
        RunDir.start(run.path, request_of(0.2), allow_changed=True)
    assert told.value.exit_code == 2 and told.value.next_steps == ("a new folder with -o",)
    for start in (RunDir.start, RunDir.anew):
        with pytest.raises(EvditError, match="is a run of evdit search-masks: evdit analyze leaves it alone"):
            start(run.path, replace(request_of(), command="analyze"))
    assert (run.path / "run.json").read_bytes() == before


def test_a_finished_run_stays_itself_until_a_longer_one_is_done(tmp_path: Path, request_of):
    """Found by its own request, with or without a path; what was changed is kept in words on the card."""
    shorter, longer = (replace(request_of(r), length="search_masks.r") for r in (0.1, 0.2))
    with RunDir.start(None, shorter) as run:
        write_text(run.path / "plan.json", "{}")
        run.add_output("plan", "plan.json")
    with pytest.raises(Interrupted), RunDir.start(run.path, longer, allow_changed=True) as begun:
        raise Interrupted("stopped")
    for path in (run.path, None):
        again = RunDir.start(path, shorter)
        assert again.is_done() and again.path == run.path and again.since.manifest["key"] == begun.manifest["key"]
    assert "- `search_masks.r` from 0.1 to 0.2\n" in (run.path / "README.md").read_text(encoding="utf-8")
    with RunDir.start(run.path, longer):
        pass
    with pytest.raises(EvditError, match="search_masks.r: was 0.2, is 0.1"):
        RunDir.start(run.path, shorter)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), Path.unlink], ids=["empty", "gone"])
@pytest.mark.parametrize("name", ["a.mp4", "a.json", "student/w.safetensors"])
def test_what_is_damaged_is_not_done(tmp_path: Path, request_of, damage, name: str):
    """Whichever file of an output it is; a file that somebody added beside does not count."""
    with RunDir.start(tmp_path / "run", request_of()) as run:
        for each in ("a.mp4", "a.json", "student/w.safetensors"):
            write_text(run.path / each, "x")
        run.add_output("video a", "a.mp4", "a.json")
        run.add_output("student", "student")
    write_text(run.path / "student" / "notes.txt", "mine")
    assert RunDir.open(run.path).is_done()
    damage(run.path / name)
    again = RunDir.start(run.path, request_of())
    assert not again.is_done()
    assert again.is_whole("student") != again.is_whole("video a") and not again.is_whole("plan")


def test_a_link_to_a_folder_that_is_not_there_yet(tmp_path: Path, request_of):
    """The run is made where it leads."""
    (tmp_path / "run").symlink_to(tmp_path / "far")
    with RunDir.start(tmp_path / "run", request_of()):
        pass
    assert (tmp_path / "run").is_symlink() and RunDir.open(tmp_path / "far").is_done()


def test_a_run_in_place_of_another_one(tmp_path: Path, request_of):
    """The old one stays until its successor is there, output by output; what has none goes when the new one is done."""
    with RunDir.start(tmp_path / "run", request_of()) as old:
        for name in ("a", "b", "c", "changed"):
            write_text(old.path / f"{name}.txt", "old")
            old.add_output(name, f"{name}.txt")
    write_text(old.path / "changed.txt", "mine now")
    before = (old.path / "run.json").read_bytes()
    with pytest.raises(OSError), RunDir.anew(old.path, request_of(0.2)):
        raise OSError("damaged weights")
    assert (old.path / "run.json").read_bytes() == before and RunDir.open(old.path).find("a").exists()
    with pytest.raises(Interrupted), RunDir.anew(old.path, request_of(0.2)) as new:
        write_text(new.path / "a.txt", "new")
        new.add_output("a", "a.txt")
        raise Interrupted("stopped")
    assert (old.path / "b.txt").read_text(encoding="utf-8") == "old"
    with RunDir.anew(old.path, request_of(0.2)) as new:
        assert new.is_whole("a") and not new.is_whole("b")
        write_text(new.path / "b.txt", "new")
        new.add_output("b", "b.txt")
    texts = {path.name: path.read_text(encoding="utf-8") for path in old.path.glob("*.txt")}
    assert texts == {"a.txt": "new", "b.txt": "new", "changed.txt": "mine now"}
    assert RunDir.open(old.path).is_done() and "replaces" not in RunDir.open(old.path).manifest


def test_receipts_join(tmp_path: Path):
    """What is done once counts once; the rest adds up; the larger peak."""
    first = Receipt({"seed": 0}, Ran("shapes"), {"load": 2.0, "denoise": 1.0}, peak_memory_bytes=7)
    both = first.joined(replace(first, seconds={"load": 3.0, "denoise": 4.0}, peak_memory_bytes=5))
    assert (both.seconds, both.peak_memory_bytes) == ({"load": 3.0, "denoise": 5.0}, 7)


def test_a_receipt_comes_back(tmp_path: Path):
    """Equal after writing and reading; another file is refused."""
    layers = ({"mask": "1:7", "kernel": "sdpa", "refused": {}},)
    ran = replace(Ran("shapes"), layers=layers, timesteps=(999.0, 500.0), kept_share=0.25, skipped_share=0.75)
    receipt = Receipt({"prompt": "a"}, ran, {"load": 1.5}, peak_memory_bytes=3)
    receipt.write(tmp_path / "out.json")
    assert Receipt.read(tmp_path / "out.json") == receipt
    assert receipt.versions["evdit"] and receipt.machine.cores
    write_json(tmp_path / "other.json", {"schema": "evdit.receipt/1", "ran": {}})
    with pytest.raises(EvditError, match="asked is missing: a receipt needs it"):
        Receipt.read(tmp_path / "other.json")


def test_other_values_without_a_folder_want_to_know_which_run(
    request_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else a new one would begin from nothing, without a word; the first one of all does."""
    monkeypatch.chdir(tmp_path)
    run = RunDir.start(None, request_of(), allow_changed=True)
    with run:
        run.path.joinpath("made").write_text("", encoding="utf-8")
    assert RunDir.start(None, request_of(), allow_changed=True).path == run.path
    with pytest.raises(EvditError, match="which one") as caught:
        RunDir.start(None, request_of(0.2), allow_changed=True)
    assert caught.value.next_steps == (f"-o {run.path}", "no --allow-changed")
    assert RunDir.start(None, request_of(0.2)).path != run.path
