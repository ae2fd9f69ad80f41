"""Gather the scores of few-step students into docs/data/students.json, from which docs/results.md has its tables.

A file is `NAME.json`, or `NAME-against-OTHER.json` where `evdit score --against` compared it; it lies in `choosing/`
(S = 0, a video a prompt) or `report/` (S = 100000, four). Names are those of the folders of videos:

    base-50                            the base with its defaults, in both folders
    control-STEPS-SOLVER-SPACING-gW    the base in few steps; the best at each step count stands in report/ too
    student-STEPS                      a student; in report/ against the best control of its steps
    student-STEPS-in-one-run           the same from `--steps 20,8,4,2`, each from the one before
    student-STEPS-lora-RANK            the same by LoRA; in choosing/ against student-STEPS
    data-CLIPS                         the student of 4 steps from so many clips, in choosing/
    ablation-WHAT                      the student of 4 steps, but for one thing, in choosing/ against data-20000

docs/make_students.py makes all of it, the students of its settings included:

python docs/make_students.py runs
python docs/gather_students.py runs/scores runs/trained

The last one says which control is the best at each step count, and what does not fit; a table whose files are not there
yet is left out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from script import fitting, folder_at, read_json, run
from stage_jobs import CHOOSING, PROMPTS, REPORT, ROOT, SEEDS

from vdit_cli.data.shapes_prompts import MOTIONS, SHAPES, ObjectWords, parse_prompt
from vdit_cli.errors import EvditError
from vdit_cli.reader import read_text
from vdit_cli.sampling.prompts import read_prompts

DATA = ROOT / "docs" / "data" / "students.json"
CONTROL = re.compile(r"control-(\d+)-(.+)-([^-]+)-g([\d.]+)")
MODEL = re.compile(r"(base|student)-(\d+)(?:-lora-(\d+)|-(in-one-run))?")
SOLVERS = {"ddim": "DDIM", "dpm++2m": "DPM++ 2M", "unipc": "UniPC"}
FIVE = "all five"
Table = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """What `evdit score --json` said of the videos `name`, and of the videos `other` that they were compared with."""

    name: str
    other: str | None
    content: Mapping[str, Any]


Scores = Mapping[str, Scored]


def read_scores(folder: Path, seed: int, prompts: Sequence[str]) -> dict[str, Scored]:
    """The scores in a folder by name, numbers in order, each checked. Raises EvditError for files that do not fit."""
    found: dict[str, Scored] = {}
    for path in sorted(
        folder.glob("*.json"), key=lambda path: re.sub(r"\d+", lambda found: found[0].zfill(9), path.stem)
    ):
        name, _, other = path.stem.partition("-against-")
        if name in found:
            raise EvditError(f"{name} was scored twice", where=str(path), next_steps=["remove one of its files"])
        found[name] = Scored(name, other or None, read_json(path))
        with fitting(path):
            check(found[name], path, seed, prompts)
    return found


def check(scored: Scored, path: Path, seed: int, prompts: Sequence[str]) -> None:
    """Raise EvditError where videos are not those of the prompts and seeds, or not all of them have a partner.

    What the tables read is read once: a KeyError or TypeError where it is not there.
    """
    sides = [scored.content, *([scored.content["against"]] if scored.other else [])]
    for side in sides:
        row(scored.name, side, sides[-1] if scored.other else None)
        [video["right"][kind] for video in side["videos"] for kind in ("shape", "motion")]
        side["frechet"] and side["frechet"]["floor"]
        made = {video["seed"]: video["prompt"] for video in side["videos"]}
        each = max(1, side["clips"] // len(prompts))
        if side["clips"] != len(made) or made != {
            seed + i: prompt for i, prompt in enumerate(prompt for prompt in prompts for _ in range(each))
        }:
            raise EvditError(
                f"the videos of {scored.name} are not those of {PROMPTS.name} from seed {seed} on", where=str(path)
            )
    if scored.other and len(scored.content["against"]["pairs"]) != scored.content["clips"]:
        raise EvditError(f"some videos of {scored.name} have no partner", where=str(path))


def best_controls(choosing: Scores) -> dict[int, str]:
    """The control with the highest share of `all five` at each step count, the larger IoU where they are equal."""
    best: dict[int, str] = {}
    for name in choosing:
        if found := CONTROL.fullmatch(name):
            steps = int(found[1])
            best[steps] = max(name, best.get(steps, name), key=lambda each: rank(choosing[each].content))
    return dict(sorted(best.items()))


def rank(content: Mapping[str, Any]) -> tuple[float, float]:
    """What a control is chosen by."""
    return content["estimates"][FIVE]["value"], content["measures"]["overlap"] or 0.0


def label(name: str) -> str:
    """A name of a file in words."""
    if found := CONTROL.fullmatch(name):
        guidance = "no guidance" if float(found[4]) == 1 else f"guidance {found[4]}"
        return f"base, {found[1]} steps, {SOLVERS.get(found[2], found[2])}, {found[3]}, {guidance}"
    if found := MODEL.fullmatch(name):
        how = f", LoRA of rank {found[3]}" if found[3] else ", all in one run" if found[4] else ""
        return f"{found[1]}, {found[2]} steps{how}"
    return name.removeprefix("ablation-").replace("-", " ") if name.startswith("ablation-") else name.replace("-", " ")


def with_interval(estimate: Mapping[str, Any] | None, sign: str = "") -> str | None:
    """An estimate as "0.945 [0.925, 0.963]"."""
    if estimate is None:
        return None
    ends = estimate["interval"]
    return f"{estimate['value']:{sign}.3f}" + (f" [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]" if ends else "")


def row(name: str, content: Mapping[str, Any], against: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The figures of one set of videos, and what it is more than another one where it was compared."""
    difference = against["differences"].get(FIVE) if against else None
    return {
        "name": label(name),
        "five": with_interval(content["estimates"][FIVE]),
        "difference": with_interval(difference, "+"),
        "frechet": content["frechet"] and content["frechet"]["distance"],
        "overlap": content["measures"]["overlap"],
        "motion": content["accuracy"]["motion"]["share"],
        "raw": {FIVE: content["estimates"][FIVE], "difference": difference, "clips": content["clips"]},
    }


