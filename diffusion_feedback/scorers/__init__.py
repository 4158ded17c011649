"""Scorers: one a file; each turns images and prompts into numbers."""
