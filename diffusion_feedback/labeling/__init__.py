"""Scores to preferences: rules that pick pairs, panels of scorers that decide them, policies for ties."""
