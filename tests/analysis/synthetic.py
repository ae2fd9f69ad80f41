"""Analyses made by hand: planted structures, uniform attention and noise, with derived numbers by plain numpy."""

from __future__ import annotations

import numpy as np

from vdit_cli.analysis.results import Analysis, LayerAnalysis, Sample, Settings, Stability
from vdit_cli.artifacts.receipt import Machine
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

MASSES = (0.9, 0.95, 0.99)


def planted(
    kinds: list[str] | None = None, frames: int = 8, heads: int = 4, noise: float = 0.05, between=None, text: int = 0
) -> Analysis:
    """One layer of each kind: "diagonal", "bands", "global", "uniform", "noise", "sink" or "unstable"."""
    kinds = (
        ["uniform", "global", "bands", "bands", "diagonal", "diagonal", "unstable", "noise"] if kinds is None else kinds
    )
    draw = np.random.default_rng(0)
    between = ("prompts", "seeds", "steps") if between is None else between
    grid = VideoGrid(frames, 16, 16, text_after=text)
    samples = tuple(Sample(prompt, 0, step) for prompt in range(2) for step in range(3))
    names = tuple(dict.fromkeys(TileMask.from_stride(frames, stride).name for stride in (8, 4, 3, 2)))
    candidates = tuple(name for name in names if not name.endswith(":0"))
    layers = tuple(
        _layer(place, kind, grid, heads, noise, draw, candidates, between, len(samples))
        for place, kind in enumerate(kinds)
    )
    return Analysis(
        model="shapes",
        backbone="open-sora-plan",
        weights="5f0c" * 16,
        grid=grid,
        settings=_settings(frames),
        samples=samples,
        candidates=candidates,
        layers=layers,
        seconds={"load": 1.25, "text": 0.21, "denoise": 21.5, "statistics": 12.25},
        peak_memory_bytes=1_430_000_000,
    )


def _settings(frames: int) -> Settings:
    return Settings(
        prompts=("a red disc moves left on a blue ground", "a green <square> & a yellow ring, still"),
        seeds=(0,),
        at=(0.1, 0.5, 0.9),
        steps_seen=(2, 10, 18),
        timesteps=(900.0, 500.0, 100.0),
        scheduler="ddim",
        steps=20,
        guidance=4.0,
        video_frames=4 * frames - 3,
        height=256,
        width=256,
        rows=64,
        device="cpu",
        dtype="float32",
        kernel="torch",
        command='evdit analyze --model shapes --at .1,.5,.9 -o "runs/my analysis"',
        versions={"evdit": "0.1.0", "torch": "2.13.0"},
        machine=Machine("Linux 6.1", "x86_64", 2, 8_000_000_000),
    )


def shape_of(kind: str, frames: int) -> np.ndarray:
    """Unnormalised tile masses (F, F) of a kind of layer."""
    lag = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    shapes = {
        "diagonal": np.where(lag == 0, 3.0, 1.0),
        "bands": np.exp(-lag / 1.5) + 0.1,
        "global": np.where(np.arange(frames) % max(2, frames // 2) == 0, 4.0, 1.0)[None, :] + 0 * lag,
        "sink": np.where(np.arange(frames) == 0, 12.0, 1.0)[None, :] + 2.0 * (lag == 0),
        "unstable": np.where(lag == 0, 3.0, 1.0),
    }
    return shapes.get(kind, np.ones((frames, frames)))


def _layer(place, kind, grid, heads, noise, draw, candidates, between, samples) -> LayerAnalysis:
    frames, text = grid.frames, grid.text_tokens / grid.tokens
    level = 0.0 if kind == "uniform" else 0.02 if kind == "noise" else noise
    tilt = draw.uniform(0.2, 1.8, heads) if kind not in ("uniform", "noise") else np.ones(heads)
    shape = shape_of(kind, frames)
    each = shape[None, None] ** tilt[None, :, None, None] * np.exp(
        level * draw.normal(size=(samples, heads, frames, frames))
    )
    mass = (1 - text) * each / each.sum(-1, keepdims=True)
    mean = mass.mean((0, 1))
    off = ~np.eye(frames, dtype=bool)
    ratios = [float(np.diag(one).mean() / one[off].mean()) for one in mass.mean(1)]
    lag = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    structured = kind not in ("uniform", "noise")
    alike = 0.8 if structured else 0.02 if kind == "noise" else None
    by_distance = tuple(float(mean[lag == d].mean()) for d in range(frames))
    diagonals = mass.mean(0)[:, np.arange(frames), np.arange(frames)].mean(1)
    own = mean[0, 0] / grid.frame_tokens
    return LayerAnalysis(
        layer=place,
        site=f"transformer_blocks.{place}.attn1",
        heads=heads,
        tile_mass=_rows(mean),
        text_mass=tuple([text] * frames),
        head_tile_mass=tuple(_rows(one) for one in mass.mean(0)),
        diagonal=float(np.diag(mean).mean()),
        off_diagonal=float(mean[off].mean()),
        ratio=float(np.diag(mean).mean() / mean[off].mean()),
        ratio_spread=float(np.std(ratios)),
        ratios=tuple(ratios),
        chance=1 / frames,
        by_distance=by_distance,
        first_frame_difference=tuple(
            float(own * (1 - np.exp(-j / 2)) * (1.2 if structured else 0)) for j in range(frames)
        ),
        first_frame_error=(0.0, *[float(own * 0.02)] * (frames - 1)),
        repetition=(*[None if alike is None else alike * 0.96**d for d in range(frames - 1)], None),
        repetition_error=(*[None if alike is None else 0.01 + 0.005 * d for d in range(frames - 1)], None),
        repetition_mean=None if alike is None else alike * 0.95,
        repetition_mean_error=None if alike is None else 0.01,
        repetition_elsewhere=None if alike is None else alike * 0.4,
        entropy=float(np.log(grid.tokens) - (1.1 if structured else 0.001)),
        entropy_error=0.01,
        uniform_entropy=float(np.log(grid.tokens)),
        head_spread=float(diagonals.std()),
        head_diagonals=tuple(map(float, diagonals)),
        kept_mass={
            name: float(text + (mean * TileMask.parse(name, frames).frame_matrix()).sum() / frames)
            for name in candidates
        },
        stability=tuple(_stability(kind, one, held, structured) for one in between for held in MASSES),
    )


def _stability(kind: str, between: str, held: float, structured: bool) -> Stability:
    density = held - 0.35 if structured else held - 0.01
    above = {"unstable": 0.1, "uniform": 0.0, "noise": 0.02}.get(kind, 0.85 if between != "steps" else 0.7)
    overlap = density + above * (1 - density)
    chance = density / (2 - density)
    return Stability(between, held, overlap, overlap / (2 - overlap), density, chance, 0.01)  # type: ignore[arg-type]


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in values)
