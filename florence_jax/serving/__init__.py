"""`florence-jax serve`: one model behind HTTP, for many callers; needs the extra `serve`."""
