"""The `florence-jax` command line, one file for each command."""
