"""Gather what plans do to videos into docs/data/masks.json, from which docs/results.md has its tables.

Each model has a folder, `base` or `student-4` and the like, for its search, its plans and its scores; a score is named
as its plan of docs/mask_plans.py, or `first-N-PLAN` where the first N steps ran with full attention.

docs/make_masks.py makes all of it:

python docs/make_masks.py runs/masks runs/trained/student-4
python docs/gather_masks.py runs/masks/scores runs/masks/plans runs/masks/searches runs/masks/costs-1 runs/masks/costs-2

A folder of scores NAME-report has plans of NAME with other seeds. Of the cost tables each model takes the first that
has its own number of branches. Plans without a score are counted.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mask_plans import SHARES
from scipy.stats import rankdata, spearmanr
from scored_plans import FITS, Scored, Table, at_equal_cost, prices_of, read_plans, read_scores, told
from script import folder_at, run

from vdit_cli.errors import EvditError
from vdit_cli.search.choose import judged
from vdit_cli.search.mask_costs import MaskCosts, kept_shares
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.mask import mean_kept_share
from vdit_cli.tiles.plan import MaskPlan

DATA = Path(__file__).parent / "data" / "masks.json"
RESAMPLES = 10_000
LATER = re.compile(r"^first-\d+-")
"""What names a plan that only later steps have."""


def every_plan(scores: Mapping[str, Scored], plans: Mapping[str, MaskPlan], costs: MaskCosts) -> Table:
    """A row a plan, those that were drawn left out; five random assignments are one row of means."""
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(re.sub(r"^(random-\d+)-\d+$", r"\1", name) for name in scores):
        if name.startswith("drawn-"):
            continue
        parts = [each for part, each in scores.items() if part == name or part.startswith(f"{name}-")]
        if not name.startswith("random-"):
            parts = [scores[name]]
        plan = plans.get(LATER.sub("", name)) or plans[f"{name}-0"]
        shares = [part.mean("all five").value for part in parts]
        one = parts[0]
        rows.append(
            {
                "name": name if len(parts) == 1 else f"{name}, mean of {len(parts)}",
                "kept": None if name.startswith("first-") else mean_kept_share(plan.masks),
                "speedup": None if name.startswith("first-") else costs.speedup(plan.masks),
                "five": told(one.mean("all five")) if len(parts) == 1 else spread(shares),
                **{key: float(np.mean([part.mean(key).value for part in parts])) for key in ("motion", *FITS)},
            }
        )
    rows.sort(key=lambda row: (-(row["kept"] or 2), row["name"]))
    columns = [["plan", "name", ""], ["kept", "kept", ".3f"], ["attention, times faster", "speedup", ".2f"]]
    columns += [["all five, 95 %", "five", ""], ["motion", "motion", ".3f"], ["mean IoU", "overlap", ".3f"]]
    return {"columns": [*columns, ["off the track, px", "residual", ".2f"]], "rows": rows}


def spread(shares: Sequence[float]) -> str:
    """Several plans' shares as "0.812 (0.790 to 0.830)"."""
    return f"{np.mean(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"


def ranks(scores: Mapping[str, Scored], plans: Mapping[str, MaskPlan], table: SensitivityTable) -> Table:
    """How well each score foretells which of the drawn plans does more damage: Spearman's rank correlation."""
    rows = []
    for share in SHARES:
        names = [name for name in scores if name.startswith(f"drawn-{share * 100:.0f}-")]
        if len(names) < 3:
            continue
        for by in table.losses:
            loss_LM, costs = table.mean(by), kept_shares(table.masks)
            foretold = np.array([judged(plans[name].masks, loss_LM, costs).loss for name in names])
            row: dict[str, Any] = {"by": by, "share": share, "plans": len(names)}
            for check, sign in (("all five", -1), ("overlap", -1), ("residual", 1)):
                damage = np.array([sign * scores[name].mean(check).value for name in names])
                row[check] = correlation(foretold, damage)
            rows.append(row)
    columns = [["score", "by", ""], ["kept share", "share", ".2f"], ["plans", "plans", "d"]]
    columns += [["fewer of all five", "all five", ""], ["less IoU", "overlap", ""], ["off the track", "residual", ""]]
    return {"columns": columns, "rows": rows}


def correlation(foretold: np.ndarray, damage: np.ndarray, seed: int = 0) -> str:
    """Spearman's rho with the 95 % percentiles of resampled plans; "-" where all are alike."""
    if len(set(foretold)) < 2 or len(set(damage)) < 2:
        return "-"
    drawn = np.random.default_rng(seed).integers(0, len(damage), (RESAMPLES, len(damage)))
    x, y = (
        ranked - ranked.mean(1, keepdims=True)
        for ranked in (rankdata(each[drawn], axis=1) for each in (foretold, damage))
    )
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    low, high = np.quantile((x * y).sum(1)[scale > 0] / scale[scale > 0], [0.025, 0.975])
    return f"{spearmanr(foretold, damage)[0]:+.2f} [{low:+.2f}, {high:+.2f}]"


def gather(scores: Path, plans: Path, searches: Path, costs: Sequence[str]) -> dict[str, Any]:
    """The file's content from the folders of each model and cost tables. Raises EvditError for what does not fit."""
    tables: dict[str, Table] = {}
    seconds = {}
    for folder in sorted(path for path in scores.iterdir() if path.is_dir()):
        model, scored = folder.name, read_scores(folder)
        searched = model.removesuffix("-report")
        table = SensitivityTable.read(folder_at(str(searches / searched)))
        known = read_plans(folder_at(str(plans / searched)), {name: LATER.sub("", name) for name in scored}, folder)
        found = prices_of(table, *costs)
        seconds[model] = found.told
        tables[f"{model}-plans"] = every_plan(scored, known, found.masks)
        tables[f"{model}-equal"] = at_equal_cost(scored, known)
        tables[f"{model}-ranks"] = ranks(scored, known, table)
    return {
        "costs": seconds,
        "command": "the lines at the top of docs/gather_masks.py",
        "tables": {name: each for name, each in tables.items() if each["rows"]},
    }


def main(arguments: Sequence[str]) -> None:
    """Read folders of scores, plans and searches, and costs; write docs/data/masks.json. Raises EvditError."""
    if len(arguments) < 4:
        raise EvditError(
            f"the script takes SCORES, PLANS, SEARCHES and cost tables: {len(arguments)} words were given",
            next_steps=["python docs/gather_masks.py runs/scores runs/plans runs/masks runs/attention"],
        )
    scores, plans, searches = map(folder_at, arguments[:3])
    content = gather(scores, plans, searches, arguments[3:])
    if not content["tables"]:
        raise EvditError(f"{arguments[0]} holds no score for any table: {DATA.name} stays as it is", where=arguments[0])
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(run(main))
