"""Binding: which kernel is chosen, what is refused and why, and what the receipt says."""

import dataclasses
import json
import pickle
from types import SimpleNamespace

import pytest
import torch

from tests.attention.cases import DEVICES
from vdit_cli.attention import bind as bind_module
from vdit_cli.attention.bind import KERNELS, Case, bind, kernel_module
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

CASE = Case(VideoGrid(8, 2, 3), 2, 16, 1, torch.float32, torch.device("cpu"))
MASK = TileMask.parse("2:6", 8)


def qkv(tokens: int = 48, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Three zero tensors of the case's shape."""
    return [torch.zeros(1, tokens, 2, 16, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_answers_the_contract(name: str) -> None:
    """Its file has NAME, supports and run, and can be asked for by name."""
    module = kernel_module(name)
    assert name == module.NAME and callable(module.run)
    reason = module.supports(CASE)
    assert reason is None or (isinstance(reason, str) and reason)
    if reason is None:
        assert bind(MASK, CASE, name).kernel == name


def test_an_attend_is_frozen_plain_data() -> None:
    """Hashable, equal when bound alike, pickled and copied whole, and not to be changed."""
    one, other = bind(MASK, CASE), bind(MASK, CASE)
    assert one == other and hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301
    assert one != bind(TileMask.dense(8), CASE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.kernel = "other"  # type: ignore[misc]


def test_the_receipt_is_json_with_both_shares() -> None:
    """Kernel, mask by name and frames, kept and skipped, tiles."""
    receipt = json.loads(json.dumps(bind(MASK, CASE, "sdpa").receipt()))
    assert receipt == {
        "kernel": "sdpa",
        "mask": "2:6",
        "global_frames": [0, 4],
        "kept_share": 34 / 64,
        "skipped_share": 1 - 34 / 64,
        "tiles_computed": 34,
        "tiles_skipped": 30,
        "refused": {},
    }


def test_an_unknown_kernel_is_answered_with_the_nearest() -> None:
    """Before anything runs."""
    with pytest.raises(EvditError, match="unknown kernel 'sdp'") as caught:
        bind(MASK, CASE, "sdp")
    assert caught.value.next_steps[0] == "sdpa"
    assert (caught.value.where, caught.value.exit_code) == ("--kernel", USAGE)


def test_a_case_that_no_kernel_takes_is_refused_with_reasons() -> None:
    """Whole numbers have no attention."""
    with pytest.raises(EvditError, match=r"sdpa: torch\.int8 is none of") as caught:
        bind(MASK, dataclasses.replace(CASE, dtype=torch.int8))
    assert caught.value.exit_code == ENVIRONMENT


@pytest.fixture
def two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of three in which `first` refuses and `second` takes every case."""
    kernels = {
        "first": SimpleNamespace(supports=lambda case: "no GPU here", run=None),
        "second": SimpleNamespace(supports=lambda case: None, run=lambda q, k, v, passes: v + 1),
        "third": SimpleNamespace(supports=lambda case: None, run=lambda q, k, v, passes: v + 2),
    }
    monkeypatch.setattr(bind_module, "KERNELS", tuple(kernels))
    monkeypatch.setattr(bind_module, "kernel_module", kernels.__getitem__)


@pytest.mark.parametrize(
    ("asked", "taken", "refused"),
    [
        ("auto", "second", (("first", "no GPU here"),)),
        ("first", "second", (("first", "no GPU here"),)),
        ("second", "second", ()),
        ("third", "third", ()),
    ],
)
@pytest.mark.usefixtures("two_kernels")
def test_the_choice_and_its_reasons(asked: str, taken: str, refused: tuple) -> None:
    """auto takes the first that can; a named one that can't is answered by the next, and the reason is kept."""
    attend = bind(MASK, CASE, asked)
    assert (attend.kernel, attend.refused) == (taken, refused)
    assert attend.receipt()["refused"] == dict(refused)
    assert attend(*qkv()).unique().item() == {"second": 1, "third": 2}[taken]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda q, k, v: (q, k[:, :-1], v), "q, k, v differ"),
        (lambda q, k, v: (q, k, v.double()), "q, k, v differ"),
        (lambda q, k, v: (q[:, 1:], k[:, 1:], v[:, 1:]), "47 tokens: the mask was bound for 8 frames of 2 x 3"),
        (lambda *qkv: [x.bfloat16() for x in qkv], "bfloat16 and heads x width 2 x 16: the mask was bound for"),
        (lambda *qkv: [x[:, :, :1] for x in qkv], "heads x width 1 x 16: .*float32 and 2 x 16"),
        (lambda *qkv: [x[..., :8] for x in qkv], "heads x width 2 x 8: .*float32 and 2 x 16"),
    ],
)
def test_tensors_of_another_shape_are_refused(change: object, rule: str) -> None:
    """A kernel reads raw memory: what differs must not reach it."""
    with pytest.raises(ValueError, match=rule):
        bind(MASK, CASE)(*change(*qkv()))  # type: ignore[operator]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("batch", [2, 3, 17])
def test_any_batch_is_taken(name: str, batch: int) -> None:
    """A kernel's answer does not hang on the batch, and what was bound for one takes another."""
    supports = kernel_module(name).supports
    for device in DEVICES:
        case = dataclasses.replace(CASE, device=torch.device(device))
        assert supports(dataclasses.replace(case, batch=batch)) == supports(case)
    given = [x.expand(batch, -1, -1, -1) for x in qkv()]
    assert bind(MASK, CASE, name)(*given).shape == given[0].shape
