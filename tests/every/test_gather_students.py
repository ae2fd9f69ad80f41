"""docs/gather_students.py on scores made up here: tables whose figures can be counted by hand, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.every.test_generated import build  # noqa: F401
from tests.tiny_pipeline import copied, write_pipeline
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.evaluation.comparison import Comparison
from vdit_cli.evaluation.frechet import Frechet
from vdit_cli.evaluation.score import ClipScore, Fit, Score
from vdit_cli.evaluation.shape_reading import Reading

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = (
    "a small red ring circling over a black background",
    "a large red ring moving left over a black background",
    "a large blue cross circling over a gray background",
    "a large blue square bouncing over a navy background",
)
BEST = "control-4-ddim-trailing-g2"


@pytest.fixture
def gather(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import gather_students

    return gather_students


def score_of(right: str, seed: int, far: float = 1.0, overlap: float = 0.5) -> Score:
    """Clips of PROMPTS in order, a letter each: `y` all right, `s` a wrong shape, `m` a wrong motion."""
    each = len(right) // len(PROMPTS)
    clips = []
    for i, letter in enumerate(right):
        checks = {"shape": letter != "s", "motion": letter != "m", "all five": letter == "y"}
        fit = Fit(overlap, 0.0, 0.0)
        clips.append(ClipScore(str(i), PROMPTS[i // each], Reading(None, ()), checks, None, fit, seed=seed + i))
    return Score(tuple(clips), Frechet(len(clips), far, 0.125))


def write_score(folder: Path, name: str, mine: Score, other: tuple[str, Score] | None = None) -> None:
    """A file as `evdit score --json` makes it, pairs in order."""
    if other is None:
        write_json(folder / f"{name}.json", mine.content())
        return
    pairs = [(i, i) for i in range(len(mine.clips))]
    write_json(folder / f"{name}-against-{other[0]}.json", Comparison(mine, other[1], pairs, {}, None).content())


def write_trained(folder: Path, losses: Sequence[float]) -> None:
    """What a training leaves, of which only this is read."""
    write_json(folder / "run.json", {"started": "2026-11-29T10:00:00"})
    machine = {"accelerators": ["a GPU"], "cores": 2}
    write_json(folder / "receipt.json", {"asked": {"held_out": 25}, "machine": machine, "versions": {"torch": "2.11"}})
    lines = [json.dumps({"iteration": i, "loss": loss, "held_out_loss": 2 * loss}) for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that the script reads, `scores` and `trained` beside each other."""
    tmp_path = tmp_path_factory.mktemp("students")
    choosing, report = tmp_path / "scores" / "choosing", tmp_path / "scores" / "report"
    write_score(choosing, BEST, score_of("yyym", 0))
    write_score(choosing, "control-4-ddim-trailing-g1", score_of("yymm", 0))
    write_score(choosing, "control-4-unipc-leading-g2", score_of("mmmm", 0))
    write_score(choosing, "control-2-dpm++2m-linspace-g1.5", score_of("ymmm", 0))
    write_score(choosing, "data-2000", score_of("yyyy", 0))
    write_score(choosing, "data-200", score_of("yyys", 0, far=3.0))
    four = ("student-4", score_of("yyys", 0, far=1.5))
    write_score(choosing, *four)
    write_score(choosing, "student-4-lora-16", score_of("yyss", 0), four)
    write_score(choosing, "student-4-lora-8", score_of("ysss", 0), four)
    write_score(choosing, "student-4-in-one-run", score_of("yyyy", 0), four)
    write_score(choosing, "ablation-no-curriculum", score_of("yyyy", 0), four)
    s = 100_000
    write_score(report, "base-50", score_of("yyyyyyym", s, far=0.25, overlap=0.75))
    control = (BEST, score_of("ymymymym", s, far=4.0))
    write_score(report, "student-4", score_of("syyyyyyy", s, far=2.0, overlap=0.625), control)
    write_score(report, "student-4-lora-16", score_of("ssyyyyyy", s), control)
    write_score(report, "student-4-in-one-run", score_of("yyyyyyyy", s), control)
    two = ("control-2-dpm++2m-linspace-g1.5", score_of("mmmmmmmm", s))
    write_score(report, "student-2", score_of("sssyyymm", s), two)
    write_trained(tmp_path / "trained" / "data-200", (0.5, 0.25))
    write_trained(tmp_path / "trained" / "data-2000", (0.5, 0.375))
    return tmp_path


