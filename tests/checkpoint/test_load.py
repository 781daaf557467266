"""Loading: every file format and naming gives the same parameters, in the dtype and place asked."""

import json
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from florence_jax.checkpoint import load_checkpoint
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.config import PRESETS
from florence_jax.model import abstract_params
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory
from tests.shared_data import needs_shared, shared_path

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def tiny(tmp_path):
    return write_directory(tmp_path / "tiny", tiny_tensors(), tiny_config())


def assert_same(left, right):
    left, right = dict(flatten(left)), dict(flatten(right))
    assert left.keys() == right.keys()
    for path, array in left.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(right[path]), err_msg=path)


@needs_shared
def test_original_native_and_bin_files_give_the_same_arrays(tmp_path):
    expected = load_checkpoint(shared_path("tiny", "original"))
    assert expected.report.naming == "original"
    native = load_checkpoint(shared_path("tiny", "native_hf"))
    assert native.report.naming == "native"
    assert_same(native.params, expected.params)

    pytest.importorskip("torch")
    shutil.copy(shared_path("tiny", "original", "config.json"), tmp_path)
    shutil.copy(shared_path("tiny", "original", "pytorch_model.bin"), tmp_path)
    from_bin = load_checkpoint(tmp_path)
    assert from_bin.report.files == ("pytorch_model.bin",)
    assert len(from_bin.report.tied) == 3
    assert_same(from_bin.params, expected.params)


@needs_shared
def test_an_fp16_bin_is_the_fp32_one_rounded(tmp_path):
    pytest.importorskip("torch")
    shutil.copy(shared_path("tiny", "original", "config.json"), tmp_path)
    half = shared_path("tiny", "original", "pytorch_model.fp16.bin")
    shutil.copy(half, tmp_path / "pytorch_model.bin")
    loaded = load_checkpoint(tmp_path)
    assert dict(loaded.report.stored_dtypes) == {"float16": 277}
    full = load_checkpoint(shared_path("tiny", "original"), "float16")
    assert_same(loaded.params, full.params)


@pytest.mark.parametrize("naming", ["original", "native"])
def test_keys_and_shapes_are_those_of_the_model(tmp_path, naming):
    write_directory(tmp_path, tiny_tensors(naming), tiny_config(naming))
    config, params, report = load_checkpoint(tmp_path)
    abstract = dict(flatten(abstract_params(config)))
    loaded = dict(flatten(params))
    assert loaded.keys() == abstract.keys()
    assert {path: leaf.shape for path, leaf in loaded.items()} == {
        path: leaf.shape for path, leaf in abstract.items()
    }
    assert report.parameters == sum(leaf.size for leaf in abstract.values())


