"""For people who look rather than read: image grids, curves, and one self-contained HTML report."""
