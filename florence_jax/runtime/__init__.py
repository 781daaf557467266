"""Files, locks, signals and error messages that all programs share; no jax."""
