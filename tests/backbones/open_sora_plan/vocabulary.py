"""A small vocabulary in sentencepiece's own form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sentencepiece


def vocabulary(folder: Path, lines: Sequence[str]) -> bytes:
    """The content of a spiece.model that was trained on `lines`, in `folder`."""
    (folder / "lines.txt").write_text("\n".join([*lines] * 10), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return (folder / "spiece.model").read_bytes()
