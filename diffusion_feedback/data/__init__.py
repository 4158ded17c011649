"""Readers and writers of every pair format, the check of a data set, and caches of latents and text embeddings."""
