"""Exported StableHLO artefacts of a pipeline: writing, reading and answering with them."""
