"""Every kind of file that is read, damaged in every way: told with file, key and what it must be, and nothing else.

A row a test: a kind of file by a kind of damage to all of it, each key by each wrong value, and what single keys say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_shards import write as write_clips
from tests.search.test_sensitivity import TABLE as SENSITIVITY
from tests.tiles.test_plan import PLAN
from tests.tiny_pipeline import write_pipeline
from vdit_cli.analysis.analyze import SITES_FILE, read_names
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.receipt import Ran, Receipt
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.attention.costs import CostTable, Machine
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.data.shards import open_data
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.reader import read
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.search.sensitivity_pass import PairNumbers
from vdit_cli.tiles.plan import MaskPlan


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name in a folder, what writes a whole one there, and what reads it."""

    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def write_run(folder: Path) -> None:
    """A finished run, with an output."""
    with RunDir.create(folder, Request("generate", "shapes", {"seed": 1})) as run:
        (folder / "a.txt").write_text("a", encoding="utf-8")
        run.add_output("text", "a.txt")


def read_run(folder: Path) -> Any:
    """What every command asks of a run."""
    run = RunDir.open(folder)
    return run.state(), run.lineage(), run.is_done(), run.find("text")


def open_model(folder: Path) -> Any:
    """A model as every command opens it: its parts by their configs, sized, and the words that its tokenizer knows."""
    backbone = open_backbone(find_source(str(folder)), device="cpu")
    sizes = [backbone.part_bytes(part) for part in ("text", "transformer", "vae")]
    return sizes, backbone.unknown_words("red")


def part_of_a_model(file: str) -> Kind:
    """A file of a pipeline folder."""
    return Kind(file, write_pipeline, open_model)


def read_pair(folder: Path) -> PairNumbers:
    """The numbers of a pair, by what says why they are none."""
    return read(PairNumbers, PairNumbers.file(folder, 0), "pair's numbers")


SITES = {str(layer): f"transformer_blocks.{layer}.attn1" for layer in range(4)}
NUMBERS = PairNumbers([[[0.0, 1.0]]], [[1.0]], [], {"1:7": "sdpa"})
KINDS = {
    "plan": Kind("plan.json", PLAN.write, lambda folder: MaskPlan.read(folder / "plan.json", sealed=False)),
    "sensitivity": Kind("sensitivity.json", SENSITIVITY.write, SensitivityTable.read),
    "costs": Kind(
        "costs.json", lambda folder: CostTable(Machine("cpu", "2", "3")).write(folder / "costs.json"), CostTable.load
    ),
    "receipt": Kind(
        "receipt.json",
        lambda folder: Receipt({"seed": 1}, Ran("shapes"), {"load": 1.0}).write(folder / "receipt.json"),
        lambda folder: Receipt.read(folder / "receipt.json"),
    ),
    "sampler": Kind("sampler.json", Sampler("milestones", (999, 499), 1.0).write, Sampler.read),
    "run": Kind("run.json", write_run, read_run),
    "data": Kind("index.json", write_clips, open_data),
    "sites": Kind(SITES_FILE, lambda folder: write_json(folder / SITES_FILE, SITES), read_names),
    "pair": Kind(
        "samples/pair-0000.json", lambda folder: NUMBERS.write(folder / "samples" / "pair-0000.json"), read_pair
    ),
    "model": part_of_a_model("model_index.json"),
    "transformer": part_of_a_model("transformer/config.json"),
    "VAE": part_of_a_model("vae/config.json"),
    "text encoder": part_of_a_model("text_encoder/config.json"),
    "schedule": part_of_a_model("scheduler/scheduler_config.json"),
    "tokenizer": part_of_a_model("tokenizer/tokenizer_config.json"),
}
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "is empty"),
    "truncated": (lambda content: content[: len(content) // 2], "not JSON"),
    "binary": (lambda content: b"\xff\xfe" + content, "not UTF-8"),
    "a list": (lambda content: b"[]", "it is a JSON list"),
    "null": (lambda content: b"null", "it is a JSON null"),
    "endless brackets": (lambda content: b"[" * 100_000, "nested in more than 64 levels"),
    "deep": (lambda content: b'{"a":' * 500 + b"1" + b"}" * 500, "nested in more than 64 levels"),
    "not a number": (lambda content: content.rstrip()[:-1] + b', "a": NaN}', "NaN is no JSON number"),
    "a huge number": (lambda content: content.rstrip()[:-1] + b', "a": 1' + b"0" * 400 + b"}", "is no JSON number"),
    "a lone surrogate": (lambda content: content.rstrip()[:-1] + b', "a": "\\ud800"}', "surrogates not allowed"),
    "a key twice": (lambda content: content.rstrip()[:-1] + b', "a": 1, "a": 2}', "'a' stands twice"),
}
PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (os.mkfifo, "no regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "a large file": (lambda path: path.touch() or os.truncate(path, 1 << 40), "1099511627776 bytes"),
}
VALUES = ([], "x" * 20_000, None, 1.5, 10**18, {"a": [[]]})


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path, bytes]:
    """A kind of file, its folder, and what it holds."""
    made, folder = KINDS[request.param], tmp_path_factory.mktemp("whole") / "it"
    folder.mkdir()
    made.write(folder)
    return made, folder, (folder / made.file).read_bytes()


