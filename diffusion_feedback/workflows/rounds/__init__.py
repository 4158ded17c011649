"""Rounds: draw, judge, pick pairs, train, and again from the result."""
