"""Settings that hold token ids are bounded, and taken where they are sound."""

import pytest

from florence_jax.generation import GenerationConfig


def settings(**changed):
    return GenerationConfig(decoder_start_token_id=2, eos_token_id=2, pad_token_id=1, **changed)


def test_sound_ones_are_taken():
    taken = settings(suppress_tokens=(5, 6), exponential_decay_length_penalty=(3, 1.5))
    assert taken.suppress_tokens == (5, 6)
    assert taken.exponential_decay_length_penalty == (3, 1.5)


@pytest.mark.parametrize(
    "changed", [{"suppress_tokens": (10**30,)}, {"exponential_decay_length_penalty": (10**30, 1.5)}]
)
def test_huge_ones_are_refused_by_name(changed):
    with pytest.raises(ValueError, match=f"{next(iter(changed))}.* must be at most"):
        settings(**changed)
