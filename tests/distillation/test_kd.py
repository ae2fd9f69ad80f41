"""The loss of knowledge distillation: its numbers and its gradients, from layers that are known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.closeness import assert_close, assert_within
from tests.tiny_pipeline import TRANSFORMER_CONFIG
from vdit_cli.attention.bind import Case, bind
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.distillation.kd import Weights, kd_losses, layer_errors, relative_error
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

IS_MASKED = (True, False, True)
WEIGHTS = Weights(0.5, 2.0, 3.0)


def made_up(seed: int) -> list[tuple[Tensor, ...]]:
    """Three layers and an output of two samples, each layer of another size of numbers."""
    random = torch.Generator().manual_seed(seed)
    sizes = [[(layer + 1) * torch.randn(2, 5, 3, generator=random) for _ in range(2)] for layer in range(3)]
    return [*(tuple(each) for each in sizes), (torch.randn(2, 4, 1, 2, 2, generator=random),)]


def expected(student: list, teacher: list, is_masked: tuple[bool, ...], weights: Weights) -> dict[str, float]:
    """The loss in float64, one sample and one element after another."""
    terms: dict[str, list[float]] = {"attention": [], "hidden": [], "output": []}
    for layer, (mine, wanted) in enumerate(zip(student, teacher, strict=True)):
        names = ("attention", "hidden") if layer < len(is_masked) else ("output",)
        for name, own, other in zip(names, mine, wanted, strict=True):
            if name == "attention" and not is_masked[layer]:
                continue
            for a, b in zip(own.double().numpy(), other.double().numpy(), strict=True):
                terms[name].append(float(sum((a.ravel() - b.ravel()) ** 2) / sum(b.ravel() ** 2)))
    means = {f"{name}_loss": float(np.mean(values)) for name, values in terms.items()}
    return {"loss": sum(weight * means[f"{name}_loss"] for name, weight in weights._asdict().items()), **means}


@pytest.mark.numerical
def test_the_loss_is_the_formula():
    student, teacher = made_up(0), made_up(1)
    found = kd_losses(layer_errors(iter(student), iter(teacher), IS_MASKED, WEIGHTS), WEIGHTS)
    told = expected(student, teacher, IS_MASKED, WEIGHTS)
    wrong = {
        "weights swapped": expected(student, teacher, IS_MASKED, Weights(2.0, 0.5, 3.0)),
        "unmasked layers too": expected(student, teacher, (True,) * 3, WEIGHTS),
        "of the student's size": expected(teacher, student, IS_MASKED, WEIGHTS),
    }
    for mistake in wrong.values():
        assert_close(found["loss"], told["loss"], rtol=1e-5, planted=mistake["loss"])
    assert_close({name: float(value) for name, value in found.items()}, told, rtol=1e-5)


@pytest.mark.parametrize("name", ["attention", "hidden", "output"])
def test_a_term_of_weight_0_is_not_computed(name: str):
    weights = WEIGHTS._replace(**{name: 0.0})
    errors = layer_errors(iter(made_up(0)), iter(made_up(1)), IS_MASKED, weights)
    assert set(errors) == {"attention", "hidden", "output"} - {name}
    assert {key: len(value) for key, value in errors.items()}.get("attention", 2) == 2
    assert f"{name}_loss" not in kd_losses(errors, weights)


def test_both_networks_are_asked_in_step():
    """Of the teacher one layer is there at a time: the second is asked for when the first is compared."""
    asked: list[str] = []

    def told(who: str, layers: list) -> Iterator[tuple[Tensor, ...]]:
        for number, layer in enumerate(layers):
            asked.append(f"{who} {number}")
            yield layer

    layer_errors(told("student", made_up(0)), told("teacher", made_up(1)), IS_MASKED, WEIGHTS)
    assert asked == [f"{who} {number}" for number in range(4) for who in ("student", "teacher")]


@pytest.mark.numerical
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_error_is_summed_in_float32(dtype: torch.dtype):
    """Of many small numbers in bfloat16 too, and its gradient is that of the formula; equal ones have none."""
    random = torch.Generator().manual_seed(0)
    wanted = torch.randn(1, 1 << 16, generator=random).to(dtype)
    mine = (wanted + 0.25).to(dtype).requires_grad_()
    error = relative_error(mine, wanted)
    difference, size = (mine.detach() - wanted).double(), wanted.double().square().sum()
    assert error.dtype == torch.float32
    assert_close(error.double(), (difference.square().sum() / size)[None], rtol=1e-4)
    error.sum().backward()
    assert_close(mine.grad.double() * size, 2 * difference, rtol=3e-2, planted=difference)
    same = wanted.clone().requires_grad_()
    relative_error(same, wanted).sum().backward()
    assert not same.grad.any()
    assert relative_error(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [0.0]


def double_model(mask: TileMask | None) -> tuple[OpenSoraT2V, tuple[Tensor, ...]]:
    """A tiny transformer in float64, the first of its two layers under a mask, and what it is called with."""
    torch.manual_seed(0)
    model = OpenSoraT2V(TRANSFORMER_CONFIG).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    if mask is not None:
        case = Case(VideoGrid(3, 2, 3), 2, 24, 2, torch.float64, torch.device("cpu"), needs_grad=True)
        order = (1, 0, 2)
        for block, each in zip(model.blocks, (mask, TileMask.dense(3)), strict=True):
            block.attn1.attend = bind(each, case, "sdpa", order)
        model.frame_order = order
    x = torch.randn(2, 4, 3, 4, 6, dtype=torch.float64)
    return model, (x, torch.tensor([900, 300]), torch.randn(2, 5, 16, dtype=torch.float64), torch.ones(2, 5))


@pytest.mark.numerical
def test_layers_are_those_of_a_plain_forward():
    """Attention outputs and block outputs by hooks, frames put back in their order, and the output itself."""
    model, given = double_model(TileMask(3, (1,)))
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn1.register_forward_hook(lambda module, _, out: seen.append(out))
        block.register_forward_hook(lambda module, _, out: seen.append(out) if torch.is_tensor(out) else None)
    with torch.no_grad():
        output = model(*given)
        natural = [x.unflatten(1, (3, 6))[:, [1, 0, 2]].flatten(1, 2) for x in seen]
        found = list(model.layerwise(*given))
    assert [len(layer) for layer in found] == [2, 2, 1]
    for layer, (attended, hidden) in enumerate(found[:2]):
        assert_close(attended, natural[2 * layer], planted=seen[2 * layer])
        assert_close(hidden, natural[2 * layer + 1], planted=seen[2 * layer + 1])
    assert_close(found[2][0], output)


@pytest.mark.numerical
def test_the_gradient_is_that_of_finite_differences():
    """Of the whole loss along a direction in the masked layer's weights, and along one in the last layer's."""
    student, given = double_model(TileMask(3, (1,)))
    teacher, _ = double_model(None)

    def loss() -> Tensor:
        with torch.no_grad():
            wanted = list(teacher.layerwise(*given))
        errors = layer_errors(student.layerwise(*given), iter(wanted), (True, False), WEIGHTS)
        return kd_losses(errors, WEIGHTS)["loss"]

    student.zero_grad()
    loss().backward()
    for weight in (student.blocks[0].attn1.to_k.weight, student.blocks[1].ff.net[2].weight):
        direction = torch.randn_like(weight)
        told = float((weight.grad * direction).sum())
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                weight += step * direction
                values.append(float(loss()))
                weight -= step * direction
        # What merges a mask's passes is float32, so no step is both small and exact.
        assert_within(abs((values[0] - values[1]) / 2e-4 - told) / abs(told), 2e-3, planted=1.0)


@pytest.mark.numerical
def test_a_student_without_masks_is_its_teacher():
    """Every error is 0; under a mask none is."""
    teacher, given = double_model(None)
    for mask, is_right in ((TileMask.dense(3), True), (TileMask(3, (1,)), False)):
        student, _ = double_model(mask)
        with torch.no_grad():
            errors = layer_errors(student.layerwise(*given), teacher.layerwise(*given), (True, True), Weights())
        for name, error_LB in errors.items():
            if is_right:
                assert_within(float(error_LB.max()), 1e-24, planted=1e-6, told=name)
            else:
                assert bool((error_LB > 0).all()), name
