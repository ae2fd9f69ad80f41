"""The whole path of recipes/shapes.yaml in seconds: a tiny model, few clips, few iterations."""

from __future__ import annotations

from pathlib import Path

from tests.tiny_pipeline import write_pipeline

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "shapes.yaml"
CLIPS = ("count=16", "shard_clips=8", "previews=0", "height=32", "width=32", "video_frames=9")
TRAINING = ("iterations=3", "batch_size=2", "held_out=2", "previews=0", "warmup=1", "log_every=1", "checkpoint_every=1")
SETS = {
    "prepare_data": CLIPS,
    "distill_mlcd": (*TRAINING, "teacher_points=[2,5]"),
    "search_masks": ("num_prompts=2", "at=0,1", "r=1000"),
    "distill_kd": TRAINING,
    "generate": ("batch=1",),
}
STAGES = ("prepare-data", "distill-mlcd", "search-masks", "distill-kd", "generate", "score")
PROMPTS = ("a small red circle", "a large blue square moving left")


def write_inputs(folder: Path) -> list[str]:
    """A model and prompts in `folder`, and the words of `evdit run` on them, in the run `run` of the current folder."""
    model = write_pipeline(folder / "model", width=32)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    sets = [f"run.model={model}", f"run.prompts_file={folder / 'prompts.txt'}"]
    sets += [f"{section}.{each}" for section, found in SETS.items() for each in (*found, "device=cpu")]
    return ["run", str(RECIPE), "-o", "run", *(word for each in sets for word in ("--set", each))]
