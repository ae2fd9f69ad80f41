"""`evdit analyze`: sample, look at the attention on the way, and write down what was found.

Each prompt and seed is a trajectory whose numbers are a file of the run, so that the same command goes on at the next.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from vdit_cli.analysis.findings import Findings, findings
from vdit_cli.analysis.preparing import Study, prepare
from vdit_cli.analysis.report import write_report
from vdit_cli.analysis.results import FILE, Analysis, Sample, Settings
from vdit_cli.analysis.statistics import Everything, Layer
from vdit_cli.analysis.trajectory import Collected, Trajectory
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.receipt import this_machine, versions
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.backbones.base import TextStates
from vdit_cli.errors import Interrupted
from vdit_cli.reader import kept, read
from vdit_cli.recipe import AnalyzeOptions
from vdit_cli.sampling.noise import generators_for
from vdit_cli.sampling.peak import PeakMemory, out_of_memory_told
from vdit_cli.sampling.sample import sample
from vdit_cli.sampling.taps import Shown, Taps, site_names
from vdit_cli.sampling.trajectory import read_texts
from vdit_cli.timing import Progress, Stopwatch

SITES_FILE = "sites.json"


@dataclass(frozen=True)
class Analyzed:
    """A finished analysis, what was found in it, and the run folder that holds it."""

    folder: Path
    analysis: Analysis
    findings: Findings


def analyze(options: AnalyzeOptions, out: Path | None, progress: Progress) -> Analyzed:
    """Analyse a model's attention in the run `out`, or read the analysis that is there already.

    Without `out` the run is `runs/<date>-analyze-<model>`. Raises EvditError with the exit code that fits, also for a
    folder made by another model or recipe, and Interrupted when the person asked to stop.
    """
    clock = Stopwatch()
    with clock.phase("load"):
        study = prepare(options, progress)
        run = RunDir.start(out, study.request())
    if run.is_done():
        progress.say(f"{run.path} is done already")
        analysis = Analysis.read(run.find("analysis"))
        return Analyzed(run.path, analysis, findings(analysis))
    with run:
        Looking(study, run.path, clock, progress).at_everything()
        progress.stage("putting it together", len(study.layers))
        analysis = put_together(study, run.path, progress)
        analysis.write(run.path / FILE)
        run.add_output("analysis", FILE)
        found = findings(analysis)
        run.add_output("report", write_report(analysis, found, run.path).name)
    for trajectory in study.trajectories:
        # Large, and of no use once they have been compared.
        trajectory.positions_file(run.path).unlink(missing_ok=True)
    return Analyzed(run.path, analysis, found)


class Looking:
    """The trajectories that are still to be sampled and seen."""

    def __init__(self, study: Study, folder: Path, clock: Stopwatch, progress: Progress) -> None:
        self.study = study
        self.folder = folder
        self.clock = clock
        self.progress = progress
        self.left = [each for each in study.trajectories if not each.is_done(folder)]

    def at_everything(self) -> None:
        """Make the file of every trajectory that has none. Raises Interrupted, saying how many are finished."""
        done = len(self.study.trajectories) - len(self.left)
        if done:
            self.progress.say(
                f"{done} of {len(self.study.trajectories)} trajectories in {self.folder} are done already"
            )
        if not self.left and has_names(self.folder):
            return
        backbone = self.study.backbone
        with PeakMemory(backbone.device) as memory:
            texts, null_text = read_texts(
                backbone, self.study.prompts, self.study.spec.guided, self.clock, self.progress
            )
            with ExitStack() as stack, out_of_memory_told("denoise", ["--offload model", "--offload block"]):
                with self.clock.phase("load"):
                    stack.enter_context(backbone.resident("transformer"))
                    names = site_names(backbone, backbone.attention_sites())
                    write_json(self.folder / SITES_FILE, {str(i): names[i] for i in self.study.layers})
                self.progress.stage("sampling and looking", len(self.left) * (self.study.steps[-1] + 1))
                while self.left:
                    self.look(self.left[0], texts, null_text, memory)
                    del self.left[0]
                    if self.progress.should_stop():
                        raise self.interrupted()

    def look(
        self, trajectory: Trajectory, texts: list[TextStates], null_text: TextStates | None, memory: PeakMemory
    ) -> None:
        """Sample one trajectory up to the last chosen step and write what was seen. Raises Interrupted."""
        study, backbone = self.study, self.study.backbone
        collected = Collected(study.rows, study.layers, study.steps, trajectory.keeps_positions)

        def see(layer: int, step: int, shown: Shown) -> None:
            collected.see(layer, step, shown[0][0], shown[1][0])

        every = backbone.attention_sites()
        sites = {layer: every[layer] for layer in study.layers}
        generators = generators_for([study.seeds[trajectory.seed]])
        with self.clock.phase("denoise"), Taps(sites, study.steps, study.grid, see, self.progress) as taps:
            try:
                sample(backbone, study.spec, texts[trajectory.prompt], null_text, generators, taps)
            except Interrupted as stopped:
                if not taps.is_done:
                    raise self.interrupted() from stopped
        seconds = dict(self.clock.seconds)
        seconds["denoise"] -= collected.clock.seconds["statistics"]
        # Loading and text count once, with the first trajectory of this start.
        self.clock.seconds.clear()
        collected.write(trajectory, self.folder, seconds, memory.read())

    def interrupted(self) -> Interrupted:
        """What is finished, and that the same command goes on."""
        every = len(self.study.trajectories)
        return Interrupted(
            f"stopped: {every - len(self.left)} of {every} trajectories are finished",
            next_steps=["the same command again"],
        )


def put_together(study: Study, folder: Path, progress: Progress) -> Analysis:
    """The analysis from the files of all trajectories. Raises Interrupted between layers."""
    names = read_names(folder)
    everything = Everything(folder, study.trajectories, len(study.steps), study.rows)
    layers = []
    for place, number in enumerate(study.layers):
        if progress.should_stop():
            raise Interrupted("stopped: all trajectories are finished", next_steps=["the same command again"])
        site = names.get(str(number), f"layer {number}")
        layers.append(everything.analysed(Layer(place, number, site), study.candidates))
        progress.advance()
    seconds: dict[str, float] = {}
    for each in everything.numbers:
        for phase, spent in each.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    return Analysis(
        model=study.options.model,
        backbone=study.backbone.name,
        weights=study.backbone.weights_digest,
        grid=study.grid,
        settings=settings_of(study, everything.numbers[0].kernel),
        samples=tuple(
            Sample(each.prompt, each.seed, step) for each in study.trajectories for step in range(len(study.steps))
        ),
        candidates=tuple(study.candidates),
        layers=tuple(layers),
        seconds=seconds,
        peak_memory_bytes=max(each.peak for each in everything.numbers),
    )


def has_names(folder: Path) -> bool:
    """Whether the names of the sites are there and can be read; else they are made again."""
    return kept(dict[str, str], folder / SITES_FILE, "file of sites") is not None


def read_names(folder: Path) -> dict[str, str]:
    """The names of the sites, as the start that loaded the model wrote them down. Raises EvditError for other files."""
    return read(dict[str, str], folder / SITES_FILE, "file of sites")


def settings_of(study: Study, kernel: str) -> Settings:
    """What was run."""
    device = study.backbone.device
    accelerators = (torch.cuda.get_device_name(device),) if device.type == "cuda" else ()
    return Settings(
        prompts=study.prompts,
        seeds=study.seeds,
        at=study.at,
        steps_seen=study.steps,
        timesteps=tuple(float(study.timesteps[step]) for step in study.steps),
        scheduler=study.spec.scheduler,
        steps=study.spec.steps,
        guidance=study.spec.guidance,
        video_frames=study.spec.video_frames,
        height=study.spec.height,
        width=study.spec.width,
        rows=study.rows.rows,
        device=str(device),
        dtype=str(study.backbone.dtype).removeprefix("torch."),
        kernel=kernel,
        command=study.command(),
        versions=versions(),
        machine=this_machine(accelerators),
    )
