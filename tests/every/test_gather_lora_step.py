"""docs/gather_lora_step.py at a tiny size: the training that really ran, and the next size where one does not fit."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from safetensors.torch import load_file

from tests.every.test_documented_commands import faults, flags_by_command
from tests.every.test_generated import build  # noqa: F401
from vdit_cli.bench.model_sizes import ModelSize
from vdit_cli.cli.app import main
from vdit_cli.errors import FAILED, OUT_OF_MEMORY, EvditError
from vdit_cli.tiles.grid import VideoGrid

ROOT = Path(__file__).resolve().parents[2]
TINY = ModelSize("tiny", 2, 2, 24, VideoGrid(8, 2, 4), 192, (), text_tokens=7)
LARGE, SMALL = (48, 64), (32, 64)


@pytest.fixture
def gather(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import gather_lora_step

    return gather_lora_step


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the tests share: measuring goes on with what is there."""
    return tmp_path_factory.mktemp("full-size")


def in_this_process(words: list[str], **given: object) -> object:
    """The command that the script starts, by the code that this process has loaded: files may be edited meanwhile."""
    assert words[:4] == [sys.executable, "-m", "vdit_cli", "distill-mlcd"]
    return SimpleNamespace(returncode=main(words[3:]))


def test_a_tiny_model_is_trained_and_measured(
    gather: ModuleType,
    made: Path,
    build: ModuleType,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    """By the stage itself: pairs beside the linear layers moved, in bfloat16, activations computed again."""
    monkeypatch.setattr(gather, "subprocess", SimpleNamespace(run=in_this_process))
    content = gather.measure(made, TINY, [SMALL, LARGE], rank=2, iterations=4)
    (row,) = content["tables"]["step"]["rows"]
    assert (row["video"], row["tokens"], row["rank"]) == ("29 x 32 x 64", 8 * 2 * 4, 2)
    assert len(row["each"]) == 2 and row["seconds"] > 0 and row["memory"] > 0.1
    assert content["model"] == {"layers": 2, "heads": 2, "head_dim": 24} and "torch" in content["machine"]
    table = content["tables"]["step"]
    assert "-" not in [build.formatted(row, key, how) for _, key, how in table["columns"]]

    run = made / "runs" / "29x32x64"
    asked = json.loads((run / "run.json").read_text(encoding="utf-8"))["values"]
    wanted = {"batch_size": 1, "lora_rank": 2, "precision": "bfloat16", "teacher_guidance": None, "target": "student"}
    assert wanted.items() <= asked.items()
    receipt = json.loads((run / "receipt.json").read_text(encoding="utf-8"))
    assert receipt["ran"]["dtype"] == "bfloat16" and receipt["peak_memory_bytes"] == row["memory"] * 2**30
    pairs = load_file(run / "student" / "adapter" / "adapter_model.safetensors")
    ups = [pair for name, pair in pairs.items() if "lora_B" in name]
    assert ups and all(pair.any() for pair in ups)
    assert json.loads((made / "model" / "model_index.json").read_text())["evdit"]["defaults"]["guidance"] == 7.5


def test_the_first_steps_are_left_out(gather: ModuleType, tmp_path: Path):
    """The median of the others: of 1, 2 and 4 seconds 2."""
    lines = [{"iterations_per_second": 1 / seconds} for seconds in (50, 9, 1, 4, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    (tmp_path / "receipt.json").write_text(json.dumps({"peak_memory_bytes": 3 * 2**29}), encoding="utf-8")
    assert gather.figures(tmp_path) == {"seconds": statistics.median([1, 2, 4]), "each": [1, 4, 2], "memory": 1.5}


def test_a_size_that_does_not_fit_is_told_and_the_next_one_measured(
    gather: ModuleType, made: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another failure ends it, and so does no size at all."""
    test = SimpleNamespace(code=OUT_OF_MEMORY)

    def stand_in(words: list[str], **given: object) -> object:
        full = "29x48x64" in words[words.index("-o") + 1]
        return SimpleNamespace(returncode=test.code) if full else in_this_process(words)

    monkeypatch.setattr(gather, "subprocess", SimpleNamespace(run=stand_in))
    rows = gather.measure(made, TINY, [LARGE, SMALL], rank=2, iterations=4)["tables"]["step"]["rows"]
    assert [(row["video"], row["tokens"], "seconds" in row) for row in rows] == [
        ("29 x 48 x 64", 96, False),
        ("29 x 32 x 64", 64, True),
    ]
    with pytest.raises(EvditError, match="not even 29 x 48 x 64 fits"):
        gather.measure(made, TINY, [LARGE], rank=2, iterations=4)
    test.code = FAILED
    with pytest.raises(EvditError, match="exit 1 of evdit distill-mlcd"):
        gather.measure(made, TINY, [LARGE, SMALL], rank=2, iterations=4)


def test_full_size_is_the_releases(gather: ModuleType):
    """32 layers of 24 heads x 96, 29 frames of 720p first; the command has the flags that it names."""
    assert (gather.FULL.layers, gather.FULL.heads, gather.FULL.head_dim) == (32, 24, 96)
    assert gather.SIZES[0] == (720, 1280) and sorted(gather.SIZES, reverse=True) == list(gather.SIZES)
    words = gather.step_command(Path("m"), Path("d"), Path("r"), 64, 8)
    assert faults(" ".join(words[1:]), flags_by_command()) == []
    assert {"distill_mlcd.gradient_checkpointing=true", "distill_mlcd.batch_size=1"} <= set(words)
