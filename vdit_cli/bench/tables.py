"""Results as tables: for JSON and the pages of docs/, for a terminal, and as Markdown. No torch but in types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vdit_cli.attention.presets import PRESETS
from vdit_cli.bench.facts import machine_line
from vdit_cli.bench.paper import TABLE_1, VIDEO_FRAMES, sparsity
from vdit_cli.bench.presets import PAPER_PRESETS, Shape
from vdit_cli.bench.rows import Row, as_content, break_even, fastest

RESULTS_SCHEMA = "evdit.bench-attention/1"

COLUMNS: list[list[str]] = [
    ["mask", "mask", ""],
    ["kernel", "kernel", ""],
    ["kept", "kept_share", ".1%"],
    ["skipped", "skipped_share", ".1%"],
    ["ms", "ms", ".4g"],
    ["spread", "spread", ".0%"],
    ["TFLOP/s", "tflops", ".3g"],
    ["speed-up", "speedup", ".2f"],
    ["ideal", "ideal", ".2f"],
    ["efficiency", "efficiency", ".2f"],
    ["error", "error", ".1e"],
    ["note", "note", ""],
]
"""(title, key in a row, Python's format) of each column, as docs/build.py reads it."""

PAPER_COLUMNS: list[list[str]] = [
    ["frames", "video_frames", ""],
    ["mask", "mask", ""],
    ["sparsity %", "sparsity", ""],
    ["paper's sparsity %", "paper_sparsity", ""],
    ["kernel", "kernel", ""],
    ["ms", "ms", ".4g"],
    ["paper's ms", "paper_ms", ".2f"],
    ["speed-up", "speedup", ".2f"],
    ["paper's speed-up", "paper_speedup", ".2f"],
    ["efficiency", "efficiency", ".2f"],
]

LEGEND = (
    "Times are medians, spread is the middle half over the median; tokens lie in the order of the mask's passes, as a "
    "model holds them after one permutation at its entry. Kept and skipped are shares of token pairs, TFLOP/s counts "
    "kept pairs, speed-up is over the fastest dense kernel timed in turns with the row, ideal is 1 / kept, efficiency "
    "is speed-up / ideal, error is the largest relative one on sampled rows at full size."
)


def table_of(shape: Shape, rows: list[Row]) -> dict[str, Any]:
    """A table of results.json: its shape, columns and rows, and the break-even in words."""
    columns = COLUMNS if any(row.note for row in rows) else COLUMNS[:-1]
    return {
        "title": shape.title,
        "shape": {
            "latent_frames": shape.grid.frames,
            "frame_tokens": shape.grid.frame_tokens,
            "text": shape.grid.text_tokens,
            "heads": shape.heads,
            "head_dim": shape.head_dim,
            "batch": shape.batch,
            "backward": shape.backward,
        },
        "columns": columns,
        "rows": [as_content(row) for row in rows],
        "break_even": break_even(rows),
    }


def paper_table(tables: Iterable[tuple[Shape, Any]], rows: Mapping[str, list[Row]]) -> dict[str, Any] | None:
    """Table 1 of the paper beside the best kernel a row here; None unless both of its shapes were measured, forward.

    The speed-up here is over the fastest dense kernel of this machine, the paper's over its own full attention.
    """
    shapes = {shape.grid.frames: shape for shape, _ in tables if shape.key in PAPER_PRESETS}
    if {shape.name for shape in shapes.values()} != set(PAPER_PRESETS):
        return None
    found = []
    for printed in TABLE_1:
        ours = [row for row in rows[shapes[printed.frames].key] if row.mask == printed.mask]
        best = fastest(ours)
        found.append(
            {
                "video_frames": VIDEO_FRAMES[printed.frames],
                "mask": printed.mask,
                "sparsity": sparsity(printed),
                "paper_sparsity": printed.sparsity,
                "paper_ms": printed.ms,
                "paper_speedup": printed.speedup,
                **({} if best is None else {key: as_content(best)[key] for key in PAPER_KEYS}),
            }
        )
    agree = all(row["sparsity"] == row["paper_sparsity"] for row in found)
    remark = "sparsity agrees with the paper's in every row" if agree else "sparsity DIFFERS from the paper's"
    title = f"Table 1 of arXiv 2502.06155 ({PRESETS[PAPER_PRESETS[0]].heads} heads of 96, 720p, forward): {remark}"
    return {"title": title, "columns": PAPER_COLUMNS, "rows": found, "sparsity_agrees": agree}


PAPER_KEYS = ("kernel", "ms", "speedup", "efficiency")


def cells(table: Mapping[str, Any]) -> list[list[str]]:
    """Titles and rows as text; a dash where there is no number."""
    lines = [[title for title, _, _ in table["columns"]]]
    for row in table["rows"]:
        lines.append(["-" if row.get(key) is None else format(row[key], how) for _, key, how in table["columns"]])
    return lines


def as_text(results: Mapping[str, Any]) -> str:
    """All tables for a terminal, numbers to the right, under a line about the machine."""
    parts = [machine_line(results["machine"], results["versions"]) + f"; {results['dtype']}; {results['date']}"]
    for table in results["tables"].values():
        parts.append("\n".join([table["title"], *aligned(cells(table)), *filter(None, [table.get("break_even")])]))
    return "\n\n".join(parts)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns: the last one, if it is a note, to the left, all others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    is_note = lines[0][-1] == "note"
    out = []
    for line in lines:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        if is_note:
            padded[-1] = line[-1]
        out.append("  ".join(padded).rstrip())
    return out


def as_markdown(results: Mapping[str, Any]) -> str:
    """All tables as a Markdown page, with command, machine, versions and date."""
    parts = [
        "# Attention, measured",
        f"`{results['command']}`, {results['date']}, {results['dtype']}.",
        f"{machine_line(results['machine'], results['versions'])}.",
        LEGEND,
    ]
    for name, table in results["tables"].items():
        first, *others = cells(table)
        lines = [first, ["---"] * len(first), *others]
        drawn = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts += [f"## {name}", table["title"], drawn, *filter(None, [table.get("break_even")])]
    return "\n\n".join(parts) + "\n"
