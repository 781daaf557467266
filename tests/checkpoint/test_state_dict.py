"""original -> ours -> original and native -> ours -> native give the same bytes."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from florence_jax.checkpoint import CheckpointError, load_checkpoint, torch_tensors
from tests.checkpoint.generated import (
    LOGITS_BIAS,
    TOKEN_TABLES,
    tiny_config,
    tiny_tensors,
    write_directory,
)
from tests.shared_data import needs_shared, shared_path


def assert_same_bytes(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype, name
        assert tensors[name].shape == array.shape, name
        assert np.ascontiguousarray(tensors[name]).tobytes() == array.tobytes(), name


@needs_shared
@pytest.mark.parametrize(("folder", "naming"), [("original",) * 2, ("native_hf", "native")])
def test_the_reference_checkpoint_round_trips(folder, naming):
    directory = shared_path("tiny", folder)
    exported = dict(torch_tensors(load_checkpoint(directory).params, naming))
    assert_same_bytes(exported, load_file(directory / "model.safetensors"))


@needs_shared
def test_each_naming_exports_the_other():
    original, native = (shared_path("tiny", folder) for folder in ("original", "native_hf"))
    exported = dict(torch_tensors(load_checkpoint(original).params, "native"))
    assert_same_bytes(exported, load_file(native / "model.safetensors"))
    exported = dict(torch_tensors(load_checkpoint(native).params, "original"))
    assert_same_bytes(exported, load_file(original / "model.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_untied_biased_and_narrow_checkpoints_round_trip(tmp_path, dtype):
    tensors = {name: array.astype(np.dtype(dtype)) for name, array in tiny_tensors().items()}
    shared, _, _, lm_head = TOKEN_TABLES["original"]
    tensors[lm_head] = tensors[shared] + np.ones((), np.dtype(dtype))
    tensors[LOGITS_BIAS] = np.full((1, 1285), 0.25, np.dtype(dtype))
    directory = write_directory(tmp_path, tensors, tiny_config())
    params = load_checkpoint(directory).params
    assert_same_bytes(dict(torch_tensors(params, "original")), tensors)


def test_tied_names_repeat_the_table_under_each_of_its_names(tmp_path):
    for naming in ("original", "native"):
        directory = write_directory(tmp_path / naming, tiny_tensors(naming), tiny_config(naming))
        params = load_checkpoint(directory).params
        exported = dict(torch_tensors(params, naming, tied_names=True))
        shared, *others = TOKEN_TABLES[naming]
        assert exported.keys() == tiny_tensors(naming).keys() | set(others)
        for name in others:
            np.testing.assert_array_equal(exported[name], exported[shared])


def test_what_a_naming_cannot_hold_is_refused_before_the_first_tensor(tmp_path):
    tensors = tiny_tensors()
    tensors[LOGITS_BIAS] = np.ones((1, 1285), np.float32)
    params = load_checkpoint(write_directory(tmp_path, tensors, tiny_config())).params
    with pytest.raises(CheckpointError, match="native model has no tensor for") as caught:
        torch_tensors(params | {"extra": {"kernel": jax.numpy.zeros(2)}}, "native")
    assert "final_logits_bias" in str(caught.value)
    assert "extra/kernel" in str(caught.value)
