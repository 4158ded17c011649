"""Prompts and a model to files: images with their manifest, completions; resumable, whole whenever the writer is killed."""

from .completions import COMPLETIONS, Completion, CompletionSampler, complete_prompts, load_completions
from .images import IMAGES, METADATA, Sampler, generate_images, load_generated, own_noise

__all__ = [
    "COMPLETIONS",
    "IMAGES",
    "METADATA",
    "Completion",
    "CompletionSampler",
    "Sampler",
    "complete_prompts",
    "generate_images",
    "load_completions",
    "load_generated",
    "own_noise",
]
