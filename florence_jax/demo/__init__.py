"""The model that is shipped with the package, and its test images."""