COLUMNS = [
    ["all five, 95 %", "five", ""],
    ["more than {}, 95 %", "difference", ""],
    ["Frechet distance", "frechet", ".3g"],
    ["mean IoU", "overlap", ".3f"],
    ["motion", "motion", ".3f"],
]


def columns(title: str, other: str) -> list[list[str]]:
    """COLUMNS behind a first one, the differences being to `other`."""
    return [[title, "name", ""], *([head.format(other), key, how] for head, key, how in COLUMNS)]


def students(report: Scores, best: Mapping[int, str]) -> Table:
    """Each student below the best control of its steps, most steps first, the base above and the world below.

    Raises EvditError for a student that was compared with another control.
    """
    rows: list[dict[str, Any]] = []
    told: set[str] = set()
    for steps, name in sorted((-int(found[2]), name) for name in report if (found := MODEL.fullmatch(name))):
        scored, wanted = report[name], best.get(-steps)
        if scored.other != wanted:
            raise EvditError(
                f"{name} was compared with {scored.other}: the best at {-steps} steps is {wanted}",
                where=f"{REPORT}/",
                next_steps=[f"evdit score runs/{REPORT}/{name} --against runs/{REPORT}/{wanted} --json"],
            )
        against = scored.content["against"] if wanted else None
        if wanted and wanted not in told:
            rows.append(row(wanted, against))
            told.add(wanted)
        rows.append(row(name, scored.content, against))
    floors = [scored.content["frechet"]["floor"] for scored in report.values() if scored.content["frechet"]]
    if rows and floors:
        rows.append({"name": "the world itself", "frechet": floors[0]})
    return {"columns": columns("", "the control"), "rows": rows}


