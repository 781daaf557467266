"""Generated tokens of one checkpoint: ours, and those of nothing but transformers and its files."""

import dataclasses
import warnings

import numpy as np
import torch
import transformers

from florence_jax.generation import generate
from florence_jax.processing import build_prompt, preprocess_image


def tokens_of(pipeline, pictures, prefixes):
    """From `</s>` to `</s>`, decoded as the checkpoint says."""
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
        model = transformers.Florence2ForConditionalGeneration.from_pretrained(
            directory, dtype="float32"
        ).eval()
        processor = transformers.AutoProcessor.from_pretrained(directory)
    rows = []
    for picture, prefix in zip(pictures, prefixes, strict=True):
        inputs = processor(text=prefix, images=picture, return_tensors="pt")
        with torch.no_grad():
            rows.append(model.generate(**inputs)[0].tolist())
    return rows
