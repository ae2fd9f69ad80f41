"""Where and in which number format a model runs: what `--device` and `--dtype` mean on this machine."""

from __future__ import annotations

import torch

from vdit_cli.errors import ENVIRONMENT, EvditError, unknown_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`; "auto" is a CUDA GPU where there is one, else the CPU (mps only when asked).

    Raises EvditError: 2 for no device name, 3 for a device that is not here.
    """
    if str(name) == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown_name("device", str(name), DEVICES, where=f"--device {name}") from error
    if device.type == "cuda":
        return _cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EvditError(
            "mps was asked for, and this machine has none",
            where=f"--device {name}",
            next_steps=["--device cpu"],
            exit_code=ENVIRONMENT,
        )
    if device.type not in ("cpu", "mps"):
        raise unknown_name("device", str(name), DEVICES, where=f"--device {name}")
    if device.index:
        what = f"{device} was asked for, and there is one {device.type}"
        raise EvditError(what, where=f"--device {name}", next_steps=[f"--device {device.type}"])
    return torch.device(device.type)  # what reads safetensors knows no cpu:0


def pick_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number format called `name`; "auto" is bfloat16 on CUDA, float32 elsewhere. Raises EvditError (2)."""
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise unknown_name("number format", name, ["auto", *DTYPES], where=f"--dtype {name}")
    return DTYPES[name]


def _cuda(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = torch.cuda.current_device() if count and device.index is None else device.index or 0
    if index < count:
        return torch.device("cuda", index)
    if count:
        have = f"this machine has {count} GPU" + ("s, cuda:0 the first" if count > 1 else ", cuda:0")
    elif torch.version.cuda is None:
        have = "this torch was built without CUDA"
    else:
        have = "no GPU answers"
    raise EvditError(
        f"{device} was asked for, and {have}",
        where=f"--device {device}",
        next_steps=["--device cpu", "evdit doctor"],
        exit_code=ENVIRONMENT,
    )
