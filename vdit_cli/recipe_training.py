"""The sections of a recipe that train: every loop's own knobs, the model `shapes`, and the student of few steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vdit_cli.knobs import Section, knob, section
from vdit_cli.reader import MOST_LAYERS, MOST_SEED, MOST_SIZE

MOST_TRAINED = 100
"""Layers of `shapes`, whose training takes as long as they are many [ours; twelve times its own]."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Section):
    """What every training loop has: its length, its rates, its averaging and its checkpoints."""

    iterations: int = knob(5000, "optimiser steps", at_least=1)
    batch_size: int = knob(16, "clips a step", at_least=1)
    learning_rate: float = knob(1e-4, "peak learning rate", at_least=0)
    warmup: int = knob(100, "steps to reach the peak", at_least=0)
    flat_share: float = knob(0.3, "share of the steps before the rate begins to fall", at_least=0, at_most=1)
    final_share: float = knob(0.01, "share of the peak rate at the end", at_least=0, at_most=1)
    average_keep: float = knob(0.999, "decay of the averaged weights, which are what is kept", at_least=0, at_most=1)
    clip: float = knob(1.0, "largest norm of a step's gradient", at_least=0)
    checkpoint_every: int = knob(500, "steps between checkpoints", at_least=1)
    keep_last: int = knob(2, "checkpoints that stay on the disk", at_least=1, decides=False)
    log_every: int = knob(20, "steps averaged in a line of metrics.jsonl", at_least=1, decides=False)


@dataclass(frozen=True, kw_only=True)
class RankedTrainingOptions(TrainingOptions):
    """What a training has whose batches may be split over ranks and parts, besides its length and rates."""

    tensorboard: bool = knob(False, "write the metrics for TensorBoard too (extra [train])", decides=False)
    accumulation: int = knob(
        1,
        "parts that a rank computes its clips in, one by one; more of them need less memory",
        at_least=1,
        decides=False,
    )
    gradient_checkpointing: bool = knob(
        False, "compute blocks again in the backward pass: less memory, more time", decides=False
    )
    precision: Literal["auto", "float32", "bfloat16"] = knob(
        "auto", "numbers of matrix products; auto is what accelerate was told, else bfloat16 on a GPU"
    )
    adam: Literal["adamw", "adamw-8bit", "adamw-8bit-paged"] = knob(
        "adamw", "optimiser's states: whole, of 8 bits, or those where the CPU's memory helps out (extra [train])"
    )
    shard: Literal["none", "full"] = knob(
        "none", "of several ranks, each holds the whole model (none) or a share of it (full)", decides=False
    )


@dataclass(frozen=True, kw_only=True)
class ShapesVaeOptions(TrainingOptions):
    """The video autoencoder of `shapes`: its size and its training."""

    iterations: int = knob(7000, "optimiser steps", at_least=1)
    batch_size: int = knob(4, "clips a step", at_least=1)
    learning_rate: float = knob(1e-3, "peak learning rate", at_least=0)
    average_keep: float = knob(0.995, "decay of the averaged weights, which are what is kept", at_least=0, at_most=1)
    two_objects: float = knob(0.4, "share of clips with a second object", at_least=0, at_most=1)
    edge_weight: float = knob(0.5, "weight of the loss on differences between neighbours", at_least=0)
    kl_weight: float = knob(1e-4, "weight of the divergence from a normal distribution", at_least=0)
    hidden_size: int = knob(32, "channels of the first level", at_least=1)
    hidden_size_mult: tuple[int, ...] = knob((1, 2, 3, 3), "channels of each level, as multiples of the first")
    norm_groups: int = knob(8, "groups of the group norms", at_least=1)
    measured_clips: int = knob(512, "unseen clips that normalise the latents and measure the PSNR", at_least=2)


@dataclass(frozen=True, kw_only=True)
class ShapesTextOptions(TrainingOptions):
    """The text encoder of `shapes`: its size and its training."""

    iterations: int = knob(1000, "optimiser steps", at_least=1)
    batch_size: int = knob(128, "captions a step", at_least=1)
    learning_rate: float = knob(1e-3, "peak learning rate", at_least=0)
    average_keep: float = knob(0.99, "decay of the averaged weights, which are what is kept", at_least=0, at_most=1)
    left_out: float = knob(
        0.15, "share of captions that leave out a size, a motion or a background", at_least=0, at_most=1
    )
    layers: int = knob(2, "layers", at_least=1, at_most=MOST_TRAINED)
    width: int = knob(192, "width, a multiple of 6", at_least=6, at_most=MOST_SIZE)
    length: int = knob(32, "tokens of a prompt, padding included", at_least=1)