@pytest.fixture
def scores(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return copied(made, tmp_path / "students")


def gathered(gather: ModuleType, folder: Path) -> dict:
    """What the script gathers."""
    return gather.gather(folder / "scores", folder / "trained", PROMPTS)


def column(table: dict, key: str) -> list:
    """One column of a table."""
    return [row.get(key) for row in table["rows"]]


def test_students_stand_beside_the_best_control(gather: ModuleType, scores: Path):
    """Most steps first, a control once; shares and differences by hand, the interval around each."""
    table = gathered(gather, scores)["tables"]["students"]
    assert column(table, "name") == [
        "base, 50 steps",
        "base, 4 steps, DDIM, trailing, guidance 2",
        "student, 4 steps",
        "student, 4 steps, all in one run",
        "student, 4 steps, LoRA of rank 16",
        "base, 2 steps, DPM++ 2M, linspace, guidance 1.5",
        "student, 2 steps",
        "the world itself",
    ]
    five = [each and each.split()[0] for each in column(table, "five")]
    assert five == ["0.875", "0.500", "0.875", "1.000", "0.750", "0.000", "0.375", None]
    assert [each and each.split()[0] for each in column(table, "difference")] == [
        None, None, "+0.375", "+0.500", "+0.250", None, "+0.375", None,
    ]  # fmt: skip
    assert column(table, "frechet") == [0.25, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.125]
    assert column(table, "overlap") == [0.75, 0.5, 0.625, 0.5, 0.5, 0.5, 0.5, None]
    assert column(table, "motion") == [0.875, 0.5, 1.0, 1.0, 1.0, 0.0, 0.75, None]
    raw = table["rows"][2]["raw"]
    content = json.loads((scores / "scores/report" / f"student-4-against-{BEST}.json").read_text(encoding="utf-8"))
    assert raw["difference"] == content["against"]["differences"]["all five"] and raw["clips"] == 8
    low, high = raw["difference"]["interval"]
    assert low < 0.375 < high and table["rows"][2]["difference"] == f"+0.375 [{low:+.3f}, {high:+.3f}]"


def test_controls_stand_by_steps_and_the_best_is_marked(gather: ModuleType, scores: Path):
    """A row each, the step counts as columns, a gap where none was made."""
    table = gathered(gather, scores)["tables"]["controls"]
    assert [head for head, _, _ in table["columns"]] == ["solver", "timesteps", "guidance", "2 steps", "4 steps"]
    assert [(row["solver"], row["guidance"], row.get("at 2"), row.get("at 4")) for row in table["rows"]] == [
        ("DDIM", 1.0, None, "0.500"),
        ("DDIM", 2.0, None, "**0.750**"),
        ("DPM++ 2M", 1.5, "**0.250**", None),
        ("UniPC", 2.0, None, "0.000"),
    ]


def test_equal_controls_are_chosen_by_overlap(gather: ModuleType, scores: Path):
    """The larger one, whatever comes before or behind it."""
    for guidance, overlap in ((3, 0.6), (4, 0.4)):
        name = f"control-4-unipc-trailing-g{guidance}"
        write_score(scores / "scores/choosing", name, score_of("yyym", 0, overlap=overlap))
    with pytest.raises(EvditError, match="the best at 4 steps is control-4-unipc-trailing-g3"):
        gathered(gather, scores)


def test_data_amounts_have_their_losses(gather: ModuleType, scores: Path):
    """Those of the last line, fewest clips first."""
    table = gathered(gather, scores)["tables"]["data"]
    told = [[row[key] for key in ("clips", "held", "loss", "held_out_loss", "frechet")] for row in table["rows"]]
    assert told == [[200, 25, 0.25, 0.5, 3.0], [2000, 25, 0.375, 0.75, 1.0]]
    assert [each.split()[0] for each in column(table, "five")] == ["0.750", "1.000"]


def test_ablations_and_ranks_stand_below_what_they_were_compared_with(gather: ModuleType, scores: Path):
    tables = gathered(gather, scores)["tables"]
    assert column(tables["ablations"], "name") == ["student, 4 steps", "no curriculum"]
    assert [each and each.split()[0] for each in column(tables["ablations"], "difference")] == [None, "+0.250"]
    names = column(tables["lora"], "name")
    assert names == ["student, 4 steps", *(f"student, 4 steps, LoRA of rank {rank}" for rank in (8, 16))]
    assert [each and each.split()[0] for each in column(tables["lora"], "difference")] == [None, "-0.500", "-0.250"]
    assert column(tables["lora"], "frechet") == [1.5, 1.0, 1.0]


def test_what_is_wrong_is_told_by_kind(gather: ModuleType, scores: Path):
    """Of 8 clips 4 are rings, 2 of these small; 4 are circling: shares counted from the letters above."""
    table = gathered(gather, scores)["tables"]["wrong"]
    assert [key for _, key, _ in table["columns"]] == [
        "kind", "clips", "base-50", "student-4", "student-2",
    ]  # fmt: skip
    rows = {row["kind"]: (row["clips"], row["base-50"], row["student-4"], row["student-2"]) for row in table["rows"]}
    assert rows["shape: ring"] == (4, 0.0, 0.25, 0.75)
    assert rows["shape: small ring"] == (2, 0.0, 0.5, 1.0)
    assert rows["shape: circle"] == (0, None, None, None)
    assert rows["motion: circling"] == (4, 0.0, 0.0, 0.0)
    assert rows["motion: bouncing"] == (2, 0.5, 0.0, 1.0)


def test_the_tables_fit_the_pages(gather: ModuleType, scores: Path, build: ModuleType):  # noqa: F811
    """docs/build.py finds every column in some row, and formats it."""
    content = gathered(gather, scores)
    assert content["machine"] == "a GPU, torch 2.11, 2026-11-29" and "gather_students" in content["command"]
    for name, table in content["tables"].items():
        cells = [[build.formatted(row, key, how) for row in table["rows"]] for _, key, how in table["columns"]]
        assert all(set(each) != {"-"} for each in cells), name


def test_what_is_not_there_yet_is_left_out(gather: ModuleType, scores: Path, capsys: pytest.CaptureFixture[str]):
    """And said, with the controls that are best so far."""
    for path in (scores / "scores" / "report").iterdir():
        path.unlink()
    assert gathered(gather, scores)["tables"].keys() == {"controls", "data", "lora", "ablations"}
    err = capsys.readouterr().err
    assert "nothing yet for the table students\n" in err and f"best at 4 steps: {BEST}\n" in err


@pytest.mark.parametrize("what", ["seed", "prompt", "clip", "pair", "control"])
def test_scores_that_do_not_fit_are_refused(gather: ModuleType, scores: Path, what: str):
    """Other seeds or prompts, a video too few, a video without a partner, another control than the best."""
    path = scores / "scores" / "report" / f"student-4-against-{BEST}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    videos = content["against"]["videos"]
    if what == "seed":
        videos[3]["seed"] = 3
    elif what == "prompt":
        videos[0]["prompt"], videos[7]["prompt"] = videos[7]["prompt"], videos[0]["prompt"]
    elif what == "clip":
        videos.pop()
    elif what == "pair":
        content["against"]["pairs"].pop()
    else:
        path.unlink()
        path = path.with_name("student-4-against-control-4-unipc-leading-g2.json")
    write_json(path, content)
    messages = {
        "pair": "have no partner",
        "control": f"student-4 was compared with .*: the best .* is {re.escape(BEST)}",
    }
    with pytest.raises(EvditError, match=messages.get(what, "are not those of")):
        gathered(gather, scores)


def test_main_reads_and_writes(gather: ModuleType, scores: Path, monkeypatch: pytest.MonkeyPatch):
    """Both folders of the command line, and the prompts that the videos are held against."""
    (scores / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    monkeypatch.setattr(gather, "PROMPTS", scores / "prompts.txt")
    monkeypatch.setattr(gather, "DATA", scores / "students.json")
    gather.main([str(scores / "scores"), str(scores / "trained")])
    assert json.loads((scores / "students.json").read_text(encoding="utf-8")) == gathered(gather, scores)
    assert len(gather.read_prompts(ROOT / "recipes" / "prompts" / "shapes-held-out.txt")) == 512


def test_generate_and_score_make_what_is_gathered(gather: ModuleType, tmp_path: Path, evdit):
    """Lines n times each, a video's seed one more than the last one's, pairs of equal prompt and seed; no model wanted.

    Two lines are alike, as in the held-out prompts: their videos are not mixed up.
    """
    model = write_pipeline(tmp_path / "model")
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    ask = ["generate", "--model", str(model), "--device", "cpu", "--prompts-file", str(tmp_path / "prompts.txt")]
    for folder, steps in (("a", "1"), ("b", "2")):
        code, _, err = evdit(*ask, "--num", "2", "--seed", "100000", "--steps", steps, "--batch", "3", "-o", folder)
        assert code == 0, err
    code, out, err = evdit("score", "a", "--against", "b", "--json")
    assert code == 0, err
    scored = gather.Scored("a", "b", json.loads(out))
    gather.check(scored, Path("a.json"), 100_000, prompts)
    told = [(video["prompt"], video["seed"]) for video in scored.content["videos"]]
    assert told == [(prompts[i // 2], 100_000 + i) for i in range(6)]
    assert all(mine == other for mine, other in scored.content["against"]["pairs"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the script takes two folders, SCORES and TRAINED: 0 words"),
        (["."], "the script takes two folders, SCORES and TRAINED: 1 words"),
        (["no", "."], "no is no folder that is there"),
        ([".", "no"], "no is no folder that is there"),
        (["", "."], "an empty name is no folder"),
        ([".", "."], ". holds no score for any table"),
    ],
)
def test_odd_words_leave_the_figures_alone(gather: ModuleType, tmp_path: Path, monkeypatch, capsys, words, told):
    """Exit 2, told as `evdit` tells it, and nothing is written."""
    monkeypatch.setattr(gather, "DATA", tmp_path / "students.json")
    monkeypatch.setattr("sys.argv", ["gather_students.py", *words])
    assert gather.run(gather.main) == USAGE and f"error: {told}" in capsys.readouterr().err
    assert not (tmp_path / "students.json").exists()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (f"scores/choosing/{BEST}.json", b"{", "is not JSON"),
        (f"scores/choosing/{BEST}.json", b"[]", "it is a JSON list"),
        (
            f"scores/choosing/{BEST}.json",
            b'{"videos": [1]}',
            "does not hold what is read of it: there is no 'estimates'",
        ),
        ("trained/data-200/metrics.jsonl", b"", "does not hold what is read of it: list index out of range"),
        ("trained/data-200/receipt.json", b"{}", "does not hold what is read of it: there is no 'asked'"),
        ("trained/data-200/receipt.json", b"\xff", "it is not UTF-8 text"),
        ("trained/data-200/metrics.jsonl", None, "can't be read: No such file or directory"),
    ],
)
def test_damaged_files_are_told(gather: ModuleType, scores: Path, file: str, content: bytes | None, told: str):
    """By name."""
    (scores / file).unlink()
    if content is not None:
        (scores / file).write_bytes(content)
    with pytest.raises(EvditError, match=told) as caught:
        gathered(gather, scores)
    assert caught.value.where == str(scores / file)
