"""Plans: whole on the way through a file, and every kind of broken file refused with its place."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.closeness import assert_close
from tests.tiles.strategies import plans
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.tiles.plan_json import SCHEMA, UPGRADES

GRID = VideoGrid(8, 4, 6)
MASKS = tuple(TileMask.parse(name, 8) for name in ("8:0", "1:7", "2:6", "1:7"))
MADE = Architecture("OpenSoraT2V", 4, 6, 48)
PLAN = MaskPlan("shapes", GRID, MASKS, "ab" * 32, {"command": "search-masks", "r": 0.1}, {"speedup": 1.5}, MADE)


def sealed(content: dict[str, Any]) -> str:
    """A plan's file text with the digest of whatever stands in it."""
    return json.dumps({**content, "digest": content_digest(content)})


def refused(path: Path) -> EvditError:
    """The error of reading `path`: exit 2, with an origin that names the file."""
    with pytest.raises(EvditError) as caught:
        MaskPlan.read(path)
    assert caught.value.exit_code == USAGE
    assert caught.value.where is not None and str(path) in caught.value.where
    return caught.value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(plans())
def test_a_plan_survives_its_file(tmp_path: Path, plan: MaskPlan) -> None:
    """Written and read it is equal, with the same digest, and written again the same bytes."""
    file = plan.write(tmp_path / "plan.json")
    again = MaskPlan.read(file)
    assert (again, again.digest, again.origin) == (plan, plan.digest, str(file))
    assert again.write(tmp_path / "again.json").read_bytes() == file.read_bytes()


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    """Schema, names and numbers of the masks, and a digest that anyone can compute."""
    document = json.loads(PLAN.write(tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert document["schema"] == "evdit.mask-plan/2"
    assert document["architecture"] == {"transformer": "OpenSoraT2V", "layers": 4, "heads": 6, "head_dim": 48}
    assert document["layers"][:2] == [
        {"mask": "8:0", "global_frames": [0, 1, 2, 3, 4, 5, 6, 7]},
        {"mask": "1:7", "global_frames": [0]},
    ]
    assert document["grid"] == {"frames": 8, "rows": 4, "cols": 6, "text_before": 0, "text_after": 0}
    assert (document["layer_count"], document["searched_on"]) == (4, "ab" * 32)
    assert document.pop("digest") == content_digest(document) == PLAN.digest


def test_a_run_folder_is_taken_for_its_plan(tmp_path: Path) -> None:
    """write and read find plan.json in a folder; a distillation's lies with its student, or each of several."""
    for place in ("steps-4/student", "student", "."):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        file = PLAN.write(tmp_path / place)
        assert file == tmp_path / place / "plan.json"
        assert (MaskPlan.read(tmp_path), MaskPlan.read(tmp_path).origin) == (PLAN, str(file))


def test_a_failed_write_leaves_the_old_plan(tmp_path: Path) -> None:
    """NaN in what is predicted is refused before anything is touched."""
    file = PLAN.write(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        MaskPlan("shapes", GRID, MASKS, predicted={"speedup": float("nan")}).write(tmp_path)
    assert MaskPlan.read(file) == PLAN and [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.numerical
def test_counts_and_shares() -> None:
    """Masks once each in order, layers a mask from the densest on, mean shares."""
    assert PLAN.distinct() == MASKS[:3]
    assert PLAN.histogram() == {"8:0": 1, "2:6": 1, "1:7": 2}
    assert_close(PLAN.kept_share, (64 + 22 + 34 + 22) / 64 / 4)
    assert_close(PLAN.skipped_share, 1 - PLAN.kept_share)
    uniform = MaskPlan.uniform("shapes", GRID, MADE, MASKS[1])
    assert (uniform.masks, uniform.histogram(), uniform.searched_on) == ((MASKS[1],) * 4, {"1:7": 4}, None)
    assert uniform.architecture == MADE


def test_the_masks_in_a_word() -> None:
    """Full attention, one mask, and several, the densest first; names of masks alone do not make one dense."""
    uniform = partial(MaskPlan.uniform, "shapes", GRID, MADE)
    plans = (uniform(MASKS[0]), uniform(MASKS[1]), PLAN)
    assert [plan.masks_text() for plan in plans] == ["none", "1:7", "1x8:0 1x2:6 2x1:7"]
    assert [plan.is_dense for plan in plans] == [True, False, False]


def test_a_plan_needs_layers_of_its_grid() -> None:
    """Mistakes in a program, not of a person."""
    with pytest.raises(ValueError, match="at least one layer"):
        MaskPlan("shapes", GRID, ())
    with pytest.raises(ValueError, match="does not fit a grid of 7"):
        MaskPlan("shapes", VideoGrid(7, 1, 1), MASKS)
    with pytest.raises(ValueError, match="4 masks do not fit OpenSoraT2V of 5 layers"):
        replace(PLAN, architecture=replace(MADE, layers=5))


def test_check_fits_takes_its_own_shape_and_any_text() -> None:
    """The plan's grid, with another length of text, too; under another name; of unknown architecture."""
    PLAN.check_fits("shapes", MADE, GRID)
    PLAN.check_fits("renamed", MADE, VideoGrid(8, 4, 6, text_before=77))
    replace(PLAN, architecture=None).check_fits("shapes", replace(MADE, heads=3), GRID)


@pytest.mark.parametrize(
    ("change", "grid", "rule"),
    [
        ({"transformer": "Other"}, GRID, r"48 \(shapes\), not for Other of 4 layers of 6 heads x 48 \(clouds\)"),
        ({"heads": 12}, GRID, "not for OpenSoraT2V of 4 layers of 12 heads x 48"),
        ({"head_dim": 96}, GRID, "not for OpenSoraT2V of 4 layers of 6 heads x 96"),
        ({"layers": 5}, GRID, "the plan has 4 layers, clouds has 5"),
        ({}, VideoGrid(24, 4, 6), "it is for 8 latent frames of 4 x 6"),
        ({}, VideoGrid(8, 6, 4), "it is for 8 latent frames of 4 x 6"),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, change: dict, grid: VideoGrid, rule: str) -> None:
    """The rule with the plan's own shape, the file, and what to do."""
    plan = MaskPlan.read(PLAN.write(tmp_path))
    with pytest.raises(EvditError, match=rule) as caught:
        plan.check_fits("clouds", replace(MADE, **change), grid)
    assert (caught.value.where, caught.value.exit_code) == (str(tmp_path / "plan.json"), USAGE)
    assert caught.value.next_steps


def test_weights_must_be_in_the_lineage() -> None:
    """The searched weights, their descendants, and others only when asked for."""
    own, other = "ab" * 32, "cd" * 32
    PLAN.check_weights(own)
    PLAN.check_weights(other, lineage=[own])
    PLAN.check_weights(other, allow_other=True)
    MaskPlan.uniform("shapes", GRID, MADE, MASKS[1]).check_weights(other)
    with pytest.raises(EvditError, match="searched on weights abababababab") as caught:
        PLAN.check_weights(other, lineage=["ef" * 32])
    assert "--allow-other-weights" in caught.value.next_steps and caught.value.exit_code == USAGE


def test_a_plan_of_schema_1_is_read(tmp_path: Path) -> None:
    """It has no architecture; its seal is over what it was, and written again it is of this schema."""
    content = {key: value for key, value in PLAN.content().items() if key != "architecture"}
    file = tmp_path / "plan.json"
    file.write_text(sealed({**content, "schema": "evdit.mask-plan/1"}), encoding="utf-8")
    plan = MaskPlan.read(file)
    assert plan == replace(PLAN, architecture=None)
    assert MaskPlan.read(plan.write(tmp_path / "again.json")) == plan
    file.write_text(file.read_text(encoding="utf-8").replace("search-masks", "seek-masks"), encoding="utf-8")
    assert "changed after it was sealed" in refused(file).what


def test_each_upgrade_leads_to_the_next_schema() -> None:
    """The last one to this version's."""
    schemas = [schema for schema, _ in UPGRADES] + [SCHEMA]
    assert [upgrade({"schema": schema})["schema"] for schema, upgrade in UPGRADES] == schemas[1:]


def put(*keys: str | int, value: Any) -> Callable[[dict], None]:
    """A change of a plan's content: the value at `keys` replaced."""

    def change(content: dict) -> None:
        """Replace the value."""
        *way, last = keys
        for key in way:
            content = content[key]
        content[last] = value

    return change


def drop(*keys: str | int) -> Callable[[dict], None]:
    """A change of a plan's content: the key left out."""

    def change(content: dict) -> None:
        """Leave the key out."""
        *way, last = keys
        for key in way:
            content = content[key]
        del content[last]

    return change


BROKEN = [
    (put("schema", value="evdit.mask-plan/3"), "", "unknown schema 'evdit.mask-plan/3'"),
    (drop("architecture"), "", "architecture is missing"),
    (put("architecture", value="OpenSoraT2V"), " architecture", "must be an object or null"),
    (put("architecture", "width", value=3), " architecture", "unknown key 'width'"),
    (drop("architecture", "heads"), " architecture", "heads is missing"),
    (put("architecture", "transformer", value=7), " architecture.transformer", "transformer is 7: it must be a text"),
    (put("architecture", "heads", value=0), " architecture.heads", "heads is 0: it must be a whole number above 0"),
    (
        put("architecture", "head_dim", value=48.0),
        " architecture.head_dim",
        "head_dim is 48.0: it must be a whole number",
    ),
    (put("architecture", "layers", value=5), " architecture", "layers is 5: the plan lists 4"),
    (drop("schema"), "", "unknown schema null"),
    (put("schema", value=["evdit.mask-plan/2"]), "", "unknown schema"),
    (drop("backbone"), "", "backbone is missing"),
    (put("backbone", value=7), " backbone", "backbone is 7: it must be a text"),
    (put("searched_on", value=7), " searched_on", "must be a text or null"),
    (put("made_by", value=[]), " made_by", "must be an object"),
    (put("layrs", value=[]), "", "unknown key 'layrs'"),
    (put("layer_count", value=5), " layers", "layer_count is 5 and 4 layers are listed"),
    (put("layer_count", value=True), " layer_count", "must be a whole number"),
    (lambda content: content.update(layers=[], layer_count=0), " layer_count", "a whole number above 0"),
    (put("layers", value={}), " layers", "must be a list"),
    (put("grid", value=None), " grid", "must be an object"),
    (put("grid", "rows", value=0), " grid", "rows is 0"),
    (put("grid", "rows", value=4.0), " grid.rows", "rows is 4.0"),
    (put("grid", "depth", value=4), " grid", "unknown key 'depth'"),
    (drop("grid", "cols"), " grid", "cols is missing"),
    (put("grid", "frames", value=7), " layer 0", "global frame 7 is out of range"),
    (put("grid", "frames", value=9), " layer 0", "disagree"),
    (put("layers", 2, value="2:6"), " layers 2", "must be an object"),
    (put("layers", 2, "mask", value="1:7"), " layer 2", "these frames make 2:6"),
    (put("layers", 2, "mask", value=None), " layers 2.mask", "must be a text"),
    (drop("layers", 2, "mask"), " layers 2", "mask is missing"),
    (put("layers", 2, "stride", value=4), " layers 2", "unknown key 'stride'"),
    (put("layers", 2, "global_frames", value=[0, 8]), " layer 2", "global frame 8 is out of range"),
    (put("layers", 2, "global_frames", value=[-1, 4]), " layer 2", "global frame -1 is out of range"),
    (put("layers", 2, "global_frames", value=[4, 4]), " layer 2", "duplicates"),
    (put("layers", 2, "global_frames", value=[4, 0]), " layer 2", "not in order"),
    (put("layers", 2, "global_frames", value=[]), " layer 2", "no global frame"),
    (
        put("layers", 2, "global_frames", value=[0, 4.0]),
        " layers 2.global_frames 1",
        "is 4.0: it must be a whole number",
    ),
    (put("layers", 2, "global_frames", value=[[0], 4]), " layers 2.global_frames 0", "must be a whole number"),
    (put("layers", 2, "global_frames", value="04"), " layers 2.global_frames", "must be a list"),
]


@pytest.mark.parametrize(("change", "place", "rule"), BROKEN)
def test_broken_content_is_refused_even_when_sealed(
    tmp_path: Path, change: Callable[[dict], None], place: str, rule: str
) -> None:
    """What is wrong, in which file, in which layer."""
    content = json.loads(json.dumps(PLAN.content()))
    change(content)
    file = tmp_path / "plan.json"
    file.write_text(sealed(content), encoding="utf-8")
    error = refused(file)
    assert rule in error.what and error.where == f"{file}{place}"


def test_a_mask_that_disagrees_is_told_both_ways_out(tmp_path: Path) -> None:
    """The name that the frames make, and the frames that the name means."""
    content = json.loads(json.dumps(PLAN.content()))
    content["layers"][2]["mask"] = "1:7"
    (tmp_path / "plan.json").write_text(sealed(content), encoding="utf-8")
    assert refused(tmp_path / "plan.json").next_steps == ('"mask": "2:6"', '"global_frames": [0]')


BYTES = [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b"global frames: 0", "not JSON"),
    (b"[]", "it is a JSON list"),
    (b'"plan"', "it is a JSON text"),
    (b"\xff\xfe\x00", "not UTF-8"),
    (b'{"schema": "evdit.mask-plan/1"', "not JSON"),
    (b'{"predicted": NaN}', "NaN is no JSON number"),
    (b'{"predicted": -Infinity}', "-Infinity is no JSON number"),
    (b'{"predicted": 1e999}', "1e999 is no JSON number"),
    (b'{"a": 1, "a": 2}', "'a' stands twice"),
    (b"[" * 100_000, "nested in more than 64 levels"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
]


@pytest.mark.parametrize(("content", "rule"), BYTES)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    """Empty, cut off, binary, another value, numbers that JSON does not have, keys that stand twice."""
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    assert rule in refused(file).what


def test_a_changed_plan_is_refused_until_it_is_sealed(tmp_path: Path) -> None:
    """A wrong digest and a missing one, with the command that mends it; unsealed reading takes both."""
    file = tmp_path / "plan.json"
    content = PLAN.content()
    for text in (json.dumps({**content, "digest": "0" * 64}), json.dumps(content)):
        file.write_text(text, encoding="utf-8")
        error = refused(file)
        assert "changed after it was sealed" in error.what
        assert f"evdit masks seal {file}" in error.next_steps[0]
        assert MaskPlan.read(file, sealed=False) == PLAN


def test_text_that_utf8_has_not_is_refused(tmp_path: Path) -> None:
    """A lone surrogate, which JSON can escape and UTF-8 can't write."""
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({**PLAN.content(), "backbone": "\ud800", "digest": ""}), encoding="utf-8")
    assert "surrogates not allowed" in refused(file).what


def test_a_folder_without_a_plan_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    """The folder itself, a folder called plan.json, and nothing there."""
    assert "holds no plan.json" in refused(tmp_path).what
    assert "can't be read" in refused(tmp_path / "none.json").what
    (tmp_path / "plan.json").mkdir()
    assert "holds no plan.json" in refused(tmp_path).what


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operating system says, in one line."""
    file = PLAN.write(tmp_path)

    def deny(*_: Any, **__: Any) -> str:
        """What a read does where it is not allowed (root may read everything, so it is played)."""
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", deny)
    assert "Permission denied" in refused(file).what
    assert stat.S_ISREG(file.stat().st_mode)