def refused(kind: Kind, folder: Path) -> EvditError:
    """The error of reading, which names the file and is a person's to mend."""
    with pytest.raises(EvditError) as caught:
        kind.read(folder)
    assert Path(kind.file).name in f"{caught.value.where} {caught.value.what}"
    assert caught.value.exit_code in (USAGE, ENVIRONMENT) and len(caught.value.text()) < 2000
    return caught.value


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_such_file_is_told(kind: tuple[Kind, Path, bytes], damage: str):
    """Each kind of file by each damage to its bytes."""
    made, folder, content = kind
    spoil, words = DAMAGE[damage]
    (folder / made.file).write_bytes(spoil(content))
    assert words in refused(made, folder).what


@pytest.mark.parametrize("place", PLACES)
def test_what_has_no_end_is_not_read(kind: tuple[Kind, Path, bytes], place: str):
    """Each kind of file by what may stand in its place; a wait or a full memory would be the failure."""
    made, folder, _ = kind
    file = folder / made.file
    file.unlink(missing_ok=True)
    PLACES[place][0](file)
    error = refused(made, folder)
    file.unlink()
    assert PLACES[place][1] in error.what


def test_a_byte_order_mark_is_read_over(kind: tuple[Kind, Path, bytes]):
    """As editors of one system write it."""
    made, folder, content = kind
    (folder / made.file).write_bytes(b"\xef\xbb\xbf" + content)
    if made is KINDS["tokenizer"]:  # which transformers reads after us
        with pytest.raises(EvditError, match="tokenizer_config.json begins with a byte order mark"):
            made.read(folder)
    else:
        assert made.read(folder)


