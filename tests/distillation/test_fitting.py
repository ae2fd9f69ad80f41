"""Number formats as asked, as accelerate was told, as suits the device; what can't go together is refused."""

import pytest
import torch
from torch import nn

from vdit_cli.distillation.fitting import ACCELERATE_PRECISION, autocast, fit_model
from vdit_cli.distillation.metrics import Metrics
from vdit_cli.errors import ENVIRONMENT, EvditError
from vdit_cli.parallel.groups import ALONE
from vdit_cli.recipe_training import RankedTrainingOptions

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "told", "dtype"),
    [
        ("auto", None, torch.float32),
        ("auto", "bf16", torch.bfloat16),
        ("auto", "no", torch.float32),
        ("bfloat16", "no", torch.bfloat16),
        ("float32", "bf16", torch.float32),
    ],
)
def test_precision_of_matrix_products(monkeypatch, precision, told, dtype):
    monkeypatch.delenv(ACCELERATE_PRECISION, raising=False)
    if told:
        monkeypatch.setenv(ACCELERATE_PRECISION, told)
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_accelerate_s_fp16_is_refused(monkeypatch):
    monkeypatch.setenv(ACCELERATE_PRECISION, "fp16")
    with pytest.raises(EvditError, match="accelerate's mixed precision is fp16"):
        autocast("auto", CPU)


def test_eight_bit_states_are_not_split():
    options = RankedTrainingOptions(shard="full", adam="adamw-8bit")
    with pytest.raises(EvditError, match="shard=full can't go with adam=adamw-8bit"):
        fit_model(nn.Linear(2, 2), [], options, ALONE, CPU)


def test_tensorboard_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvditError, match="tensorboard was asked for, and is not installed") as caught:
        Metrics(tmp_path, 0, tensorboard=True)
    assert caught.value.exit_code == ENVIRONMENT
