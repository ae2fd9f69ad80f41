"""Sensitivity tables: whole on the way through a file, and every kind of broken file refused with its place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.closeness import assert_close
from tests.search.made import MASKS, table_of
from tests.tiles.test_plan import BYTES, drop, put
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.search.sensitivity import SensitivityTable

LOSSES = [[0, 1, 2, 4], [0, 0.1, 0.2, 0.3]]
TABLE = table_of(LOSSES)


def refused(path: Path) -> EvditError:
    """The error of reading `path`: exit 2, with an origin that names the file."""
    with pytest.raises(EvditError) as caught:
        SensitivityTable.read(path)
    assert caught.value.exit_code == USAGE
    assert caught.value.where is not None and str(path) in caught.value.where
    return caught.value


@pytest.mark.numerical
def test_means_are_over_prompts_and_steps():
    """As planted, by the score that is named; those of prompts over steps only."""
    assert_close(TABLE.mean("attention"), np.array(LOSSES))
    assert_close(TABLE.mean("relative"), np.array(LOSSES) / 2)
    noisy = table_of(LOSSES, noise=0.1)
    assert_close(noisy.of_prompts("attention"), noisy.losses["attention"][..., :3].sum(axis=3) / 3)
    assert_close(noisy.of_prompts("attention").mean(axis=2), noisy.mean("attention"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays(np.float64, (2, 3, 2, 3), elements=st.floats(0, 1e300)), st.booleans())
def test_a_table_survives_its_file(tmp_path: Path, losses: np.ndarray, has_output: bool):
    """To the last bit, with the same digest, with and without the score of the output."""
    whole = np.concatenate([np.zeros((2, 1, 2, 3)), losses], axis=1)
    table = replace(
        TABLE, losses={"attention": whole, "relative": whole / 3} | ({"output": whole} if has_output else {})
    )
    file = table.write(tmp_path / "sensitivity.json")
    again = SensitivityTable.read(file)
    assert (again.digest, again.content(), again.origin) == (table.digest, table.content(), str(file))
    assert (again.losses["attention"] == whole).all() and ("output" in again.losses) is has_output
    assert again.write(tmp_path / "again.json").read_bytes() == file.read_bytes()


def test_the_file_is_as_documented(tmp_path: Path):
    """A line a key, losses by layer, mask, prompt, step, and a digest that anyone can compute; a folder will do."""
    file = TABLE.write(tmp_path)
    assert file == tmp_path / "sensitivity.json"
    assert SensitivityTable.read(tmp_path).digest == TABLE.digest
    document = json.loads(file.read_text(encoding="utf-8"))
    assert len(file.read_text(encoding="utf-8").splitlines()) == len(document) + 2
    assert document["schema"] == "evdit.sensitivity/1" and "output" not in document
    assert document["masks"][2] == {"mask": "2:6", "global_frames": [0, 4]}
    assert document["prompts"][1] == {"prompt": "prompt 1", "seed": 11}
    assert (document["steps"], document["timesteps"]) == ([0, 1, 2], [900, 890, 880])
    assert document["loss"][0][3][1][2] == TABLE.losses["attention"][0, 3, 1, 2]
    assert document.pop("digest") == content_digest(document) == TABLE.digest


def test_losses_can_not_be_changed():
    """A table is what was measured."""
    with pytest.raises(ValueError, match="read-only"):
        TABLE.losses["attention"][0, 1] = 0


def test_what_is_no_table_is_refused():
    """Mistakes in a program."""
    for change, rule in (
        ({"masks": MASKS[::-1]}, "from the full one to the sparsest"),
        ({"masks": MASKS[1:]}, "from the full one to the sparsest"),
        ({"steps": (1, 2)}, "a timestep for each step"),
        ({"prompts": ()}, "at least one prompt"),
        ({"losses": {"attention": TABLE.losses["attention"]}}, "relative: it is missing"),
    ):
        with pytest.raises(ValueError, match=rule):
            replace(TABLE, **change)


def test_a_score_that_is_not_there_is_told_with_those_that_are():
    """One that was not measured, and one that nobody knows."""
    with pytest.raises(EvditError, match="'output' was not measured: the table has attention, relative") as caught:
        TABLE.mean("output")
    assert "--by attention" in caught.value.next_steps
    with pytest.raises(EvditError, match="unknown score 'atention'") as caught:
        TABLE.mean("atention")
    assert caught.value.next_steps[0] == "--by attention"


WORST = [[[[1e307] * 3] * 2] * 4] * 2
BROKEN = [
    (put("schema", value="evdit.sensitivity/2"), "", "unknown schema 'evdit.sensitivity/2'"),
    (put("schema", value="evdit.mask-plan/2"), "", "unknown schema"),
    (drop("schema"), "", "unknown schema null"),
    (drop("relative"), "", "relative is missing: a sensitivity table needs it"),
    (put("losses", value=[]), "", "unknown key 'losses'"),
    (put("model", value=7), " model", "must be a text"),
    (put("weights", value=7), " weights", "must be a text or null"),
    (put("architecture", value=None), " architecture", "must be an object"),
    (put("architecture", "heads", value=0), " architecture.heads", "heads is 0"),
    (put("architecture", "layers", value=3), " architecture", "layers is 3: the sensitivity table lists 2"),
    (put("grid", "rows", value=0), " grid", "rows is 0"),
    (drop("grid", "rows"), " grid", "rows is missing: a sensitivity table needs it"),
    (put("grid", "frames", value=9), " mask 0", "disagree"),
    (put("masks", 1, "mask", value="3:5"), " mask 1", "disagree"),
    (put("masks", 1, value="4:4"), " masks 1", "must be an object"),
    (put("masks", 1, value={"mask": "8:0", "global_frames": list(range(8))}), " masks", "each once"),
    (put("prompts", 0, value="a cat"), " prompts 0", "must be an object"),
    (put("prompts", 0, "seed", value=1.5), " prompts 0.seed", "a whole number"),
    (drop("prompts", 0, "seed"), " prompts 0", "seed is missing"),
    (put("prompts", value=[]), " loss layer 0 mask 0", "2 are listed: there must be one for each of 0 prompts"),
    (put("steps", 1, value=1.0), " steps 1", "it must be a whole number"),
    (put("steps", 1, value=-1), " steps 1", "a whole number of at least 0"),
    (put("timesteps", value=[1, 2]), " timesteps", "2 are listed: there must be one for each of 3 steps"),
    (put("timesteps", 1, value=None), " timesteps 1", "it must be a number"),
    (put("loss", 1, 2, 0, 1, value=-0.5), " loss layer 1 mask 2 prompt 0 step 1", "-0.5 is no loss"),
    (put("loss", 1, 0, 0, 1, value=0.5), " loss layer 1 mask 0 prompt 0 step 1", "the full mask changes nothing"),
    (put("loss", 1, 2, 0, 1, value="1"), " loss 1 2 0 1", "it must be a number"),
    (put("loss", 1, 2, 0, 1, value=True), " loss 1 2 0 1", "it must be a number"),
    (put("loss", 1, 2, 0, 1, value=10**400), "", "is no JSON number"),
    (put("loss", 1, 2, 0, value=[1, 2]), " loss layer 1 mask 2 prompt 0", "2 are listed"),
    (put("loss", 1, 2, value=7), " loss 1 2", "it must be a list"),
    (drop("loss", 1, 3), " loss layer 1", "3 are listed: there must be one for each of 4 masks"),
    (drop("relative", 1), " relative", "1 are listed: there must be one for each of 2 layers"),
    (put("relative", value={}), " relative", "must be a list"),
    (lambda content: content.update(output=[]), " output", "0 are listed"),
    (put("digest", value="0" * 64), " digest", "it was changed"),
    (put("loss", 1, 2, 0, 1, value=0.5), " digest", "it was changed"),
]


@pytest.mark.parametrize(("change", "place", "rule"), BROKEN)
def test_broken_content_is_refused(tmp_path: Path, change: Callable[[dict], None], place: str, rule: str):
    """What is wrong, in which file, at which layer, mask, prompt and step; sealed unless the seal is what is wrong."""
    content = {**json.loads(json.dumps(TABLE.content())), "digest": TABLE.digest}
    change(content)
    if place != " digest":
        content["digest"] = content_digest({key: value for key, value in content.items() if key != "digest"})
    file = tmp_path / "sensitivity.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    error = refused(file)
    assert rule in error.what and error.where == f"{file}{place}"


def test_a_sum_beyond_numbers_is_refused(tmp_path: Path):
    """Each loss is a number, all together are infinite."""
    content: dict[str, Any] = TABLE.content()
    content["loss"] = [[[[0.0] * 3] * 2, *layer[1:]] for layer in WORST]
    file = tmp_path / "sensitivity.json"
    file.write_text(json.dumps({**content, "digest": content_digest(content)}), encoding="utf-8")
    assert "beyond what a number can hold" in refused(file).what


@pytest.mark.parametrize(("content", "rule"), BYTES)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, rule: str):
    """Empty, cut off, binary, endless brackets, numbers that JSON does not have, keys that stand twice."""
    file = tmp_path / "sensitivity.json"
    file.write_bytes(content)
    assert rule in refused(file).what


def test_nothing_there_is_refused(tmp_path: Path):
    """A folder without a table, a run that has not ended, and a file that is missing."""
    with pytest.raises(EvditError, match=r"holds no sensitivity\.json: a search that has ended leaves one") as caught:
        SensitivityTable.read(tmp_path)
    assert caught.value.next_steps == ("the folder of a run of `evdit search-masks`",)
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(EvditError, match=r"holds no sensitivity\.json") as caught:
        SensitivityTable.read(tmp_path)
    assert caught.value.next_steps == (f"evdit status {tmp_path}  (how far a run is)",)
    assert "can't be read" in refused(tmp_path / "none.json").what


def test_a_choice_loads_no_torch():
    """Nor do reading a table and telling what is steady."""
    names = ("candidates", "sensitivity", "choose", "knapsack", "steadiness", "mask_costs", "pareto")
    modules = ", ".join(f"vdit_cli.search.{name}" for name in names)
    program = f"import sys, {modules}; assert not {{'torch', 'triton', 'scipy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=Path(__file__).parents[2])
