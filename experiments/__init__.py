"""Whole stories, measured: each is run by ``python -m experiments.NAME`` from the repository's root."""
