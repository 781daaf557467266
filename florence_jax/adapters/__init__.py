"""LoRA adapters: PEFT's and our own files, and their addition to a model."""
