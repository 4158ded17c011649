"""The pages of the commands, each built out of results."""
