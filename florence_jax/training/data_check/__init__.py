"""What a data set would teach: counts, lengths, sizes and everything that is wrong; no jax."""
