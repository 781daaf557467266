"""An image set annotated by a model: texts, regions and grounded phrases, filtered and counted."""
