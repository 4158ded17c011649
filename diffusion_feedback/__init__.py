"""Takes generative models beyond imitation by learning from feedback."""

__version__ = "0.1.0"
