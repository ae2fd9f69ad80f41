"""Gather what KD brings back of a masked student's videos into docs/data/kd.json: the tables of docs/results.md.

The scores lie in one folder: `dense` is the student that was masked, and NAME a plan of docs/mask_plans.py: `NAME` has
the student with these masks put on, `NAME-kd` the student that KD made of it, `NAME-kd-first` one of KD, then MLCD.

docs/make_masks.py makes the search and the plans, docs/make_kd.py the rest:

python docs/make_masks.py runs/masks runs/trained/student-4
python docs/make_kd.py runs/kd runs/trained/student-4 runs/masks/plans/student-4 runs/data
python docs/gather_kd.py runs/kd/scores-report runs/masks/plans/student-4 runs/masks/searches/student-4 COSTS

where COSTS is runs/masks/costs-1.

PNG folders, so that PSNR and SSIM are not those of a video's encoding. Plans without a score are counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scored_plans import Scored, Table, at_equal_cost, prices_of, read_plans, read_scores, told
from script import folder_at, read_json, run

from vdit_cli.data.shapes_prompts import MOTIONS
from vdit_cli.errors import EvditError
from vdit_cli.search.mask_costs import MaskCosts
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.mask import mean_kept_share
from vdit_cli.tiles.plan import MaskPlan

DATA = Path(__file__).parent / "data" / "kd.json"
DENSE, AFTER, FIRST = "dense", "-kd", "-kd-first"
FIVE = "all five"


def plan_of(name: str) -> str:
    """The plan that a score's name tells."""
    return name.removesuffix(FIRST).removesuffix(AFTER)


def brought_back(scores: Mapping[str, Scored], plans: Mapping[str, MaskPlan], costs: MaskCosts) -> Table:
    """A row a plan, dense first, then by what it keeps: right before and after KD, and after less dense."""
    dense = scores[DENSE]
    rows: list[dict[str, Any]] = [{"name": DENSE, "kept": 1.0, "speedup": 1.0, "before": told(dense.mean(FIVE))}]
    for name, plan in sorted(plans.items(), key=lambda each: -mean_kept_share(each[1].masks)):
        before, after = scores.get(name), scores.get(name + AFTER)
        if name == DENSE or after is None:
            continue
        rows.append(
            {
                "name": name,
                "kept": mean_kept_share(plan.masks),
                "speedup": costs.speedup(plan.masks),
                "before": before and told(before.mean(FIVE)),
                "after": told(after.mean(FIVE)),
                "differs": told(after.more_than([dense], FIVE), "+"),
            }
        )
    columns = [["plan", "name", ""], ["kept", "kept", ".3f"], ["attention, times faster", "speedup", ".2f"]]
    columns += [["all five before KD, 95 %", "before", ""], ["after KD, 95 %", "after", ""]]
    return {"columns": [*columns, ["after, less the dense one's", "differs", ""]], "rows": rows if rows[1:] else []}


def measures(contents: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the accuracies do not show, a row a set of videos: nearness to the dense student's, motion and flicker."""
    rows = []
    for name, content in contents.items():
        near = content.get("against", {}).get("closeness", {})
        rows.append(
            {
                "name": name,
                "motion": content["accuracy"]["motion"]["share"],
                **{key: content["measures"][key] for key in ("overlap", "residual", "frame motion", "flicker")},
                **{key: near[key]["value"] for key in ("psnr", "ssim") if near.get(key)},
                "frechet": content["frechet"] and content["frechet"]["distance"],
            }
        )
    columns = [["videos", "name", ""], ["motion", "motion", ".3f"], ["mean IoU", "overlap", ".3f"]]
    columns += [["off the track, px", "residual", ".2f"], ["frame motion", "frame motion", ".5f"]]
    columns += [["flicker", "flicker", ".5f"], ["PSNR to dense, dB", "psnr", ".1f"], ["SSIM", "ssim", ".3f"]]
    return {"columns": [*columns, ["Frechet distance", "frechet", ".3g"]], "rows": rows}


def motions(contents: Mapping[str, Mapping[str, Any]]) -> Table:
    """The share of right motions by what was asked for, a column a set of videos: dense and after KD."""
    taken = [name for name in contents if name == DENSE or name.endswith(AFTER)]
    rows = []
    for motion in MOTIONS:
        shares = {name: contents[name]["estimates"].get(f"motion: {motion}") for name in taken}
        rows.append({"motion": motion, **{name: each and each["value"] for name, each in shares.items()}})
    return {"columns": [["motion", "motion", ""], *([name, name, ".3f"] for name in taken)], "rows": rows}


def orders(scores: Mapping[str, Scored]) -> Table:
    """MLCD then KD beside KD then MLCD, where both were scored."""
    rows = []
    for name in scores:
        if name.endswith(FIRST) and (usual := scores.get(plan_of(name) + AFTER)):
            first = scores[name]
            row = {"name": plan_of(name), "usual": told(usual.mean(FIVE)), "first": told(first.mean(FIVE))}
            rows.append({**row, "differs": told(first.more_than([usual], FIVE), "+")})
    columns = [["plan", "name", ""], ["MLCD, then KD", "usual", ""], ["KD, then MLCD", "first", ""]]
    return {"columns": [*columns, ["more of all five, 95 %", "differs", ""]], "rows": rows}


def gather(folder: Path, plans: Path, search: Path, costs: str) -> dict[str, Any]:
    """The file's content from scores, plans, the search and a cost table. Raises EvditError for what does not fit."""
    scores, table = read_scores(folder), SensitivityTable.read(search)
    if DENSE not in scores:
        raise EvditError(
            f"{folder} has no {DENSE}.json: differences are to the student's videos without masks",
            where=str(folder),
            next_steps=[f"evdit score runs/kd/{DENSE} --json > {folder / DENSE}.json"],
        )
    known = read_plans(plans, {name: plan_of(name) for name in scores}, folder)
    found = prices_of(table, costs)
    contents = {
        name: read_json(folder / f"{name}.json") for name in [DENSE, *(each for each in scores if each != DENSE)]
    }
    try:
        told_by = {"measures": measures(contents), "motions": motions(contents)}
    except (KeyError, TypeError) as error:
        raise EvditError(f"a file is no score of `evdit score --json`: {error}", where=str(folder)) from error
    after = {plan_of(name): scored for name, scored in scores.items() if name.endswith(AFTER)}
    tables = {
        "plans": brought_back(scores, known, found.masks),
        **told_by,
        "equal": at_equal_cost(after, known),
        "orders": orders(scores),
    }
    return {
        "costs": found.told,
        "command": "the lines at the top of docs/gather_kd.py",
        "tables": {name: each for name, each in tables.items() if each["rows"]},
    }


def main(arguments: Sequence[str]) -> None:
    """Read folders of scores and plans, a search and costs; write docs/data/kd.json. Raises EvditError."""
    if len(arguments) != 4:
        raise EvditError(
            f"the script takes SCORES, PLANS, SEARCH and a cost table: {len(arguments)} words were given",
            next_steps=[
                "python docs/gather_kd.py runs/kd/scores-report runs/masks/plans/student-4 "
                "runs/masks/searches/student-4 runs/masks/costs-1"
            ],
        )
    content = gather(*map(folder_at, arguments[:3]), arguments[3])
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(run(main))
