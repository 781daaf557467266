"""`florence-jax convert`: which direction it takes, and the options that belong to one alone."""

import json

import numpy as np
import pytest

from florence_jax.checkpoint import load_checkpoint
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.repository import is_saved
from florence_jax.cli.main import main
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory


@pytest.fixture
def source(tmp_path):
    return write_directory(tmp_path / "source", tiny_tensors(), tiny_config())


def convert(source, destination, *options):
    return main(["convert", str(source), str(destination), "--quiet", *options])


def test_it_goes_to_the_other_format_and_back(tmp_path, source):
    assert convert(source, tmp_path / "ours") == 0
    assert is_saved(tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "torch") == 0
    assert "dim_embed" not in json.loads((tmp_path / "torch/config.json").read_text())
    expected = dict(flatten(load_checkpoint(source).params))
    for path, leaf in flatten(load_checkpoint(tmp_path / "torch").params):
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_a_naming_means_pytorch_and_to_decides(tmp_path, source, capsys):
    assert convert(source, tmp_path / "original", "--naming", "original") == 0
    assert "dim_embed" in (tmp_path / "original/config.json").read_text()
    assert convert(source, tmp_path / "ours", "--to", "jax", "--dtype", "bfloat16") == 0
    assert convert(tmp_path / "ours", tmp_path / "again", "--to", "jax") == 0
    assert set(load_checkpoint(tmp_path / "again").report.stored_dtypes) == {"bfloat16"}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "torch", "--ignore", "x"], "--ignore belongs to --to jax"),
        (["--vocab-size", "2000"], "--vocab-size belongs to --to torch"),
        (["--to", "jax", "--naming", "native"], "--naming belongs to --to torch"),
    ],
)
def test_an_option_of_the_other_direction_is_refused(tmp_path, source, options, said, capsys):
    assert convert(source, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