def controls(choosing: Scores, best: Mapping[int, str]) -> Table:
    """All controls: a row a solver, spacing and guidance, the share of `all five` by steps; the best ones bold."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, scored in choosing.items():
        if found := CONTROL.fullmatch(name):
            solver = SOLVERS.get(found[2], found[2])
            line = rows.setdefault(
                (solver, found[3], found[4]), {"solver": solver, "spacing": found[3], "guidance": float(found[4])}
            )
            share = f"{scored.content['estimates'][FIVE]['value']:.3f}"
            line[f"at {found[1]}"] = f"**{share}**" if name in best.values() else share
    first = [["solver", "solver", ""], ["timesteps", "spacing", ""], ["guidance", "guidance", "g"]]
    by_steps = [[f"{steps} steps", f"at {steps}", ""] for steps in best]
    ordered = sorted(rows.values(), key=lambda each: (each["solver"], each["spacing"], each["guidance"]))
    return {"columns": first + by_steps, "rows": ordered}


def data_amounts(choosing: Scores, trained: Path) -> Table:
    """The student of 4 steps by the number of clips, with the losses at the end of its training."""
    rows = []
    for clips in sorted(int(name.removeprefix("data-")) for name in choosing if name.startswith("data-")):
        name = f"data-{clips}"
        metrics, place = trained / name / "metrics.jsonl", trained / name / "receipt.json"
        lines, receipt = read_text(metrics, "metrics").splitlines(), read_json(place)
        with fitting(metrics):
            losses = {key: json.loads(lines[-1]).get(key) for key in ("loss", "held_out_loss")}
        with fitting(place):
            held = receipt["asked"]["held_out"]
        rows.append({**row(name, choosing[name].content), "clips": clips, "held": held, **losses})
    first = [["clips", "clips", "d"], ["held out beside", "held", "d"]]
    losses = [["loss", "loss", ".4f"], ["held-out loss", "held_out_loss", ".4f"]]
    return {"columns": [*first, *losses, *(each for each in COLUMNS if each[1] != "difference")], "rows": rows}


def beside(choosing: Scores, is_taken: Callable[[str], object], title: str) -> Table:
    """Runs beside those that they were compared with, each of these once above its own."""
    rows, others = [], set()
    for name, scored in choosing.items():
        if is_taken(name) and scored.other:
            against = scored.content["against"]
            rows += [] if scored.other in others else [row(scored.other, against)]
            rows.append(row(name, scored.content, against))
            others.add(scored.other)
    return {"columns": columns(title, "the first"), "rows": rows}


def wrong(report: Scores) -> Table:
    """The share of wrong shapes by shape, and of wrong motions by motion, of the first object: base and students."""
    taken = [name for name in report if (found := MODEL.fullmatch(name)) and not (found[3] or found[4])]
    taken.sort(key=lambda name: -int(name.split("-")[1]))
    kinds: list[tuple[str, str, Callable[[ObjectWords], bool]]] = [
        (f"shape: {shape}", "shape", lambda asked, shape=shape: asked.shape == shape) for shape in SHAPES
    ]
    kinds.append(("shape: small ring", "shape", lambda asked: (asked.size, asked.shape) == ("small", "ring")))
    kinds += [
        (f"motion: {motion}", "motion", lambda asked, motion=motion: asked.motion == motion) for motion in MOTIONS
    ]
    rows = []
    for kind, check_name, is_kind in kinds:
        line: dict[str, Any] = {"kind": kind}
        for name in taken:
            line["clips"], line[name] = share_wrong(report[name].content["videos"], check_name, is_kind)
        rows.append(line)
    first = [["wrong", "kind", ""], ["clips", "clips", "d"]]
    return {"columns": [*first, *([label(name), name, ".3f"] for name in taken)], "rows": rows if taken else []}


def share_wrong(
    videos: Iterable[Mapping[str, Any]], check_name: str, is_kind: Callable[[ObjectWords], bool]
) -> tuple[int, float | None]:
    """How many videos ask for a first object of a kind, and the share of them that are wrong in a check."""
    right = [video["right"][check_name] for video in videos if is_kind(parse_prompt(video["prompt"]).objects[0])]
    return len(right), right.count(False) / len(right) if right else None


def machine_of(trained: Path) -> str:
    """The machines, versions of torch and days of the trainings, each once."""
    found = []
    for path in sorted(trained.glob("*/receipt.json")):
        receipt, run = read_json(path), read_json(path.with_name("run.json"))
        with fitting(path):
            machine = receipt["machine"]
            name = ", ".join(machine["accelerators"]) or f"{machine['cores']} CPU cores"
            found.append(f"{name}, torch {receipt['versions']['torch']}, {run['started'][:10]}")
    return "; ".join(dict.fromkeys(found))


def gather(scores: Path, trained: Path, prompts: Sequence[str]) -> dict[str, Any]:
    """The file's content from a folder of scores, one of trainings, and the prompts of all videos."""
    choosing, report = (read_scores(scores / name, SEEDS[name], prompts) for name in (CHOOSING, REPORT))
    best = best_controls(choosing)
    sys.stderr.write("".join(f"best at {steps} steps: {name}\n" for steps, name in best.items()))
    tables = {
        "students": students(report, best),
        "controls": controls(choosing, best),
        "data": data_amounts(choosing, trained),
        "lora": beside(choosing, lambda name: (found := MODEL.fullmatch(name)) and found[3], ""),
        "ablations": beside(choosing, lambda name: name.startswith("ablation-"), ""),
        "wrong": wrong(report),
    }
    for name, table in tables.items():
        if not table["rows"]:
            sys.stderr.write(f"nothing yet for the table {name}\n")
    return {
        "machine": machine_of(trained),
        "command": "the lines at the top of docs/gather_students.py",
        "tables": {name: table for name, table in tables.items() if table["rows"]},
    }


def main(arguments: Sequence[str]) -> None:
    """Read the folder of scores and that of trainings, write docs/data/students.json. Raises EvditError."""
    if len(arguments) != 2:
        raise EvditError(
            f"the script takes two folders, SCORES and TRAINED: {len(arguments)} words were given",
            next_steps=["python docs/gather_students.py runs/scores runs/trained"],
        )
    scores, trained = map(folder_at, arguments)
    content = gather(scores, trained, read_prompts(PROMPTS))
    if not content["tables"]:
        raise EvditError(f"{scores} holds no score for any table: {DATA.name} stays as it is", where=str(scores))
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(run(main))
