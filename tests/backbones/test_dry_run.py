"""The dry run counts what is alive at once, and touches no data."""

import torch
import torch.nn.functional as F

from vdit_cli.backbones.dry_run import working_bytes


def test_bytes_alive_at_once():
    """x lives throughout, y is freed before z is made: the peak is x + y or x + z, not all three."""

    def run():
        x = torch.empty(1000, device="meta")
        y = x + 1
        del y
        return x, torch.empty(500, device="meta")

    assert working_bytes(run) == 8000


def test_views_and_in_place_work_cost_nothing():
    def run():
        x = torch.empty(10, 100, device="meta")
        return x.t().reshape(5, 200)[1:], x.mul_(2)

    assert working_bytes(run) == 4000 + 4000  # the reshape of a transpose copies once


def test_attention_is_counted_as_fused():
    q = torch.empty(1, 2, 4096, 8, device="meta")
    assert working_bytes(lambda: F.scaled_dot_product_attention(q, q, q)) == q.numel() * 4


def test_nothing_is_left_running():
    working_bytes(lambda: torch.empty(3, device="meta"))
    x = torch.randn(1, 1, 4, 8)
    assert F.scaled_dot_product_attention(x, x, x).abs().sum() > 0
