"""Every knob of every stage: one frozen dataclass a stage, each field with its default and its help, once.

A recipe is read in this order, later ones winning: default < recipe file (YAML) < `--set section.key=value` < flag.
Every value keeps its origin, so that an error can say where it came from. None stands for "the model's own default".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from vdit_cli.knobs import FASTEST, SLOWEST, Section, flat, knob, read, section
from vdit_cli.reader import MOST_LAYERS, MOST_SEED, MOST_SIZE
from vdit_cli.recipe_training import DistillKdOptions, DistillMlcdOptions, TrainShapesOptions

MOST_LOSS = 1e30
"""A squared error is in units of the model's own."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Section):
    """`evdit generate`: a prompt to a video."""

    model: str = knob("shapes", "a registered name, a folder, or owner/name on a hub")
    text_encoder: str | None = knob(None, "folder or hub id of the text encoder, where the model has none inside")
    checkpoint: str | None = knob(
        None, "a training run, or a folder of its, whose transformer or adapter replaces the model's own"
    )
    masks: str = knob(
        "auto",
        "attention masks: a plan file, a run that made one, k:F-k for all layers, or none (full attention); auto is "
        "the plan that lies with the checkpoint or the model, else none",
    )
    allow_other_weights: bool = knob(False, "take a plan that was searched on other weights")
    dense_steps: int = knob(
        0, "of the steps, so many first ones run with full attention, the others under the masks", at_least=0
    )
    lora: tuple[str, ...] = knob(
        (),
        "a LoRA adapter added to the transformer, or :scale of it: a PEFT folder or diffusers' file; may be repeated",
    )
    steps: int | None = knob(None, "denoising steps", at_least=1)
    scheduler: str | None = knob(None, "sampler: ddim, euler-ancestral, dpm++2m, unipc or milestones")
    timesteps: str | None = knob(
        None,
        "where the steps lie: trailing, linspace, leading, or numbers from the noisiest down, 999,749,499,249",
        takes_numbers=True,
    )
    guidance: float | None = knob(None, "strength of classifier-free guidance; 1 is without", at_least=0)
    negative: str | None = knob(None, "what the video should not show", may_be_empty=True)
    seed: int = knob(0, "the first video's noise; video i takes seed + i", at_least=0, at_most=MOST_SEED)
    num: int = knob(1, "videos a prompt", at_least=1)
    batch: int = knob(1, "videos denoised at once", at_least=1, decides=False)
    video_frames: int | None = knob(None, "frames of the video: 4k+1", flag="--frames", at_least=1, at_most=MOST_SIZE)
    height: int | None = knob(None, "pixels, a multiple of 16", at_least=16, at_most=MOST_SIZE)
    width: int | None = knob(None, "pixels, a multiple of 16", at_least=16, at_most=MOST_SIZE)
    fps: Fraction | None = knob(
        None, "frames a second of the file: 24, 23.976 or 24000/1001", at_least=SLOWEST, at_most=FASTEST
    )
    device: str = knob(
        "auto", "auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one, never mps", decides=False
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "numbers of the model; auto suits the device"
    )
    offload: Literal["none", "model", "block"] = knob(
        "none", "keep on the device all, one part, or one block at a time", decides=False
    )
    vae_tiling: bool = knob(
        False, "decode in overlapping tiles: less memory, a little slower, and not the same picture"
    )
    kernel: str = knob(
        "auto", "attention kernel; auto: on a GPU the fastest, measured once, else the first that can", decides=False
    )
    strict: bool = knob(
        False,
        "an error for a kernel fallback (exit 6) and for a prompt that the model can't read (exit 2)",
        decides=False,
    )
    compile: Literal["auto", "blocks", "none"] = knob(
        "auto", "compile the transformer's blocks; auto does on a GPU for long videos, never on the CPU", decides=False
    )
    files: Literal["mp4", "gif", "webp", "png"] = knob(
        "mp4", "what each of several videos is written as; png: a folder of PNGs, whose frames no codec blurs"
    )
    metadata: bool = knob(True, "write prompt, seed and model into the video file")


