"""Preference methods against the exact frontier of reward and divergence."""
