"""What an analysis says: whether layers and model have tile structure, and a plain sentence for each property.

The rules are ours [ours]; the paper shows maps and names no threshold (Figure 1 of arXiv 2502.06155).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import Any

from vdit_cli.analysis.results import Analysis, Between, LayerAnalysis, Sample, Stability
from vdit_cli.analysis.words import capital, chance_of, counted, layers_named, listed, runs, share, times
from vdit_cli.tiles.mask import TileMask

RATIO = 1.2
"""A layer has tile structure when the lower end of its diagonal ratio's 95 % interval is above this."""
LAYERS = 0.25
"""The model has a property when at least this share of its layers does."""
REPEATS = 0.5
"""Tiles of a layer repeat when their mean correlation on equal lag, less twice its error, is above this."""
NEAR = 1.2
"""A layer is local when a tile one frame away holds this many times the mass of those at the farther distances."""
AGREES = 0.5
"""A layer is stable when its positions overlap by this share of the way from chance to 1, less twice the error."""
KEPT = 0.9
"""A mask is guessed for a layer when it keeps this share of the layer's mass."""

NAMED = 6
"""Sentences name the layers in at most so many words; maps, plots and tables mark each one."""

BETWEEN: tuple[Between, ...] = ("prompts", "seeds", "steps")


@dataclass(frozen=True)
class Finding:
    """One property: whether the model has it (None: it can't be told), the layers that do, and a sentence."""

    name: str
    title: str
    holds: bool | None
    layers: tuple[int, ...]
    sentence: str


@dataclass(frozen=True)
class Findings:
    """What is found: `properties` are repetition, diagonal, locality and stability; `masks` is about the candidates."""

    has_pattern: bool
    verdict: str
    """One sentence: has the model the pattern?"""
    structured: tuple[int, ...]
    """The layers with tile structure."""
    properties: tuple[Finding, ...]
    masks: Finding
    guesses: Mapping[int, str | None]
    """By layer: the sparsest candidate that keeps KEPT of its mass, None where no candidate does."""

    @property
    def sentences(self) -> dict[str, str]:
        """The sentence of each property and of the masks, by name."""
        return {finding.name: finding.sentence for finding in (*self.properties, self.masks)}

    def content(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {**asdict(self), "guesses": {str(layer): name for layer, name in self.guesses.items()}}


def findings(analysis: Analysis) -> Findings:
    """Judge an analysis by the rules above."""
    structured = tuple(each.layer for each in analysis.layers if has_structure(each, analysis.samples))
    guesses = {each.layer: guessed_mask(each, analysis.candidates) for each in analysis.layers}
    return Findings(
        has_pattern=is_enough(structured, analysis),
        verdict=verdict(analysis, structured),
        structured=structured,
        properties=(repetition(analysis), diagonal(analysis, structured), locality(analysis), stability(analysis)),
        masks=masks(analysis, guesses),
        guesses=guesses,
    )


def margin(values: Sequence[float], samples: Sequence[Sample]) -> float:
    """Half the 95 % interval of the mean of a value for each sample: 0 where one trajectory can tell of no other.

    Steps of a trajectory (a prompt and a seed) are alike, so that its mean counts once: Student's t over trajectories.
    """
    of_trajectory: dict[tuple[int, int], list[float]] = {}
    for value, sample in zip(values, samples, strict=True):
        of_trajectory.setdefault((sample.prompt, sample.seed), []).append(value)
    count = len(of_trajectory)
    if count < 2:
        return 0.0
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975)) * stdev(map(mean, of_trajectory.values())) / math.sqrt(count)


def has_structure(layer: LayerAnalysis, samples: Sequence[Sample]) -> bool:
    """Whether the diagonal stands out from the other tiles."""
    return layer.ratio - margin(layer.ratios, samples) > RATIO


def is_enough(layers: Sequence[int], analysis: Analysis) -> bool:
    """Whether so many layers make a property of the model."""
    return len(layers) >= LAYERS * len(analysis.layers) > 0


def where(layers: Sequence[int], analysis: Analysis) -> str:
    """ "layers 4-7", or "all 12 layers", or "20 of 32 layers" where naming them would take more than NAMED words."""
    total = len(analysis.layers)
    if len(layers) == total > 1:
        return f"all {total} layers"
    return layers_named(layers) if len(runs(layers)) <= NAMED else f"{len(layers)} of {total} layers"


def guessed_mask(layer: LayerAnalysis, candidates: Iterable[str]) -> str | None:
    """The sparsest of the candidates (sparsest first) that keeps KEPT of the layer's mass, or None."""
    return next((name for name in candidates if layer.kept_mass[name] >= KEPT), None)


