"""One order of the frames for a whole plan: global frames are a prefix in every layer that nests."""

from itertools import combinations

import pytest
from hypothesis import given

from tests.tiles.strategies import plans
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import token_order
from vdit_cli.tiles.plan import MaskPlan, largest_nest


def plan_of(frames: int, *global_frames: tuple[int, ...]) -> MaskPlan:
    """A plan of layers with these global frames."""
    return MaskPlan("any", VideoGrid(frames, 2, 2), tuple(TileMask(frames, each) for each in global_frames))


def gathers(plan: MaskPlan) -> list[bool]:
    """Whether each layer has to gather its tokens, held in the plan's order."""
    return [not mask.is_dense and len(token_order(mask, plan.grid, plan.frame_order)) > 1 for mask in plan.masks]


def test_strides_that_divide_each_other_are_one_nest() -> None:
    """{0} in {0, 4} in {0, 2, 4, 6}: no layer gathers, in whatever order the layers come."""
    plan = plan_of(8, (0, 2, 4, 6), (0,), (0, 4), tuple(range(8)))
    assert plan.frame_order == (0, 4, 2, 6, 1, 3, 5, 7)
    assert not any(gathers(plan))


def test_dense_and_first_frame_plans_keep_their_order() -> None:
    """Nothing is moved for them."""
    for layers in ([(0, 1, 2, 3)], [(0,)], [(0,), (0, 1, 2, 3), (0, 1, 2)]):
        assert plan_of(4, *layers).frame_order == (0, 1, 2, 3)


def test_where_not_all_nest_most_layers_decide() -> None:
    """{0, 3, 6} does not hold {0, 4}: the side with more layers is served, the other gathers; a tie goes sparser."""
    plan = plan_of(8, (0,), (0, 3, 6), (0, 4), (0, 3, 6))
    assert plan.frame_order == (0, 3, 6, 1, 2, 4, 5, 7)
    assert gathers(plan) == [False, False, True, False]
    tie = plan_of(8, (0, 3, 6), (0, 4))
    assert gathers(tie) == [True, False]


@given(plans())
def test_it_is_an_order_in_which_the_nest_never_gathers(plan: MaskPlan) -> None:
    """Each frame once; layers of the nest have one range when no text stands after the video."""
    assert sorted(plan.frame_order) == list(range(plan.grid.frames))
    nest = largest_nest(plan.masks)
    grid = VideoGrid(plan.grid.frames, plan.grid.rows, plan.grid.cols, plan.grid.text_before)
    assert all(len(token_order(mask, grid, plan.frame_order)) == 1 for mask in nest)


@given(plans())
def test_no_other_nest_has_more_layers(plan: MaskPlan) -> None:
    """Against every subset of the masks."""
    distinct = [mask for mask in plan.distinct() if not mask.is_dense]
    most = 0
    for size in range(1, len(distinct) + 1):
        for chosen in combinations(sorted(distinct, key=lambda mask: len(mask.global_frames)), size):
            sets = [set(mask.global_frames) for mask in chosen]
            if all(one < other for one, other in zip(sets, sets[1:], strict=False)):
                most = max(most, sum(map(plan.masks.count, chosen)))
    assert sum(map(plan.masks.count, largest_nest(plan.masks))) == most


@pytest.mark.parametrize("frames", [8, 21, 24])
def test_powers_of_two_nest(frames: int) -> None:
    """Masks of strides 2, 4, 8 need no gather together."""
    by_stride = tuple(TileMask.from_stride(frames, stride) for stride in (2, 4, 8))
    assert not any(gathers(MaskPlan("any", VideoGrid(frames, 1, 1), by_stride)))
