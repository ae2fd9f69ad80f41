"""Opening the tiny pipeline of the tests, and what it makes of fixed prompts and noise."""

import pytest
import torch

from tests.tiny_pipeline import HEIGHT, WIDTH
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import EvditError

PROMPT = "a large red circle moving right over black"
SHAPE = (4, 3, HEIGHT // 8, WIDTH // 8)


def opened(folder, **options):
    return open_backbone(find_source(str(folder)), device="cpu", **options)


def latents(seed=0, batch=2):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def made(backbone):
    """Text states, prediction and video of fixed noise, each part resident when it is used."""
    with backbone.resident("text"):
        text = backbone.encode_text([PROMPT, "a blue square"])
    with backbone.resident("transformer"):
        output = backbone.denoise(latents(), torch.tensor([999, 500]), text)
    with backbone.resident("vae"):
        video = backbone.decode_video(output)
    return text.states_BLC, output, video


def refused(folder, code, says, **options):
    with pytest.raises(EvditError, match=says) as caught:
        opened(folder, **options)
    assert caught.value.exit_code == code, caught.value.text()
    return caught.value
