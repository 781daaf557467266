"""The pipeline and the engine: images and prompts in, parsed results out."""
