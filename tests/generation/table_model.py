"""A language model that is a table, in torch and in jax: the same logits to the last bit.

The next token's logits are `table[token two back, last token] + drift[position] + bias[row]`. With
it thousands of decoding steps can be compared without either library's matrix products in between.
(Without `drift` two sequences of the same trigrams in another order would score exactly the same.)
"""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from transformers import GenerationConfig as TorchGenerationConfig
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from florence_jax.generation import GenerateOutput, GenerationConfig, beam_search, make_plan, sample
from florence_jax.generation.constraints import Constraint
from florence_jax.generation.decode_loop import gather_beams, grow_axis
from tests.generation.random_automata import BOS, EOS

PAD = 1
POSITIONS = 64


class History(NamedTuple):
    """The loops' cache: the tokens that a beam has been given."""

    tokens: jax.Array  # int32[B, K, T]

    def reorder(self, parents):
        return History(gather_beams(self.tokens, parents))

    def resize(self, tokens):
        return History(grow_axis(self.tokens, 2, tokens, EOS))


class TableConfig(PretrainedConfig):
    model_type = "table"

    def __init__(self, vocab_size: int = 8, **kwargs):
        self.vocab_size = vocab_size
        super().__init__(**kwargs)


class Tables(NamedTuple):
    table: np.ndarray  # float32[V, V, V]
    drift: np.ndarray  # float32[T, V]
    bias: np.ndarray  # float32[B, V]


class TorchTable(PreTrainedModel, GenerationMixin):
    config_class = TableConfig

    def __init__(self, tables: Tables):
        super().__init__(TableConfig(vocab_size=tables.table.shape[-1]))
        self.table = torch.nn.Parameter(torch.from_numpy(tables.table), requires_grad=False)
        self.drift = torch.nn.Parameter(torch.from_numpy(tables.drift), requires_grad=False)

    def forward(self, input_ids=None, attention_mask=None, bias=None, **_):
        length = input_ids.shape[1]
        last = input_ids[:, -1]
        before = input_ids[:, -2] if length > 1 else torch.full_like(last, EOS)
        logits = self.table[before, last] + self.drift[length - 1] + bias
        return CausalLMOutput(logits=logits[:, None])

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, bias=None, **_):
        return {"input_ids": input_ids, "bias": bias}

    @classmethod
    def can_generate(cls) -> bool:
        return True


def random_tables(seed: int, vocab: int, batch: int, *, eos: float = 0.0) -> Tables:
    """Spread-out logits; `eos` shifts how eager the model is to stop."""
    rng = np.random.default_rng(seed)
    table = (2.0 * rng.standard_normal((vocab, vocab, vocab))).astype(np.float32)
    table[..., EOS] += eos
    bias = (0.5 * rng.standard_normal((batch, vocab))).astype(np.float32)
    drift = (0.5 * rng.standard_normal((POSITIONS, vocab))).astype(np.float32)
    return Tables(table, drift, bias)


def torch_arguments(config: GenerationConfig) -> dict:
    """The same settings in transformers' words, for a model with the ids above."""
    named = {"bos": BOS, "eos": EOS}
    eos = EOS if config.eos_token_id is None else config.eos_token_id
    forced_eos = named.get(config.forced_eos_token_id, config.forced_eos_token_id)
    optional = {
        "suppress_tokens": config.suppress_tokens,
        "begin_suppress_tokens": config.begin_suppress_tokens,
        "bad_words_ids": config.bad_words_ids and [list(words) for words in config.bad_words_ids],
        "sequence_bias": config.sequence_bias
        and [[list(tokens), bias] for tokens, bias in config.sequence_bias],
        "exponential_decay_length_penalty": config.exponential_decay_length_penalty,
        "renormalize_logits": config.renormalize_logits,
    }
    return {
        "max_new_tokens": config.max_new_tokens,
        "min_new_tokens": config.min_new_tokens,
        "num_beams": config.num_beams,
        "do_sample": config.do_sample,
        "early_stopping": config.early_stopping,
        "length_penalty": float(config.length_penalty),
        "no_repeat_ngram_size": config.no_repeat_ngram_size,
        "repetition_penalty": float(config.repetition_penalty),
        "num_return_sequences": config.num_return_sequences,
        "forced_bos_token_id": named.get(config.forced_bos_token_id, config.forced_bos_token_id),
        "forced_eos_token_id": list(forced_eos) if isinstance(forced_eos, tuple) else forced_eos,
        "bos_token_id": BOS,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": PAD,
        "decoder_start_token_id": EOS,
    } | {name: value for name, value in optional.items() if value}


def generate_torch(tables: Tables, config: GenerationConfig, **arguments):
    """(sequences, sequence scores or None, token scores) as transformers gives them, in numpy.

    `arguments` go to its `generate` as they are.
    """
    model = TorchTable(tables).eval()
    start = torch.full((tables.bias.shape[0], 1), EOS)
    out = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        bias=torch.from_numpy(tables.bias),
        generation_config=TorchGenerationConfig(
            **torch_arguments(config),
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
        ),
        **arguments,
    )
    return unpack_torch(model, out, config.num_beams)


def unpack_torch(model, out, num_beams: int):
    beams = num_beams > 1
    token_scores = model.compute_transition_scores(
        out.sequences,
        out.scores,
        out.beam_indices if beams else None,
        normalize_logits=not beams,
    )
    scores = out.sequences_scores.numpy() if beams else None
    return out.sequences.numpy(), scores, token_scores.numpy()


def facts(vocab: int) -> types.SimpleNamespace:
    """What `make_plan` asks of a model."""
    return types.SimpleNamespace(
        vocab_size=vocab,
        max_position_embeddings=POSITIONS,
        decoder_start_token_id=EOS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def generate_jax(
    tables: Tables,
    config: GenerationConfig,
    rng: jax.Array | None = None,
    *,
    buffers: tuple[int, ...] | None = None,
    constraint: Constraint | None = None,
) -> GenerateOutput:
    """The same through our loops. The cache holds the token before, so it must be reordered."""
    plan, values = make_plan(config, facts(tables.table.shape[-1]), constraint)
    if buffers is not None:
        plan = dataclasses.replace(plan, buffers=buffers)
    return _run(plan, tables, values, rng).trimmed()


@functools.partial(jax.jit, static_argnums=0)
def _run(plan, tables, values, rng):
    batch = tables.bias.shape[0]
    width = plan.num_beams if plan.num_beams > 1 else plan.num_return_sequences

    def step(tokens, index, cache):
        history = lax.dynamic_update_index_in_dim(cache.tokens, tokens, index, axis=2)
        before = history[:, :, jnp.maximum(index - 1, 0)]
        logits = tables.table[before, tokens] + tables.drift[index] + tables.bias[:, None]
        return logits, History(history)

    cache = History(jnp.full((batch, width, plan.buffers[0]), EOS, jnp.int32))
    search = beam_search if plan.num_beams > 1 else sample
    return search(step, cache, batch, plan, values, rng)