@dataclass(frozen=True, kw_only=True)
class LookingOptions(Section):
    """What is sampled to look at a model's attention on the way: model, prompts, steps and machine."""

    model: str = knob("shapes", "a registered name, a folder, or owner/name on a hub")
    text_encoder: str | None = knob(None, "folder or hub id of the text encoder, where the model has none inside")
    checkpoint: str | None = knob(
        None, "a training run, or a folder of its, whose transformer or adapter replaces the model's own"
    )
    prompts_file: str | None = knob(
        None, "a UTF-8 file with a prompt a line; without it a default set is taken", decides=False
    )
    num_prompts: int | None = knob(
        None, "prompts, from the first on: 4 of a default set, or all of a file", at_least=1, decides=False
    )
    at: str = knob("0.1,0.5,0.9", "when to look: shares of the sampling steps, 0 the first, 1 the last")
    masks: str = knob("all", "candidate masks k:m with commas between them, or all of the family")
    steps: int | None = knob(None, "denoising steps", at_least=1)
    scheduler: str | None = knob(None, "sampler: ddim, euler-ancestral, dpm++2m, unipc or milestones")
    guidance: float | None = knob(None, "strength of classifier-free guidance; 1 is without", at_least=0)
    video_frames: int | None = knob(None, "frames of the video: 4k+1", flag="--frames", at_least=1, at_most=MOST_SIZE)
    height: int | None = knob(None, "pixels, a multiple of 16", at_least=16, at_most=MOST_SIZE)
    width: int | None = knob(None, "pixels, a multiple of 16", at_least=16, at_most=MOST_SIZE)
    device: str = knob(
        "auto", "auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one, never mps", decides=False
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "numbers of the model; auto suits the device"
    )
    offload: Literal["none", "model", "block"] = knob(
        "none", "keep on the device all, one part, or one block at a time", decides=False
    )


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions(LookingOptions):
    """`evdit analyze`: which tiles a model's attention uses."""

    seeds: str = knob("0,1", "seeds of the noise; all prompts take the first, the first prompt takes all")
    layers: str = knob("all", "layers by number, 0,4-7, or all")
    rows: int | None = knob(None, "query rows sampled a map: 256, or 64 above 4096 tokens", at_least=1)


@dataclass(frozen=True, kw_only=True)
class SearchMasksOptions(LookingOptions):
    """`evdit search-masks`: a tile mask for each layer, chosen by what it changes."""

    seeds: str = knob("0", "seeds of the noise; every prompt takes each")
    masks: str = knob(
        "auto", "candidate masks k:m with commas between them; auto: strides 2, 4, 8, ..., F and divisors of F; all"
    )
    kernel: str = knob("auto", "attention kernel that computes the candidates; auto takes the first that can")
    by: Literal["attention", "relative", "output"] = knob(
        "attention", "score: error of the attention output, that over its power, or error of the model's output"
    )
    r: float = knob(0.1, "keep the sparsest mask of each layer whose score is below r", at_least=0, at_most=MOST_LOSS)
    target_speedup: float | None = knob(
        None, "instead of r: attention that many times cheaper at the least loss", at_least=1
    )
    latency: float | None = knob(
        None, "instead of r: the least loss within these seconds of attention a step; needs costs", at_least=1e-9
    )
    max_loss: float | None = knob(
        None, "instead of r: the cheapest plan whose scores sum up to no more", at_least=0, at_most=MOST_LOSS
    )
    uniform: str | None = knob(None, "instead of r: this mask k:m on every layer")
    fix: str | None = knob(None, "layers whose mask is given, 0=dense,7=4:4; the others are chosen")
    costs: str | None = knob(
        None, "choose by seconds: a cost table, or a run of bench attention, that has the times of the masks"
    )
    costs_at: str | None = knob(
        None, "the seconds of this model's attention, a preset of bench attention; a layer stands for several of its"
    )
    step_rest: float | None = knob(
        None, "seconds of a step beside attention (rest ms of bench model), to foretell a step's speed-up", at_least=0
    )
    sensitivity: str | None = knob(
        None, "a run of search-masks whose table is chosen from again, without a model", decides=False
    )


