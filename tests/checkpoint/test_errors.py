"""What does not fit is said in one error, with the likely cause; what is merely odd is reported."""

import json

import numpy as np
import pytest

from florence_jax.checkpoint import CheckpointError, load_checkpoint, plan_checkpoint, read_config
from florence_jax.checkpoint.errors import ErrorCollector
from florence_jax.config import PRESETS, ConfigError
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory
from tests.shared_data import needs_shared, shared_path


def refused(tmp_path, tensors, config=None, **options):
    write_directory(tmp_path, tensors, config or tiny_config())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, **options)
    return str(caught.value)


def test_all_problems_are_in_one_error(tmp_path):
    tensors = tiny_tensors()
    del tensors["image_proj_norm.weight"]
    for name in [name for name in tensors if ".self_attn.q_proj." in name]:
        del tensors[name]
    tensors["surprise.weight"] = np.zeros(3, np.float32)
    tensors["image_projection"] = tensors["image_projection"].T
    tensors["image_pos_embed.row_embeddings.weight"] = np.zeros((50, 16), np.int32)
    tensors["module.image_proj_norm.bias"] = tensors["image_proj_norm.bias"]
    tensors["_orig_mod.image_proj_norm.bias"] = tensors["image_proj_norm.bias"]
    message = refused(tmp_path, tensors)
    assert "original naming" in message
    assert "missing tensors (9):" in message
    assert "language_model.model.encoder.layers.{}.self_attn.q_proj.weight (x2)" in message
    assert "unexpected tensors (2):" in message
    assert "surprise.weight" in message
    assert "image_projection: is [24, 32], expected [32, 24]" in message
    assert "image_pos_embed.row_embeddings.weight: int32" in message
    assert "tensors stored twice (1):" in message


def test_long_lists_are_shortened():
    problems = ErrorCollector()
    for number in range(40):
        problems.add("unexpected tensors", f"head{chr(97 + number % 26)}.{number}.weight")
    problems.add("unexpected tensors", "x" * 10_000)
    with pytest.raises(CheckpointError) as caught:
        problems.raise_if_any("it")
    message = str(caught.value)
    assert "unexpected tensors (41):" in message
    assert "... and " in message
    assert len(message) < 2_000


def test_the_config_of_another_size_is_named(tmp_path):
    config = PRESETS["large-4k"]().to_hf("original")
    message = refused(tmp_path, tiny_tensors(), config)
    assert "d_model: config.json says 1024, the tensors have 24" in message
    assert "max_position_embeddings: config.json says 4096, the tensors have 1024" in message
    assert "the tensors are those of Florence-2 tiny: use its config.json" in message


def test_a_config_with_too_few_layers_leaves_tensors_without_a_place(tmp_path):
    message = refused(tmp_path, tiny_tensors(), tiny_config(decoder_layers=1))
    assert "decoder_layers: config.json says 1, the tensors have 2" in message
    assert "tensors that this config has no place for (26):" in message


@pytest.mark.parametrize(
    "change",
    [{"encoder_layers": 10**9}, {"encoder_layers": 2000}, {"encoder_ffn_dim": 1 << 60}],
)
def test_an_absurd_config_is_refused_without_expanding_it(tmp_path, change):
    message = refused(tmp_path, tiny_tensors(), tiny_config(**change))
    assert f"config.json says {next(iter(change.values()))}" in message
    assert "sizes beyond reason" in message


def test_another_model_is_recognised_as_such(tmp_path):
    other = {f"vit.layer.{number}.weight": np.zeros(2, np.float32) for number in range(30)}
    assert "not the tensors of a Florence-2" in refused(tmp_path / "other", other)
    lora = {f"base.{number}.lora_A.weight": np.zeros(2, np.float32) for number in range(30)}
    assert "convert.merge_lora" in refused(tmp_path / "lora", lora)
    assert "not the tensors of a Florence-2" in refused(tmp_path / "empty", {})


def test_a_uniform_foreign_prefix_is_removed_and_reported(tmp_path):
    expected = tiny_tensors()
    for prefix in ("vlm.", "module.", "base_model.model.", "model."):
        tensors = {prefix + name: array for name, array in expected.items()}
        directory = write_directory(tmp_path / prefix, tensors, tiny_config())
        loaded = load_checkpoint(directory)
        assert f"foreign prefix {prefix!r} removed from every name" in loaded.report.warnings
        scale = loaded.params["projector"]["norm"]["scale"]
        np.testing.assert_array_equal(scale, expected["image_proj_norm.weight"])


def test_a_prefix_that_only_some_names_carry_is_not_guessed(tmp_path):
    tensors = tiny_tensors()
    tensors["vlm.image_proj_norm.bias"] = tensors.pop("image_proj_norm.bias")
    message = refused(tmp_path, tensors)
    assert "missing tensors (1):\n    image_proj_norm.bias" in message
    assert "unexpected tensors (1):\n    vlm.image_proj_norm.bias" in message