def test_layouts_are_transposed_as_documented(tiny):
    tensors = tiny_tensors()
    _, params, _ = load_checkpoint(tiny)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params)}
    np.testing.assert_array_equal(
        leaves["encoder/layers/1/fc1/kernel"],
        tensors["language_model.model.encoder.layers.1.fc1.weight"].T,
    )
    np.testing.assert_array_equal(
        leaves["vision_tower/stages/2/embed/conv/kernel"],
        tensors["vision_tower.convs.2.proj.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(leaves["projector/proj/kernel"], tensors["image_projection"])


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("asked", [*DTYPES, None])
def test_every_dtype_is_read_and_given(tmp_path, stored, asked):
    tensors = {name: array.astype(DTYPES[stored]) for name, array in tiny_tensors().items()}
    write_directory(tmp_path, tensors, tiny_config())
    params = load_checkpoint(tmp_path, asked).params
    wanted = np.dtype(DTYPES[asked or stored])
    assert {leaf.dtype for _, leaf in flatten(params)} == {wanted}
    name = "language_model.model.encoder.layers.0.fc1.weight"
    kernel = np.asarray(params["encoder"]["layers"]["0"]["fc1"]["kernel"])
    np.testing.assert_array_equal(kernel, tensors[name].T.astype(wanted))


def test_an_unknown_dtype_is_refused(tiny):
    for dtype in ("int8", "float64", "nonsense"):
        with pytest.raises(ValueError, match="expected 'float32', 'bfloat16', 'float16'"):
            load_checkpoint(tiny, dtype)


def test_values_beyond_float16_are_named(tmp_path):
    tensors = tiny_tensors()
    tensors["image_proj_norm.bias"][3] = 1e6
    write_directory(tmp_path, tensors, tiny_config())
    with pytest.raises(ValueError, match=r"image_proj_norm\.bias holds values beyond float16"):
        load_checkpoint(tmp_path, "float16")
    load_checkpoint(tmp_path, "bfloat16")


def test_parameters_do_not_alias_the_file(tiny):
    before = load_checkpoint(tiny).params
    expected = jax.tree.map(lambda leaf: np.array(leaf), before)
    path = tiny / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert_same(before, expected)


def test_a_sharding_or_a_rule_places_the_parameters(tiny):
    device = jax.devices()[-1]
    placed = jax.sharding.SingleDeviceSharding(device)
    expected = load_checkpoint(tiny).params
    assert_same(load_checkpoint(tiny, sharding=placed).params, expected)

    mesh = jax.sharding.Mesh(np.array([device]), ("fsdp",))
    paths = []

    def rule(path):
        paths.append(path)
        axes = ("fsdp",) if path.endswith("/kernel") else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    params = load_checkpoint(tiny, sharding=rule).params
    assert_same(params, expected)
    assert sorted(paths) == sorted(dict(flatten(expected)))
    kernel = params["encoder"]["layers"]["0"]["fc1"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp")


def test_shards_and_their_index(tmp_path):
    tensors = tiny_tensors()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2]}
    halves["model-00002-of-00002.safetensors"] = names[1::2]
    weight_map = {}
    for file, members in halves.items():
        write_directory(tmp_path, {name: tensors[name] for name in members}, tiny_config())
        (tmp_path / "model.safetensors").rename(tmp_path / file)
        weight_map |= dict.fromkeys(members, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_checkpoint(tmp_path)
    assert sharded.report.files == tuple(halves)
    whole = write_directory(tmp_path / "whole", tensors, tiny_config())
    assert_same(sharded.params, load_checkpoint(whole).params)


def test_sharded_bin(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = tiny_tensors()
    weight_map = {}
    for number, members in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save({name: torch.from_numpy(tensors[name]) for name in members}, tmp_path / file)
        weight_map |= dict.fromkeys(members, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    whole = write_directory(tmp_path / "whole", tensors, tiny_config())
    assert_same(load_checkpoint(tmp_path).params, load_checkpoint(whole).params)


def test_safetensors_are_preferred_and_the_rest_is_reported(tiny):
    (tiny / "pytorch_model.bin").write_bytes(b"not even opened")
    report = load_checkpoint(tiny).report
    assert report.files == ("model.safetensors",)
    assert "pytorch_model.bin is there too and was not read" in report.warnings


def test_longer_positions_and_padded_vocabulary(tmp_path):
    config = tiny_config("native", max_position_embeddings=4096, vocab_size=1344)
    tensors = tiny_tensors("native")
    width = PRESETS["tiny"]().text.d_model
    tensors["model.language_model.shared.weight"] = np.ones((1344, width), np.float32)
    for side in ("encoder", "decoder"):
        name = f"model.language_model.{side}.embed_positions.weight"
        tensors[name] = np.ones((4098, width), np.float32)
    write_directory(tmp_path, tensors, config)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config.text.max_position_embeddings == 4096
    assert loaded.config.text.vocab_size == 1344
    assert loaded.params["shared"]["embedding"].shape == (1344, width)


def test_progress_goes_to_stderr_where_that_is_a_terminal(tiny, capsys, monkeypatch):
    load_checkpoint(tiny, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_checkpoint(tiny, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loading" in captured.err
