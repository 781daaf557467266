"""This project's own checkpoint format: Orbax arrays, a manifest of checksums and dtypes."""
