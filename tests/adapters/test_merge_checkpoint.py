"""`convert.merge_lora`: from directories to a checkpoint that both implementations load."""

import hashlib
import sys

import numpy as np
import pytest

from convert.merge_lora import main
from convert.verify.reference import native_model
from florence_jax.adapters import read_adapter, write_adapter
from florence_jax.adapters.merge import merge_lora
from florence_jax.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    torch_tensors,
)
from florence_jax.checkpoint.param_tree import flatten
from tests.adapters import peft_adapters as peft_side
from tests.checkpoint.generated import write_directory

TOLERANCE = 1e-5  # of logits up to 15, where one rounding of one weight makes 5e-6


@pytest.fixture
def base(tmp_path):
    """(config, params, directory of each naming)."""
    config, params = peft_side.base_model()
    for naming in ("native", "original"):
        tensors = dict(torch_tensors(params, naming))
        write_directory(tmp_path / naming, tensors, config.to_hf(naming))
    return config, params


def adapter(tmp_path, base, **settings):
    wrapped = peft_side.wrap(native_model(base[0], peft_side.copied(base[1])), **settings)
    return wrapped, peft_side.save(wrapped, tmp_path / "adapter")


def digests(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


@pytest.mark.parametrize("targets", [["q_proj", "fc1", "qkv"], ["q_proj", "lm_head"]])
def test_transformers_loads_the_result_and_gives_the_same_logits(tmp_path, base, targets):
    transformers = pytest.importorskip("transformers")
    config, _ = base
    wrapped, directory = adapter(tmp_path, base, target_modules=targets, r=4)
    inputs = peft_side.example(config)
    expected = peft_side.torch_logits(wrapped.get_base_model(), inputs)
    merge_lora(directory, tmp_path / "native", tmp_path / "merged")
    model, found = transformers.Florence2ForConditionalGeneration.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    # The tiny config's <image> is a token of its own; native_model's stand-in is no matter here.
    np.testing.assert_allclose(
        peft_side.torch_logits(model.eval(), inputs), expected, rtol=0, atol=TOLERANCE
    )
    loaded = load_checkpoint(tmp_path / "merged")
    assert loaded.config.tie_word_embeddings == ("lm_head" not in targets)
    np.testing.assert_allclose(
        peft_side.our_logits(loaded.config, loaded.params, inputs),
        expected,
        rtol=0,
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("source", ["native", "original", "ours"])
@pytest.mark.parametrize("naming", [None, "native", "original"])
def test_every_base_and_every_naming_give_the_same_model(tmp_path, base, source, naming):
    config, params = base
    if source == "ours":
        save_checkpoint(tmp_path / "ours", config, params, files=tmp_path / "native")
    _, directory = adapter(tmp_path, base, target_modules=["fc2", "proj"], r=2)
    merged = merge_lora(directory, tmp_path / source, tmp_path / "merged", naming=naming)
    loaded = load_checkpoint(tmp_path / "merged")
    assert loaded.report.naming == merged.naming
    if naming is not None or source != "ours":
        assert merged.naming == (naming or source)
    expected = dict(flatten(params))
    updates = read_adapter(directory).modules
    for path, leaf in flatten(loaded.params):
        if path in updates:
            update = updates[path]
            delta = update.a @ update.b * np.float32(update.alpha / update.rank)
            np.testing.assert_array_equal(leaf, expected[path] + delta)
        else:
            np.testing.assert_array_equal(leaf, expected[path])


def test_dtypes_files_and_repetition(tmp_path, base, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # a bar is for a terminal
    _, directory = adapter(tmp_path, base, target_modules=["fc2"], r=2)
    (tmp_path / "native" / "tokenizer.json").write_text("{}")
    arguments = [str(directory), str(tmp_path / "native"), str(tmp_path / "merged")]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    assert "decoder/layers/*/fc2/kernel: 2 with rank 2, scale 4" in captured.out
    assert "bfloat16" in captured.out
    assert "merging" in captured.err
    first = digests(tmp_path / "merged")
    assert first.keys() == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert dict(load_checkpoint(tmp_path / "merged").report.stored_dtypes) == {"bfloat16": 169}

    assert main([*arguments, "--quiet"]) == 2  # it exists
    assert "--overwrite" in capsys.readouterr().err
    assert digests(tmp_path / "merged") == first
    assert main([*arguments, "--dtype", "bfloat16", "--overwrite", "--quiet"]) == 0
    assert digests(tmp_path / "merged") == first
    assert capsys.readouterr().out == ""


def test_a_refused_adapter_leaves_the_old_result(tmp_path, base, capsys):
    _, directory = adapter(tmp_path, base, target_modules=["fc2"], r=2)
    arguments = [str(directory), str(tmp_path / "native"), str(tmp_path / "merged"), "--quiet"]
    assert main(arguments) == 0
    before, names = digests(tmp_path / "merged"), sorted(p.name for p in tmp_path.iterdir())
    peft_side.edit_config(directory, use_dora=True)
    assert main([*arguments, "--overwrite"]) == 2
    assert "DoRA" in capsys.readouterr().err
    assert digests(tmp_path / "merged") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_a_full_disk_is_said_and_the_old_result_is_kept(tmp_path, base, capsys):
    resource = pytest.importorskip("resource", reason="needs POSIX file size limits")
    _, directory = adapter(tmp_path, base, target_modules=["fc2"], r=2)
    arguments = [str(directory), str(tmp_path / "native"), str(tmp_path / "merged"), "--quiet"]
    assert main(arguments) == 0
    before, names = digests(tmp_path / "merged"), sorted(p.name for p in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a full disk does, this ends a write in the middle of the file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        status = main([*arguments, "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    assert "Make room" in capsys.readouterr().err
    assert digests(tmp_path / "merged") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_a_base_of_another_size_is_named(tmp_path, base):
    factors = {"a": np.ones((768, 1), np.float32), "b": np.ones((1, 3072), np.float32)}
    tree = {"encoder": {"layers": {"0": {"fc1": {"kernel": factors}}}}}
    write_adapter(tmp_path / "adapter", peft_side.adapter_of_factors(tree, 2), "native")
    with pytest.raises(CheckpointError, match=r"has \[768, 3072\], the model has \[24, 48\]"):
        merge_lora(tmp_path / "adapter", tmp_path / "native", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_destination_that_is_a_source_is_refused(tmp_path, base):
    _, directory = adapter(tmp_path, base, target_modules=["fc2"], r=2)
    with pytest.raises(ValueError, match="overlap"):
        merge_lora(directory, tmp_path / "native", tmp_path / "native", overwrite=True)


def test_the_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "examples:" in said
    assert "merge_and_unload" in said
