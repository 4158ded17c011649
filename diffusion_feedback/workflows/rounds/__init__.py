"""Rounds: draw, judge, pick pairs, train, and again from the result."""

from .run import RoundsResult, rounds

__all__ = ["RoundsResult", "rounds"]