def changed(content: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(place, whole document) with each value at each place of a document in turn, and each key left out."""
    inside = content
    for step in place:
        inside = inside[step]
    items = list(inside.items() if isinstance(inside, dict) else enumerate(inside[:1]))
    for key, value in items:
        for other in VALUES:
            inside[key] = other
            yield (*place, key), content
        if isinstance(inside, dict):
            del inside[key]
            yield (*place, key), content
        inside[key] = value
        if isinstance(value, dict | list) and len(place) < 2:
            yield from changed(content, (*place, key))


def test_no_value_at_any_key_is_a_traceback(kind: tuple[Kind, Path, bytes]):
    """Each key of each kind by each wrong value: it is read, or refused with the file."""
    made, folder, content = kind
    told, named = 0, (made.file, str(folder))  # what does not fit another file may be told there
    for place, document in changed(json.loads(content)):
        (folder / made.file).write_text(json.dumps(document), encoding="utf-8")
        try:
            made.read(folder)
        except EvditError as error:
            told += 1
            assert any(each in f"{error.where} {error.what}" for each in named), (place, error.what)
            assert error.exit_code in (USAGE, ENVIRONMENT), place
    assert told > 15


ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("sampler", {"guidance": "1"}, " guidance", "guidance is '1': it must be a number"),
    ("sampler", {"timesteps": 999}, " timesteps", "timesteps is 999: it must be a list"),
    ("sampler", {"timesteps": [999, -1]}, " timesteps 1", "is -1: it must be a whole number of at least 0"),
    ("receipt", {"asked": None}, " asked", "asked is null: it must be an object"),
    ("receipt", {"peak_memory_bytes": "much"}, " peak_memory_bytes", "it must be a whole number or null"),
    ("receipt", {"ran": {"model": "shapes", "layers": 3}}, " ran.layers", "layers is 3: it must be a list"),
    ("run", {"lineage": None}, " lineage", "lineage is null: it must be a list"),
    ("run", {"outputs": {"plan": "x"}}, " outputs.plan", "plan is 'x': it must be an object"),
    ("run", {"state": "finished"}, " state", "it must be 'running', 'interrupted', 'failed' or 'done'"),
    ("run", {"values": []}, " values", "values is []: it must be an object"),
    ("data", {"text_width": "wide"}, " text_width", "text_width is 'wide': it must be a whole number"),
    ("data", {"shards": [{}]}, " shards 0", "is missing: an index of data needs it"),
    ("costs", {"rows": [{}]}, " rows 0", "is missing: a cost table needs it"),
    ("model", {"_class_name": 7}, "", "names the pipeline 7"),
    ("model", {"evdit": {"defaults": {"video_frames": 10**9}}}, " evdit.defaults video_frames", "at most 65536"),
    (
        "transformer",
        {"num_layers": 10**9},
        " num_layers",
        "num_layers is 1000000000: it must be a whole number of at most 1000",
    ),
    ("transformer", {"interpolation_scale_t": "1"}, " interpolation_scale_t", "it must be a number or null"),
    ("transformer", {"norm_eps": []}, " norm_eps", "norm_eps is []: it must be a number"),
    ("transformer", {"sample_size": [8, 10**18]}, " sample_size", "it must be null, a latent size"),
    ("transformer", {"use_rope": False}, " use_rope", "use_rope is false: it must be true"),
    ("VAE", {"hidden_size": "8"}, " hidden_size", "hidden_size is '8': it must be a whole number"),
    ("VAE", {"hidden_size_mult": 3}, " hidden_size_mult", "hidden_size_mult is 3: it must be a list"),
    ("VAE", {"norm_num_groups": 3}, " norm_num_groups", "it must divide the channels of each level, 8"),
    ("VAE", {"num_res_blocks": 10**9}, " num_res_blocks", "it must be a whole number of at most 1000"),
    ("text encoder", {"d_model": None}, " d_model", "d_model is null: it must be a whole number"),
    ("text encoder", {"num_layers": 10**6}, " num_layers", "it must be a whole number of at most 1000"),
    ("text encoder", {"dropout_rate": 2}, " dropout_rate", "it must be a number of at most 1"),
    ("schedule", {"num_train_timesteps": 10**9}, " num_train_timesteps", "num_train_timesteps is 1000000000"),
    ("schedule", {"beta_start": 0}, " beta_start", "beta_start is 0: it must be a number above 0"),
    ("tokenizer", {"extra_ids": 10**18}, " extra_ids", "it must be a whole number of at most 1000000"),
    ("tokenizer", {"model_max_length": "24"}, " model_max_length", "it must be a number or null"),
    ("plan", {"grid": {"frames": 10**9, "rows": 1, "cols": 1}}, " grid", "frames is 1000000000"),
]


@pytest.mark.parametrize(("name", "change", "place", "words"), ROWS)
def test_a_wrong_value_is_told_with_file_and_key(
    name: str, change: dict[str, Any], place: str, words: str, tmp_path: Path
):
    """What it is, and what it must be."""
    made = KINDS[name]
    made.write(tmp_path / "it" if name == "run" else tmp_path)
    folder = tmp_path / "it" if name == "run" else tmp_path
    file = folder / made.file
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    error = refused(made, folder)
    assert words in error.what and error.where == f"{file}{place}"
