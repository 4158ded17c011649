"""The command line: thin, one file a command, and nobody imports it."""
