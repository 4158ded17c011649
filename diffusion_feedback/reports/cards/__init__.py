"""Model cards: what a result is, where it came from, how to use it. One template (``KIND.md.j2``) a kind of run."""
