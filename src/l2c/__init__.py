"""Make diffusion transformers fast by learning which layers to compute at which evaluation."""

__version__ = "0.1.0"
