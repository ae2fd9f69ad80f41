"""`evdit search-masks`: measure what each mask does to each layer, then choose one a layer.

Each prompt and seed is a trajectory whose numbers are a file of the run, so that the same command goes on at the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.backbones.base import TextStates
from vdit_cli.errors import Interrupted
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.sampling.noise import generators_for
from vdit_cli.sampling.peak import out_of_memory_told
from vdit_cli.sampling.plans import fallbacks
from vdit_cli.sampling.sample import sample
from vdit_cli.sampling.taps import Taps
from vdit_cli.sampling.trajectory import read_texts
from vdit_cli.search.plan_choice import Searched, check_not_edited, choose
from vdit_cli.search.preparing import Search, prepare
from vdit_cli.search.sensitivity import FILE, SensitivityTable
from vdit_cli.search.sensitivity_pass import AttentionErrors, OutputErrors, PairNumbers, collected
from vdit_cli.tiles.plan_json import PLAN_FILE
from vdit_cli.timing import Progress, Stopwatch


def search_masks(options: SearchMasksOptions, out: Path | None, progress: Progress) -> Searched:
    """Search a mask for each layer of a model in the run `out`, or read what is there already.

    Without `out` the run is `runs/<date>-search-masks-<model>`. Raises EvditError with the exit code that fits, also
    for a folder made by another model or recipe, and Interrupted when the person asked to stop.
    """
    clock = Stopwatch()
    with clock.phase("load"):
        search = prepare(options, progress)
        run = RunDir.start(out, search.request())
    if run.is_done():
        progress.say(f"{run.path} is done already")
        return choose(SensitivityTable.read(run.find("sensitivity")), options, run.path, search.costs, progress)
    check_not_edited(run.path)
    with run:
        Measuring(search, run.path, clock, progress).at_everything()
        table = put_together(search, run.path)
        found = choose(table, options, run.path, search.costs, progress)
        table.write(run.path / FILE)
        run.add_output("sensitivity", FILE)
        found.plan.write(run.path / PLAN_FILE)
        run.add_output("plan", PLAN_FILE)
    return found


class Measuring:
    """The pairs of prompt and seed that are still to be sampled and measured."""

    def __init__(self, search: Search, folder: Path, clock: Stopwatch, progress: Progress) -> None:
        self.search = search
        self.folder = folder
        self.clock = clock
        self.progress = progress
        self.told: set[str] = set()
        self.left = [place for place in range(len(search.pairs)) if numbers_of(search, folder, place) is None]

    def at_everything(self) -> None:
        """Make the file of every pair that has none. Raises Interrupted, saying how many are finished."""
        search, backbone = self.search, self.search.backbone
        every = len(search.pairs)
        if len(self.left) < every:
            self.progress.say(f"{every - len(self.left)} of {every} trajectories in {self.folder} are done already")
        if not self.left:
            return
        texts, null_text = read_texts(backbone, search.prompts, search.spec.guided, self.clock, self.progress)
        with ExitStack() as stack, out_of_memory_told("denoise", ["--offload model", "--offload block"]):
            with self.clock.phase("load"):
                stack.enter_context(backbone.resident("transformer"))
            self.progress.stage("sampling and trying masks", len(self.left) * (search.steps[-1] + 1))
            while self.left:
                self.measure(self.left[0], texts, null_text)
                del self.left[0]
                if self.left and self.progress.should_stop():
                    raise self.interrupted()

    def measure(self, place: int, texts: list[TextStates], null_text: TextStates | None) -> None:
        """Sample one pair up to the last chosen step and write its numbers. Raises Interrupted."""
        search, backbone = self.search, self.search.backbone
        prompt, seed = divmod(place, len(search.seeds))
        attention = AttentionErrors(search.masks, search.grid, search.options.kernel)
        sites = dict(enumerate(backbone.attention_sites()))
        with Taps(sites, search.steps, search.grid, attention.see, self.progress) as taps:
            output = OutputErrors(backbone, search.spec, taps, attention) if search.sees_output else None
            generators = generators_for([search.seeds[seed]])
            try:
                sample(backbone, search.spec, texts[prompt], null_text, generators, taps, denoise=output)
            except Interrupted as stopped:
                if not taps.is_done:
                    raise self.interrupted() from stopped
        for line in fallbacks(tuple(attention.bound.values()) * len(sites), search.options.kernel):
            if line not in self.told:
                self.told.add(line)
                self.progress.say(f"warning: {line}")
        numbers = collected(attention, output, search.steps, len(sites))
        numbers.write(PairNumbers.file(self.folder, place))

    def interrupted(self) -> Interrupted:
        """What is finished, and that the same command goes on."""
        every = len(self.search.pairs)
        return Interrupted(
            f"stopped: {every - len(self.left)} of {every} trajectories are finished",
            next_steps=["the same command again"],
        )


def numbers_of(search: Search, folder: Path, place: int) -> PairNumbers | None:
    """The numbers of a pair, None where they are still to be made."""
    shape = (len(search.steps), search.backbone.architecture.layers, len(search.masks))
    return PairNumbers.read(PairNumbers.file(folder, place), shape, search.sees_output)


def put_together(search: Search, folder: Path) -> SensitivityTable:
    """The table of all pairs' numbers."""
    found = [numbers_of(search, folder, place) for place in range(len(search.pairs))]
    numbers = [each for each in found if each is not None]
    assert len(numbers) == len(search.pairs), "every pair was measured"
    loss_PSLM = np.array([each.attention for each in numbers])
    power_PSL1 = np.array([each.power for each in numbers])[..., None]
    # A site whose dense output is 0 everywhere loses nothing by any mask.
    relative_PSLM = np.divide(loss_PSLM, power_PSL1, out=np.zeros_like(loss_PSLM), where=power_PSL1 > 0)
    by_score = {"attention": loss_PSLM, "relative": relative_PSLM}
    if search.sees_output:
        by_score["output"] = np.array([each.output for each in numbers])
    return SensitivityTable(
        model=search.options.model,
        backbone=search.backbone.name,
        weights=search.backbone.weights_digest,
        architecture=search.backbone.architecture,
        grid=search.grid,
        masks=search.masks,
        prompts=search.pairs,
        steps=search.steps,
        timesteps=tuple(float(search.timesteps[step]) for step in search.steps),
        losses={name: errors.transpose(2, 3, 0, 1) for name, errors in by_score.items()},
        settings=settings_of(search, numbers[0].kernels),
    )


def settings_of(search: Search, kernels: Mapping[str, str]) -> dict[str, Any]:
    """What else decided the numbers."""
    spec = search.spec
    return {
        "scheduler": spec.scheduler,
        "steps": spec.steps,
        "guidance": spec.guidance,
        "video_frames": spec.video_frames,
        "height": spec.height,
        "width": spec.width,
        "device": str(search.backbone.device),
        "dtype": str(search.backbone.dtype).removeprefix("torch."),
        "kernels": dict(kernels),
    }
