"""Judges of completions: reward models, classifiers and functions, behind one protocol (``types.texts.TextScorer``)."""
