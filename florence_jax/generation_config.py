"""Decoding settings: what to generate, apart from any model, image or prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from florence_jax.generation_keys import TOKEN_IDS, check_keys

TokenIds = int | tuple[int, ...]
EarlyStopping = bool | Literal["never"]

# Far beyond any use, far below where a setting from a file takes all memory or overflows int32.
_MAX_BEAMS = 1024
_MAX_TOKENS = 1 << 20
_MAX_ID = 1 << 24
_MAX_FLOAT = 1e6


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How tokens are chosen. Names and meanings are those of transformers 5's `GenerationConfig`.

    Attributes:
        max_new_tokens: tokens generated after the decoder start token, `</s>` included. None means
            as many as the model's position table allows.
        min_new_tokens: the end tokens are banned until this many tokens are generated.
        num_beams: 1 is greedy decoding or sampling, more is beam search or beam sampling.
        do_sample: draw tokens instead of taking the best.
        early_stopping: when beam search stops. True: as soon as `num_beams` hypotheses are
            complete; False: when the best open beam, scored at its present length, cannot beat the
            worst complete one; "never": when it cannot even at the length that suits it best.
        length_penalty: a hypothesis scores `sum(log-probabilities) / length ** length_penalty`,
            where length counts the generated tokens, `</s>` included and the start token not.
        no_repeat_ngram_size: no n-gram of this size appears twice in a sequence; 0 allows all.
        repetition_penalty: above 1 makes tokens that a sequence already has less likely.
        temperature, top_k, top_p: sampling only. `top_k` 0 or None, and `top_p` 1, keep every
            token. As in transformers, `top_k` is 50 unless told otherwise.
        min_p, typical_p, epsilon_cutoff, eta_cutoff: further filters, sampling only. `min_p` None,
            `typical_p` 1 and cutoffs of 0 keep every token.
        bad_words_ids: sequences of tokens, none of which is completed.
        sequence_bias: (tokens, bias) pairs; the bias is added to the score of a sequence's last
            token wherever the others precede it.
        suppress_tokens, begin_suppress_tokens: tokens never generated, and not generated as the
            first token (the first after a forced one).
        exponential_decay_length_penalty: (start, factor); from `start` generated tokens on, the end
            tokens become likelier by `factor ** (generated - start)`.
        renormalize_logits: beams add up log-probabilities that are normalised once more after all
            of the above.
        num_return_sequences: best beams, or independent samples, returned per row.
        decoder_start_token_id, bos_token_id, pad_token_id: None means the model's.
        eos_token_id: the token that ends a sequence, or several of them; None means the model's.
        forced_bos_token_id, forced_eos_token_id: the first token, and the last one (or the choice
            for it) when `max_new_tokens` is reached. The defaults "bos" and "eos" are the model's
            own ids, which is what every published Florence-2 does, or the first of `eos_token_id`
            where the model's is not among them; None forces nothing.

    Lists become tuples, and a list of one token id becomes that id.

    Raises:
        ValueError: from the constructor, for a value out of range or a combination without meaning.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool = False
    early_stopping: EarlyStopping = False
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = None
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    renormalize_logits: bool = False
    num_return_sequences: int = 1
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: TokenIds | None = None
    pad_token_id: int | None = None
    forced_bos_token_id: int | Literal["bos"] | None = "bos"
    forced_eos_token_id: TokenIds | Literal["eos"] | None = "eos"

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        for name in ("eos_token_id", "forced_eos_token_id"):
            object.__setattr__(self, name, _one_or_several(_frozen(getattr(self, name))))
        if self.max_new_tokens is not None:
            _check_int("max_new_tokens", self.max_new_tokens, at_least=1, at_most=_MAX_TOKENS)
        _check_int("min_new_tokens", self.min_new_tokens, at_least=0, at_most=_MAX_TOKENS)
        _check_int("num_beams", self.num_beams, at_least=1, at_most=_MAX_BEAMS)
        ngram = self.no_repeat_ngram_size
        _check_int("no_repeat_ngram_size", ngram, at_least=0, at_most=_MAX_TOKENS)
        returned = self.num_return_sequences
        _check_int("num_return_sequences", returned, at_least=1, at_most=_MAX_BEAMS)
        if self.top_k is not None:
            _check_int("top_k", self.top_k, at_least=0, at_most=_MAX_ID)
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"do_sample must be True or False, got {_shown(self.do_sample)}")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ValueError(
                f'early_stopping must be True, False or "never", got {_shown(self.early_stopping)}'
            )
        _check_float("length_penalty", self.length_penalty)
        _check_float("repetition_penalty", self.repetition_penalty, above=0.0)
        hint = " (for greedy decoding set do_sample=False)" if self.temperature == 0 else ""
        _check_float("temperature", self.temperature, above=0.0, hint=hint)
        _check_float("top_p", self.top_p, above=0.0, at_most=1.0)
        _check_float("typical_p", self.typical_p, above=0.0, at_most=1.0)
        for name in ("min_p", "epsilon_cutoff", "eta_cutoff"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")
        if not isinstance(self.renormalize_logits, bool):
            raise ValueError(
                f"renormalize_logits must be True or False, got {self.renormalize_logits!r}"
            )
        self._check_lists()
        self._check_ids()
        self._check_combinations()

    def _check_lists(self) -> None:
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            _check_tokens(name, getattr(self, name), empty=True)
        if not isinstance(self.bad_words_ids or (), tuple):
            raise ValueError(
                f"bad_words_ids must be a list of lists of token ids, got {self.bad_words_ids!r}"
            )
        for tokens in self.bad_words_ids or ():
            _check_tokens("bad_words_ids", tokens)
        pairs = self.sequence_bias or ()
        if not isinstance(pairs, tuple) or not all(
            isinstance(pair, tuple) and len(pair) == 2 for pair in pairs
        ):
            raise ValueError(
                "sequence_bias must be a list of [token ids, bias] pairs, got "
                f"{self.sequence_bias!r}"
            )
        for tokens, bias in pairs:
            _check_tokens("sequence_bias", tokens)
            _check_float("sequence_bias", bias)
        decay = self.exponential_decay_length_penalty
        if decay is not None:
            if not isinstance(decay, tuple) or len(decay) != 2:
                raise ValueError(
                    "exponential_decay_length_penalty must be a pair of a number of tokens and a "
                    f"factor, got {decay!r}"
                )
            start = "exponential_decay_length_penalty's start"
            _check_int(start, decay[0], at_least=0, at_most=_MAX_TOKENS)
            _check_float("exponential_decay_length_penalty's factor", decay[1], above=0.0)

    def _check_ids(self) -> None:
        for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if name == "eos_token_id" and isinstance(value, tuple):
                _check_tokens(name, value)
            elif value is not None:
                _check_int(name, value, at_least=0, at_most=_MAX_ID)
        for name, word in (("forced_bos_token_id", "bos"), ("forced_eos_token_id", "eos")):
            value = getattr(self, name)
            if value is None or value == word:
                continue
            if isinstance(value, str):
                raise ValueError(
                    f'{name} must be a token id, None or "{word}", got {_shown(value)}'
                )
            if name == "forced_eos_token_id" and isinstance(value, tuple):
                _check_tokens(name, value)
            else:
                _check_int(name, value, at_least=0, at_most=_MAX_ID)

    def _check_combinations(self) -> None:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens "
                f"({self.max_new_tokens})"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) is above num_beams "
                f"({self.num_beams}): beam search has only num_beams hypotheses to return"
            )
        if self.num_beams == 1 and not self.do_sample and self.num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) needs num_beams > 1 or "
                "do_sample=True: greedy decoding has one answer"
            )

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        *,
        strict: bool = True,
    ) -> GenerationConfig:
        """The decoding settings that a checkpoint was published with.

        Args:
            config: the content of `config.json`, in the original or transformers' native naming.
            generation_config: the content of `generation_config.json`, where there is one.
            strict: refuse settings of transformers that have no field here and would change tokens,
                and warn of keys that transformers does not know either. False leaves them out, for
                programs that only copy the files.

        For each setting the first source that has it decides:

        1. `text_config` of `config.json`, when it departs from transformers' global default;
        2. `generation_config.json`;
        3. `text_config`, when it spells out the default;
        4. `PUBLISHED`.

        The first rule is why large keeps early_stopping True: its `text_config` says so and its
        `generation_config.json`, which says False, was never used by the original code. Token ids
        come from `text_config` first, because many fine-tunes carry wrong ids everywhere else;
        only several `eos_token_id` of `generation_config.json`, which nothing writes by mistake,
        come before it.
        `max_length` and `min_length` count the start token; a `max_length` in `config.json` is a
        serialised default, not a wish, and is ignored. The other limits of `text_config` hold where
        `generation_config.json` has none.

        Raises:
            ValueError: a setting out of range, or one that is not supported.
        """
        text = config.get("text_config", config)
        generation = generation_config or {}
        for name, source in (("text_config", text), ("generation_config", generation)):
            if not isinstance(source, Mapping):
                raise ValueError(f"{name} must be an object of settings, got {_shown(source)}")
        if strict:
            own = frozenset(field.name for field in fields(cls))
            check_keys(text, generation, own | {"max_length", "min_length"})
        for place, source, names in (
            ("generation_config", generation, ("max_length", "min_length")),
            ("text_config", text, ("min_length",)),
        ):
            for name in names:
                if source.get(name) is not None:
                    what = f"{place}.{name}"
                    _check_int(what, source[name], at_least=0, at_most=_MAX_TOKENS)
        settings: dict[str, Any] = {}
        for name, default in TRANSFORMERS_DEFAULTS.items():
            if text.get(name, default) not in (None, default):
                settings[name] = text[name]
            elif generation.get(name) is not None:
                settings[name] = generation[name]
            elif text.get(name) is not None:
                settings[name] = text[name]
            else:
                settings[name] = getattr(PUBLISHED, name)
        for name in TOKEN_IDS:
            source = next((s for s in (text, generation) if s.get(name) is not None), {})
            if name == "eos_token_id" and _are_several(generation.get(name)):
                source = generation
            value = source.get(name, getattr(PUBLISHED, name))
            settings[name] = value if "eos" in name else _single_id(name, value)
        settings["max_new_tokens"] = generation.get("max_new_tokens")
        if settings["max_new_tokens"] is None and generation.get("max_length") is not None:
            settings["max_new_tokens"] = generation["max_length"] - 1
        elif settings["max_new_tokens"] is None:
            settings["max_new_tokens"] = text.get("max_new_tokens")
        # transformers' default of 0 says as little as an absent key.
        settings["min_new_tokens"] = next(
            (
                source[name] if name == "min_new_tokens" else source[name] - 1
                for source in (generation, text)
                for name in ("min_new_tokens", "min_length")
                if source.get(name)
            ),
            0,
        )
        return cls(**settings)


def _check_int(name: str, value: object, *, at_least: int, at_most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {_shown(value)}")
    if value > at_most:
        raise ValueError(f"{name} must be at most {at_most}, got {_shown(value)}")


def _is_huge(value: object) -> bool:
    return isinstance(value, int | float) and _MAX_FLOAT < abs(value) < math.inf


def _shown(value: object) -> str:
    """A setting from a file may be a text or list of any length."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 512:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check_float(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_most: float = math.inf,
    hint: str = "",
) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= _MAX_FLOAT
        or not above < value <= at_most
    ):
        bounds = "".join(
            [
                f" above {above:g}" if above > -math.inf else "",
                f" and at most {at_most:g}" if at_most < math.inf else "",
                f" within {_MAX_FLOAT:g}" if _is_huge(value) else "",
            ]
        )
        raise ValueError(f"{name} must be a finite number{bounds}, got {_shown(value)}{hint}")


