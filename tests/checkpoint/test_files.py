"""Weight files are untrusted: nothing outside the directory is opened, headers are checked."""

import json
import os

import numpy as np
import pytest

from florence_jax.adapters import resolve_model
from florence_jax.checkpoint import CheckpointError, load_checkpoint
from florence_jax.checkpoint.pytorch.weights import MAX_HEADER_BYTES, open_safetensors
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory

OUTSIDE = [
    "/etc/passwd.safetensors",
    "../secret.safetensors",
    "a/../../secret.safetensors",
    "..\\secret.safetensors",
    "C:\\secret.safetensors",
    "C:secret.safetensors",
    "nul\0byte.safetensors",
    ".safetensors/..",
]


def write_index(directory, weight_map):
    (directory / "config.json").write_text(json.dumps(tiny_config()))
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_may_not_leave_the_directory(tmp_path, name):
    directory = write_directory(tmp_path / "checkpoint", {}, tiny_config())
    (directory / "model.safetensors").unlink()
    write_directory(tmp_path, tiny_tensors(), tiny_config())
    (tmp_path / "model.safetensors").rename(tmp_path / "secret.safetensors")
    write_index(directory, {"image_projection": name})
    with pytest.raises(CheckpointError, match=r"refused|does not end"):
        load_checkpoint(directory)


def test_symlinks_out_of_the_directory_are_refused(tmp_path):
    outside = write_directory(tmp_path / "outside", tiny_tensors(), tiny_config())
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(tiny_config()))
    (directory / "model.safetensors").symlink_to(outside / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"symlink to .* outside the checkpoint directory"):
        load_checkpoint(directory)
    (directory / "model.safetensors").unlink()
    (directory / "shards").symlink_to(outside)
    write_index(directory, dict.fromkeys(tiny_tensors(), "shards/model.safetensors"))
    with pytest.raises(CheckpointError, match=r"symlink to .* outside the checkpoint directory"):
        load_checkpoint(directory)


def test_symlinks_inside_the_directory_and_to_the_directory_are_fine(tmp_path):
    directory = write_directory(tmp_path / "real", tiny_tensors(), tiny_config())
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    (directory / "model.safetensors").symlink_to("weights.safetensors")
    (tmp_path / "link").symlink_to(directory)
    load_checkpoint(tmp_path / "link")


