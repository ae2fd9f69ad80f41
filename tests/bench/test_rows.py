"""Rows: kept whole, read back, and what they say together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.made import row
from vdit_cli.bench.picture import draw, lines_of
from vdit_cli.bench.presets import shapes_of
from vdit_cli.bench.rows import Row, RowFolder, break_even, fastest
from vdit_cli.bench.tables import aligned, as_markdown, as_text, cells, paper_table, table_of
from vdit_cli.recipe import load

SHAPE = shapes_of(load(flags={"bench.attention.preset": "shapes"}).bench.attention)[0]
RESULTS = {
    "schema": "evdit.bench-attention/1",
    "command": "evdit bench attention",
    "date": "2026-11-24",
    "dtype": "float32",
    "machine": {"kind": "a test", "threads": 2},
    "versions": {"torch": "2.0", "evdit": "0"},
}


def test_a_row_is_kept_and_read_back(tmp_path: Path):
    """Equal to what was measured; colons stay out of file names; a row that failed is not kept."""
    folder = RowFolder(tmp_path / "rows")
    good, bad = row("1:7", "sdpa", 1.0, 2.0), row("2:6", "sdpa", None, None, failed=True)
    folder.keep([good, bad])
    assert folder.read("1:7", "sdpa") == good
    assert folder.read("2:6", "sdpa") is None and folder.read("1:7", "other") is None
    assert [file.name for file in (tmp_path / "rows").iterdir()] == ["1-7-sdpa.json"]


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "evdit.bench-row/1", "mask": "1:7"}'])
def test_a_damaged_row_is_measured_again(tmp_path: Path, text: str):
    """It counts as one that was never measured."""
    (tmp_path / "1-7-sdpa.json").write_text(text, encoding="utf-8")
    assert RowFolder(tmp_path).read("1:7", "sdpa") is None


@pytest.mark.parametrize(
    ("speedups", "told"),
    [
        ({"4:4": 1.1, "2:6": 1.5, "1:7": 2.0}, "from 4:4 on"),
        ({"4:4": 0.9, "2:6": 1.5, "1:7": 2.0}, "from 2:6 on"),
        ({"4:4": 1.2, "2:6": 0.8, "1:7": 2.0}, "from 1:7 on"),
        ({"4:4": 0.7, "2:6": 0.8, "1:7": 1.0}, "none"),
        ({"4:4": 1.2, "2:6": 1.4, "1:7": 0.9}, "none"),
        ({}, "nothing was timed"),
    ],
)
def test_break_even(speedups: dict[str, float], told: str):
    """The densest mask from which all sparser ones are faster than dense, by the best kernel of each."""
    rows = [row(mask, "fast", 1 / speed, speed) for mask, speed in speedups.items()]
    rows += [row(mask, "slow", 9.0, 0.1) for mask in speedups]
    assert told in break_even([*rows, row("8:0", "sdpa dense", 1.0, 1.0, is_dense=True), row("2:6", "x", None, None)])


def test_a_speed_up_that_may_be_chance_is_none():
    """1 % ahead with a spread of 20 %: of 16 repeats it says nothing, of 10,000 it does."""
    few = replace(row("1:7", "sdpa", 1.0, 1.01), spread=0.2, repeats=16)
    assert "none" in break_even([few])
    assert "from 1:7 on" in break_even([replace(few, repeats=10_000)])


def test_the_fastest_is_a_timed_one():
    """Rows without a time don't count."""
    assert fastest([row("1:7", "a", None, None)]) is None
    assert fastest([row("1:7", "a", 3.0, 1.0), row("1:7", "b", 2.0, 1.5)]).kernel == "b"


def made() -> dict:
    """Results of one table: a dense kernel, a faster one, and one that refuses."""
    rows = [
        row("8:0", "sdpa dense", 2.0, 1.0, is_dense=True),
        row("1:7", "sdpa", 1.0, 2.0),
        row("2:6", "sdpa", 1.6, 1.25),
        row("1:7", "other", None, None, note="no | here"),
    ]
    return {**RESULTS, "tables": {"shapes": table_of(SHAPE, rows)}}


def test_a_table_as_json_text_and_markdown():
    """The same cells; a note where there is no number; kept and skipped side by side."""
    results = json.loads(json.dumps(made(), allow_nan=False))
    table = results["tables"]["shapes"]
    titles, dense, fast, _, refused = cells(table)
    assert dict(zip(titles, fast, strict=True))["speed-up"] == "2.00"
    assert dict(zip(titles, fast, strict=True)) | {"kept": "34.4%", "skipped": "65.6%"} == dict(
        zip(titles, fast, strict=True)
    )
    assert refused[titles.index("ms")] == "-" and refused[-1] == "no | here" and dense[1] == "sdpa dense"
    text, page = as_text(results), as_markdown(results)
    assert "a test; 2 threads; torch 2.0; evdit 0; float32; 2026-11-24" in text
    assert "break-even: faster than the fastest dense kernel from 2:6 on" in text
    assert "no \\| here" in page and "`evdit bench attention`" in page and "## shapes" in page
    assert (
        len(
            {
                line.index("sdpa")
                for line in aligned(cells(table))
                if line.rstrip().count("sdpa") and "dense" not in line
            }
        )
        == 1
    )


def test_without_notes_there_is_no_column_of_them():
    """A clean table is narrower."""
    assert "note" not in [title for title, _, _ in table_of(SHAPE, [row("1:7", "sdpa", 1.0, 2.0)])["columns"]]


def test_table_1_has_the_papers_figures_beside_ours():
    """Every printed row; ours is the best kernel; nothing without both shapes."""
    shapes = shapes_of(load(flags={"bench.attention.table": 1}).bench.attention)
    tables = [(shape, None) for shape in shapes]
    rows: dict[str, list[Row]] = {shape.key: [] for shape in shapes}
    rows["open-sora-plan-29"] = [row("1:7", "a", 5.0, 2.0), row("1:7", "b", 4.0, 2.5)]
    table = paper_table(tables, rows)
    assert table["sparsity_agrees"] and len(table["rows"]) == 11
    ours = next(each for each in table["rows"] if each["mask"] == "1:7")
    assert (ours["kernel"], ours["ms"], ours["paper_ms"], ours["sparsity"]) == ("b", 4.0, 20.65, "64.38")
    assert paper_table(tables[:1], rows) is None


def test_the_picture_is_a_png_of_the_saved_json(tmp_path: Path):
    """Points by kernel, in the order of the ideal; no file where nothing was timed."""
    results = json.loads(json.dumps(made()))
    lines = lines_of(results["tables"]["shapes"])
    assert {kernel: [speed for _, speed in points] for kernel, points in lines.items()} == {"sdpa": [1.25, 2.0]}
    assert draw(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    nothing = {**RESULTS, "tables": {"shapes": table_of(SHAPE, [row("1:7", "sdpa", None, None)])}}
    assert not draw(nothing, tmp_path / "b.png") and not (tmp_path / "b.png").exists()
