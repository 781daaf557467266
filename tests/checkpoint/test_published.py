"""Every published name and shape loads, and loading large stays within its memory budget."""

import json

import pytest

from florence_jax.checkpoint import load_checkpoint, plan_checkpoint
from florence_jax.config import PRESETS
from tests.benchmarks.load_memory import measure
from tests.checkpoint.generated import write_checkpoint, write_safetensors
from tests.shared_data import needs_shared, shared_path

FILE = {"original": "original", "native": "native_hf"}
VOCABULARY = {"original": 51289, "native": 51328}


@needs_shared
@pytest.mark.parametrize("size", ["base", "large", "large_4k"])
@pytest.mark.parametrize("naming", ["original", "native"])
def test_a_file_of_every_published_shape_is_planned_with_nothing_left_over(tmp_path, naming, size):
    keys = json.loads(shared_path("checkpoint_keys", f"{FILE[naming]}_{size}.json").read_text())
    # Tied tensors are one in a published safetensors file, and comparing them would read them all.
    shapes = {name: s for name, s in keys["tensors"].items() if name not in keys["tied"]}
    write_safetensors(tmp_path / "model.safetensors", shapes, "float16", sparse=True)
    config = PRESETS[size.replace("_", "-")]().to_hf(naming)
    config["text_config"]["vocab_size"] = VOCABULARY[naming]
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = plan_checkpoint(tmp_path)
    assert plan.report.naming == naming
    assert plan.config.text.vocab_size == VOCABULARY[naming]
    assert plan.config.tie_word_embeddings
    assert not plan.config.final_logits_bias
    temporal_table = 100 * plan.config.vision.embed_dims[-1]
    assert plan.report.parameters == keys["n_parameters_unique"] + temporal_table


@needs_shared
@pytest.mark.slow
def test_a_base_file_with_every_tied_name_loads(tmp_path):
    keys = json.loads(shared_path("checkpoint_keys", "native_hf_base.json").read_text())
    write_safetensors(tmp_path / "model.safetensors", keys["tensors"], "float16", sparse=True)
    config = PRESETS["base"]().to_hf("native")
    config["text_config"]["vocab_size"] = 51328
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_checkpoint(tmp_path)
    assert len(loaded.report.tied) == 3
    assert loaded.params["shared"]["embedding"].shape == (51328, 768)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "file_format"),
    [("float32", "safetensors"), ("float16", "safetensors"), ("float16", "bin")],
)
def test_loading_large_in_bfloat16_peaks_under_two_and_a_half_gib(tmp_path, stored, file_format):
    if file_format == "bin":
        pytest.importorskip("torch", reason="needs the extra 'torch'")
    write_checkpoint(tmp_path, preset="large-4k", stored=stored, file_format=file_format)
    figures = measure(tmp_path, "bfloat16")
    assert figures["parameters_gib"] > 1.4
    assert figures["peak_gib"] < 2.5
