"""A `GenerationConfig` split into its static half and its traced half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.typing import ArrayLike

from florence_jax.generation.constraints import Constraint, check_constraint, ended_by
from florence_jax.generation.optional_processors import (
    OptionalValues,
    optional_values,
    table_shapes,
)
from florence_jax.generation_config import EarlyStopping, GenerationConfig, TokenIds

SMALLEST_TOKEN_BUCKET = 64


class DecoderInfo(Protocol):
    """The fields of a model's text config that decoding reads, see
    `florence_jax.config.BartConfig`.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def decoder_start_token_id(self) -> int: ...
    @property
    def bos_token_id(self) -> int: ...
    @property
    def eos_token_id(self) -> int: ...
    @property
    def pad_token_id(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class DecodeStatic:
    """The static half: hashable; a new value compiles a new program.

    `buffers` are the sizes that token buffers and caches grow through: 64, 128, 256, ..., the last
    capped by the position table. Attention then costs what the generated length needs rather than
    what the limit allows. `top_k` 0 keeps every token. `optional` names the fields of
    `OptionalValues` that are set, and `tables` holds the sizes of its lists.
    """

    num_beams: int
    do_sample: bool
    early_stopping: EarlyStopping
    no_repeat_ngram_size: int
    top_k: int
    num_return_sequences: int
    buffers: tuple[int, ...]
    decoder_start_token_id: int
    eos_token_id: TokenIds
    pad_token_id: int
    renormalize_logits: bool = False
    optional: tuple[str, ...] = ()
    tables: tuple[int, ...] = ()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a sequence: one or more."""
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)


class DecodeParams(NamedTuple):
    """The traced half: new values never compile a program.

    `length_norm[n]` is `n ** length_penalty`. It is a table, because transformers divides by the
    float64 power rounded once, from which a float32 power on the device differs in the last bit.
    `one_minus_top_p` is subtracted in float64 for the same reason. A forced id of -1 forces
    nothing.
    """

    max_new_tokens: ArrayLike  # int32[]
    min_new_tokens: ArrayLike  # int32[]
    forced_bos_token_id: ArrayLike  # int32[]
    forced_eos_token_id: ArrayLike  # int32[], or int32[n] to choose among
    repetition_penalty: ArrayLike  # float32[]
    temperature: ArrayLike  # float32[]
    one_minus_top_p: ArrayLike  # float32[]
    length_norm: ArrayLike  # float32[T + 1]
    prefers_long: ArrayLike  # bool[]: length_penalty > 0
    constraint: Constraint | None = None
    optional: OptionalValues | None = None

    def with_room(self, buffers: tuple[int, ...]) -> DecodeParams:
        """The values for a program with larger buffers, padded so that it looks up no entry past
        the limit.
        """

        def longer(table: ArrayLike) -> np.ndarray:
            return np.pad(table, (0, buffers[-1] + 1 - len(np.asarray(table))), mode="edge")

        optional = self.optional
        if optional is not None and optional.decay is not None:
            optional = optional._replace(decay=longer(optional.decay))
        return self._replace(length_norm=longer(self.length_norm), optional=optional)


def make_plan(
    config: GenerationConfig, info: DecoderInfo, constraint: Constraint | None = None
) -> tuple[DecodeStatic, DecodeParams]:
    """Fill in the model's token ids, check the limits, and split static from traced settings.

    Args:
        config: the user's settings.
        info: the model's text configuration.
        constraint: what the answers may be; None for anything.

    Raises:
        ValueError: `max_new_tokens` past the position table or too few for the constraint, or a
            token id outside the vocabulary.
    """
    positions = info.max_position_embeddings
    limit = positions if config.max_new_tokens is None else config.max_new_tokens
    if limit > positions:
        raise ValueError(
            f"max_new_tokens={limit} is past the decoder's position table: "
            f"max_position_embeddings is {positions}, so ask for at most {positions} new tokens"
        )
    if config.min_new_tokens > limit:
        raise ValueError(
            f"min_new_tokens={config.min_new_tokens} is above the limit of {limit} new tokens that "
            "the decoder's position table (max_position_embeddings) allows"
        )
    forced_bos, forced_eos = config.forced_bos_token_id, config.forced_eos_token_id
    bos = _or_model(config.bos_token_id, info.bos_token_id)
    eos = info.eos_token_id if config.eos_token_id is None else config.eos_token_id
    all_eos = eos if isinstance(eos, tuple) else (eos,)
    buffers = token_buckets(limit, positions)
    forced_bos = bos if isinstance(forced_bos, str) else forced_bos
    if isinstance(forced_eos, str):
        forced_eos = info.eos_token_id if info.eos_token_id in all_eos else all_eos[0]
    optional = optional_values(
        config,
        eos_token_ids=all_eos,
        forces_bos=forced_bos is not None,
        vocab_size=info.vocab_size,
        tokens=buffers[-1],
    )
    names, tables = table_shapes(optional)
    plan = DecodeStatic(
        num_beams=config.num_beams,
        do_sample=config.do_sample,
        early_stopping=config.early_stopping,
        no_repeat_ngram_size=config.no_repeat_ngram_size,
        # Greedy and plain beam search never filter, so top_k does not select another program.
        top_k=min(config.top_k or 0, info.vocab_size) if config.do_sample else 0,
        num_return_sequences=config.num_return_sequences,
        buffers=buffers,
        decoder_start_token_id=_or_model(
            config.decoder_start_token_id, info.decoder_start_token_id
        ),
        eos_token_id=eos,
        pad_token_id=_or_model(config.pad_token_id, info.pad_token_id),
        # Scores of greedy decoding and sampling are normalised in any case.
        renormalize_logits=config.renormalize_logits and config.num_beams > 1,
        optional=names,
        tables=tables,
    )
    _check_in_vocabulary(
        info.vocab_size,
        decoder_start_token_id=plan.decoder_start_token_id,
        eos_token_id=eos,
        pad_token_id=plan.pad_token_id,
        forced_bos_token_id=forced_bos,
        forced_eos_token_id=forced_eos,
    )
    _check_possible(config.suppress_tokens or (), forced_bos, forced_eos)
    if constraint is not None:
        constraint = ended_by(constraint, all_eos)
        check_constraint(
            constraint,
            vocab_size=info.vocab_size,
            eos_token_ids=all_eos,
            forced_bos_token_id=forced_bos,
            forced_eos_token_id=forced_eos,
            max_new_tokens=limit,
        )
    lengths = np.arange(1, buffers[-1] + 1, dtype=np.float64)
    with np.errstate(over="ignore"):
        length_norm = np.append(1.0, lengths**config.length_penalty).astype(np.float32)
    values = DecodeParams(
        max_new_tokens=np.asarray(limit, np.int32),
        min_new_tokens=np.asarray(config.min_new_tokens, np.int32),
        forced_bos_token_id=np.asarray(-1 if forced_bos is None else forced_bos, np.int32),
        forced_eos_token_id=np.asarray(-1 if forced_eos is None else forced_eos, np.int32),
        repetition_penalty=np.asarray(config.repetition_penalty, np.float32),
        temperature=np.asarray(config.temperature, np.float32),
        one_minus_top_p=np.asarray(1.0 - config.top_p, np.float32),
        length_norm=length_norm,
        prefers_long=np.asarray(config.length_penalty > 0),
        constraint=constraint,
        optional=optional,
    )
    return plan, values


def ends(tokens: jax.Array, plan: DecodeStatic) -> jax.Array:
    """A bool for each token: whether it ends a sequence."""
    first, *others = plan.eos_token_ids
    ended = tokens == first
    for token in others:
        ended |= tokens == token
    return ended


def token_buckets(limit: int, positions: int) -> tuple[int, ...]:
    """Sizes of token buffers: 64, 128, 256, ... until `limit` fits; the last is capped."""
    buckets = [SMALLEST_TOKEN_BUCKET]
    while buckets[-1] < limit:
        buckets.append(2 * buckets[-1])
    return (*buckets[:-1], min(buckets[-1], positions))


def _or_model(wanted: int | None, models: int) -> int:
    return models if wanted is None else wanted


def _check_in_vocabulary(vocab_size: int, **ids: TokenIds | None) -> None:
    for name, value in ids.items():
        if value is not None and np.max(value) >= vocab_size:
            raise ValueError(f"{name}={value} is outside the vocabulary of {vocab_size} tokens")


def _check_possible(
    suppressed: tuple[int, ...], forced_bos: int | None, forced_eos: TokenIds | None
) -> None:
    for name, forced in (("forced_bos_token_id", forced_bos), ("forced_eos_token_id", forced_eos)):
        if forced is not None and set(np.atleast_1d(forced).tolist()) <= set(suppressed):
            raise ValueError(
                f"{name}={forced} is among suppress_tokens, so that no token would be possible "
                f"where it is forced: set {name} to None, or leave it out of suppress_tokens"
            )
