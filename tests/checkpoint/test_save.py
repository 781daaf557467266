"""A saved checkpoint loads as it was, Orbax restores it, and equal models make equal arrays."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

import florence_jax as fj
from florence_jax.checkpoint import CheckpointError, load_checkpoint, plan_checkpoint
from florence_jax.checkpoint.native.save import save_checkpoint
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.model import abstract_params
from tests.checkpoint.generated import (
    LOGITS_BIAS,
    TOKEN_TABLES,
    tiny_config,
    tiny_tensors,
    write_directory,
)
from tests.checkpoint.test_load import assert_same


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    (folder / "generation_config.json").write_text('{"num_beams": 3}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_florence2.py").write_text("raise SystemExit")
    return write_directory(folder, tiny_tensors(), tiny_config())


@pytest.fixture(scope="module")
def model(published):
    return load_checkpoint(published)


def data_file(directory):
    """The name of the file of a saved checkpoint that holds most of its arrays."""
    files = [path for path in (directory / "params").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    return largest.relative_to(directory).as_posix()


def settings(directory):
    """The files beside the arrays and the manifest, which names the arrays' files."""
    files = content(directory).items()
    kept = {name: text for name, text in files if not name.startswith("params/")}
    del kept["manifest.json"]
    return kept


def content(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_saved_is_loaded(published, tmp_path, dtype):
    config, params, _ = load_checkpoint(published, dtype)
    save_checkpoint(tmp_path / "saved", config, params, files=published)
    loaded = load_checkpoint(tmp_path / "saved")
    assert loaded.config == config
    assert_same(loaded.params, params)
    assert dict(loaded.report.stored_dtypes) == {dtype: len(list(flatten(params)))}
    assert loaded.report.naming == "original"
    # The other dtypes are what the published file gives in them, where nothing was rounded.
    if dtype == "float32":
        half = load_checkpoint(tmp_path / "saved", "bfloat16").params
        assert_same(half, load_checkpoint(published, "bfloat16").params)


def test_every_parameter_keeps_its_own_dtype(model, tmp_path):
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["shared"]["embedding"] = params["shared"]["embedding"].astype("bfloat16")
    manifest = save_checkpoint(tmp_path / "saved", model.config, params)
    assert {p.path for p in manifest.parameters if p.dtype.name == "bfloat16"} == {
        "shared/embedding"
    }
    assert_same(load_checkpoint(tmp_path / "saved").params, params)


def test_untied_weights_and_an_output_bias_are_kept(tmp_path):
    tensors = tiny_tensors()
    shared, _, _, lm_head = TOKEN_TABLES["original"]
    tensors[lm_head] = tensors[shared] + 1
    tensors[LOGITS_BIAS] = np.full((1, 1285), 0.25, np.float32)
    source = write_directory(tmp_path / "source", tensors, tiny_config())
    config, params, _ = load_checkpoint(source)
    save_checkpoint(tmp_path / "saved", config, params, files=source)
    loaded = load_checkpoint(tmp_path / "saved")
    assert not loaded.config.tie_word_embeddings
    assert loaded.config.final_logits_bias
    assert_same(loaded.params, params)


def test_the_directory_holds_data_and_settings_and_no_code(model, published, tmp_path):
    manifest = save_checkpoint(tmp_path / "saved", model.config, model.params, files=published)
    files = content(tmp_path / "saved")
    assert {name for name in files if not name.startswith("params/")} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "manifest.json",
    }
    assert {"params/_METADATA", "params/manifest.ocdbt"} < files.keys()
    assert manifest.files.keys() == files.keys() - {"manifest.json"}
    written = json.loads(files["manifest.json"])
    assert written["files"]["tokenizer.json"]["bytes"] == 2
    kernel = written["parameters"]["encoder/layers/0/fc1/kernel"]
    assert (kernel["shape"], kernel["dtype"]) == ([24, 48], "float32")
    kept = json.loads(files["config.json"])
    assert kept.pop("florence_jax")["origin"]["naming"] == "original"
    assert kept == json.loads((published / "config.json").read_text())


