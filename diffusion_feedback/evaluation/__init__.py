"""From scores to claims: paired comparisons, win rates and their intervals."""
