"""What flows in memory between the packages: batches, log-probabilities, step results, and the protocols that join them."""
