"""Decoding in one compiled loop: greedy, beam search, sampling and beam sampling.

`generate` runs a model; `beam_search` and `sample` run any `tokens -> logits` callback.
"""

from florence_jax.generation.beam_search import beam_search
from florence_jax.generation.constraints import Constraint, make_constraint
from florence_jax.generation.decode_config import (
    DecodingPlan,
    DecodingValues,
    make_plan,
    token_buckets,
)
from florence_jax.generation.decode_loop import Cache, StepFn
from florence_jax.generation.generate import (
    count_programs,
    generate,
    prompt_bucket,
)
from florence_jax.generation.logits_processors import process
from florence_jax.generation.output import GenerateOutput
from florence_jax.generation.sampling import sample
from florence_jax.generation_config import PUBLISHED, GenerationConfig

__all__ = [
    "PUBLISHED",
    "Cache",
    "Constraint",
    "DecodingPlan",
    "DecodingValues",
    "GenerateOutput",
    "GenerationConfig",
    "StepFn",
    "beam_search",
    "count_programs",
    "generate",
    "make_constraint",
    "make_plan",
    "process",
    "prompt_bucket",
    "sample",
    "token_buckets",
]
