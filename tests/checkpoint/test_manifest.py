"""Whatever differs from the manifest is found by name, and nothing outside is ever read."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from florence_jax.checkpoint import CheckpointError, load_checkpoint
from florence_jax.checkpoint.native.save import save_checkpoint
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory
from tests.checkpoint.test_save import data_file


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    source = write_directory(folder / "source", tiny_tensors(), tiny_config())
    (source / "tokenizer.json").write_text("{}")
    (source / "merges.txt").write_text("[]")
    config, params, _ = load_checkpoint(source)
    save_checkpoint(folder / "saved", config, params, files=source)
    return folder / "saved"


@pytest.fixture
def saved(original, tmp_path):
    return shutil.copytree(original, tmp_path / "saved")


@pytest.fixture
def data(original):
    """The name of the file that holds most of the arrays."""
    return data_file(original)


def refused(directory, **options):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(directory, **options)
    return str(caught.value)


def edit_manifest(directory, change):
    """Change the manifest's fields and give it the digest that they need."""
    path = directory / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["sha256"]
    change(fields)
    digest = hashlib.sha256(json.dumps(fields, indent=1).encode()).hexdigest()
    path.write_text(json.dumps(fields | {"sha256": digest}, indent=1) + "\n")


def test_a_missing_an_extra_and_a_damaged_file_are_in_one_error(saved, data):
    (saved / "merges.txt").unlink()
    (saved / "vocab.json").write_text("{}")
    (saved / "params" / "d" / "left-over").write_bytes(b"")
    content = bytearray((saved / data).read_bytes())
    content[12345] ^= 1
    (saved / data).write_bytes(content)
    message = refused(saved)
    assert "missing files (1):\n    merges.txt" in message
    assert "files that the manifest does not list (2):\n    vocab.json" in message
    assert "params/d/left-over" in message
    assert f"damaged or changed files (1):\n    {data}: sha256 is" in message


@pytest.mark.parametrize("size", [0, 1, 1000, -1])
def test_a_truncated_or_emptied_file_is_named_with_its_size(saved, data, size):
    with (saved / data).open("r+b") as file:
        file.truncate(size if size >= 0 else (saved / data).stat().st_size - 1)
    assert f"files of the wrong size (1):\n    {data}: " in refused(saved)
    # Even unverified: names and sizes of the arrays' files are always compared.
    assert data in refused(saved, verify=False)


def test_swapped_files_of_one_size_are_both_named(saved):
    a, b = saved / "tokenizer.json", saved / "merges.txt"
    texts = a.read_bytes(), b.read_bytes()
    a.write_bytes(texts[1])
    b.write_bytes(texts[0])
    message = refused(saved)
    assert "damaged or changed files (2):" in message
    assert "tokenizer.json" in message
    assert "merges.txt" in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "params/_METADATA"])
def test_an_edited_file_is_named(saved, name):
    path = saved / name
    path.write_bytes(path.read_bytes().replace(b"}", b" }", 1))
    assert f"{name}: " in refused(saved)


def test_an_edited_manifest_is_named_whatever_the_edit(saved):
    path = saved / "manifest.json"
    text = path.read_text()
    assert '"float32"' in text
    for edited in (
        text.replace('"float32"', '"float16"', 1),
        text + " ",
        text.replace(" ", "", 1),
        text[:-80],
        "",
        "[]",
        text.replace('"version": 1', '"version": 2'),
        text.replace('"sha256"', '"sha257"'),
    ):
        path.write_text(edited)
        assert str(path) in refused(saved)
    path.unlink()
    assert f"{path} is missing" in refused(saved)


@pytest.mark.parametrize("verify", [True, False])
def test_a_changed_dtype_contradicts_the_arrays_even_with_a_new_digest(saved, verify):
    def change_dtype(fields):
        fields["parameters"]["projector/proj/kernel"]["dtype"] = "float16"

    edit_manifest(saved, change_dtype)
    message = refused(saved, verify=verify)
    assert "arrays that disagree with the manifest" in message
    assert "projector/proj/kernel: float32[32, 24], the manifest says float16[32, 24]" in message


