"""Recipes: YAML plus flags to typed dataclasses. Every key is checked; an unknown one is an error with the nearest name."""
