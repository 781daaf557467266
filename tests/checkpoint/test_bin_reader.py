"""`.bin` files: tensors only, never code, and a clear word where torch is missing or old."""

import builtins
import json
import os

import numpy as np
import pytest

from florence_jax.checkpoint import CheckpointError, load_checkpoint
from florence_jax.checkpoint.pytorch.bin_reader import open_torch
from tests.checkpoint.generated import tiny_config, tiny_tensors

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")


class Hostile:
    """Unpickled without care, this would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    trap = str(tmp_path / "executed")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"image_projection": torch.zeros(2), "trap": Hostile(trap)}, path)
    with pytest.raises(CheckpointError, match="was refused: its pickle holds more than tensors"):
        open_torch(path, "pytorch_model.bin")
    assert not os.path.exists(trap)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1, 2], "holds a list, expected a state dict"),
        ({"state_dict": {"a": torch.zeros(2)}}, "not plain dense tensors: state_dict"),
        ({"epoch": 3}, "not plain dense tensors: epoch"),
        ({1: torch.zeros(2)}, "not plain dense tensors: 1"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "not plain dense tensors: a"),
    ],
)
def test_anything_but_a_plain_state_dict_is_refused(tmp_path, content, expected):
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=expected):
        open_torch(path, "pytorch_model.bin")


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="not a readable torch file"):
        open_torch(path, "the file")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="the file"):
        open_torch(path, "the file")


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    torch.save({name: torch.from_numpy(a) for name, a in tiny_tensors().items()}, tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    load_checkpoint(tmp_path)
    real_import = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(CheckpointError, match=r"florence-jax\[torch\]"):
        load_checkpoint(tmp_path)


def test_an_old_torch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"torch 2\.9\.1\+cpu is installed.*at least 2\.10"):
        open_torch(tmp_path / "pytorch_model.bin", "pytorch_model.bin")


def test_every_layout_and_float_type_gives_torchs_values(tmp_path):
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
    state = {
        "transposed": base.t(),
        "half": base.half(),
        "brain": base.bfloat16(),
        "parameter": torch.nn.Parameter(base.clone()),
        "float8": base.to(torch.float8_e4m3fn),
    }
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    tensors = {tensor.name: tensor for tensor in open_torch(path, "pytorch_model.bin")}
    for name in ("transposed", "half", "brain", "parameter"):
        expected = state[name].detach().float().numpy()
        np.testing.assert_array_equal(tensors[name].view().astype(np.float32), expected)
        assert tensors[name].shape == tuple(state[name].shape)
        assert not tensors[name].view().flags.writeable
    assert not tensors["float8"].is_readable  # listed, so that its problem can be reported
