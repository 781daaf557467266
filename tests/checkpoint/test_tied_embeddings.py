"""What is tied is what is equal: every subset of the token table's four names, and the bias."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from florence_jax.checkpoint import CheckpointError, load_checkpoint
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.model import abstract_params
from tests.checkpoint.generated import (
    LOGITS_BIAS,
    TOKEN_TABLES,
    tiny_config,
    tiny_tensors,
    write_directory,
)

SUBSETS = [subset for size in range(1, 5) for subset in itertools.combinations(range(4), size)]


def with_tables(naming, tables):
    """The tiny checkpoint with exactly these token tables, by their place in TOKEN_TABLES."""
    tensors = tiny_tensors(naming)
    del tensors[TOKEN_TABLES[naming][0]]
    return tensors | {TOKEN_TABLES[naming][place]: table for place, table in tables.items()}


def table(seed=0, rows=1285, width=24):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


@pytest.mark.parametrize("naming", ["original", "native"])
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_any_subset_of_equal_tables_is_one_tied_table(tmp_path, naming, subset):
    tensors = with_tables(naming, dict.fromkeys(subset, table()))
    loaded = load_checkpoint(write_directory(tmp_path, tensors, tiny_config(naming)))
    assert loaded.config.tie_word_embeddings
    assert "lm_head" not in loaded.params
    np.testing.assert_array_equal(loaded.params["shared"]["embedding"], table())


@pytest.mark.parametrize("naming", ["original", "native"])
def test_a_diverged_lm_head_is_kept(tmp_path, naming):
    tensors = with_tables(naming, {0: table(0), 1: table(0), 2: table(0), 3: table(1)})
    loaded = load_checkpoint(write_directory(tmp_path, tensors, tiny_config(naming)))
    assert not loaded.config.tie_word_embeddings
    np.testing.assert_array_equal(loaded.params["shared"]["embedding"], table(0))
    np.testing.assert_array_equal(loaded.params["lm_head"]["embedding"], table(1))
    assert len(loaded.report.tied) == 2
    assert "lm_head.weight differs" in loaded.report.untied[0]
    assert any("tie_word_embeddings is true, but" in quirk for quirk in loaded.report.warnings)
    expected = {path for path, _ in flatten(abstract_params(loaded.config))}
    assert {path for path, _ in flatten(loaded.params)} == expected


def test_one_differing_element_unties(tmp_path):
    other = table()
    other[-1, -1] = np.nextafter(other[-1, -1], np.float32(9))
    tensors = with_tables("original", {0: table(), 3: other})
    config = tiny_config() | {"tie_word_embeddings": False}
    loaded = load_checkpoint(write_directory(tmp_path, tensors, config))
    assert not loaded.config.tie_word_embeddings
    assert not any("tie_word_embeddings" in quirk for quirk in loaded.report.warnings)


def test_an_untied_config_with_equal_tables_is_tied_and_reported(tmp_path):
    tensors = with_tables("original", {0: table(), 3: table()})
    config = tiny_config() | {"tie_word_embeddings": False}
    loaded = load_checkpoint(write_directory(tmp_path, tensors, config))
    assert loaded.config.tie_word_embeddings
    assert any("lm_head equals the token table" in quirk for quirk in loaded.report.warnings)


def test_tables_of_two_dtypes_are_compared_by_value(tmp_path):
    rounded = table().astype(ml_dtypes.bfloat16)
    same = with_tables("original", {0: rounded.astype(np.float32), 3: rounded})
    loaded = load_checkpoint(write_directory(tmp_path / "same", same, tiny_config()))
    assert loaded.config.tie_word_embeddings
    different = with_tables("original", {0: table(), 3: rounded})
    loaded = load_checkpoint(write_directory(tmp_path / "different", different, tiny_config()))
    assert not loaded.config.tie_word_embeddings


def test_a_stale_encoder_table_is_ignored_since_no_model_reads_it(tmp_path):
    tensors = with_tables("original", {0: table(), 1: table(1)})
    loaded = load_checkpoint(write_directory(tmp_path, tensors, tiny_config()))
    np.testing.assert_array_equal(loaded.params["shared"]["embedding"], table())
    reason = loaded.report.ignored[TOKEN_TABLES["original"][1]]
    assert "neither reference model reads it" in reason


def test_a_diverged_decoder_table_is_an_error(tmp_path):
    tensors = with_tables("original", {0: table(), 2: table(1)})
    write_directory(tmp_path, tensors, tiny_config())
    with pytest.raises(CheckpointError, match=r"decoder\.embed_tokens\.weight: its values are not"):
        load_checkpoint(tmp_path)


def test_the_tensors_vocabulary_wins_where_all_tables_agree(tmp_path):
    tensors = with_tables("original", {0: table(rows=1300), 3: table(rows=1300)})
    loaded = load_checkpoint(write_directory(tmp_path, tensors, tiny_config()))
    assert loaded.config.text.vocab_size == 1300
    assert any(
        "vocab_size is 1285, every token table has 1300" in q for q in loaded.report.warnings
    )


def test_tables_of_different_lengths_are_an_error(tmp_path):
    tensors = with_tables("original", {0: table(rows=1285), 3: table(rows=1300)})
    write_directory(tmp_path, tensors, tiny_config())
    with pytest.raises(CheckpointError, match="token tables whose shapes disagree") as caught:
        load_checkpoint(tmp_path)
    assert "[1285, 24]" in str(caught.value)
    assert "[1300, 24]" in str(caught.value)


def test_no_table_at_all_is_a_missing_tensor(tmp_path):
    write_directory(tmp_path, with_tables("original", {}), tiny_config())
    with pytest.raises(CheckpointError, match=r"missing tensors \(1\):\n    .*shared\.weight"):
        load_checkpoint(tmp_path)


def test_a_zero_output_bias_is_dropped_and_another_kept(tmp_path):
    tensors = tiny_tensors()
    zero = load_checkpoint(write_directory(tmp_path / "zero", tensors, tiny_config()))
    assert not zero.config.final_logits_bias
    assert "final_logits_bias" not in zero.params
    assert zero.report.ignored[LOGITS_BIAS] == "all zero"

    tensors[LOGITS_BIAS][0, 7] = 0.5
    kept = load_checkpoint(write_directory(tmp_path / "kept", tensors, tiny_config()))
    assert kept.config.final_logits_bias
    np.testing.assert_array_equal(kept.params["final_logits_bias"], tensors[LOGITS_BIAS][0])
    assert "added to the logits" in kept.report.untied[0]