@dataclass(frozen=True, kw_only=True)
class PrepareDataOptions(Section):
    """`evdit prepare-data`: clips and captions to latents and text states, the data of training."""

    model: str = knob("shapes", "a registered name, a folder, or owner/name on a hub")
    text_encoder: str | None = knob(None, "folder or hub id of the text encoder, where the model has none inside")
    source: str | None = knob(None, "where the clips come from: shapes, the procedural world, drawn from the seed")
    count: int = knob(2000, "clips, from the first on", at_least=1)
    seed: int = knob(0, "of the scenes; none shows a held-out combination", at_least=0, at_most=MOST_SEED)
    two_objects: float = knob(0.25, "share of the scenes of shapes with a second object", at_least=0, at_most=1)
    left_out: float = knob(
        0.15, "share of captions of shapes that leave out a size, a motion or a background", at_least=0, at_most=1
    )
    video_frames: int | None = knob(None, "frames of a clip: 4k+1", flag="--frames", at_least=1, at_most=MOST_SIZE)
    height: int | None = knob(None, "pixels, a multiple of 16", at_least=16, at_most=MOST_SIZE)
    width: int | None = knob(None, "pixels, a multiple of 16", at_least=16, at_most=MOST_SIZE)
    shard_clips: int = knob(64, "clips of a file, which is what an interruption loses at most", at_least=1)
    batch: int | None = knob(
        None, "clips that the VAE encodes at once: 1, or as many as suit a GPU", at_least=1, decides=False
    )
    previews: int = knob(4, "clips decoded back into previews/, to look at", at_least=0, decides=False)
    device: str = knob(
        "auto", "auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one, never mps", decides=False
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "numbers of the model and of the data; auto suits the device"
    )


@dataclass(frozen=True, kw_only=True)
class BenchAttentionOptions(Section):
    """`evdit bench attention`: tile attention against the fastest dense attention of this machine."""

    preset: str = knob("shapes", "a model's attention by name; sizes set beside it win")
    every: bool = knob(False, "measure every table of docs/benchmarks.md, in order", flag="--all")
    table: int | None = knob(None, "measure the rows of a table of the paper (1) and print its figures beside")
    latent_frames: int | None = knob(None, "latent frames, if not the preset's", at_least=2, at_most=MOST_SIZE)
    frame_tokens: int | None = knob(None, "tokens a latent frame, if not the preset's", at_least=1)
    heads: int | None = knob(None, "heads, if not the preset's", at_least=1, at_most=MOST_LAYERS)
    head_dim: int | None = knob(None, "width of a head, if not the preset's", at_least=1)
    text: int | None = knob(None, "text tokens beside the video's, if not the preset's", at_least=0)
    batch: int = knob(1, "videos at once", at_least=1)
    masks: str | None = knob(None, "masks k:m with commas between them, if not the preset's")
    kernels: str = knob("all", "kernels with commas between them, all, or none (shares only, nothing timed)")
    backward: bool = knob(False, "time forward and backward together")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "bfloat16 on a GPU, float32 elsewhere")
    device: str = knob("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU if there is one", decides=False)
    seconds: float | None = knob(
        None, "time spent on each mask's calls once they are warm, if not 1 on a GPU and 0.2 on a CPU", at_least=0
    )
    least_repeats: int = knob(5, "repeats of each call even where they take longer than that", at_least=1)
    seed: int = knob(0, "of the random inputs", at_least=0, at_most=MOST_SEED)


