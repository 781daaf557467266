"""To PyTorch and back: byte for byte, with the published names and shapes, strict to load."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.to_torch import main
from convert.verify.reference import native_model
from convert.verify.stages import jax_stages, random_inputs, torch_stages
from florence_jax.checkpoint import CheckpointError, load_checkpoint
from florence_jax.checkpoint.native.save import save_checkpoint
from florence_jax.config import PRESETS
from florence_jax.conversion import from_torch, to_torch
from florence_jax.model import Model
from tests.checkpoint.generated import (
    LOGITS_BIAS,
    TOKEN_TABLES,
    tiny_config,
    tiny_tensors,
    write_directory,
    write_safetensors,
)
from tests.checkpoint.test_state_dict import assert_same_bytes
from tests.shared_data import needs_shared, shared_path
from tests.small_checkpoint import write_small_checkpoint

NAMINGS = ("original", "native")
KEY_FILES = {"original": "original", "native": "native_hf"}


def there_and_back(source, tmp_path, naming, **options):
    from_torch(source, tmp_path / "ours")
    to_torch(tmp_path / "ours", tmp_path / "back", naming=naming, **options)
    return load_file(tmp_path / "back" / "model.safetensors")


def variants(naming):
    """Tensors of one naming: tied or untied, with each set of names of the token table."""
    shared, encoder, decoder, lm_head = TOKEN_TABLES[naming]
    plain = tiny_tensors(naming)
    table = plain[shared]
    yield "tied", plain
    yield "every name", plain | dict.fromkeys((encoder, decoder, lm_head), table)
    yield "lm_head only", {n: a for n, a in plain.items() if n != shared} | {lm_head: table}
    yield "untied", plain | {lm_head: table + 1, decoder: table}
    if naming == "original":
        yield "biased", plain | {LOGITS_BIAS: np.full((1, 1285), 0.25, np.float32)}
        yield "no bias", {name: array for name, array in plain.items() if name != LOGITS_BIAS}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_there_and_back_is_byte_for_byte(tmp_path, naming, dtype):
    for name, tensors in variants(naming):
        # A dtype changes bytes, not names: each set of names once, in float32.
        if dtype != "float32" and name not in ("every name", "untied"):
            continue
        tensors = {key: array.astype(np.dtype(dtype)) for key, array in tensors.items()}
        folder = tmp_path / name.replace(" ", "-")
        source = write_directory(folder / "source", tensors, tiny_config(naming))
        assert_same_bytes(there_and_back(source, folder, naming), tensors)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("rows", [51289, 51328])
def test_both_published_vocabularies_go_there_and_back(tmp_path, naming, rows):
    tensors = tiny_tensors(naming)
    table = np.random.default_rng(0).standard_normal((rows, 24), np.float32)
    tensors[TOKEN_TABLES[naming][0]] = table
    if naming == "original":
        tensors[LOGITS_BIAS] = np.zeros((1, rows), np.float32)
    config = tiny_config(naming, vocab_size=rows)
    source = write_directory(tmp_path / "source", tensors, config)
    assert_same_bytes(there_and_back(source, tmp_path, naming), tensors)
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["text_config"]["vocab_size"] == rows


def test_mixed_dtypes_go_there_and_back(tmp_path):
    tensors = tiny_tensors()
    shared, *_, lm_head = TOKEN_TABLES["original"]
    tensors[shared] = tensors[shared].astype(np.float16)
    tensors[lm_head] = tensors[shared].astype(np.float32)
    tensors["image_projection"] = tensors["image_projection"].astype(np.float16)
    source = write_directory(tmp_path / "source", tensors, tiny_config())
    assert_same_bytes(there_and_back(source, tmp_path, "original"), tensors)


@needs_shared
@pytest.mark.parametrize("naming", NAMINGS)
def test_the_reference_checkpoints_go_from_each_naming_to_each(tmp_path, naming):
    expected = load_file(shared_path("tiny", KEY_FILES[naming], "model.safetensors"))
    for other in KEY_FILES.values():
        folder = tmp_path / other
        assert_same_bytes(there_and_back(shared_path("tiny", other), folder, naming), expected)


@needs_shared
@pytest.mark.parametrize(
    "size",
    # The names of "base" with more layers, and 1.6 GB to read.
    ["base", *(pytest.param(size, marks=pytest.mark.slow) for size in ("large", "large_4k"))],
)
@pytest.mark.parametrize("naming", NAMINGS)
def test_names_and_shapes_are_the_published_ones(tmp_path, naming, size, monkeypatch):
    keys = json.loads(
        shared_path("checkpoint_keys", f"{KEY_FILES[naming]}_{size}.json").read_text()
    )
    published = {name: tuple(shape) for name, shape in keys["tensors"].items()}
    once = {name: shape for name, shape in published.items() if name not in keys["tied"]}
    (tmp_path / "source").mkdir()
    write_safetensors(tmp_path / "source" / "model.safetensors", once, "float16", sparse=True)
    config = PRESETS[size.replace("_", "-")]().to_hf(naming)
    config["text_config"]["vocab_size"] = 51289 if naming == "original" else 51328
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    # Names and shapes are known before a gigabyte is written.
    monkeypatch.setattr(
        "florence_jax.checkpoint.pytorch.save.save_tensors", lambda tensors, path, metadata: None
    )
    export = to_torch(tmp_path / "source", tmp_path / "once", naming=naming)
    assert export.shapes == once
    export = to_torch(tmp_path / "source", tmp_path / "all", naming=naming, tied_names="all")
    assert export.shapes == published


@needs_shared
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_it_strictly_and_computes_the_same(tmp_path, dtype):
    from transformers import Florence2ForConditionalGeneration

    config, params = write_small_checkpoint(tmp_path / "source")
    from_torch(tmp_path / "source", tmp_path / "ours", dtype=dtype)
    # Through the other naming, and without the rows that pad the native vocabulary.
    to_torch(tmp_path / "ours", tmp_path / "original", naming="original", vocab_size=51289)
    to_torch(tmp_path / "original", tmp_path / "native", naming="native", vocab_size=51328)
    for directory in ("ours", "native"):
        if directory == "ours":
            to_torch(tmp_path / "ours", tmp_path / "direct", naming="native")
            directory = "direct"
        loaded, report = Florence2ForConditionalGeneration.from_pretrained(
            tmp_path / directory, dtype="float32", output_loading_info=True
        )
        assert not any(report.values()), report
        again = load_checkpoint(tmp_path / directory, "float32")
        assert again.config.tie_word_embeddings
        model = Model(config=dataclasses.replace(again.config, image_token_id=51289))
        inputs = random_inputs(model, batch=2, size=(64, 64), text=5, target=4, seed=0)
        reference = native_model(config, jax.tree.map(np.asarray, again.params))
        expected = torch_stages(reference.eval(), inputs)["logits"]
        np.testing.assert_array_equal(torch_stages(loaded.eval(), inputs)["logits"], expected)
        # Float32 on both sides: the rounding of sums over 51,328 x 24 products, no more.
        np.testing.assert_allclose(
            jax_stages(model, again.params, inputs)["logits"], expected, atol=2e-4
        )
        if dtype == "float32" and directory == "direct":
            original = torch_stages(native_model(config, params).eval(), inputs)["logits"]
            np.testing.assert_array_equal(expected, original)


def test_untied_weights_load_strictly_too(tmp_path):
    from transformers import Florence2ForConditionalGeneration

    tensors = dict(variants("native"))["untied"]
    source = write_directory(tmp_path / "source", tensors, tiny_config("native"))
    from_torch(source, tmp_path / "ours")
    to_torch(tmp_path / "ours", tmp_path / "out", naming="native", tied_names="once")
    loaded, report = Florence2ForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    shared, *_, lm_head = TOKEN_TABLES["native"]
    state = loaded.state_dict()
    np.testing.assert_array_equal(state[lm_head].numpy(), tensors[lm_head])
    np.testing.assert_array_equal(state[shared].numpy(), tensors[shared])


def test_settings_go_along_into_the_other_dialect(tmp_path):
    config = tiny_config("original")
    config["text_config"] |= {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 3}
    config["auto_map"] = {"AutoConfig": "configuration_florence2.Florence2Config"}
    source = write_directory(tmp_path / "source", tiny_tensors(), config)
    (source / "generation_config.json").write_text('{"num_beams": 3, "early_stopping": false}')
    to_torch(source, tmp_path / "native", naming="native", dtype="float16")
    written = json.loads((tmp_path / "native" / "config.json").read_text())
    assert "auto_map" not in written
    assert written["dtype"] == "float16"
    # Published large: text_config is what its code obeys, generation_config.json contradicts it.
    settings = json.loads((tmp_path / "native" / "generation_config.json").read_text())
    assert settings["early_stopping"] is True
    to_torch(tmp_path / "native", tmp_path / "again", naming="original")
    text = json.loads((tmp_path / "again" / "config.json").read_text())["text_config"]
    assert text["early_stopping"] is True
    assert text["no_repeat_ngram_size"] == 3
    # In its own dialect nothing changes.
    to_torch(source, tmp_path / "same", naming="original")
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == config | {
        "torch_dtype": "float32"
    }
    kept = (tmp_path / "same" / "generation_config.json").read_text()
    assert json.loads(kept)["early_stopping"] is False


def test_a_dtype_is_cast_and_said(tmp_path):
    tensors = tiny_tensors("native")
    source = write_directory(tmp_path / "source", tensors, tiny_config("native"))
    from_torch(source, tmp_path / "ours")
    for origin in ("source", "ours"):
        to_torch(
            tmp_path / origin, tmp_path / "out", naming="native", dtype="bfloat16", overwrite=True
        )
        expected = {name: array.astype("bfloat16") for name, array in tensors.items()}
        assert_same_bytes(load_file(tmp_path / "out" / "model.safetensors"), expected)
    tensors["model.multi_modal_projector.image_proj_norm.bias"][0] = 1e6
    source = write_directory(tmp_path / "large", tensors, tiny_config("native"))
    with pytest.raises(CheckpointError, match=r"image_proj_norm\.bias holds values beyond float16"):
        to_torch(source, tmp_path / "half", naming="native", dtype="float16")


def test_rows_are_added_and_removed_only_when_asked_and_reported(tmp_path, capsys):
    tensors = tiny_tensors("original")
    shared, *_, lm_head = TOKEN_TABLES["original"]
    tensors[lm_head] = tensors[shared] * 2
    tensors[LOGITS_BIAS] = np.arange(1285, dtype=np.float32)[None]
    source = write_directory(tmp_path / "source", tensors, tiny_config())
    command = [
        str(source),
        str(tmp_path / "padded"),
        "--naming",
        "original",
        "--vocab-size",
        "1344",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "vocabulary: 59 rows added to 1285, each the mean of the others" in said
    padded = load_file(tmp_path / "padded" / "model.safetensors")
    assert padded[shared].shape == padded[lm_head].shape == (1344, 24)
    np.testing.assert_array_equal(padded[lm_head][:1285], tensors[lm_head])
    np.testing.assert_allclose(padded[lm_head][1300], tensors[lm_head].mean(0), atol=1e-6)
    assert padded[LOGITS_BIAS].shape == (1, 1344)
    np.testing.assert_array_equal(padded[LOGITS_BIAS][0, 1285:], 642)
    # An added row never has the largest logit.
    hidden = np.random.default_rng(0).standard_normal((100, 24), np.float32)
    logits = hidden @ padded[lm_head].T + padded[LOGITS_BIAS]
    assert logits.argmax(1).max() < 1285

    back = ["--naming", "original", "--vocab-size", "1285"]
    assert main([str(tmp_path / "padded"), str(tmp_path / "back"), *back]) == 0
    assert "the last 59 of 1344 rows removed" in capsys.readouterr().out
    # The original ties no embed_tokens beside an lm_head of its own: they are written, too.
    embed_tokens = dict.fromkeys(TOKEN_TABLES["original"][1:3], tensors[shared])
    assert_same_bytes(load_file(tmp_path / "back" / "model.safetensors"), tensors | embed_tokens)


@needs_shared
def test_rows_that_the_tokenizer_needs_are_not_removed(tmp_path, capsys):
    write_small_checkpoint(tmp_path / "source")
    command = [str(tmp_path / "source"), str(tmp_path / "out"), "--naming", "original"]
    assert main([*command, "--vocab-size", "50265"]) == 2
    assert "no rows for the last 1024 of the 51289 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_transformers_has_no_place_for_is_refused(tmp_path, capsys):
    tensors = dict(variants("original"))["biased"]
    source = write_directory(tmp_path / "source", tensors, tiny_config())
    assert main([str(source), str(tmp_path / "out"), "--naming", "native"]) == 2
    assert "native model has no tensor for" in capsys.readouterr().err


def test_a_trained_model_is_exported_under_the_published_names(tmp_path):
    source = write_directory(tmp_path / "source", tiny_tensors(), tiny_config())
    from_torch(source, tmp_path / "ours")
    config, params, _ = load_checkpoint(tmp_path / "ours")
    trained = jax.tree.map(lambda leaf: leaf + 1, params)
    save_checkpoint(tmp_path / "trained", config, trained, files=tmp_path / "ours")
    save_checkpoint(tmp_path / "bare", config, trained)
    expected = {name: array + 1 for name, array in tiny_tensors().items()}
    expected[LOGITS_BIAS] -= 1
    for directory in ("trained", "bare"):
        to_torch(tmp_path / directory, tmp_path / "out", naming="original", overwrite=True)
        assert_same_bytes(load_file(tmp_path / "out" / "model.safetensors"), expected)


def test_the_summary_and_the_notes(tmp_path, capsys):
    config = tiny_config() | {"auto_map": {"AutoConfig": "x.Y"}}
    source = write_directory(tmp_path / "source", tiny_tensors(), config)
    (source / "tokenizer.json").write_text("{}")
    assert main([str(source), str(tmp_path / "a"), "--naming", "native"]) == 0
    captured = capsys.readouterr()
    assert "273 tensors in the native naming, float32" in captured.out
    assert "transformers looks up <image>, token 51289" in captured.out
    assert "without <image> and the location tokens" in captured.out
    assert main([str(source), str(tmp_path / "b"), "--naming", "original"]) == 0
    assert "keeps auto_map" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m convert.to_torch mine/ mine-torch/ --naming native" in capsys.readouterr().out