def test_a_changed_shape_does_not_fit_the_config(saved):
    def change_shape(fields):
        fields["parameters"]["projector/proj/kernel"]["shape"] = [24, 32]

    edit_manifest(saved, change_shape)
    message = refused(saved, verify=False)
    assert "projector/proj/kernel: is [24, 32], expected [32, 24]" in message


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [-1, 24]},
        {"shape": [0.5, 24]},
        {"shape": 3},
        {"dtype": "int8"},
        {"dtype": None},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_unverified_too(saved, entry):
    edit_manifest(saved, lambda f: f["parameters"]["projector/proj/kernel"].update(entry))
    assert "is not a manifest that save_checkpoint wrote" in refused(saved, verify=False)


def test_a_shape_beyond_all_memory_is_refused_unverified_too(saved):
    edit_manifest(
        saved,
        lambda f: f["parameters"]["projector/proj/kernel"].update({"shape": [1 << 62, 1 << 62]}),
    )
    assert "projector/proj/kernel: is [4611686018427387904, " in refused(saved, verify=False)


@pytest.mark.parametrize(
    "name", ["params/../../secret", "/etc/hostname", "params/a/../../../secret", "params/C:\\x"]
)
def test_a_name_that_leaves_the_directory_is_refused(saved, name):
    (saved.parent / "secret").write_bytes(b"secret")

    def add(fields):
        fields["files"][name] = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}

    edit_manifest(saved, add)
    for verify in (True, False) if name.startswith("params/") else (True,):
        message = refused(saved, verify=verify)
        assert "refused the file name" in message
        assert name in message.replace("\\\\", "\\")


def test_symlinks_out_of_the_directory_are_refused(saved, data, tmp_path):
    shutil.move(saved / data, tmp_path / "elsewhere")
    (saved / data).symlink_to(tmp_path / "elsewhere")
    for verify in (True, False):
        assert "symlink" in refused(saved, verify=verify)
    shutil.move(saved / "params", tmp_path / "params")
    (saved / "params").symlink_to(tmp_path / "params")
    assert "symlink" in refused(saved)


def test_an_unlisted_symlink_is_an_extra_file(saved):
    (saved / "params" / "more").symlink_to("/etc")
    assert "does not list (1):\n    params/more" in refused(saved)


def test_what_sites_add_is_no_damage(saved):
    (saved / "README.md").write_text("a model card")
    (saved / ".gitattributes").write_text("")
    os.makedirs(saved / ".cache" / "huggingface")
    (saved / ".cache" / "huggingface" / "x.lock").write_text("")
    load_checkpoint(saved)
    os.makedirs(saved / "params" / ".cache")
    (saved / "params" / ".cache" / "x").write_text("")
    assert "params/.cache/x" in refused(saved)


def test_verification_can_be_left_out(saved, data):
    content = bytearray((saved / data).read_bytes())
    content[12345] ^= 1
    (saved / data).write_bytes(content)
    leaf = load_checkpoint(saved, verify=False).params["decoder"]["embedding_norm"]["bias"]
    assert np.asarray(leaf).dtype == np.float32


def test_a_config_json_from_elsewhere_is_refused_unverified_too(saved):
    (saved / "config.json").write_text(json.dumps(tiny_config()))
    assert "has no section 'florence_jax'" in refused(saved, verify=False)


def test_ignore_patterns_have_no_meaning_here(saved):
    assert "ignore patterns" in refused(saved, ignore=["x"])


def test_a_manifest_of_something_else_does_not_make_a_saved_checkpoint(tmp_path):
    source = write_directory(tmp_path, tiny_tensors(), tiny_config())
    (source / "manifest.json").write_text('{"name": "my web app"}')
    load_checkpoint(source)
