"""The one training loop, its steps, checkpoints and run folders."""
