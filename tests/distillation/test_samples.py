"""Random numbers by sample: independent of how a batch is split, different where they must differ, fairly spread."""

import pytest
import torch
from scipy import stats

from vdit_cli.distillation.samples import Samples, parts_of, split_loss
from vdit_cli.errors import EvditError

CPU = torch.device("cpu")


def test_numbers_do_not_depend_on_the_split():
    whole = Samples(0, 3, 0, 10, 10, CPU)
    for ranks, accumulation in ((1, 3), (2, 2), (3, 1), (10, 1)):
        parts = [part for rank in range(ranks) for part in parts_of(0, 3, 10, CPU, rank, ranks, accumulation)]
        assert [number for part in parts for number in part.numbers] == list(range(30, 40))
        assert torch.equal(torch.cat([part.normal("x", 2, 3) for part in parts]), whole.normal("x", 2, 3))
        assert torch.equal(torch.cat([part.integers("t", 1000) for part in parts]), whole.integers("t", 1000))
        assert torch.equal(torch.cat([torch.arange(10)[part.places] for part in parts]), torch.arange(10))
        assert {len(part.numbers) for part in parts} <= {10 // len(parts), 10 // len(parts) + 1}


def test_numbers_differ_by_seed_sample_and_name():
    drawn = [Samples(seed, i, 0, 2, 2, CPU).normal(name, 5) for seed in (0, 1) for i in (0, 1) for name in ("x", "y")]
    assert len({tuple(row.tolist()) for each in drawn for row in each}) == 16


def test_numbers_are_of_their_distribution():
    samples = Samples(0, 0, 0, 2000, 2000, CPU)
    assert stats.kstest(samples.normal("x")[:].numpy(), "norm").pvalue > 0.01
    assert stats.kstest(samples.uniform("u").numpy(), "uniform").pvalue > 0.01
    counts = samples.integers("t", 8).bincount(minlength=8).numpy()
    assert stats.chisquare(counts).pvalue > 0.01


def test_every_item_comes_once_an_epoch():
    order = [item for iteration in range(10) for item in Samples(0, iteration, 0, 7, 7, CPU).items(14)]
    epochs = [order[start : start + 14] for start in range(0, 70, 14)]
    assert all(sorted(epoch) == list(range(14)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert Samples(0, 1, 3, 4, 7, CPU).items(5) == Samples(0, 1, 0, 7, 7, CPU).items(5)[3:], "across an epoch's end"


def test_a_whole_loss_can_not_be_split():
    with pytest.raises(EvditError, match="can't be split into 2 parts"):
        split_loss(lambda iteration, on_cpu, on_device: {}, 2)
