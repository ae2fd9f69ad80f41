"""The only place that compares with a tolerance: wide enough for any processor, and tight enough to see a mistake.

`assert_close(found, expected)` plants mistakes too and wants each of them TIGHT bounds away: no bound is so wide that a
mistake would pass. With EVDIT_ERRORS=FILE every comparison adds a line to FILE, and `python -m tests.closeness FILE...`
tells which bounds hold on this processor by luck alone (`make test-cpus`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

TIGHT = 10  # a planted mistake is at least this many bounds away
ROOM = 0.2  # outside float64 an error takes at most this share of its bound: another processor rounds differently


class Leaf(NamedTuple):
    """One array of a comparison in float64, the bound on its elements, and whether both sides were float64 before."""

    name: str
    found: np.ndarray
    expected: np.ndarray
    allowed: np.ndarray
    is_float64: bool

    def ratios(self, values: np.ndarray) -> np.ndarray:
        """How many bounds each of `values` is away from what is expected; a NaN or an infinity is endlessly far."""
        error = np.abs(values - self.expected)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(error == 0, 0.0, np.where(np.isfinite(error), error / self.allowed, np.inf))


def assert_close(
    found: Any,
    expected: Any,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    planted: Any = None,
    told: Any = "",
) -> None:
    """|found - expected| <= atol + rtol |expected| for tensors, arrays, numbers, and lists and dicts of them.

    `planted` is the outcome of a real mistake (the mask dropped, a frame shifted), built as `expected` is. Without it,
    doubled values, and values moved one place along an axis if they vary, stand for mistakes; zeros show neither and
    need it. Without a bound, atol and rtol are 1e-9, or 1e-4 where a tensor or an array has fewer bits than float64.
    """
    leaves = [_leaf(*pair, atol, rtol) for pair in _pairs(found, expected)]
    for leaf in leaves:
        ratios = leaf.ratios(leaf.found)
        _record(ratios.max(), leaf.is_float64)
        at = np.unravel_index(ratios.argmax(), ratios.shape)
        where = f"{told} {leaf.name}{[int(i) for i in at] or ''}".strip()
        assert ratios.max() <= 1, f"{where}: {leaf.found[at]}, not {leaf.expected[at]}: {ratios.max():.3g} bounds away"
    if planted is None:
        mistakes = [(f"{leaf.name} {name}", leaf.ratios(x).max()) for leaf in leaves for name, x in _mistakes(leaf)]
    else:
        wrong = zip(leaves, _pairs(planted, expected), strict=True)
        mistakes = [("the planted mistake", max(leaf.ratios(_array(x)[0]).max() for leaf, (_, x, _) in wrong))]
    for name, away in mistakes:
        assert away >= TIGHT, f"{told} the bound is too wide: {name} is only {away:.3g} bounds away"


def assert_within(error: float | dict, bound: float, *, planted: float | dict, told: Any = "") -> None:
    """An error that a test computed, or the largest of a dict, is at most `bound`, and that of a mistake is not."""
    worst, mistaken = (float(np.max(list(x.values()) if isinstance(x, dict) else x)) for x in (error, planted))
    _record(worst / bound, is_float64=False)
    assert worst <= bound, f"{told} {error} is above {bound}"
    assert mistaken >= TIGHT * bound, f"{told} {bound} is too wide: the planted mistake is {planted}"


def _pairs(found: Any, expected: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, found and expected of all in lists and dicts; raises AssertionError where they are not built alike."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), f"{name}: {list(found)}, not {list(expected)}"
        for key in expected:
            yield from _pairs(found[key], expected[key], f"{name} {key}")
    elif isinstance(expected, list | tuple) and not all(isinstance(x, int | float) for x in expected):
        assert len(found) == len(expected), f"{name}: {len(found)}, not {len(expected)}"
        for i, pair in enumerate(zip(found, expected, strict=True)):
            yield from _pairs(*pair, f"{name} {i}")
    else:
        yield name, found, expected


def _leaf(name: str, found: Any, expected: Any, atol: float | None, rtol: float | None) -> Leaf:
    """Both in float64 with their bound; raises AssertionError where they differ in shape or type."""
    (a, found_type), (b, expected_type) = _array(found), _array(expected)
    assert a.shape == b.shape and a.size, f"{name}: of shape {a.shape}, not {b.shape}, or empty"
    # A float64 reference may judge any type. Otherwise what comes back is of the type that is expected.
    assert expected_type in ("", "float64", found_type), f"{name}: {found_type}, not {expected_type}"
    types = {found_type, expected_type} - {""}
    if atol is None and rtol is None:
        atol = rtol = 1e-4 if types - {"float64"} else 1e-9
    return Leaf(name, a, b, (atol or 0) + (rtol or 0) * np.abs(b), types == {"float64"})


def _array(x: Any) -> tuple[np.ndarray, str]:
    """`x` in float64, and the floating type it had; whole numbers and Python's own tell none."""
    if isinstance(x, Tensor):
        return x.detach().cpu().double().numpy(), str(x.dtype).removeprefix("torch.") if x.is_floating_point() else ""
    array = np.asarray(x)
    told = isinstance(x, np.ndarray | np.generic) and array.dtype.kind == "f"
    return array.astype(np.float64), str(array.dtype) if told else ""


def _mistakes(leaf: Leaf) -> Iterator[tuple[str, np.ndarray]]:
    """A wrong scale, and one place moved along the axis that shows it best."""
    yield "doubled", 2 * leaf.expected
    moved = [np.roll(leaf.expected, 1, axis) for axis in range(leaf.expected.ndim)]
    if any((x != leaf.expected).any() for x in moved):
        yield "moved by one", max(moved, key=lambda x: leaf.ratios(x).max())


def _record(ratio: float, is_float64: bool) -> None:
    if file := os.environ.get("EVDIT_ERRORS"):
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"test": test, "ratio": float(ratio), "float64": bool(is_float64)}) + "\n")


def report(files: list[str]) -> tuple[str, bool]:
    """The largest share of its bound that each test took in any file, worst first, and whether all leave room."""
    largest: dict[tuple[str, bool], float] = {}
    for line in (line for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()):
        each = json.loads(line)
        key = each["test"], each["float64"]
        largest[key] = max(largest.get(key, 0), each["ratio"])
    order = sorted(largest.items(), key=lambda item: -item[1])
    told = [f"{ratio:8.4f}  {test}{' (float64)' if is_float64 else ''}" for (test, is_float64), ratio in order]
    tight = [ratio for (_, is_float64), ratio in order if ratio > ROOM and not is_float64]
    told.append(f"{len(order)} tests, {len(tight)} of them with an error above {ROOM} of its bound outside float64")
    return "\n".join(told) + "\n", bool(order) and not tight


if __name__ == "__main__":
    text, has_room = report(sys.argv[1:])
    sys.stdout.write(text)
    sys.exit(0 if has_room else 1)
