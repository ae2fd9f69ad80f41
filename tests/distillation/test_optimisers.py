"""The rate over the iterations in closed form, and Muon on kernels against torch's own on matrices."""

import pytest
import torch
from torch import nn

from tests.closeness import assert_close
from vdit_cli.distillation.optimisers import build_adam, build_optimisers, learning_rate_share, update_average
from vdit_cli.errors import ENVIRONMENT, EvditError


@pytest.mark.numerical
def test_rate_rises_stays_and_falls_to_the_final_share():
    shares = [learning_rate_share(i, 100, warmup=10, flat_share=0.3, final_share=0.01) for i in range(100)]
    assert_close(shares[0], 0.1)
    assert shares[9] == 1.0
    assert all(share == 1.0 for share in shares[9:31])
    assert_close(shares[99], 0.01)
    falls = [a - b for a, b in zip(shares[30:99], shares[31:100], strict=True)]
    assert_close(max(falls), min(falls), told="the decay is linear")


def test_rate_of_a_single_iteration_is_full():
    assert learning_rate_share(0, 1, warmup=0, flat_share=0.0, final_share=0.01) == 1.0


def test_kernels_move_as_the_matrices_that_they_are():
    torch.manual_seed(0)
    kernel = nn.Conv3d(3, 5, 3, bias=False)
    matrix = nn.Linear(3 * 27, 5, bias=False)
    matrix.weight.data.copy_(kernel.weight.detach().reshape(5, -1))
    gradient = torch.randn(5, 81)
    kernel.weight.grad = gradient.view(5, 3, 3, 3, 3).clone()
    matrix.weight.grad = gradient.clone()
    ours = build_optimisers(
        nn.ModuleList([kernel, nn.Linear(1, 1)]),
        lambda name, parameter: parameter.ndim == 5,
        matrix_rate=0.1,
        rate=0.1,
        betas=(0.9, 0.99),
        matrix_decay=0.02,
    )
    ours.step(rate_share=0.5)
    peer = torch.optim.Muon(matrix.parameters(), lr=0.05, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    peer.step()
    assert torch.equal(kernel.weight.detach().reshape(5, -1), matrix.weight.detach())


def test_what_is_slow_moves_at_its_share_of_the_rate():
    """As AdamW of torch does at that rate; the matrix at its own, the others at the full one."""
    torch.manual_seed(0)
    names = ("fast", "slow", "matrix", "slow_matrix")
    model = nn.ModuleDict({name: nn.Linear(3, 2, bias="matrix" not in name) for name in names})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: torch.randn_like(parameter) for name, parameter in before.items()}
    ours = build_optimisers(
        model,
        lambda name, parameter: "matrix" in name,
        matrix_rate=0.2,
        rate=0.1,
        betas=(0.9, 0.99),
        matrix_decay=0.0,
        is_slow=lambda name: name.startswith("slow"),
        slow_share=0.25,
    )
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]
    ours.step(rate_share=0.5)
    for name, parameter in model.named_parameters():
        peer = nn.Parameter(before[name].clone())
        peer.grad = gradients[name]
        share = 0.125 if name.startswith("slow") else 0.5
        if "matrix" in name:
            torch.optim.Muon([peer], lr=0.2 * share, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
        else:
            torch.optim.AdamW([peer], lr=0.1 * share, betas=(0.9, 0.99), weight_decay=0.0).step()
        assert torch.equal(parameter.detach(), peer.detach()), name


def test_average_moves_by_the_share_it_does_not_keep():
    average, parameter = [torch.zeros(3)], [nn.Parameter(torch.full((3,), 2.0))]
    update_average(average, parameter, keep=0.75)
    assert torch.equal(average[0], torch.full((3,), 0.5))


@pytest.mark.parametrize("kind", ["adamw-8bit", "adamw-8bit-paged"])
def test_eight_bits_without_their_package_are_refused(kind, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvditError, match="bitsandbytes, which is not installed") as caught:
        build_adam([nn.Parameter(torch.zeros(2))], kind, rate=0.1, betas=(0.9, 0.99))
    assert caught.value.exit_code == ENVIRONMENT and caught.value.next_steps[0] == "pip install 'evdit[train]'"
