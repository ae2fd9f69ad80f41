"""What prepared data depend on: the model's name, its VAE, its text encoder and the words around a caption.

Letters: C channels, F latent frames, h, w latent height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vdit_cli.artifacts.atomic import free_name
from vdit_cli.backbones.base import Backbone, part_digest
from vdit_cli.errors import EvditError, quoted


@dataclass(frozen=True)
class DataFacts:
    """The model that made (or is to be trained on) prepared data: its name and the digests of what decides the data.

    `template` is what a caption was put into before it was encoded; `negative` is the text of the null states.
    """

    model: str
    vae: str
    text_encoder: str
    template: str = "{prompt}"
    negative: str = ""

    @classmethod
    def of(cls, backbone: Backbone) -> DataFacts:
        """The facts of an open model; reads the files of its VAE and text encoder, but loads neither."""
        own = backbone.defaults
        return cls(
            model=backbone.name,
            vae=part_digest(backbone, "vae"),
            text_encoder=part_digest(backbone, "text"),
            template=own.prompt_template,
            negative=own.negative,
        )

    def check(self, wanted: DataFacts, folder: str, model: str | None = None) -> None:
        """Raise EvditError (exit 2), naming both, where data in `folder` were made by other parts than `wanted`'s.

        Models of different names that share VAE, text encoder and template share data. `model` is what a person calls
        the wanted one, where that is not its name.
        """
        pairs = (
            ("VAE", self.vae[:12], wanted.vae[:12], self.vae == wanted.vae),
            (
                "text encoder",
                self.text_encoder[:12],
                wanted.text_encoder[:12],
                self.text_encoder == wanted.text_encoder,
            ),
            ("prompt template", repr(self.template), repr(wanted.template), self.template == wanted.template),
            ("negative prompt", repr(self.negative), repr(wanted.negative), self.negative == wanted.negative),
        )
        wrong = [
            f"{what} {mine} of {self.model}, not {other} of {wanted.model}"
            for what, mine, other, fits in pairs
            if not fits
        ]
        if wrong:
            raise EvditError(
                f"the data in {folder} do not fit {wanted.model}: they were made with " + "; ".join(wrong),
                where=f"--data {folder}",
                next_steps=[
                    f"evdit prepare-data --model {quoted(model or wanted.model)} --source shapes -o "
                    f"{quoted(free_name(Path(folder)))}",
                    "the model that made them",
                ],
            )