def uniform_mass(analysis: Analysis, name: str) -> float:
    """The mass that a candidate keeps under uniform attention: its share of the tiles, and all of the text."""
    grid = analysis.grid
    kept = TileMask.parse(name, grid.frames).kept_share
    return (grid.text_tokens + kept * grid.video_tokens) / grid.tokens


def chosen(analysis: Analysis, layers: Sequence[int]) -> list[LayerAnalysis]:
    """The layers of these numbers; all where there are none."""
    return [each for each in analysis.layers if each.layer in layers] or list(analysis.layers)


def mean(values: Iterable[float]) -> float:
    """The mean of at least one value."""
    told = list(values)
    return math.fsum(told) / len(told)


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that there are, None of none."""
    told = [value for value in values if value is not None]
    return mean(told) if told else None


def verdict(analysis: Analysis, structured: Sequence[int]) -> str:
    """One sentence: how many layers have tile structure, and whether that makes the pattern."""
    total = counted(len(analysis.layers), "layer")
    if not structured:
        return f"No tile structure: the diagonal stands out in none of {total}."
    if len(structured) == len(analysis.layers):
        return f"Tile structure in {where(structured, analysis)}: the model has the pattern."
    told = f"Tile structure in {len(structured)} of {total}"
    if len(runs(structured)) <= NAMED:
        told += f" ({layers_named(structured)})"
    if is_enough(structured, analysis):
        return f"{told}: the model has the pattern."
    return f"{told}, fewer than a quarter: the model does not have the pattern."


def repetition(analysis: Analysis) -> Finding:
    """(a) Do tiles of one layer look alike?"""
    told = [each for each in analysis.layers if each.repetition_mean is not None]
    layers = tuple(each.layer for each in told if _least_repetition(each) > REPEATS)
    if not told:
        sentence = "There is nothing to compare: no two tiles lie on equal lag with any spread inside."
        return Finding("repetition", "Tiles repeat", None, (), sentence)
    seen = [each for each in told if each.layer in layers] or told
    alike, other = mean_of(each.repetition_mean for each in seen), mean_of(each.repetition_elsewhere for each in seen)
    against = "" if other is None else f", those on different lags {share(other)}"
    start = f"in {where(layers, analysis)} tiles look alike" if layers else "in no layer do tiles look alike"
    sentence = capital(f"{start}: those on equal lag correlate {share(alike)} on average{against} (1 is identical).")
    return Finding("repetition", "Tiles repeat", is_enough(layers, analysis), layers, sentence)


def _least_repetition(layer: LayerAnalysis) -> float:
    return (layer.repetition_mean or 0.0) - 2 * (layer.repetition_mean_error or 0.0)


def diagonal(analysis: Analysis, structured: tuple[int, ...]) -> Finding:
    """(b) Does a frame attend to itself more than to others?"""
    seen = chosen(analysis, structured)
    held, chance = mean(each.diagonal for each in seen), seen[0].chance
    ratio = mean(each.ratio for each in seen)
    beside = f"{times(held / chance)} x chance ({chance_of(analysis.grid.frames)})"
    if structured:
        verb = "keeps" if len(structured) == 1 else "keep"
        own = "its" if len(structured) == 1 else "their"
        sentence = (
            f"{capital(where(structured, analysis))} {verb} {share(held)} of {own} mass on the diagonal, {beside} and "
            f"{times(ratio)} x the mean of the other tiles."
        )
    else:
        most = max(analysis.layers, key=lambda each: each.ratio)
        sentence = (
            f"No layer prefers its own frame: the diagonal holds {share(held)} of the mass, {beside}; the highest "
            f"ratio to the other tiles is {most.ratio:.2f} +- {most.ratio_spread:.2f} in layer {most.layer} "
            f"(1 is uniform, structure starts above {RATIO:g})."
        )
    return Finding("diagonal", "The diagonal dominates", is_enough(structured, analysis), structured, sentence)


def far_from(frames: int) -> int:
    """The first of the farther distances: half the video, at least 2 frames."""
    return max(2, math.ceil(frames / 2))


def locality(analysis: Analysis) -> Finding:
    """(c) Does mass fall with the distance between frames?"""
    frames = analysis.grid.frames
    if frames < 3:
        sentence = "Two frames have one distance: whether mass falls with it can't be told."
        return Finding("locality", "Near frames matter more", None, (), sentence)
    start = far_from(frames)
    layers = tuple(
        each.layer for each in analysis.layers if each.by_distance[1] > NEAR * mean(each.by_distance[start:])
    )
    seen = chosen(analysis, layers)
    own, near, far = (
        mean(mean(each.by_distance[part]) for each in seen) for part in (slice(0, 1), slice(1, 2), slice(start, None))
    )
    distance = f"at {start}" if start == frames - 1 else f"at {start} to {frames - 1}"
    start_of = f"in {where(layers, analysis)} mass falls" if layers else "in no layer does mass fall"
    sentence = (
        f"{start_of} with distance: a tile holds {share(own)} on the frame itself, {share(near)} one frame away and "
        f"{share(far)} {distance} (uniform: {chance_of(frames)})"
    )
    differences = [difference for each in seen if (difference := first_differences(analysis, each)) is not None]
    if differences:
        ends = [share(mean(each[place] for each in differences)) for place in (1, frames - 1)]
        sentence += (
            f"; from the first frame's own tile the next one differs by {ends[0]} of its mean and the last by {ends[1]}"
        )
    return Finding("locality", "Near frames matter more", is_enough(layers, analysis), layers, capital(sentence + "."))


def first_differences(analysis: Analysis, layer: LayerAnalysis) -> tuple[float, ...] | None:
    """mean |A[0, j] - A[0, 0]| over mean A[0, 0], for each frame j; None where that tile holds no mass."""
    own = layer.tile_mass[0][0] / analysis.grid.frame_tokens
    return tuple(value / own for value in layer.first_frame_difference) if own > 0 else None


def stability_mass(analysis: Analysis) -> float | None:
    """The share of mass that the sentence speaks of: the least one compared (.9 as a rule), None of none."""
    return min((each.mass for layer in analysis.layers for each in layer.stability), default=None)


def stability_at(layer: LayerAnalysis, between: str, mass: float) -> Stability | None:
    """A layer's stability between prompts, seeds or steps at a share of mass, None where it was not compared."""
    return next((each for each in layer.stability if each.between == between and each.mass == mass), None)