def test_a_hub_cache_snapshot_may_link_to_its_own_blobs_only(tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = repository / "blobs"
    write_directory(blobs, tiny_tensors(), tiny_config())
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    load_checkpoint(snapshot)

    other = tmp_path / "models--org--private"
    write_directory(other / "blobs", tiny_tensors(), tiny_config())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(other / "blobs" / "model.safetensors")
    with pytest.raises(CheckpointError, match="outside the checkpoint directory"):
        load_checkpoint(snapshot)
    write_directory(repository / "elsewhere", tiny_tensors(), tiny_config())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../elsewhere/model.safetensors")
    with pytest.raises(CheckpointError, match="outside the checkpoint directory"):
        load_checkpoint(snapshot)


def test_a_pipe_or_a_folder_is_not_opened(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    tensors = tiny_tensors()
    write_directory(tmp_path, tensors, tiny_config())
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors")

    write_index(tmp_path, weight_map | {"ghost": "a.safetensors"})
    with pytest.raises(CheckpointError, match="index lists and their shard lacks"):
        load_checkpoint(tmp_path)
    del weight_map["image_projection"]
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="index does not list there"):
        load_checkpoint(tmp_path)
    write_index(tmp_path, weight_map | {"x": "b.safetensors", "y": "c.safetensors"})
    with pytest.raises(CheckpointError, match=r"directory lacks \(2\)"):
        load_checkpoint(tmp_path)
    write_index(tmp_path, ["a.safetensors"])
    with pytest.raises(CheckpointError, match="weight_map must map"):
        load_checkpoint(tmp_path)


def test_no_weights_says_what_was_expected_and_what_is_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    (tmp_path / "florence.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"expected one of model\.safetensors.*Rename"):
        load_checkpoint(tmp_path)
    # An adapter's directory stands for its base with the adapter merged.
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: peft_type is None"):
        resolve_model(tmp_path)


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


ENTRY = json.dumps(entry()).encode()
BAD_HEADERS = {
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "leaves a gap"),
    "late start": ({"a": entry(offsets=(4, 12))}, 12, "leaves a gap"),
    "truncated": ({"a": entry()}, 4, "Is the download complete"),
    "trailing": ({"a": entry()}, 9, "Is the download complete"),
    "negative": ({"a": entry(offsets=(-8, 0))}, 8, "data_offsets"),
    "backwards": ({"a": entry(offsets=(8, 0))}, 8, "does not fill"),
    "wrong size": ({"a": entry(shape=(3,))}, 8, "does not fill"),
    "overflow": ({"a": entry(shape=(1 << 62, 4, 2))}, 8, "does not fill"),
    "huge": ({"a": entry(shape=(1 << 40,), offsets=(0, 1 << 42))}, 8, "download complete"),
    "bool shape": ({"a": entry(shape=(True, 2))}, 8, "not a list of sizes"),
    "float shape": ({"a": entry(shape=(2.0,))}, 8, "not a list of sizes"),
    "many dimensions": ({"a": entry(shape=(1,) * 33 + (2,))}, 8, "not a list of sizes"),
    "dtype": ({"a": entry(dtype="F31")}, 8, "unknown"),
    "dtype list": ({"a": entry(dtype=["F32"])}, 8, "unknown"),
    "keys": ({"a": {"dtype": "F32"}}, 8, "expected dtype, shape and data_offsets"),
    "not a dict": ({"a": 3}, 8, "expected dtype, shape and data_offsets"),
    "list": ([1], 0, "not a JSON object"),
    "duplicate": (b'{"a": ' + ENTRY + b', "a": ' + ENTRY + b"}", 8, "duplicate key"),
    "nesting": (b"[" * 200_000, 0, "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "not valid JSON"),
    "empty": (b"", 8, "not valid JSON"),
    "long number": (b'{"a": ' + b"9" * 10_000 + b"}", 0, "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_malformed_safetensors_header_is_refused(tmp_path, case):
    header, data_bytes, expected = BAD_HEADERS[case]
    path = write_raw(tmp_path / "model.safetensors", header, bytes(data_bytes))
    with pytest.raises(CheckpointError, match=expected):
        open_safetensors(path, "model.safetensors")


def test_the_header_size_is_capped_before_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    for claimed in (MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        with path.open("wb") as file:
            file.write(claimed.to_bytes(8, "little"))
            file.truncate(MAX_HEADER_BYTES + 100)
        with pytest.raises(CheckpointError, match=f"at most {MAX_HEADER_BYTES} are read"):
            open_safetensors(path, "model.safetensors")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        open_safetensors(path, "model.safetensors")
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="too few for safetensors"):
        open_safetensors(path, "model.safetensors")


def test_views_are_read_only_and_may_be_unaligned_or_empty(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "none": entry(shape=(0, 3), offsets=(0, 0)),
        "byte": entry(dtype="U8", shape=(1,), offsets=(0, 1)),
        "pair": entry(offsets=(1, 9)),
        "scalar": entry(shape=(), offsets=(9, 13)),
    }
    values = np.array([1.5, -2.0], np.float32)
    data = b"\x07" + values.tobytes() + values[:1].tobytes()
    path = write_raw(tmp_path / "model.safetensors", header, data)
    tensors = {tensor.name: tensor for tensor in open_safetensors(path, "model.safetensors")}
    np.testing.assert_array_equal(tensors["pair"].view(), values)
    assert tensors["none"].view().shape == (0, 3)
    assert tensors["scalar"].view()[()] == 1.5
    assert tensors["pair"].nbytes == 8
    assert not tensors["pair"].view().flags.writeable
