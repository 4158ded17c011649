"""log p(sample | prompt) under a network."""