def _check_tokens(name: str, tokens: object, *, empty: bool = False) -> None:
    tokens = () if tokens is None and empty else tokens
    if not isinstance(tokens, tuple) or not (tokens or empty):
        raise ValueError(f"{name} must be a list of token ids, got {tokens!r}")
    for token in tokens:
        _check_int(f"{name}: a token id", token, at_least=0, at_most=_MAX_ID)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_several(ids: Any) -> bool:
    return isinstance(_one_or_several(_frozen(ids)), tuple)


def _one_or_several(ids: Any) -> Any:
    """One token id of a tuple of equal ones; of others, each once."""
    if not isinstance(ids, tuple) or not all(isinstance(token, int) for token in ids):
        return ids
    ids = tuple(dict.fromkeys(ids))
    return ids[0] if len(ids) == 1 else ids


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _single_id(name: str, value: Any) -> int | None:
    ids = value if isinstance(value, list | tuple) else [value]
    if len(ids) != 1:
        raise ValueError(f"{name} must be one token id, got {_shown(value)}")
    return ids[0]


# Fields of lists: hashable as tuples, however they were given.
_LISTS = (
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
)


# Fields with transformers' defaults (`_get_default_generation_params` of transformers 5). It writes
# them into config files, so a value equal to its default is no wish of the author.
TRANSFORMERS_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in fields(GenerationConfig)
    if field.name not in (*TOKEN_IDS, "max_new_tokens", "min_new_tokens")
}

# What every published Florence-2 decodes with: the original `text_config`.
PUBLISHED = GenerationConfig(
    num_beams=3,
    no_repeat_ngram_size=3,
    early_stopping=True,
    decoder_start_token_id=2,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
    forced_bos_token_id=0,
    forced_eos_token_id=2,
)