def test_wrapper_segments_are_removed_anywhere(tmp_path):
    tensors = {
        name.replace("language_model.model.", "language_model._orig_mod.model."): array
        for name, array in tiny_tensors("original").items()
    }
    report = load_checkpoint(write_directory(tmp_path, tensors, tiny_config())).report
    assert any("wrapper segments removed" in quirk for quirk in report.warnings)


def test_foreign_tensors_can_be_left_out_by_name(tmp_path):
    tensors = tiny_tensors() | {"action_head.weight": np.zeros(3, np.float32)}
    message = refused(tmp_path, tensors)
    assert "unexpected tensors (1):\n    action_head.weight" in message
    assert "ignore=" in message
    report = load_checkpoint(tmp_path, ignore=[r"action_head\..*"]).report
    assert "action_head.weight" in report.ignored
    message = refused(tmp_path, tensors, ignore=[r"action_head\..*", "typo"])
    assert "ignore patterns that match no tensor (1):\n    typo" in message


def test_a_missing_or_malformed_config_says_so(tmp_path):
    write_directory(tmp_path, tiny_tensors(), tiny_config())
    config = tmp_path / "config.json"
    for text, expected in [
        ("{", "is not valid JSON"),
        ("[1]", "holds a JSON list, expected an object"),
        ('{"model_type": "florence2", "model_type": "x"}', "duplicate key"),
        ('{"model_type": "llava"}', "another model's checkpoint"),
        ("[" * 100_000, "is not valid JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "is not valid JSON"),
    ]:
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(CheckpointError, match=expected):
            load_checkpoint(tmp_path)
    config.write_text("{}")
    with pytest.raises(ConfigError, match="vision_config is missing"):
        load_checkpoint(tmp_path)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_checkpoint(tmp_path)


def test_oddities_of_published_fine_tunes_are_reported_not_refused(tmp_path):
    config = tiny_config() | {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config["vision_config"]["model_type"] = ""
    config["text_config"]["early_stopping"] = True
    write_directory(tmp_path, tiny_tensors(), config)
    (tmp_path / "generation_config.json").write_text('{"num_beams": 3, "early_stopping": false}')
    loaded = load_checkpoint(tmp_path)
    text = loaded.config.text
    assert (text.bos_token_id, text.pad_token_id, text.eos_token_id) == (0, 1, 2)
    said = str(loaded.report)
    for expected in (
        "top-level eos_token_id is 1, text_config says 2",
        "vision_config.model_type is ''",
        "generation_config.json: early_stopping is False, text_config says True",
        "no tokenizer files",
        "no preprocessor_config.json",
    ):
        assert expected in said


def test_a_quantised_checkpoint_is_refused_by_dtype(tmp_path):
    tensors = {name: array.astype(np.int8) for name, array in tiny_tensors().items()}
    message = refused(tmp_path, tensors)
    assert f"tensors of an unsupported dtype ({len(tensors)}):" in message
    assert "use the unquantised checkpoint" in message


def test_float64_needs_an_explicit_dtype(tmp_path):
    tensors = {name: array.astype(np.float64) for name, array in tiny_tensors().items()}
    assert "pass dtype='float32'" in refused(tmp_path, tensors)
    load_checkpoint(tmp_path, "float32")


def test_a_derived_models_name_is_reported(tmp_path):
    config = tiny_config() | {"model_type": "my-florence"}
    report = load_checkpoint(write_directory(tmp_path, tiny_tensors(), config)).report
    assert "config.json: model_type is 'my-florence' instead of 'florence2'" in report.warnings


def test_read_config_gives_the_files_unchanged(tmp_path):
    write_directory(tmp_path, {}, tiny_config())
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "processor_config.json").write_text('{"image_seq_length": 577}')
    repository = read_config(tmp_path)
    assert repository.config == json.loads((tmp_path / "config.json").read_text())
    assert repository.generation is None
    assert repository.preprocessor == {"image_seq_length": 577}
    assert repository.has_tokenizer
    assert repository.warnings == ()


@needs_shared
def test_a_published_fine_tunes_config_reads():
    repository = read_config(shared_path("original_configs", "omniparser_icon_caption"))
    assert any("top-level bos_token_id is 2" in quirk for quirk in repository.warnings)


def test_planning_reads_no_weights(tmp_path):
    write_directory(tmp_path, tiny_tensors(), tiny_config())
    plan = plan_checkpoint(tmp_path)
    assert plan.config.text == PRESETS["tiny"]().text
    assert plan.sources["encoder/layers/0/fc1/kernel"].tensor.shape == (48, 24)
