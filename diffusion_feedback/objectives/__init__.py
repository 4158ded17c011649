"""Pure mathematics on log-probabilities: losses per example, never their mean, and the metrics that go with them."""
