"""What `--device` means on a machine without an accelerator."""

from __future__ import annotations

import pytest
import torch

from vdit_cli.backbones.devices import pick_device
from vdit_cli.errors import USAGE, EvditError


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_has_one_name_for_what_reads_weights(name: str):
    """safetensors knows no cpu:0."""
    assert str(pick_device(name)) == "cpu" and pick_device(torch.device(name)) == torch.device("cpu")


def test_a_second_cpu_is_refused_before_any_file_is_read(evdit):
    """By every command that takes a device: no file was called damaged for it."""
    told = "error: cpu:1 was asked for, and there is one cpu\n  from:  --device cpu:1\n  try:   --device cpu\n"
    for words in (
        "generate circle -o v.mp4",
        "analyze",
        "search-masks",
        "prepare-data --source shapes",
        "train-shapes",
    ):
        assert evdit(*words.split(), "--device", "cpu:1") == (USAGE, "", told), words
    for words in ("bench attention --preset shapes", "bench model --preset shapes"):
        code, out, err = evdit(*words.split(), "--device", "cpu:1")
        assert (code, out) == (USAGE, "") and err.endswith(told), words
    with pytest.raises(EvditError, match="there is one cpu"):
        pick_device(torch.device("cpu", 1))
