"""Prompts and a model to files: images with their manifest, completions; resumable, whole whenever the writer is killed."""
