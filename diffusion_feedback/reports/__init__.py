"""For people who prefer pictures to tables: image grids, curves, and one self-contained HTML report."""
