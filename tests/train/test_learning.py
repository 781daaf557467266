"""A small model learns from scratch, and what it has learnt survives the way into PyTorch."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from convert.to_torch import main as to_torch
from florence_jax import Florence2Pipeline
from florence_jax.checkpoint import load_checkpoint
from florence_jax.checkpoint.tree import flatten
from florence_jax.generation import generate
from florence_jax.model import Model
from florence_jax.processing import build_prompt, preprocess_image
from tests.train.runs import lines
from tests.train.squares import squares_config, write_squares
from train.loop import Outcome, train
from train.start import read_start


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, compiled_on_disk):
    """The directory of a finished run, and its data's."""
    directory = tmp_path_factory.mktemp("learnt")
    data = write_squares(directory / "data", seed=0)
    assert train(squares_config(directory / "run", data)) is Outcome.DONE
    return directory / "run", data


def test_a_small_model_learns_what_and_where(learnt):
    run, _ = learnt
    (scores,) = lines(run, "evaluation")
    # Who sees the colour but not the corner stays above 0.4, who sees neither above 0.9.
    assert scores["loss"] < 0.3
    assert scores["<CAPTION> exact"] > 0.9
    assert scores["<OD> mAP@0.5"] > 0.4


def test_every_part_of_it_has_learnt(learnt):
    # On features at random a decoder learns this task as well: what gets no gradient shows here.
    run, _ = learnt
    first = flatten(Model(config=read_start(run / "processor").config).init(jax.random.key(0)))
    last = dict(flatten(load_checkpoint(run / "export").params))
    still = {path for path, leaf in first if np.array_equal(leaf, last[path])}
    assert still == {"projector/temporal_positions"}


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


def tokens_of(pipeline, pictures, prefixes):
    """From `</s>` to `</s>`, decoded as the export says."""
    prompts = pipeline.tokenizer.encode([build_prompt(prefix) for prefix in prefixes])
    width = max(map(len, prompts))
    pad = pipeline.tokenizer.pad_id
    image = dataclasses.asdict(pipeline.image_config)
    output = generate(
        pipeline.model,
        pipeline.params,
        pixel_values=np.stack([preprocess_image(picture, **image) for picture in pictures]),
        input_ids=np.array([ids + [pad] * (width - len(ids)) for ids in prompts], np.int32),
        config=pipeline.generation,
    )
    lengths, sequences = np.asarray(output.lengths), np.asarray(output.sequences)
    return [row[: length + 1].tolist() for row, length in zip(sequences, lengths, strict=True)]


def tokens_of_torch(directory, pictures, prefixes):
    """The same from nothing but transformers and the exported directory."""
    with warnings.catch_warnings():
        # transformers' imports, not ours, deprecate things at will.
        warnings.simplefilter("ignore")
        model = transformers.Florence2ForConditionalGeneration.from_pretrained(directory).eval()
        processor = transformers.AutoProcessor.from_pretrained(directory)
    rows = []
    for picture, prefix in zip(pictures, prefixes, strict=True):
        inputs = processor(text=prefix, images=picture, return_tensors="pt")
        with torch.no_grad():
            rows.append(model.generate(**inputs)[0].tolist())
    return rows