def agrees(found: Stability) -> bool:
    """Whether the positions overlap clearly more than chance."""
    return found.overlap - 2 * (found.error or 0.0) > found.chance_overlap + AGREES * (1 - found.chance_overlap)


def stability(analysis: Analysis) -> Finding:
    """(d) Are the positions that hold the mass the same for other prompts, seeds and steps?"""
    mass = stability_mass(analysis)
    title = "Positions are stable"
    if mass is None:
        sentence = "There is nothing to compare: one prompt, one seed and one step."
        return Finding("stability", title, None, (), sentence)
    told: list[str] = []
    stable = {each.layer for each in analysis.layers}
    for between in BETWEEN:
        found = {each.layer: stability_at(each, between, mass) for each in analysis.layers}
        there = {layer: each for layer, each in found.items() if each is not None}
        if not there:
            continue
        stable -= {layer for layer, each in there.items() if not agrees(each)}
        overlap = share(mean(each.overlap for each in there.values()))
        chance = share(mean(each.chance_overlap for each in there.values()))
        told.append(f"{overlap} {'' if told else 'are the same '}between {between} (chance {chance})")
    layers = tuple(sorted(stable))
    unstable = [each.layer for each in analysis.layers if each.layer not in stable]
    sentence = f"Of the positions that hold {100 * mass:.0f} % of the mass {listed(told)}"
    if not layers:
        sentence += "; no layer is clearly above chance"
    elif unstable:
        sentence += f"; not clearly above chance in {where(unstable, analysis)}"
    return Finding("stability", title, is_enough(layers, analysis), layers, sentence + ".")


def masks(analysis: Analysis, guesses: Mapping[int, str | None]) -> Finding:
    """(e) How much mass would the candidate masks keep?"""
    title = "What masks would keep"
    if not analysis.candidates:
        return Finding("masks", title, None, (), "There is no candidate mask for this number of frames.")
    name = analysis.candidates[0]
    mask = TileMask.parse(name, analysis.grid.frames)
    kept = [each.kept_mass[name] for each in analysis.layers]
    least, most = min(kept), max(kept)
    layers = tuple(each.layer for each in analysis.layers if guesses[each.layer] is not None)
    spread = f", from {share(least)} in layer {analysis.layers[kept.index(least)].layer}"
    spread += f" to {share(most)} in layer {analysis.layers[kept.index(most)].layer}"
    sentence = (
        f"{name} (kept {share(mask.kept_share)} and skipped {share(mask.skipped_share)} of the tiles) would keep "
        f"{share(mean(kept))} of the mass{'' if share(least) == share(most) else spread}; "
        f"of uniform attention it would keep {share(uniform_mass(analysis, name))}. "
        f"The sparsest masks that keep {share(KEPT)} of each layer's mass: {guessed(analysis, guesses)}."
    )
    return Finding("masks", title, None, layers, sentence)


def guessed(analysis: Analysis, guesses: Mapping[int, str | None]) -> str:
    """How many layers each mask is guessed for: "1:7 in 3 layers, 2:6 in 4 layers and no mask in 1 layer"."""
    counts = Counter(guesses.values())
    ordered = [*analysis.candidates, None]
    return listed([f"{name or 'no mask'} in {counted(counts[name], 'layer')}" for name in ordered if counts[name]])
