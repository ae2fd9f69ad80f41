"""Attention as sharp as models become: scores in the hundreds, a softmax that is all but one key's."""

import pytest
import torch

from tests.attention.cases import DEVICES, inputs, outputs
from tests.closeness import assert_close
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.reference import reference_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

GRID, HEADS, WIDTH = VideoGrid(8, 8, 8), 2, 48
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif("cuda" not in DEVICES, reason="no GPU")]
CASES = [("cpu", "sdpa")] + [pytest.param("cuda", kernel, marks=NEEDS_GPU) for kernel in ("sdpa", "triton", "flex")]


@pytest.mark.numerical
@pytest.mark.parametrize(("device", "kernel"), CASES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.1), (torch.float32, 0.005)])
def test_gradients_of_scores_in_the_hundreds(device: str, kernel: str, dtype: torch.dtype, atol: float):
    """The error of output and gradients over their size, against float64; a mask that is dropped is all error."""
    mask = TileMask.parse("1:7", GRID.frames)
    q, k, v, grad = inputs(mask, GRID, 2, HEADS, WIDTH, device=device)
    given = [(10 * q).to(dtype), (10 * k).to(dtype), v.to(dtype)]
    given, grad = [x.detach().requires_grad_() for x in given], grad.to(dtype)
    attend = bind(mask, Case(GRID, HEADS, WIDTH, 2, dtype, torch.device(device), needs_grad=True), kernel)
    assert attend.kernel == kernel, attend.refused
    found = outputs(attend, *given, grad)

    exact = [x.detach().double().requires_grad_() for x in given]
    truth, dense = (
        outputs(lambda *x, m=each: reference_attention(*x, m, GRID), *exact, grad.double())
        for each in (mask, TileMask.dense(GRID.frames))
    )

    def error(made: dict) -> dict:
        return {name: ((x.double() - truth[name]).norm() / truth[name].norm()).item() for name, x in made.items()}

    assert (exact[0][0, :, 0] @ exact[1][0, :, 0].T).max() * WIDTH**-0.5 > 250
    assert_close(error(found), dict.fromkeys(truth, 0.0), atol=atol, planted=error(dense))