@dataclass(frozen=True, kw_only=True)
class ShapesTransformerOptions(TrainingOptions):
    """The transformer of `shapes`: its size and its training."""

    iterations: int = knob(7500, "optimiser steps", at_least=1)
    batch_size: int = knob(256, "latent clips a step", at_least=1)
    learning_rate: float = knob(1.5e-3, "peak learning rate", at_least=0)
    warmup: int = knob(300, "steps to reach the peak", at_least=0)
    two_objects: float = knob(0.5, "share of clips with a second object", at_least=0, at_most=1)
    left_out: float = knob(
        0.15, "share of captions that leave out a size, a motion or a background", at_least=0, at_most=1
    )
    time_rate: float = knob(
        0.3,
        "share of the rate for what turns the time into scales and gates, which full ones can throw off",
        at_least=0,
    )
    low_noise: float = knob(
        0.3,
        "noise below which an error of v weighs less, by (sigma / this)^2; 0: all weigh alike",
        at_least=0,
        at_most=1,
    )
    prompt_dropout: float = knob(0.1, "share of clips whose prompt is blanked, for guidance", at_least=0, at_most=1)
    clips: int = knob(32768, "encoded clips held in memory, a multiple of fresh_clips", at_least=1)
    fresh_clips: int = knob(64, "clips encoded anew each time", at_least=1)
    fresh_every: int = knob(16, "steps between fresh clips", at_least=1)
    layers: int = knob(8, "transformer layers", at_least=1, at_most=MOST_TRAINED)
    heads: int = knob(6, "attention heads", at_least=1, at_most=MOST_LAYERS)
    head_dim: int = knob(48, "width of a head, a multiple of 6", at_least=6)


@dataclass(frozen=True, kw_only=True)
class TrainShapesOptions(Section):
    """`evdit train-shapes`: the embedded model from nothing."""

    seed: int = knob(0, "of data, initial weights and noise", at_least=0, at_most=MOST_SEED)
    device: str = knob(
        "auto", "auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one, never mps", decides=False
    )
    vae: ShapesVaeOptions = section(ShapesVaeOptions, "the autoencoder")
    text: ShapesTextOptions = section(ShapesTextOptions, "the text encoder")
    transformer: ShapesTransformerOptions = section(ShapesTransformerOptions, "the transformer")


@dataclass(frozen=True, kw_only=True)
class StudentOptions(RankedTrainingOptions):
    """What the distillations share: models, masks, data, what is trained of the student, and how it is watched."""

    SECTION: ClassVar[str]
    """The recipe's section, by which errors name a knob."""

    model: str = knob("shapes", "the teacher: a registered name, a folder, or owner/name on a hub")
    text_encoder: str | None = knob(None, "folder or hub id of the text encoder, where the model has none inside")
    checkpoint: str | None = knob(None, "a run whose student (of more steps) starts this one; else the teacher does")
    masks: str = knob(
        "auto",
        "masks that the student wears: a plan file, a run that made one, k:F-k, or none (full attention); auto is the "
        "plan that lies with the checkpoint or the model, else none",
    )
    allow_other_weights: bool = knob(False, "take a plan that was searched on other weights")
    data: str | None = knob(None, "a folder of encoded clips, as evdit prepare-data makes them")
    clips: int | None = knob(
        None, "train on so many of them, the first ones; without it on all that are not held out", at_least=1
    )
    null_share: float = knob(0.1, "share of the captions emptied where guidance is kept", at_least=0, at_most=1)
    lora_rank: int = knob(0, "rank of LoRA pairs beside the blocks' linear layers; 0 trains all weights", at_least=0)
    muon_rate: float = knob(
        0.0,
        "peak learning rate of Muon, which then moves the matrices of the blocks; 0: AdamW moves them too",
        at_least=0,
    )
    held_out: int = knob(
        16,
        "clips not trained on, whose loss stands in metrics.jsonl; at most an eighth of the data; 0 is none",
        at_least=0,
    )
    previews: int = knob(
        4,
        "videos made at step 0 and at each checkpoint, and watched for collapse; 0 is none",
        at_least=0,
        decides=False,
    )
    collapse_factor: float = knob(
        4.0, "stop where sharpness, motion or the gap to the teacher is off by this factor", at_least=1
    )
    seed: int = knob(0, "of data order, times and noise", at_least=0, at_most=MOST_SEED)
    device: str = knob(
        "auto", "auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one, never mps", decides=False
    )
    kernel: str = knob("auto", "attention kernel of the masks; auto takes the first that can", decides=False)
    compile: Literal["auto", "blocks", "none"] = knob(
        "auto", "compile the transformers' blocks; auto does on a GPU", decides=False
    )


