"""Results of `evdit bench model` as tables, and the picture of a step's time against the length. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.figure_file import write_png
from vdit_cli.bench.facts import machine_line
from vdit_cli.bench.model_rows import StepRow, compared
from vdit_cli.bench.model_sizes import DENSE
from vdit_cli.bench.tables import aligned, cells

STEP_COLUMNS: list[list[str]] = [
    ["frames", "frames", ""],
    ["plan", "plan", ""],
    ["way", "way", ""],
    ["branches", "branches", ""],
    ["kept", "kept_share", ".1%"],
    ["skipped", "skipped_share", ".1%"],
    ["ms", "ms", ".4g"],
    ["spread", "spread", ".0%"],
    ["attention ms", "attention_ms", ".4g"],
    ["rest ms", "rest_ms", ".4g"],
    ["p", "attention_share", ".2f"],
    ["over dense", "over_dense", ".2f"],
    ["predicted", "predicted", ".2f"],
    ["gap", "gap", "+.0%"],
    ["over plain", "over_plain", ".2f"],
    ["TFLOP/s", "tflops", ".3g"],
    ["of peak", "of_peak", ".2f"],
    ["rest of peak", "rest_of_peak", ".2f"],
    ["peak GB", "peak_gb", ".3g"],
    ["kernels", "kernels", ""],
    ["note", "note", ""],
]
VIDEO_COLUMNS: list[list[str]] = [
    ["plan", "plan", ""],
    ["steps", "steps", ""],
    ["guidance", "guidance", ""],
    ["way", "way", ""],
    ["seconds", "seconds", ".4g"],
    ["speed-up over plain base", "speedup", ".2f"],
    ["paper's speed-up", "paper_speedup", ".2f"],
]
WHOLE_COLUMNS: list[list[str]] = [
    *VIDEO_COLUMNS[:4],
    ["seconds, run whole", "seconds", ".4g"],
    ["steps x step", "expected", ".4g"],
    ["gap", "gap", "+.1%"],
]
PART_COLUMNS: list[list[str]] = [["part", "part", ""], ["seconds", "seconds", ".4g"], ["spread", "spread", ".0%"]]

LEGEND = (
    "ms is the median step, spread the middle half over it; attention is timed inside an eager step, rest is what is "
    "left of the step, p the share of attention. Predicted is 1 / (1 - p + p tau) over our dense step of the same way, "
    "gap the measured speed-up over it less 1. Plain has separate q, k, v, float32 rotary, torch's own attention and "
    "all padded text tokens, eager. Rest of peak is the linear layers alone over the rest and the matrix peak of the "
    "run. Weights are random."
)


def step_table(title: str, rows: Sequence[StepRow]) -> dict[str, Any]:
    """A table of steps with what they are compared with; the note only where there is one."""
    contents = []
    for content in compared(rows):
        content["branches"] = 2 if content["guided"] else 1
        content["peak_gb"] = None if content["peak_bytes"] is None else content["peak_bytes"] / 1e9
        content["kernels"] = ", ".join(content["kernels"])
        contents.append(content)
    columns = STEP_COLUMNS if any(row.note for row in rows) else STEP_COLUMNS[:-1]
    return {"title": title, "columns": columns, "rows": contents}


def head(results: Mapping[str, Any]) -> str:
    """Machine, number format, matrix peak, parameters and date in one line."""
    peak = f"{results['matrix_side']}^3 product {results['peak_tflops']:.3g} TFLOP/s"
    parts = [machine_line(results["machine"], results["versions"]), results["dtype"], peak]
    return "; ".join([*parts, f"{results['parameters']:,} parameters in use", results["date"]])


def as_text(results: Mapping[str, Any]) -> str:
    """All tables for a terminal."""
    parts = [head(results), *results["remarks"]]
    parts += ["\n".join([table["title"], *aligned(cells(table))]) for table in results["tables"].values()]
    return "\n\n".join(parts)


def as_markdown(results: Mapping[str, Any]) -> str:
    """All tables as a Markdown page, with command, machine, versions and date."""
    parts = ["# A denoising step, measured", f"`{results['command']}`", f"{head(results)}.", LEGEND]
    parts += results["remarks"]
    for name, table in results["tables"].items():
        first, *others = cells(table)
        lines = [first, ["---"] * len(first), *others]
        drawn = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts += [f"## {name}", table["title"], drawn]
    return "\n\n".join(parts) + "\n"


def draw_lengths(results: Mapping[str, Any], path: Path) -> bool:
    """Write ms a step against the latent frames, dense and with a fixed number of global frames; False without any."""
    table = results["tables"].get("lengths")
    if table is None:
        return False
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {"dense": [], f"{results['global_frames']} global frames": []}
    for row in table["rows"]:
        if row["ms"] is not None:
            lines[list(lines)[row["plan"] != DENSE]].append((row["frames"], row["ms"]))
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        if points:
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xlabel="latent frames F", ylabel="ms a step", xlim=(0, None), ylim=(0, None))
    axes.set_title(f"{results['machine']['kind']}, {results['dtype']}, {results['date']}", fontsize="medium")
    axes.legend()
    write_png(figure, path)
    return True
