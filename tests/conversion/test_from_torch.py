"""PyTorch to our format: the same parameters, whatever the source, and a summary that says so."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import florence_jax as fj
from convert.from_torch import main
from florence_jax.checkpoint import CheckpointError, load_checkpoint
from florence_jax.conversion import from_torch
from tests.checkpoint.generated import TOKEN_TABLES, tiny_config, tiny_tensors, write_directory
from tests.checkpoint.test_load import assert_same
from tests.checkpoint.test_save import content, data_file, settings
from tests.shared_data import needs_shared, shared_path
from tests.small_checkpoint import DECODING, write_small_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    return write_directory(tmp_path / "source", tiny_tensors(), tiny_config())


@needs_shared
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("folder", ["original", "native_hf"])
def test_converted_is_loaded(tmp_path, folder, dtype):
    source = shared_path("tiny", folder)
    from_torch(source, tmp_path / "out", dtype=dtype)
    converted, direct = load_checkpoint(tmp_path / "out"), load_checkpoint(source, dtype)
    assert converted.config == direct.config
    assert converted.report.naming == direct.report.naming
    assert_same(converted.params, direct.params)


def test_converting_twice_gives_the_same_arrays_and_settings(source, tmp_path):
    for name in ("a", "b"):
        from_torch(source, tmp_path / name, dtype="bfloat16")
    first = load_checkpoint(tmp_path / "a").params
    assert_same(load_checkpoint(tmp_path / "b").params, first)
    assert settings(tmp_path / "a") == settings(tmp_path / "b")
    # And so does a conversion of the conversion.
    from_torch(tmp_path / "a", tmp_path / "c")
    assert_same(load_checkpoint(tmp_path / "c").params, first)
    assert settings(tmp_path / "a") == settings(tmp_path / "c")


def test_decoding_settings_are_written_where_the_source_has_no_file_for_them(source, tmp_path):
    from_torch(source, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["num_beams"] == 3
    assert written["early_stopping"] is True
    assert written["forced_bos_token_id"] == 0
    (source / "generation_config.json").write_text('{"num_beams": 5}')
    from_torch(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "generation_config.json").read_text() == '{"num_beams": 5}'


@needs_shared
def test_the_pipeline_runs_a_converted_checkpoint(tmp_path):
    write_small_checkpoint(tmp_path / "source")
    from_torch(tmp_path / "source", tmp_path / "out", dtype="bfloat16")
    pipe = fj.Florence2Pipeline.from_pretrained(tmp_path / "out", dtype="float32")
    assert pipe.params["shared"]["embedding"].dtype == jnp.float32
    assert pipe.generation.num_beams == DECODING["num_beams"]
    assert pipe.generation.early_stopping is True
    image = np.zeros((64, 64, 3), np.uint8)
    assert isinstance(pipe(image, "<CAPTION>", max_new_tokens=4)["<CAPTION>"], str)
    (tmp_path / "out" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        fj.Florence2Pipeline.from_pretrained(tmp_path / "out")


def test_the_summary_says_what_was_read_tied_ignored_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # a bar is for a terminal
    tensors = tiny_tensors()
    shared, encoder, _, lm_head = TOKEN_TABLES["original"]
    tensors[lm_head] = tensors[shared]
    tensors[encoder] = tensors[shared] + 1
    tensors["action_head.weight"] = np.zeros(3, np.float32)
    source = write_directory(tmp_path / "source", tensors, tiny_config())
    arguments = [str(source), str(tmp_path / "out"), "--dtype", "bfloat16"]
    assert main([*arguments, "--ignore", r"action_head\..*"]) == 0
    captured = capsys.readouterr()
    for expected in (
        "parameters from model.safetensors",
        f"tied to the token table: {lm_head}",
        f"ignored: {encoder}: differs from {shared}",
        "ignored: action_head.weight: asked for",
        "273 parameters in bfloat16",
        "with config.json, generation_config.json and manifest.json",
    ):
        assert expected in captured.out
    assert "writing" in captured.err
    assert main([*arguments, "--ignore", r"action_head\..*", "--overwrite", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_mistakes_are_one_line_and_change_nothing(source, tmp_path, capsys):
    assert main([str(source), str(tmp_path / "out"), "--quiet"]) == 0
    before = content(tmp_path / "out")
    for arguments, expected in (
        ([source, tmp_path / "out"], "exists already: overwrite it"),
        ([source, source, "--overwrite"], "overlap"),
        ([source, source / "inside"], "overlap"),
        ([tmp_path / "nothing", tmp_path / "x"], "neither an existing directory nor"),
        ([source, tmp_path / "x", "--ignore", "typo"], "ignore patterns that match no tensor"),
    ):
        assert main([*map(str, arguments), "--quiet"]) == 2
        captured = capsys.readouterr()
        assert expected in captured.err
        assert captured.err.startswith("convert.from_torch: ")
    assert content(tmp_path / "out") == before
    assert not (tmp_path / "x").exists()


def test_a_damaged_source_is_not_converted(source, tmp_path):
    from_torch(source, tmp_path / "a")
    path = tmp_path / "a" / data_file(tmp_path / "a")
    content = bytearray(path.read_bytes())
    content[99] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or changed files"):
        from_torch(tmp_path / "a", tmp_path / "b")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "python -m convert.from_torch microsoft/Florence-2-large" in capsys.readouterr().out


def test_decoding_settings_that_make_no_sense_are_not_converted(source, tmp_path, capsys):
    (source / "generation_config.json").write_text('{"num_beams": "three"}')
    assert main([str(source), str(tmp_path / "out"), "--quiet"]) == 2
    assert "num_beams" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("own_settings", [True, False])
def test_a_conversion_imports_neither_flax_nor_torch(tmp_path, own_settings):
    """Orbax needs jax; the rest would only cost time and memory."""
    source = write_directory(tmp_path / "source", tiny_tensors(), tiny_config())
    if own_settings:
        (source / "generation_config.json").write_text('{"num_beams": 5}')
    code = (
        "import sys\n"
        "from convert.from_torch import main\n"
        f"status = main([{str(source)!r}, {str(tmp_path / 'out')!r}, '--quiet'])\n"
        "assert status == 0, status\n"
        "loaded = {'flax', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
