"""Decoding in one compiled loop: greedy, beam search, sampling and beam sampling.

`generate` runs a model; `beam_search` and `sample` run any `tokens -> logits` callback.
"""

from florence_jax.generation.beam_search import beam_search
from florence_jax.generation.constraints import Constraint, make_constraint
from florence_jax.generation.decode_config import (
    DecodeParams,
    DecodeStatic,
    make_plan,
    token_buckets,
)
from florence_jax.generation.decode_loop import Cache, StepFn
from florence_jax.generation.generate import compilation_count, generate
from florence_jax.generation.inputs import prompt_bucket
from florence_jax.generation.logits_processors import apply_logits_processors
from florence_jax.generation.output import GenerateOutput
from florence_jax.generation.sampling import sample
from florence_jax.generation_config import PUBLISHED, GenerationConfig

__all__ = [
    "PUBLISHED",
    "Cache",
    "Constraint",
    "DecodeParams",
    "DecodeStatic",
    "GenerateOutput",
    "GenerationConfig",
    "StepFn",
    "apply_logits_processors",
    "beam_search",
    "compilation_count",
    "generate",
    "make_constraint",
    "make_plan",
    "prompt_bucket",
    "sample",
    "token_buckets",
]
