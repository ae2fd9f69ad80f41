"""A full disk keeps the last checkpoint, whole or in shares; the newest few stay."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from tests.distillation.ranks_training import train_net
from vdit_cli.distillation import checkpoints
from vdit_cli.distillation.checkpoints import (
    TrainingState,
    drop_older,
    list_checkpoints,
    newest_checkpoint,
    save_checkpoint,
)
from vdit_cli.errors import FAILED, EvditError
from vdit_cli.parallel.groups import joined


@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str):
    """The write fails as the operating system says it; nothing half-written stays, and training goes on from before."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with joined("cpu") as ranks:
        train_net(tmp_path / "whole", ranks, shard)
        train_net(tmp_path / "full", ranks, shard, iterations=8)
        before = list_checkpoints(tmp_path / "full" / "checkpoints")
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write_tensors", fail)
            patch.setattr(HuggingFaceStorageWriter, "write_data", fail)
            with pytest.raises(EvditError, match="the disk is full") as caught:
                train_net(tmp_path / "full", ranks, shard)
        assert caught.value.exit_code == FAILED
        assert sorted((tmp_path / "full" / "checkpoints").iterdir()) == before
        train_net(tmp_path / "full", ranks, shard)
        ends = [newest_checkpoint(tmp_path / name / "checkpoints", "cpu")[0] for name in ("whole", "full")]
    assert [path.name for path in list_checkpoints(tmp_path / "full" / "checkpoints")] == ["step-000008", "step-000012"]
    assert all(torch.equal(value, ends[1].model[name]) for name, value in ends[0].model.items())
    slots = [state["state"][3]["exp_avg"] for end in ends for state in end.optimisers]
    assert torch.equal(*slots)


def test_states_in_a_dict_of_their_own_come_back(tmp_path: Path):
    """As 8-bit optimisers keep them: bytes, numbers that JSON holds, and one table that all parameters share."""
    table = torch.linspace(-1, 1, 256)
    states = {
        index: {"step": 3, "quantised": {"state": torch.full((4,), index, dtype=torch.uint8), "table": table}}
        for index in (0, 1)
    }
    saved = {"state": states, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    weights = {"w": torch.ones(2)}
    save_checkpoint(tmp_path, TrainingState(1, 0.0, weights, weights, [saved]))
    [found] = newest_checkpoint(tmp_path, "cpu")[0].optimisers
    assert found["param_groups"] == saved["param_groups"] and found["state"].keys() == states.keys()
    for index, slots in found["state"].items():
        assert slots["step"] == 3 and slots["quantised"].keys() == {"state", "table"}
        assert all(torch.equal(value, states[index]["quantised"][name]) for name, value in slots["quantised"].items())


def test_only_the_newest_of_its_own_are_kept(tmp_path: Path):
    """By number, also past six digits; a copy under another name and a link are left alone."""
    (tmp_path / "far").mkdir()
    (tmp_path / "step-000001-best").mkdir()
    (tmp_path / "step-000002").symlink_to(tmp_path / "far")
    for iteration in (999_999, 1_000_000, 1_000_001):
        state = TrainingState(iteration, 0.0, {"x": torch.zeros(1)}, {"x": torch.zeros(1)}, [])
        save_checkpoint(tmp_path, state)
        drop_older(tmp_path, keep_last=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"far", "step-000001-best", "step-000002", "step-1000000", "step-1000001"}
    assert newest_checkpoint(tmp_path, "cpu")[0].iteration == 1_000_001


OLD = '{"schema": "evdit.training-state/1", "iteration": 2, "seconds": 1, "bytes": {}, "optimisers": '


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * 100_000, "nested in more than 64 levels"),
        ("[]", "it is a JSON list"),
        ("", "is empty"),
        ('{"schema": "evdit.checkpoint/0"}', "schema is 'evdit.checkpoint/0': it must be 'evdit.training-state/2' or"),
        (OLD + "{}}", "optimisers is {}: it must be a list"),
        (OLD + '[{"values": 1, "param_groups": []}]}', "values is 1: it must be an object"),
        (OLD + '[{"param_groups": []}]}', "values is missing: a checkpoint's state needs it"),
        (OLD + '[{"values": {}, "param_groups": []}]}', "optimiser-0.safetensors is missing"),
    ],
)
def test_a_state_that_is_none_is_gone_back_from(tmp_path: Path, content: str, why: str):
    """To the checkpoint before it, with a line that says why."""
    for iteration in (1, 2):
        save_checkpoint(tmp_path, TrainingState(iteration, 0.0, {"x": torch.zeros(1)}, {"x": torch.zeros(1)}, []))
    (tmp_path / "step-000002" / "state.json").write_text(content, encoding="utf-8")
    found, told = newest_checkpoint(tmp_path, "cpu")
    assert found is not None and found.iteration == 1
    assert len(told) == 1 and "checkpoint step-000002 is damaged (" in told[0] and why in told[0]


def test_tensors_cut_short_are_gone_back_from(tmp_path: Path):
    """Also in a checkpoint of an older evdit, which knows no digests; the file is named."""
    for iteration in (1, 2):
        save_checkpoint(tmp_path, TrainingState(iteration, 0.0, {"x": torch.zeros(1)}, {"x": torch.zeros(1)}, []))
    (tmp_path / "step-000002" / "state.json").write_text(OLD + "[]}", encoding="utf-8")
    (tmp_path / "step-000002" / "average.safetensors").write_bytes(b"\x08")
    found, (told,) = newest_checkpoint(tmp_path, "cpu")
    assert found is not None and found.iteration == 1 and "average.safetensors is damaged: " in told


@pytest.mark.parametrize("part", ["model", "average", "optimiser-0"])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, part: str):
    """In the model, its average or an optimiser's state: refused by name, and nothing is written."""
    tensors = {each: torch.ones(2) for each in ("model", "average", "optimiser-0")}
    tensors[part][1] = float("inf")
    optimiser = {"state": {0: {"exp_avg": tensors["optimiser-0"]}}, "param_groups": []}
    state = TrainingState(4, 0.0, {"w": tensors["model"]}, {"w": tensors["average"]}, [optimiser])
    with pytest.raises(
        EvditError, match=f"{part}.* is not finite after iteration 4: nothing of it is saved; nothing"
    ) as caught:
        save_checkpoint(tmp_path, state)
    assert caught.value.exit_code == FAILED and list(tmp_path.iterdir()) == []
    assert caught.value.what.endswith("; nothing was saved yet: the same command begins from the start")
