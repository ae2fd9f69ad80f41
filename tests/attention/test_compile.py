"""torch.compile of a block with tile attention inside: no graph break, one graph a distinct mask, equal gradients."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.library import opcheck

from tests.closeness import assert_close
from vdit_cli.attention.bind import Attend, Case, bind, tile_attention
from vdit_cli.attention.by_passes import read, spelled
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import passes
from vdit_cli.tiles.plan import MaskPlan

pytestmark = pytest.mark.numerical

GRID = VideoGrid(8, 2, 3)
HEADS, WIDTH = 2, 8
NEAR = {"rtol": 1e-5, "atol": 1e-6}


class Layer(nn.Module):
    """Projections, tile attention and a residual, like a transformer's block."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.attend = attend

    def forward(self, x_BNC: Tensor) -> Tensor:
        """The same shape."""
        q, k, v = self.to_qkv(x_BNC).unflatten(-1, (3, HEADS, WIDTH)).unbind(2)
        return x_BNC + self.to_out(self.attend(q, k, v).flatten(2))


def layers(kernel: str, names: tuple[str, ...]) -> list[Layer]:
    """A layer a mask name; equal masks share an Attend, as a plan binds them."""
    torch.manual_seed(0)
    case = Case(GRID, HEADS, WIDTH, 2, torch.float32, torch.device("cpu"), needs_grad=True)
    bound = {name: bind(TileMask.parse(name, 8), case, kernel) for name in names}
    return [Layer(bound[name]) for name in names]


@pytest.fixture
def graphs() -> Iterator[list[str]]:
    """The code of every graph that AOTAutograd made, forward ones only, by a back end that counts."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def counting(graphs: list[str]) -> object:
    """A back end that runs graphs as they are and keeps those of the forward pass in `graphs`."""

    def forward(module: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(module.code)
        return make_boxed_func(module.forward)

    def backward(module: torch.fx.GraphModule, inputs: object) -> object:
        return make_boxed_func(module.forward)

    return aot_autograd(fw_compiler=forward, bw_compiler=backward)


def gradients(made: list[Layer], x: Tensor) -> list[Tensor]:
    """Output of the layers one after the other, and the gradients of their weights."""
    for layer in made:
        layer.zero_grad()
    y = x
    for layer in made:
        y = layer(y)
    y.square().sum().backward()
    return [y, *(weight.grad.clone() for layer in made for weight in layer.parameters())]


@pytest.mark.parametrize("names", [("1:7", "1:7", "2:6"), ("2:6", "1:7", "2:6", "4:4", "1:7", "8:0")])
def test_one_graph_a_distinct_mask(graphs: list[str], names: tuple[str, ...]) -> None:
    """fullgraph=True passes, layers of one mask share a graph, and outputs and gradients are those of eager."""
    made, x = layers("sdpa", names), torch.randn(2, GRID.tokens, 16, requires_grad=True)
    expected = gradients(made, x)
    backend = counting(graphs)
    for layer in made:
        layer.compile(backend=backend, fullgraph=True)
    for found, wanted in zip(gradients(made, x), expected, strict=True):
        assert_close(found, wanted, **NEAR)
    gradients(made, x)
    assert len(graphs) == len(set(names))
    assert sum("attend_by_passes" in code for code in graphs) == len(set(names) - {"8:0"})


@torch.no_grad()
def test_without_gradients_too(graphs: list[str]) -> None:
    """Sampling: one graph a mask, and the eager output."""
    made, x = layers("sdpa", ("1:7", "1:7", "2:6")), torch.randn(2, GRID.tokens, 16)
    expected = [layer(x) for layer in made]
    backend = counting(graphs)
    for layer in made:
        layer.compile(backend=backend, fullgraph=True)
    for layer, wanted in zip(made, expected, strict=True):
        assert_close(layer(x), wanted, **NEAR)
    assert len(graphs) == 2


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("name", ["1:7", "2:6", "4:4", "8:0"])
def test_the_one_line_form_in_one_graph(graphs: list[str], name: str, cast: bool) -> None:
    """Bound while it is compiled, fullgraph=True: output and gradients are eager's, for another batch and autocast too.

    Under autocast so is a mask that was bound for another type.
    """
    grid = VideoGrid(8, 2, 3, text_before=2, text_after=1)
    mask, width = TileMask.parse(name, 8), 16
    bound = bind(mask, Case(grid, HEADS, width, 1, torch.float32, torch.device("cpu"), needs_grad=True), "sdpa")

    def one_line(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tile_attention(2 * q, k, v, mask, grid) + 1

    for call in (one_line, bound):
        torch._dynamo.reset()
        graphs.clear()
        compiled = torch.compile(call, backend=counting(graphs), fullgraph=True, dynamic=False)
        for batch in (1, 2):
            operands = [torch.randn(batch, grid.tokens, HEADS, width, requires_grad=True) for _ in range(3)]
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                outs = [each(*operands) for each in (call, compiled)]
            assert outs[1].dtype == (torch.bfloat16 if cast else torch.float32)
            expected, found = ([out, *torch.autograd.grad(out.sum(), operands)] for out in outs)
            assert_close(found, expected, **NEAR)
        assert len(graphs) == 2
        assert all(code.count("attend_by_passes.default") == (name != "8:0") for code in graphs)


@pytest.mark.parametrize("name", ["1:7", "2:6"])
def test_the_operator_keeps_its_promises(name: str) -> None:
    """torch's own check: schema, shapes told for tensors without data, and autograd through the compiler."""
    numbers = spelled(passes(TileMask.parse(name, 8), GRID))
    operands = [torch.randn(2, GRID.tokens, HEADS, WIDTH, requires_grad=True) for _ in range(3)]
    operator = torch.ops.evdit.attend_by_passes.default
    opcheck(operator, (*operands, numbers, 0.3, ""))


def test_passes_survive_their_spelling() -> None:
    """read undoes spelled."""
    for name in ("1:7", "2:6", "4:4", "8:0"):
        found = passes(TileMask.parse(name, 8), GRID)
        assert read(spelled(found)) == found


@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_whole_block_is_one_graph_a_distinct_mask(graphs: list[str], needs_grad: bool) -> None:
    """Blocks of the real transformer, a plan of six layers and three masks: no break, three graphs, same numbers."""
    config = {"num_layers": 6, "num_attention_heads": 2, "attention_head_dim": 12, "caption_channels": 10}
    torch.manual_seed(0)
    model = OpenSoraT2V(config)
    for parameter in model.parameters():
        parameter.detach().normal_(0, 0.2)
    grid, names = VideoGrid(8, 2, 3), ("2:6", "1:7", "2:6", "4:4", "1:7", "2:6")
    case = Case(grid, 2, 12, 1, torch.float32, torch.device("cpu"), needs_grad)
    plan = MaskPlan("tiny", grid, tuple(TileMask.parse(name, 8) for name in names))
    bound = {mask: bind(mask, case, "sdpa", plan.frame_order) for mask in plan.distinct()}
    for block, mask in zip(model.transformer_blocks, plan.masks, strict=True):
        block.attn1.attend = bound[mask]
    model.frame_order = plan.frame_order
    inputs = torch.randn(1, 4, 8, 4, 6), torch.tensor([500]), torch.randn(1, 1, 5, 10), torch.ones(1, 1, 5)
    with torch.set_grad_enabled(needs_grad):
        expected = model(*inputs)
        backend = counting(graphs)
        for block in model.transformer_blocks:
            block.compile(backend=backend, fullgraph=True, dynamic=False)
        assert_close(model(*inputs), expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 3
    assert all(code.count("evdit.attend_by_passes") == 1 for code in graphs)
