"""Training programs, recipes, launch files and plans; the library is `florence_jax.training`."""
