"""The demonstration's model at a size that answers in milliseconds."""

import dataclasses

from florence_jax.demo.random_model import demo_pipeline

SETTINGS = {"max_new_tokens": 10, "num_beams": 1}


def small_pipeline(**changes):
    """Random weights, pictures of 64 x 64 pixels, short answers."""
    pipeline = demo_pipeline()
    return dataclasses.replace(
        pipeline,
        image_config=dataclasses.replace(pipeline.image_config, size=(64, 64)),
        generation=dataclasses.replace(pipeline.generation, **SETTINGS),
        **changes,
    )
