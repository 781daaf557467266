"""The model inside of other tools: each module needs that tool's own package, and no other."""
