"""`generate`: image and prompt in, tokens out, in one compiled program.

A program is compiled once per model, decoding plan and bucket of shapes, and reused for every image
and prompt that fits the bucket: prompts are padded to 16, 32, 64, ... tokens and the token buffers
grow through 64, 128, 256, ..., both capped by the position table. Padding is masked and changes
nothing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from florence_jax.generation.beam_search import beam_search
from florence_jax.generation.constraints import Constraint
from florence_jax.generation.decode_config import DecodeParams, DecodeStatic
from florence_jax.generation.inputs import GenerateInputs, prepare_inputs
from florence_jax.generation.output import GenerateOutput
from florence_jax.generation.sampling import sample
from florence_jax.generation.shard_inputs import shard_inputs, unpad_outputs
from florence_jax.generation_config import GenerationConfig
from florence_jax.matmul_precision import at_model_precision
from florence_jax.quantization import quantized_modules, widened
from florence_jax.sharding.activations import axis_size
from florence_jax.sharding.batch import use_mesh

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from florence_jax.model import Florence2, Model, Params
    from florence_jax.model.kv_cache import DecoderCache

# Memory tokens and words are filled up to a multiple of this on GPUs, once: XLA fills up the
# operands of cuBLAS to whole 16 bytes otherwise at every step, which copies the token table and all
# cross-attention keys and values.
_GPU_MULTIPLE = 8


def generate(
    model: Model,
    params: Params,
    *,
    pixel_values: ArrayLike | None = None,
    image_features: ArrayLike | None = None,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    config: GenerationConfig,
    constraint: Constraint | None = None,
    rng: jax.Array | None = None,
) -> GenerateOutput:
    """Generate text for a batch of images and prompts.

    A row's answer does not depend on the other rows. With `do_sample`, row b draws from
    `fold_in(rng, b)`.

    Args:
        model: the handle; `params` are its weights.
        pixel_values: float[B, H, W, 3], or float[B, F, H, W, 3] for F frames; normalised.
        image_features: float[B, I, D] from `model.encode_image`, instead of `pixel_values`: encode
            an image once and ask many times.
        input_ids: int[B, L], the text tokens alone, padded to a common length.
        attention_mask: [B, L], zero or False at padding; by default whatever equals the pad id.
        config: what to generate; token ids it leaves out are the model's.
        constraint: what each row may answer, from `make_constraint`; by default anything.
        rng: a `jax.random.key`; needed when `config.do_sample`.

    Returns:
        Numpy arrays trimmed to the longest answer, see `GenerateOutput`.

    Raises:
        ValueError: inputs that do not go together, a prompt too long for the encoder's position
            table, or `max_new_tokens` past the decoder's or too few for the constraint.
    """
    prepared = prepare_inputs(
        model,
        params,
        pixel_values=pixel_values,
        image_features=image_features,
        input_ids=input_ids,
        attention_mask=attention_mask,
        config=config,
        constraint=constraint,
        rng=rng,
    )
    return run_generate(prepared).trimmed()


def run_generate(prepared: GenerateInputs) -> GenerateOutput:
    """Run the compiled program; on a mesh, with the batch divided over it."""
    mesh = prepared.model.mesh
    if mesh is None:
        return generate_jit(*prepared)
    rows = len(prepared.input_ids)
    with use_mesh(mesh):
        return unpad_outputs(generate_jit(*shard_inputs(prepared, mesh)), rows, mesh)


def compilation_count() -> int:
    """The number of programs that `generate` has compiled in this process."""
    return generate_jit._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
@at_model_precision
def generate_jit(
    model: Model,
    plan: DecodeStatic,
    is_pixels: bool,
    params: Params,
    image: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    values: DecodeParams,
    rng: jax.Array | None,
) -> GenerateOutput:
    """The compiled program; `prepare_inputs` makes its arguments.

    Returns before the device has finished, with arrays that stay there, padded to the bucket.
    """
    module = model.bind(params)
    features = module.encode_image(image) if is_pixels else image
    encoder_hidden_states, encoder_mask = module.encode(features, input_ids, attention_mask)
    batch = input_ids.shape[0]
    search, width = (
        (beam_search, plan.num_beams) if plan.num_beams > 1 else (sample, plan.num_return_sequences)
    )

    def decode(
        module: Florence2, unembedding: jax.Array | None, *, row_major: bool = False, whole: int = 1
    ) -> GenerateOutput:
        states, mask = encoder_hidden_states, encoder_mask
        extra = -mask.shape[1] % whole
        if extra:
            states = jnp.pad(states, ((0, 0), (0, extra), (0, 0)))
            mask = jnp.pad(mask, ((0, 0), (0, extra)))
        cross_cache = module.cross_attention_cache(states, row_major=row_major)

        def step(
            tokens: jax.Array, index: jax.Array, cache: DecoderCache
        ) -> tuple[jax.Array, DecoderCache]:
            return module.decode_step(tokens, index, cache, cross_cache, mask, unembedding)

        cache = module.init_cache(batch, width, plan.buffers[0], row_major=row_major)
        return search(step, cache, batch, plan, values, rng)

    def decode_wide() -> GenerateOutput:
        # XLA:CPU multiplies no floats by int8: at every step it would first write all weights out
        # as floats, and take four times as long.
        wide = model.bind(widened(params, module.dtype))
        return decode(wide, wide.unembedding())

    is_quantized = bool(quantized_modules(params))
    transposed = not is_quantized and batch * width > 1

    def plain(*, whole: int = 1, **options: Any) -> GenerateOutput:
        unembedding = module.unembedding(whole) if transposed else None
        return decode(module, unembedding, whole=whole, **options)

    forms: dict[str, Callable[[], GenerateOutput]] = {"cpu": decode_wide} if is_quantized else {}
    forms["cuda"] = functools.partial(plain, whole=_GPU_MULTIPLE)
    if axis_size("tensor") == 1:
        # Rows hold all heads, which that axis would divide.
        forms["tpu"] = functools.partial(plain, row_major=True)
    return lax.platform_dependent(**forms, default=plain)
