"""Files of ours and of models, each damaged as a seed draws it, under every command that reads them.

Whatever was damaged: the command ends, with a documented exit code that is never "internal", shows no trace, names the
damaged file where it refuses, and no file of others is lost or changed. `make fuzz` runs all, the suite a fifth.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distillation.prepared import write_data
from tests.tiny_pipeline import write_pipeline
from vdit_cli.cli.app import main
from vdit_cli.tiles.plan import MaskPlan

SEEDS, SEEDS_OF_THE_SUITE = 300, 60
LONGEST = 30
"""Seconds that a command may take on any input; one that has no end is what this finds."""
CODES = {0, 2, 3, 4, 6}
MODEL = ("--model", "model", "--device", "cpu")
SMALL = ("--set", "distill_mlcd.iterations=1", "--set", "distill_mlcd.batch_size=2", "--set", "distill_mlcd.previews=0")
WHAT = "a small red circle"
Content = dict[str, Any]


@dataclass(frozen=True)
class Use:
    """A command of quick ones, and the files that it reads."""

    words: tuple[str, ...]
    files: tuple[str, ...]


PARTS = ("transformer", "vae", "text_encoder", "scheduler", "tokenizer")
CONFIGS = (
    "model/model_index.json",
    "model/transformer/config.json",
    "model/vae/config.json",
    "model/text_encoder/config.json",
    "model/scheduler/scheduler_config.json",
    "model/tokenizer/tokenizer_config.json",
)
WEIGHTS = tuple(f"model/{part}/*.safetensors" for part in PARTS[:3])
GENERATE = ("generate", WHAT, *MODEL, "--steps", "1")
USES = {
    "masks show": Use(("masks", "show", "plan.json"), ("plan.json",)),
    "masks show run": Use(("masks", "show", "masks"), ("masks/plan.json", "masks/run.json")),
    "masks seal": Use(("masks", "seal", "edited.json"), ("edited.json",)),
    "masks relax": Use(
        ("masks", "relax", "plan.json", "--layer", "0", "--to", "1:2", "-o", "out.json"), ("plan.json",)
    ),
    "masks retarget": Use(("masks", "retarget", "plan.json", "--frames", "17", "-o", "out.json"), ("plan.json",)),
    "masks pareto": Use(("masks", "pareto", "masks"), ("masks/sensitivity.json", "masks/run.json")),
    "search again": Use(("search-masks", "--sensitivity", "masks", "-o", "out"), ("masks/sensitivity.json",)),
    "generate": Use((*GENERATE, "-o", "out.gif"), (*CONFIGS, *WEIGHTS)),
    "generate under a plan": Use((*GENERATE, "--masks", "plan.json", "-o", "out.gif"), ("plan.json",)),
    "generate by a recipe": Use((*GENERATE, "--config", "recipe.yaml", "-o", "out.gif"), ("recipe.yaml",)),
    "generate prompts": Use(
        ("generate", "--prompts-file", "prompts.txt", *MODEL, "--steps", "1", "-o", "out"), ("prompts.txt",)
    ),
    "generate by a student": Use(
        ("generate", WHAT, *MODEL, "--checkpoint", "student", "-o", "out.gif"),
        ("student/run.json", "student/student/sampler.json", "student/student/*.safetensors"),
    ),
    "generate on": Use(
        ("generate", WHAT, "a large square", *MODEL, "--steps", "1", "-o", "videos"),
        ("videos/run.json", "videos/0000-*.json", "videos/0001-*.mp4", "videos/receipt.json"),
    ),
    "score": Use(
        ("score", "videos", "-o", "out.jsonl"), ("videos/0000-*.json", "videos/0000-*.mp4", "videos/run.json")
    ),
    "score on": Use(("score", "videos", "-o", "readings.jsonl"), ("readings.jsonl",)),
    "compare": Use(("compare", "videos", "videos", "-o", "out.gif"), ("videos/0001-*.mp4", "videos/0001-*.json")),
    "analyze on": Use(
        ("analyze", *MODEL, "--num-prompts", "1", "--at", "0", "--steps", "1", "-o", "analysis"),
        ("analysis/run.json", "analysis/analysis.json", "analysis/**/*.safetensors"),
    ),
    "status": Use(("status", "student"), ("student/run.json", "student/metrics.jsonl")),
    "distill": Use(
        ("distill-mlcd", *MODEL, "--data", "data", "--steps", "2", *SMALL, "-o", "out"),
        ("data/index.json", "data/shards/0.safetensors", "data/shards/1.safetensors"),
    ),
    "distill on": Use(
        ("distill-mlcd", *MODEL, "--data", "data", "--steps", "2", *SMALL, "-o", "student"),
        ("student/run.json", "student/metrics.jsonl", "student/checkpoints/*/*", "data/index.json"),
    ),
}
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**15,
    10**400,
    "",
    "x" * 20_000,
    "\ud800",
    [],
    {},
    [[1]],
    "../../x",
)


def bytes_flipped(content: bytes, draw: random.Random) -> bytes:
    """Another byte at up to three places."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        if changed:
            changed[draw.randrange(len(changed))] ^= draw.randint(1, 255)
    return bytes(changed)


