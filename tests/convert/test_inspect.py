"""`convert.inspect` says what a directory is, what decided it and what is odd, without loading."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.inspect import inspect, main
from convert.verify.reference import random_params_with_spread_logits
from florence_jax.checkpoint import CheckpointError, save_checkpoint
from florence_jax.config import PRESETS, tiny
from tests.checkpoint.generated import (
    TOKEN_TABLES,
    tiny_config,
    tiny_tensors,
    torch_shapes,
    write_directory,
    write_safetensors,
)
from tests.shared_data import needs_shared, shared_path


@pytest.mark.parametrize("naming", ["original", "native"])
@pytest.mark.parametrize("preset", ["base", "large", "large-4k"])
def test_a_published_size_is_recognised_without_reading_it(tmp_path, preset, naming):
    config = PRESETS[preset]()
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf(naming)))
    # Sparse files: nothing on disk but the header. The bias of zeros is looked at, and is small.
    write_safetensors(
        tmp_path / "model.safetensors", torch_shapes(config, naming), "float16", sparse=True
    )
    found = inspect(tmp_path)
    assert found["problems"] == []
    assert found["variant"] == preset
    assert found["naming"] == naming
    assert found["dtypes"] == {"float16": len(torch_shapes(config, naming))}
    assert found["tied"] is True
    assert found["context_length"] == (4096 if preset == "large-4k" else 1024)
    assert found["vocab_size"] == 51289
    assert found["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert found["parameters"] * 2 <= found["bytes"]


@needs_shared
def test_the_reference_checkpoints():
    for folder, naming in (("original", "original"), ("native_hf", "native")):
        found = inspect(shared_path("tiny", folder))
        assert found["variant"] == "tiny"
        assert found["naming"] == naming
        assert found["format"] == "safetensors"
        assert found["parameters"] == 148248
        assert found["decoding"]["num_beams"]["value"] == 3
        assert found["problems"] == []
    assert found["decoding"]["num_beams"]["source"] == "generation_config.json"
    assert found["decoding"]["top_p"]["source"] == "published default"


@needs_shared
def test_who_decided_each_setting_of_the_published_configs():
    large = inspect(shared_path("original_configs", "large"))
    assert large["variant"] == "large"
    # generation_config.json says False, and is overruled.
    assert large["decoding"]["early_stopping"] == {"value": True, "source": "text_config"}
    agreed = "text_config and generation_config.json"
    assert large["decoding"]["num_beams"] == {"value": 3, "source": agreed}
    assert large["decoding"]["length_penalty"]["source"] == "published default"
    assert "holds no weights" in large["problems"][0]
    tuned = inspect(shared_path("original_configs", "omniparser_icon_caption"))
    assert tuned["decoding"]["eos_token_id"] == {"value": 2, "source": "text_config"}
    assert sum("top-level" in quirk for quirk in tuned["quirks"]) == 3


@pytest.mark.parametrize(
    ("text", "generation", "name", "expected"),
    [
        ({"num_beams": 1}, {"num_beams": 5}, "num_beams", (5, "generation_config.json")),
        ({"num_beams": 4}, {"num_beams": 5}, "num_beams", (4, "text_config")),
        ({"num_beams": 1}, None, "num_beams", (1, "text_config")),
        ({}, None, "num_beams", (3, "published default")),
        ({}, {"max_length": 21}, "max_new_tokens", (20, "generation_config.json")),
        ({}, {"min_new_tokens": 4}, "min_new_tokens", (4, "generation_config.json")),
        ({}, None, "max_new_tokens", (None, "published default")),
    ],
)
def test_sources_of_settings(tmp_path, text, generation, name, expected):
    config = tiny_config("native")
    config["text_config"] |= text
    write_directory(tmp_path, tiny_tensors("native"), config)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    found = inspect(tmp_path)["decoding"][name]
    assert (found["value"], found["source"]) == expected


def test_quirks_of_fine_tunes(tmp_path):
    tensors = {f"vlm.{name}": array for name, array in tiny_tensors().items()}
    shared, _, _, head = (f"vlm.{name}" for name in TOKEN_TABLES["original"])
    tensors[head] = tensors[shared] + 1
    config = tiny_config() | {"bos_token_id": 2, "auto_map": {"AutoModel": "x.Y"}}
    write_directory(tmp_path, tensors, config)
    (tmp_path / "modeling_florence2.py").write_text("raise SystemExit")
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"content": t} for t in ("<od>", "<image>", "<mine>")]})
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<loc_5>": 1, "<yours>": 2}))
    found = inspect(tmp_path)
    assert found["problems"] == []
    assert found["tied"] is False
    quirks = "\n".join(found["quirks"])
    for part in (
        "foreign prefix 'vlm.'",
        "top-level bos_token_id is 2",
        "remote code",
        "modeling_florence2.py",
        "2 tokens of its own: <mine>, <yours>",
        "no preprocessor_config.json",
        "lm_head differs",
    ):
        assert part in quirks, quirks


def test_our_own_format(tmp_path):
    config = tiny()
    save_checkpoint(tmp_path / "ours", config, random_params_with_spread_logits(config, 0))
    found = inspect(tmp_path / "ours")
    assert found["format"] == "florence_jax"
    assert found["variant"] == "tiny"
    assert found["problems"] == []
    assert "manifest.json" in found["files"]


def test_another_architecture_size_is_custom(tmp_path):
    config = tiny_config()
    config["text_config"]["encoder_ffn_dim"] = 64
    write_directory(tmp_path, tiny_tensors(), config)
    found = inspect(tmp_path)
    assert found["variant"] == "custom"
    assert found["naming"] is None
    assert "encoder_ffn_dim" in found["problems"][0]


def test_adapters(tmp_path):
    layer = "base_model.model.model.language_model.encoder.layers.0.fc1"
    save_file(
        {f"{layer}.lora_A.weight": np.ones((2, 24)), f"{layer}.lora_B.weight": np.ones((48, 2))},
        tmp_path / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["fc1"],
        "base_model_name_or_path": "microsoft/Florence-2-base-ft",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = inspect(tmp_path)
    expected = {
        "kind": "adapter",
        "format": "peft",
        "type": "LORA",
        "naming": "native",
        "rank": 2,
        "alpha": 6,
        "base_model": "microsoft/Florence-2-base-ft",
        "target_modules": ["fc1"],
        "scales": [3.0],
        "parameters": 144,
        "problems": [],
    }
    assert {key: found[key] for key in expected} == expected
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    found = inspect(tmp_path)
    assert found["rank"] == 2
    assert "magnitude" in found["problems"][0]
    assert main([str(tmp_path)]) == 1


def test_the_table_and_the_json(tmp_path, capsys):
    write_directory(tmp_path, tiny_tensors(), tiny_config())
    assert main([str(tmp_path)]) == 0
    table = capsys.readouterr().out
    for part in ("Florence-2 tiny", "naming            original", "num_beams               3"):
        assert part in table
    assert main([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect(tmp_path)


def test_what_is_no_florence_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert main([str(tmp_path)]) == 2
    assert "another model's checkpoint" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing")]) == 2
    assert "neither an existing directory" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        inspect(empty)


def test_a_damaged_file_is_a_problem_and_the_rest_is_described(tmp_path):
    write_directory(tmp_path, tiny_tensors(), tiny_config())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    found = inspect(tmp_path)
    assert found["variant"] == "tiny"
    assert "Is the download complete?" in found["problems"][0]
    shutil.rmtree(tmp_path)


def test_the_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "examples:" in capsys.readouterr().out
