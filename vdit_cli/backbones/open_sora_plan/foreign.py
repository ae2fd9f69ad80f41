"""Folders that others wrote: weights under other names, read where that is safe, and words for what can't be read."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.tensors import is_pointer
from vdit_cli.errors import ENVIRONMENT, EvditError, quoted
from vdit_cli.reader import read_object

NAME = re.compile(r"(?:diffusion_pytorch_model|model)(\.\w+)?(?:-\d{5}-of-(\d{5}))?\.safetensors")
"""A whole file or a shard, of the usual numbers or of a variant such as ".fp16"."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
"""Files whose reading may run code that is in them."""
TOKENIZER, SETTINGS = "spiece.model", "tokenizer_config.json"


def other_weights(folder: Path) -> list[Path]:
    """The safetensors of a folder without index and without a file of the usual name: a variant, or bare shards.

    Empty where there are none. Raises EvditError (exit 3) for several sets of them, and for shards that lack some.
    """
    sets: dict[tuple[str, ...], list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if found := NAME.fullmatch(path.name):
            sets.setdefault((found[1] or "", found[2] or ""), []).append(path)
    if len(sets) > 1:
        names = ", ".join(files[0].name for files in sets.values())
        what = f"{folder} holds weights more than once: {names}"
        steps = ["a folder with one of them alone"]
        raise EvditError(what, where=str(folder), next_steps=steps, exit_code=ENVIRONMENT)
    for (_, count), files in sets.items():
        if count and len(files) != int(count):
            what = f"{folder} has {len(files)} of the {int(count)} files of its weights, {files[0].name} among them"
            raise EvditError(what, where=str(folder), next_steps=["bring the others"], exit_code=ENVIRONMENT)
        return files
    return []


def no_weights(folder: Path, name: str) -> EvditError:
    """The error for a folder without safetensors to read, called `name` as a rule; what is there instead is said."""
    pickled = sorted(path for path in folder.glob("*") if path.suffix in PICKLED) if folder.is_dir() else []
    if not pickled:
        what = f"{folder / name} is missing, and no {name}.index.json is beside it"
        return EvditError(what, next_steps=["fetch the folder's files again"], exit_code=ENVIRONMENT)
    made = pickled[0].with_name(name)
    code = (
        "import torch, safetensors.torch as s; "
        f'd = torch.load({json.dumps(str(pickled[0]))}, map_location="cpu", weights_only=True); '
        f's.save_file({{k: v.contiguous() for k, v in d.get("state_dict", d).items()}}, {json.dumps(str(made))})'
    )
    listed = ", ".join(path.name for path in pickled)
    return EvditError(
        f"{folder} holds {listed}, which may hold code, and no {name}: weights are read from safetensors alone",
        where=str(folder),
        next_steps=[f"python -c {shlex.quote(code)}"],
        exit_code=ENVIRONMENT,
    )


@contextmanager
def tokenizer_files(folder: Path) -> Iterator[Path]:
    """The folder that a tokenizer is read from: `folder`, or a copy of its vocabulary without the key model_type.

    transformers gives that key to what reads spiece.model, which takes it for another. Raises EvditError (exit 3)
    where spiece.model is a pointer of git-lfs.
    """
    words, settings = folder / TOKENIZER, folder / SETTINGS
    if (folder / "tokenizer.json").is_file() or not words.is_file():
        yield folder
        return
    if is_pointer(words):
        what = f"{words} is a git-lfs pointer: the vocabulary itself was not fetched"
        steps = [f"git -C {quoted(folder)} lfs pull", "fetch the file again"]
        raise EvditError(what, where=str(words), next_steps=steps, exit_code=ENVIRONMENT)
    told = read_object(dict[str, Any], settings, "tokenizer's config") if settings.is_file() else {}
    if "model_type" not in told:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        (copy / TOKENIZER).write_bytes(words.read_bytes())
        del told["model_type"]
        (copy / SETTINGS).write_text(json.dumps(told), encoding="utf-8")
        yield copy
