"""A small model learns from scratch, and what it has learnt survives the way into PyTorch."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from convert.to_torch import main as to_torch
from florence_jax import Florence2Pipeline
from florence_jax.checkpoint import load_checkpoint
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.model import Model
from florence_jax.training.loop import Outcome, train
from florence_jax.training.pretrained import read_pretrained
from tests.exported_tokens import tokens_of, tokens_of_torch
from tests.training.faults import GRADIENTS, LABELS
from tests.training.runs import lines
from tests.training.slopes import slopes
from tests.training.squares import squares_config, write_squares


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, compiled_on_disk):
    """The directory of a finished run, and its data's."""
    directory = tmp_path_factory.mktemp("learnt")
    data = write_squares(directory / "data", seed=0)
    assert train(squares_config(directory / "run", data)) is Outcome.DONE
    return directory / "run", data


def test_a_small_model_learns_what_and_where(learnt):
    run, _ = learnt
    assert shortfalls(run) == []


def test_every_part_of_it_has_learnt(learnt):
    # On features at random a decoder learns this task as well: what gets no gradient shows here.
    run, _ = learnt
    first = flatten(Model(config=read_pretrained(run / "processor").config).init(jax.random.key(0)))
    last = dict(flatten(load_checkpoint(run / "export").params))
    still = {path for path, leaf in first if np.array_equal(leaf, last[path])}
    assert still == {"projector/temporal_positions"}


def test_every_gradient_is_the_slope_of_the_loss(learnt, tmp_path):
    # With all attention of the tower learning in the wrong direction, the squares are learnt too.
    _, data = learnt
    assert wrong_slopes(squares_config(tmp_path, data), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", LABELS)
def test_labels_that_are_shifted_twice_do_not_pass(fault, tmp_path, monkeypatch, compiled_on_disk):
    LABELS[fault](monkeypatch)
    data = write_squares(tmp_path / "data", seed=0)
    assert train(squares_config(tmp_path / "run", data)) is Outcome.DONE
    assert shortfalls(tmp_path / "run") == ["<CAPTION> exact", "<OD> mAP@0.5"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", GRADIENTS)
def test_no_broken_gradient_passes(fault, tmp_path, monkeypatch, compiled_on_disk):
    GRADIENTS[fault](monkeypatch)
    data = write_squares(tmp_path / "data", seed=0)
    assert len(wrong_slopes(squares_config(tmp_path, data), tmp_path)) >= 10


def shortfalls(run):
    """The figures that say that a run has not learnt."""
    (scores,) = lines(run, "evaluation")
    passed = {
        # Who sees the colour but not the corner stays above 0.4, who sees neither above 0.9.
        "loss": scores["loss"] < 0.3,
        "<CAPTION> exact": scores["<CAPTION> exact"] > 0.9,
        "<OD> mAP@0.5": scores["<OD> mAP@0.5"] > 0.4,
    }
    return [name for name, good in passed.items() if not good]


def wrong_slopes(config, files):
    """Parameters whose gradient is not the slope of the loss."""
    found = slopes(config, files / "processor")
    return [
        path
        for path, (norm, slope) in found.items()
        # A key's bias adds the same to all scores of a query, and a softmax takes it out again.
        # Float32's rounding is a hundredth of the least slope, and mostly a thousandth.
        if (norm > 1e-6 if path.endswith("k_proj/bias") else abs(slope - norm) > 0.1 * norm)
        or (not norm and not path.endswith("k_proj/bias"))
    ]


def test_pytorch_gives_the_same_tokens(learnt, tmp_path):
    run, data = learnt
    exported = tmp_path / "torch"
    assert to_torch([str(run / "export"), str(exported), "--naming", "native", "--quiet"]) == 0
    rows = [json.loads(line) for line in (data / "valid/rows.jsonl").read_text().splitlines()][:32]
    pictures = [Image.open(data / "valid" / row["image"]) for row in rows]
    prefixes = [row["prefix"] for row in rows]
    ours = tokens_of(Florence2Pipeline.from_pretrained(run / "export"), pictures, prefixes)
    assert len({tuple(row) for row in ours}) > 8
    assert ours == tokens_of_torch(exported, pictures, prefixes)