def test_equal_models_make_equal_arrays_and_settings(model, published, tmp_path):
    save_checkpoint(tmp_path / "a", model.config, model.params, files=published)
    shuffled = dict(reversed(model.params.items()))
    save_checkpoint(tmp_path / "b", model.config, shuffled, files=published)
    assert settings(tmp_path / "a") == settings(tmp_path / "b")
    # A saved checkpoint is as good a source of the other files as a published one.
    saved = load_checkpoint(tmp_path / "a")
    save_checkpoint(tmp_path / "c", saved.config, saved.params, files=tmp_path / "a")
    assert settings(tmp_path / "a") == settings(tmp_path / "c")
    for name in "abc":
        assert_same(load_checkpoint(tmp_path / name).params, model.params)


def test_orbax_restores_it(model, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model.params["encoder"])
    params = model.params | {"encoder": half}
    save_checkpoint(tmp_path / "saved", model.config, params)
    plain = ocp.PyTreeCheckpointer().restore(tmp_path / "saved" / "params")
    assert_same(plain, params)
    assert plain["encoder"]["positions"].dtype == ml_dtypes.bfloat16

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), params
    )
    with ocp.StandardCheckpointer() as checkpointer:
        placed = checkpointer.restore(tmp_path / "saved" / "params", target)
    assert_same(placed, params)
    assert placed["encoder"]["positions"].sharding == sharding


@pytest.mark.parametrize("sharded", [False, True])
def test_values_beyond_float16_are_named(model, tmp_path, sharded):
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["projector"]["norm"]["bias"] = params["projector"]["norm"]["bias"].at[3].set(1e6)
    save_checkpoint(tmp_path / "saved", model.config, params)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if sharded else None
    with pytest.raises(CheckpointError, match=r"projector/norm/bias holds values beyond float16"):
        load_checkpoint(tmp_path / "saved", "float16", sharding)
    half = load_checkpoint(tmp_path / "saved", "bfloat16", sharding).params
    assert_same(half, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params))
    # An infinity that was saved is no overflow.
    params["projector"]["norm"]["bias"] = params["projector"]["norm"]["bias"].at[3].set(np.inf)
    save_checkpoint(tmp_path / "saved", model.config, params, overwrite=True)
    half = load_checkpoint(tmp_path / "saved", "float16", sharding).params
    assert_same(half, jax.tree.map(lambda leaf: leaf.astype("float16"), params))


def test_loads_onto_a_sharding(model, tmp_path):
    save_checkpoint(tmp_path / "saved", model.config, model.params)
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    params = load_checkpoint(tmp_path / "saved", "bfloat16", placed).params
    assert {(leaf.dtype.name, leaf.sharding) for _, leaf in flatten(params)} == {
        ("bfloat16", placed)
    }


def test_a_model_of_no_origin_has_transformers_dialect(model, tmp_path):
    save_checkpoint(tmp_path / "saved", model.config, model.params)
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert written["vision_config"]["embed_dim"] == [8, 16, 24, 32]
    plan = plan_checkpoint(tmp_path / "saved")
    assert plan.origin.naming == "native"
    assert plan.origin.extra == {}
    handle, params = fj.load(tmp_path / "saved")
    assert handle.config == model.config
    assert_same(params, model.params)


def test_what_does_not_fit_is_refused_before_anything_is_written(model, tmp_path):
    params = dict(model.params)
    del params["projector"]
    params["extra"] = {"kernel": jax.numpy.zeros(2, jax.numpy.int32)}
    params["shared"] = {"embedding": params["shared"]["embedding"][:-1]}
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path / "saved", model.config, params)
    message = str(caught.value)
    assert "missing parameters (6):" in message
    assert "extra/kernel: int32" in message
    assert "shared/embedding: is [1284, 24], expected [1285, 24]" in message
    assert list(tmp_path.iterdir()) == []


def test_the_config_json_of_another_model_is_refused(model, published, tmp_path):
    vision = dataclasses.replace(model.config.vision, window_size=7)
    config = dataclasses.replace(model.config, vision=vision)
    with pytest.raises(CheckpointError, match=r"vision\.window_size is 12 there and 7 here"):
        save_checkpoint(tmp_path / "saved", config, model.params, files=published)


def test_keys_and_shapes_are_those_of_the_model(model, tmp_path):
    save_checkpoint(tmp_path / "saved", model.config, model.params)
    loaded = dict(flatten(load_checkpoint(tmp_path / "saved").params))
    expected = dict(flatten(abstract_params(model.config)))
    assert {path: leaf.shape for path, leaf in loaded.items()} == {
        path: leaf.shape for path, leaf in expected.items()
    }
