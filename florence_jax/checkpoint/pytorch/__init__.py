"""PyTorch checkpoints, of either naming: detection, key maps, reading and writing."""