@dataclass(frozen=True, kw_only=True)
class BenchModelOptions(Section):
    """`evdit bench model`: a whole denoising step, dense and under plans, random weights."""

    preset: str = knob("shapes", "open-sora-plan-29, open-sora-plan-93 or shapes; sizes set beside it win")
    plans: str | None = knob(None, "plans with commas between them, k:m or r=.1, if not the preset's")
    guidance: Literal["both", "kept", "distilled"] = knob("both", "two branches a step (kept), one, or both")
    compile: Literal["auto", "both", "blocks", "none"] = knob(
        "auto", "time compiled blocks, eager ones, or both; auto is both on a GPU, eager on the CPU"
    )
    kernel: str = knob(
        "auto",
        "attention kernel; auto: on a GPU the fastest, measured once, else the first that can",
    )
    videos: bool = knob(False, "seconds a video: steps x measured step, one video run whole, VAE and text apart")
    lengths: str | None = knob(None, "latent frames with commas between them, for the time against the length")
    global_frames: int = knob(3, "global frames of the mask at each of the lengths", at_least=1)
    layers: int | None = knob(None, "transformer layers, if not the preset's", at_least=1, at_most=MOST_LAYERS)
    heads: int | None = knob(None, "heads, if not the preset's", at_least=1, at_most=MOST_LAYERS)
    head_dim: int | None = knob(None, "width of a head, a multiple of 6, if not the preset's", at_least=6)
    latent_frames: int | None = knob(None, "latent frames, if not the preset's", at_least=2, at_most=MOST_SIZE)
    frame_tokens: int | None = knob(None, "tokens a latent frame, if not the preset's", at_least=1)
    text_width: int | None = knob(None, "width of the text states, if not the preset's", at_least=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "bfloat16 on a GPU, float32 elsewhere")
    device: str = knob("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU if there is one", decides=False)
    seconds: float = knob(1.0, "time spent on each step once it is warm", at_least=0)
    least_repeats: int = knob(3, "repeats of each step even where they take longer than that", at_least=1)
    seed: int = knob(0, "of weights, noise and text", at_least=0, at_most=MOST_SEED)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Section):
    """`evdit bench`: how fast it is here."""

    attention: BenchAttentionOptions = section(BenchAttentionOptions, "attention alone")
    model: BenchModelOptions = section(BenchModelOptions, "a whole denoising step")


@dataclass(frozen=True, kw_only=True)
class RunOptions(Section):
    """`evdit run`: which stages, in which order, and what all of them share."""

    stages: tuple[str, ...] = knob(
        ("prepare_data", "distill_mlcd", "search_masks", "distill_kd", "generate", "score"),
        "the stages in order, by their sections; score has none",
    )
    model: str = knob("shapes", "the model of every stage whose section names none")
    prompts_file: str | None = knob(None, "a UTF-8 file with a prompt a line: what the videos of generate show")


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """One section a stage; the key of a value is its path, `generate.steps`."""

    generate: GenerateOptions = section(GenerateOptions, "a prompt to a video")
    analyze: AnalyzeOptions = section(AnalyzeOptions, "which tiles a model's attention uses")
    search_masks: SearchMasksOptions = section(SearchMasksOptions, "a tile mask for each layer")
    train_shapes: TrainShapesOptions = section(TrainShapesOptions, "the embedded model from nothing")
    prepare_data: PrepareDataOptions = section(PrepareDataOptions, "clips and captions to data for training")
    distill_mlcd: DistillMlcdOptions = section(DistillMlcdOptions, "a student of few steps")
    distill_kd: DistillKdOptions = section(DistillKdOptions, "a student that is right under its masks")
    bench: BenchOptions = section(BenchOptions, "how fast it is here")
    run: RunOptions = section(RunOptions, "several stages, one after another")

    def resolved(self, name: str) -> dict[str, dict[str, Any]]:
        """Every key of the section `name`, dotted, with its value and its origin ("default" where nothing set it)."""
        return {
            key: {"value": value, "origin": self.origins.get(key, "default")}
            for key, value in flat(getattr(self, name), f"{name}.")
        }


def load(path: Path | str | None = None, sets: Iterable[str] = (), flags: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a file, of `section.key=value` settings and of flags by dotted key (None = not given).

    Raises EvditError (exit 2), with file and line, for an unknown key, a key set twice, a wrong type or a number out
    of its bounds, and for a file that can't be read as UTF-8 YAML.
    """
    return read(Recipe, None if path is None else Path(path), sets, flags or {})
