"""Measured times: written, read, left out where they are broken, and what `auto` makes of them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.attention import bind as bind_module
from vdit_cli.attention import costs
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.costs import COSTS_FILE, SCHEMA, CostTable, Machine, cache_file
from vdit_cli.errors import EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

CASE = Case(VideoGrid(8, 2, 3, text_after=5), 2, 16, 1, torch.float32, torch.device("cpu"))
MASK, FULL = TileMask.parse("2:6", 8), TileMask.dense(8)
HERE = Machine("a GPU", "2.13", "3.9", "1.0")
TABLE = CostTable(HERE).with_times(MASK, CASE, {"sdpa": 2e-3, "triton": 1e-3}).with_times(FULL, CASE, {"sdpa": 3e-3})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setattr(costs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels `sdpa` and `triton`, which take everything, before `last`, which takes nothing."""
    takes = SimpleNamespace(supports=lambda case: None, run=lambda q, k, v, passes: v)
    refuses = SimpleNamespace(supports=lambda case: "not here", run=None)
    monkeypatch.setattr(bind_module, "KERNELS", ("sdpa", "triton", "last"))
    monkeypatch.setattr(bind_module, "kernel_module", {"sdpa": takes, "triton": takes, "last": refuses}.__getitem__)


def test_a_table_survives_its_file(own_cache: Path) -> None:
    """In the cache folder, a file a machine; the same table when it is read."""
    file = TABLE.write()
    assert file == cache_file(HERE) and own_cache in file.parents
    said: list[str] = []
    assert CostTable.read(HERE, said.append) == TABLE and said == []
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["schema"] == SCHEMA == "evdit.cost-table/1"
    assert document["machine"]["device"] == "a GPU"
    assert document["rows"][0]["mask"] == "2:6" and document["rows"][0]["global_frames"] == [0, 4]
    assert (document["rows"][0]["kernel"], document["rows"][0]["seconds"]) == ("sdpa", 2e-3)


def test_a_table_has_the_digest_of_its_content(tmp_path: Path) -> None:
    """Wherever it lies; of other times it is another. In a run folder it is costs.json."""
    TABLE.write(tmp_path / COSTS_FILE)
    assert CostTable.load(tmp_path).digest == CostTable.load(tmp_path / COSTS_FILE).digest == TABLE.digest
    assert TABLE.with_times(MASK, CASE, {"sdpa": 2.1e-3}).digest != TABLE.digest
    assert replace(TABLE, machine=replace(HERE, device="other")).digest != TABLE.digest


def test_another_machine_or_version_has_a_table_of_its_own() -> None:
    """Times of another GPU, torch, Triton or evdit are not read."""
    TABLE.write()
    for other in ("device", "torch_version", "triton_version", "evdit_version"):
        assert CostTable.read(replace(HERE, **{other: "other"}), pytest.fail).rows == {}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "\udcff",
        '{"schema": "evdit.cost-table/2"}',
        json.dumps({"schema": SCHEMA, "machine": {"device": "x"}, "rows": []}),
        json.dumps({"schema": SCHEMA, "machine": vars(HERE), "rows": [{"seconds": 1}]}),
        json.dumps({"schema": SCHEMA, "machine": vars(HERE), "rows": 7}),
        json.dumps({"schema": SCHEMA, "machine": {**vars(HERE), "device": "another"}, "rows": []}),
    ],
)
def test_a_broken_file_is_left_out_with_a_line(content: str) -> None:
    """Empty, cut off, of another kind, version or machine: an empty table, and why."""
    file = cache_file(HERE)
    file.parent.mkdir(parents=True)
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    said: list[str] = []
    assert CostTable.read(HERE, said.append) == CostTable(HERE)
    assert len(said) == 1 and "\n" not in said[0] and str(file) in said[0]


@pytest.mark.parametrize("seconds", [0, -1, "1", None, True, 1e999, 10**400, 1e13, 1e-13])
def test_a_time_that_is_none_makes_the_file_broken(seconds: object) -> None:
    """Zero, negative, infinite, no number, and what no call takes."""
    file = TABLE.write()
    document = json.loads(file.read_text(encoding="utf-8"))
    document["rows"][1]["seconds"] = seconds
    file.write_text(json.dumps(document), encoding="utf-8")
    said: list[str] = []
    assert CostTable.read(HERE, said.append).rows == {} and len(said) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mask": "4:4"}, "row 1 mask '4:4' and global_frames .* disagree: these frames make 2:6"),
        ({"kernel": None}, "rows 1.kernel kernel is null: it must be a text"),
        ({"batch": "2"}, "rows 1.batch batch is '2': it must be a whole number"),
        ({"needs_grad": 0}, "rows 1.needs_grad needs_grad is 0: it must be true or false"),
        ({"seconds": -1}, "rows 1.seconds seconds is -1: it must be a number of at least 1e-12"),
    ],
)
def test_a_damaged_row_is_named(change: dict[str, object], told: str) -> None:
    """In a table that a person names: its place, and what is wrong there."""
    file = TABLE.write()
    document = json.loads(file.read_text(encoding="utf-8"))
    document["rows"][1].update(change)
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(EvditError) as caught:
        CostTable.load(file)
    assert re.fullmatch(f".*costs.*json {told}", f"{caught.value.where} {caught.value.what}")
    assert "evdit bench attention" in caught.value.next_steps[-1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": {}}, "rows is {}: it must be a list"),
        ({"rows": None}, "rows is null: it must be a list"),
        ({"machine": None}, "machine is null: it must be an object"),
        ({"machine": {"device": 5}}, "device is 5: it must be a text"),
        ({"rows": [{}]}, "mask is missing: a cost table needs it"),
    ],
)
def test_a_damaged_table_is_told_in_words(change: dict[str, object], told: str) -> None:
    file = TABLE.write()
    file.write_text(json.dumps({**TABLE.content(), **change}), encoding="utf-8")
    with pytest.raises(EvditError, match=told):
        CostTable.load(file)


