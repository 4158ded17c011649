"""What a user does, as functions on typed settings: train, score, label, generate, benchmark, judge, rounds."""
