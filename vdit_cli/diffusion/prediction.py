"""What a network may predict of x_t = a x0 + s eps, and how to read x0 and eps from it.

`kind` is one of `KINDS`; a and s are the signal and noise shares at t, in any shape that broadcasts against x.
"eps" and "v" need a^2 + s^2 = 1, "flow" needs a = 1 - s.
"""

from __future__ import annotations

from torch import Tensor

from vdit_cli.errors import unknown_name

KINDS = ("eps", "v", "flow")

DIFFUSERS_NAMES = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}
"""`prediction_type` of a diffusers scheduler -> kind."""


def kind_of(prediction_type: str) -> str:
    """The kind for diffusers' `prediction_type`. Raises EvditError for one that is not in `DIFFUSERS_NAMES`."""
    if prediction_type not in DIFFUSERS_NAMES:
        raise unknown_name(
            "prediction type", prediction_type, DIFFUSERS_NAMES, where="scheduler_config.json prediction_type"
        )
    return DIFFUSERS_NAMES[prediction_type]


def velocity(x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """v = a eps - s x0, the shape of x0. Source: Salimans and Ho, arXiv 2202.00512, section 4."""
    return a * eps - s * x0


def target(kind: str, x0: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """What a network of this kind should return for data x0 and noise eps, in their shape.

    eps: the noise (arXiv 2006.11239); v: `velocity`; flow: eps - x0, the slope of the straight path
    (arXiv 2210.02747 with time running towards noise). Raises EvditError for an unknown kind.
    """
    if kind == "eps":
        return eps
    if kind == "v":
        return velocity(x0, eps, a, s)
    if kind == "flow":
        return eps - x0
    raise unknown_name("prediction", kind, KINDS)


def x0_from(kind: str, output: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """The clean data told by a network's `output` for noisy x: eps (x - s eps) / a; v a x - s v; flow x - s v.

    Raises EvditError for an unknown kind.
    """
    if kind == "eps":
        return (x - s * output) / a
    if kind == "v":
        return a * x - s * output
    if kind == "flow":
        return x - s * output
    raise unknown_name("prediction", kind, KINDS)


def x0_gain(kind: str, a: Tensor, s: Tensor) -> Tensor:
    """How far the clean data of `x0_from` move for a change of the output, in the shape of s: eps s / a; v, flow s.

    Raises EvditError for an unknown kind.
    """
    if kind == "eps":
        return s / a
    if kind in ("v", "flow"):
        return s
    raise unknown_name("prediction", kind, KINDS)


def eps_from(kind: str, output: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """The noise told by a network's `output` for noisy x: eps itself; v s x + a v; flow x + a v.

    Raises EvditError for an unknown kind.
    """
    if kind == "eps":
        return output
    if kind == "v":
        return s * x + a * output
    if kind == "flow":
        return x + a * output
    raise unknown_name("prediction", kind, KINDS)