def test_a_row_that_is_there_twice_is_refused() -> None:
    """With other seconds: which of the two holds is not known."""
    content = TABLE.content()
    file = TABLE.write()
    content["rows"].append({**content["rows"][0], "seconds": 0.5})
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EvditError, match="this was timed in an earlier row") as caught:
        CostTable.load(file)
    assert caught.value.where == f"{file} row {len(TABLE.rows)}"


def test_what_is_not_there_has_a_next_step(tmp_path: Path) -> None:
    """A run of another command, a path that is none, and a file that is not JSON."""
    words = tmp_path / "costs.txt"
    words.write_text("seconds", encoding="utf-8")
    for place, told in ((tmp_path, "holds no costs.json"), (tmp_path / "no", "can't be read"), (words, "not JSON")):
        with pytest.raises(EvditError, match=told) as caught:
            CostTable.load(place)
        assert caught.value.next_steps[-1] == "evdit bench attention  (makes one)"


def test_what_has_no_end_is_not_read() -> None:
    """A device instead of a file: others would fill the memory."""
    with pytest.raises(EvditError, match="no regular file"):
        CostTable.load(Path("/dev/null"))


def test_seconds_are_of_this_case_only() -> None:
    """The fastest kernel, one by name, and None for whatever differs; a frame counts by its tokens, not its sides."""
    assert TABLE.seconds(MASK, CASE) == 1e-3
    assert TABLE.seconds(MASK, CASE, "sdpa") == 2e-3
    assert TABLE.seconds(MASK, CASE, "flex") is None
    assert TABLE.seconds(TileMask(8, (0, 3)), CASE) is None
    assert TABLE.seconds(MASK, replace(CASE, grid=VideoGrid(8, 1, 6, text_after=5))) == 1e-3
    assert TABLE.seconds(TileMask(8, (0, 1, 2, 3, 4, 5, 6)), CASE) == 3e-3, "it keeps all tiles"
    changes = ({"heads": 3}, {"head_dim": 32}, {"batch": 2}, {"needs_grad": True}, {"dtype": torch.bfloat16})
    for change in (*changes, {"grid": VideoGrid(8, 2, 3)}):
        assert TABLE.seconds(MASK, replace(CASE, **change)) is None


@pytest.mark.usefixtures("two_kernels")
def test_auto_takes_the_fastest_measured_kernel() -> None:
    """A named kernel is taken whatever was measured, and nothing is consulted where no table is given."""
    assert bind(MASK, CASE, "auto", costs=TABLE).kernel == "triton"
    assert bind(MASK, CASE, "auto").kernel == "sdpa"
    assert bind(MASK, CASE, "sdpa", costs=TABLE).kernel == "sdpa"
    other = TileMask.parse("1:7", 8)
    assert bind(other, CASE, "auto", costs=TABLE).kernel == "sdpa", "nothing was measured"
    one = TABLE.with_times(other, CASE, {"triton": 1e-6})
    attend = bind(other, CASE, "auto", costs=one)
    assert (attend.kernel, attend.times) == ("sdpa", ()), "the other one was not measured"
    refusing = TABLE.with_times(MASK, CASE, {"last": 1e-6})
    attend = bind(MASK, CASE, "auto", costs=refusing)
    assert (attend.kernel, attend.refused) == ("triton", (("last", "not here"),))
    assert bind(MASK, CASE, "auto", costs=TABLE).receipt()["milliseconds"] == {"triton": 1.0, "sdpa": 2.0}
    assert "milliseconds" not in bind(MASK, CASE, "sdpa", costs=TABLE).receipt()


@pytest.mark.numerical
@pytest.mark.usefixtures("two_kernels")
def test_a_mask_slower_than_dense_is_kept_and_said() -> None:
    """The ratio is on the Attend and in its receipt, for the kernel that runs; the full mask itself has none."""
    slow = TABLE.with_times(FULL, CASE, {"sdpa": 8e-4})
    attend = bind(MASK, CASE, "auto", costs=slow)
    assert attend.mask == MASK
    assert_close(attend.dense_is_faster, 1.25)
    assert_close(attend.receipt()["dense_is_faster"], 1.25)
    assert_close(bind(MASK, CASE, "sdpa", costs=slow).dense_is_faster, 2.5)
    for fine in (bind(FULL, CASE, costs=slow), bind(MASK, CASE, costs=TABLE), bind(MASK, CASE)):
        assert fine.dense_is_faster is None and "dense_is_faster" not in fine.receipt()