@dataclass(frozen=True, kw_only=True)
class DistillMlcdOptions(StudentOptions):
    """`evdit distill-mlcd`: a student of few steps by multi-step latent consistency distillation."""

    SECTION = "distill_mlcd"

    steps: str = knob("20", "steps of the student; several, as in 20,8,4,2: each student starts the next")
    iterations: int = knob(2000, "optimiser steps of each student", at_least=1)
    average_keep: float = knob(0.98, "decay of the averaged weights, which are what is kept", at_least=0, at_most=1)
    teacher_points: tuple[int, ...] = knob((2, 5, 25), "steps of the teacher in each of the student's, coarse to fine")
    teacher_shares: tuple[float, ...] = knob((), "share of the iterations for each of them; empty: alike")
    teacher_substeps: int = knob(
        1, "steps of second order that the teacher takes from a point to the next, each of them a run of it", at_least=1
    )
    teacher_reuse: int = knob(
        1,
        "iterations that learn from a batch, its noise and the teacher's answers, 64 batches in turn; 1: all are new",
        at_least=1,
    )
    truth_steps: int = knob(
        0,
        "steps of the teacher in each segment that the finished student's one is held against, on held-out clips; "
        "0: it is not",
        at_least=0,
    )
    milestones: tuple[int, ...] = knob(
        (), "where the student's steps begin, noisiest first, as in [999,749,499,249]; empty: even"
    )
    segment_shares: tuple[float, ...] = knob(
        (), "share of the samples for each step, noisiest first, as in [1,1,1,2]; empty: alike"
    )
    guidance: Literal["distilled", "kept"] = knob(
        "distilled", "distilled: the student needs no null branch, half the work a step; kept: it is still guided"
    )
    teacher_guidance: float | None = knob(None, "guidance that is distilled in, or that a kept one is sampled with")
    target: Literal["student", "average"] = knob(
        "student", "whose answer below is aimed at: the student's own, or a moving average's"
    )
    weight_cap: float = knob(
        5.0, "most that an error in x0 weighs: min(SNR + 1, this), times alpha for eps", at_least=0
    )
    huber_c: float = knob(1e-3, "errors below it count squared, above it by their size", at_least=1e-8)


@dataclass(frozen=True, kw_only=True)
class DistillKdOptions(StudentOptions):
    """`evdit distill-kd`: a student that is right under its masks, taught by itself without them."""

    SECTION = "distill_kd"

    model: str = knob("shapes", "the model: a registered name, a folder, or owner/name on a hub")
    checkpoint: str | None = knob(
        None, "a run whose student, or the folder of an adapter, is both teacher and start; else the model is"
    )
    masks: str = knob(
        "auto",
        "masks that the student learns to wear: a plan file, a run that made one, or k:F-k; auto is the plan that lies "
        "with the checkpoint or the model; the teacher has full attention",
    )
    iterations: int = knob(1000, "optimiser steps", at_least=1)
    average_keep: float = knob(0.98, "decay of the averaged weights, which are what is kept", at_least=0, at_most=1)
    attention_weight: float = knob(1.0, "weight of the masked layers' attention outputs in the loss", at_least=0)
    hidden_weight: float = knob(1.0, "weight of all blocks' outputs in the loss", at_least=0)
    output_weight: float = knob(1.0, "weight of the network's output in the loss", at_least=0)
    null_share: float = knob(0.1, "share of the captions emptied where the student is guided", at_least=0, at_most=1)