def value_swapped(content: bytes, draw: random.Random) -> bytes:
    """Another value, or none, at a place of the JSON; of other content a line twice."""
    try:
        document = json.loads(content)
    except ValueError:
        lines = content.splitlines(keepends=True) or [b""]
        return b"".join([*lines, draw.choice(lines)])
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        at = waiting.pop()
        keys = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
        places += [(at, key) for key in keys]
        waiting += [at[key] for key in keys]
    if not places:
        return b"[]"
    inside, key = draw.choice(places)
    if draw.random() < 0.2:
        del inside[key]
    else:
        inside[key] = draw.choice(VALUES)
    return json.dumps(document).encode()


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda content, draw: content[: draw.randrange(len(content) or 1)],
    "flipped": bytes_flipped,
    "swapped": value_swapped,
    "swapped again": value_swapped,
    "nested": lambda content, draw: b"[" * 50_000 + b"]" * 50_000,
    "a key twice": lambda content, draw: content.rstrip()[:-1] + b', "digest": 1, "digest": 2}',
    "zeros": lambda content, draw: bytes(len(content)),
    "other text": lambda content, draw: "\ufeffé\n: [".encode("utf-16"),
}
PLACES: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "no end": lambda path: path.symlink_to("/dev/zero"),
    "very large": lambda path: path.touch() or os.truncate(path, 1 << 27),
    "gone": lambda path: None,
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands read, made by them."""
    folder = tmp_path_factory.mktemp("files")
    write_pipeline(folder / "model")
    write_data(folder / "data", folder / "model")
    (folder / "recipe.yaml").write_text("generate:\n  steps: 1\n  seed: 3\n  guidance: 2.0\n", encoding="utf-8")
    (folder / "prompts.txt").write_text(f"{WHAT}\na green square\n", encoding="utf-8")
    with standing_in(folder):
        for words in (
            ("search-masks", *MODEL, "--num-prompts", "1", "--at", "0", "--steps", "1", "-o", "masks"),
            ("generate", WHAT, "a large square", *MODEL, "--steps", "1", "-o", "videos"),
            ("analyze", *MODEL, "--num-prompts", "1", "--at", "0", "--steps", "1", "-o", "analysis"),
            ("distill-mlcd", *MODEL, "--data", "data", "--steps", "2", *SMALL, "-o", "student"),
            ("score", "videos", "-o", "readings.jsonl"),
        ):
            assert main(words) == 0, words
    shutil.copy(folder / "masks" / "plan.json", folder / "plan.json")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    (folder / "edited.json").write_text(json.dumps({**plan, "digest": "0" * 64}), encoding="utf-8")
    MaskPlan.read(folder / "plan.json")
    return folder


@contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    """With `folder` as the one that relative places begin at."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def ending() -> Iterator[None]:
    """Raise TimeoutError in what takes longer than LONGEST."""

    def over(*_: object) -> None:
        raise TimeoutError(f"no end within {LONGEST} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def state(folder: Path) -> Mapping[str, str]:
    """What stands where: a file by its digest, anything else by its kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            found[name] = f"{path.lstat().st_mode:o}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.skipif(os.name != "posix", reason="pipes and alarms of POSIX")
@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=() if n < SEEDS_OF_THE_SUITE else (pytest.mark.fuzz,)) for n in range(SEEDS)]
)
def test_a_damaged_file_costs_nobody_anything(seed: int, world: Path, tmp_path: Path, evdit):
    draw = random.Random(seed)
    use = USES[list(USES)[seed % len(USES)]]
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    [pattern] = draw.sample(use.files, 1)
    path = draw.choice(sorted(each for each in folder.glob(pattern) if each.is_file()))
    damage = draw.choice([*BYTES] * 2 + [*PLACES])
    content = path.read_bytes()
    if damage in BYTES:
        path.write_bytes(BYTES[damage](content, draw))
    else:
        path.unlink()
        PLACES[damage](path)
    before = state(folder)
    with standing_in(folder), ending():
        code, out, err = evdit(*use.words)
    case = f"{seed}: {' '.join(use.words)}, {path.relative_to(folder)} {damage}\n{out[-500:]}{err[-3000:]}"
    assert code in CODES and "Traceback" not in err and "internal" not in err, case
    after = state(folder)
    own = (
        (*(word for word in use.words if word.startswith("out")), *use.words[use.words.index("-o") + 1 :][:1])
        if "-o" in use.words
        else ()
    )
    lost = [name for name, told in before.items() if after.get(name) != told and name.split("/")[0] not in own]
    assert [name for name in lost if name != "edited.json"] == [], case
    if code:
        assert "error:" in err and path.name.split(".")[0] in err + str(path), case
