"""A saved pipeline comes back the same, here and in transformers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import florence_jax as fj
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.pytorch.key_map import SHARED
from florence_jax.conversion import to_torch
from florence_jax.demo import SHAPES
from tests.random_pipeline import random_pipeline

SCENE = SHAPES / "scenes" / "test" / "000200.png"
FORMATS = ("jax", "native", "original")


@pytest.fixture(scope="module")
def pipe():
    return fj.Florence2Pipeline.from_pretrained("shapes", dtype="bfloat16")


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for format in FORMATS:
        pipe.save_pretrained(folder / format, format=format)
    return folder


def assert_same_parameters(found, expected):
    found, expected = dict(flatten(found)), dict(flatten(expected))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        assert np.array_equal(np.asarray(found[path]), np.asarray(leaf)), path


@pytest.mark.parametrize("format", FORMATS)
def test_it_comes_back_bit_for_bit(pipe, saved, format):
    loaded = fj.Florence2Pipeline.from_pretrained(saved / format, dtype="bfloat16")
    assert_same_parameters(loaded.params, pipe.params)
    assert loaded.model == pipe.model
    assert loaded.generation == pipe.generation
    assert loaded.image_config == pipe.image_config
    assert loaded.tokenizer.sha256() == pipe.tokenizer.sha256()


def test_names_are_those_of_their_format(saved):
    from safetensors import safe_open

    with safe_open(saved / "native" / "model.safetensors", "numpy") as file:
        assert "model.language_model.shared.weight" in file.keys()  # noqa: SIM118
    with safe_open(saved / "original" / "model.safetensors", "numpy") as file:
        assert "language_model.model.shared.weight" in file.keys()  # noqa: SIM118
    assert "dim_embed" in json.loads((saved / "original/config.json").read_text())["vision_config"]
    assert (saved / "jax" / "manifest.json").is_file()


def test_transformers_answers_with_the_native_one_alike(pipe, saved):
    import torch
    from transformers import AutoProcessor, Florence2ForConditionalGeneration

    from florence_jax.processing import load_image

    model, info = Florence2ForConditionalGeneration.from_pretrained(
        saved / "native", dtype="float32", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(saved / "native", use_fast=False)
    inputs = processor(images=load_image(SCENE), text="<OD>", return_tensors="pt")
    with torch.no_grad():
        ids = model.eval().generate(**inputs)
    text = processor.batch_decode(ids, skip_special_tokens=False)[0]
    theirs = processor.post_process_generation(text=text, task="<OD>", image_size=(192, 192))
    ours = fj.Florence2Pipeline.from_pretrained(saved / "jax", compat="native")(SCENE, "<OD>")
    assert theirs == ours


def test_changed_settings_are_saved(pipe, tmp_path):
    changed = dataclasses.replace(
        pipe,
        generation=dataclasses.replace(pipe.generation, num_beams=2, max_new_tokens=33),
        image_config=dataclasses.replace(pipe.image_config, size=(96, 96)),
    )
    for format in FORMATS:
        changed.save_pretrained(tmp_path / format, format)
        loaded = fj.Florence2Pipeline.from_pretrained(tmp_path / format, dtype="bfloat16")
        assert loaded.generation == changed.generation
        assert loaded.image_config == changed.image_config
        assert fj.Processor.from_pretrained(tmp_path / format).image_config.size == (96, 96)


def test_a_pipeline_made_in_code_is_saved_whole(tmp_path):
    from transformers import AutoProcessor

    demo = random_pipeline()
    for format in FORMATS:
        demo.save_pretrained(tmp_path / format, format)
        loaded = fj.Florence2Pipeline.from_pretrained(tmp_path / format)
        assert loaded.tokenizer.sha256() == demo.tokenizer.sha256()
        assert loaded.image_config == demo.image_config
        assert loaded.generation == demo.generation
    assert_same_parameters(
        fj.Florence2Pipeline.from_pretrained(tmp_path / "jax").params, demo.params
    )
    # transformers needs a token for the image: a row of the table and an entry of the tokenizer.
    processor = AutoProcessor.from_pretrained(tmp_path / "native", use_fast=False)
    native = fj.Florence2Pipeline.from_pretrained(tmp_path / "native")
    assert processor.image_token_id == native.model.config.image_token_id
    assert native.model.config.text.vocab_size > processor.image_token_id
    result = processor.post_process_generation(text="</s><s>a</s>", task="<OCR>", image_size=(9, 9))
    assert result == {"<OCR>": "a"}


def test_a_table_without_a_row_for_the_image_is_padded_for_transformers(tmp_path):
    demo = random_pipeline()
    leaves = dict(flatten(demo.params))
    rows = demo.model.config.image_token_id
    params = unflatten(leaves | {SHARED: leaves[SHARED][:rows]})
    config = demo.model.config
    text = dataclasses.replace(config.text, vocab_size=rows)
    model = dataclasses.replace(demo.model, config=dataclasses.replace(config, text=text))
    cut = dataclasses.replace(demo, model=model, params=params)
    for format, expected in (("native", 1344), ("original", rows), ("jax", rows)):
        cut.save_pretrained(tmp_path / format, format)
        loaded, found = fj.load(tmp_path / format)
        table = np.asarray(dict(flatten(found))[SHARED])
        assert loaded.config.text.vocab_size == len(table) == expected
        assert np.array_equal(table[:rows], np.asarray(leaves[SHARED])[:rows])


def test_what_cannot_be_saved_says_why(pipe, saved, tmp_path):
    with pytest.raises(ValueError, match="format is 'torch', expected \"jax\""):
        pipe.save_pretrained(tmp_path / "x", format="torch")
    with pytest.raises(fj.CheckpointError, match="exists"):
        pipe.save_pretrained(saved / "native", format="native")
    pipe.save_pretrained(saved / "native", format="native", overwrite=True)
    int8 = fj.Florence2Pipeline.from_pretrained("shapes", quantize="int8")
    with pytest.raises(ValueError, match="int8 weights cannot be saved"):
        int8.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_pipeline_on_a_mesh_is_saved_in_its_true_shapes(tmp_path, pipe):
    count = jax.device_count()
    divided = fj.Florence2Pipeline.from_pretrained("shapes", dtype="bfloat16", mesh=f"fsdp={count}")
    divided.save_pretrained(tmp_path / "jax")
    assert_same_parameters(fj.load(tmp_path / "jax", "bfloat16")[1], pipe.params)


def test_conversions_add_what_transformers_processor_needs(tmp_path):
    source = tmp_path / "source"
    fj.Florence2Pipeline.from_pretrained("shapes").save_pretrained(source, "native")
    file = source / "processor_config.json"
    fields = json.loads(file.read_text())
    expected = fields.pop("post_processor_config")
    file.write_text(json.dumps(fields))
    to_torch(source, tmp_path / "torch", naming="native")
    fj.Florence2Pipeline.from_pretrained(source).save_pretrained(tmp_path / "jax")
    for name in ("torch", "jax"):
        written = json.loads((tmp_path / name / "processor_config.json").read_text())
        assert written == {**fields, "post_processor_config": expected}
