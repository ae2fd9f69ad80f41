"""evdit: efficient video diffusion transformers by attention tiles and few steps."""

__version__ = "0.1.0"
