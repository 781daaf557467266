"""The world's vocabulary: the same bytes every time, and the same ids in transformers."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from florence_jax.config import Florence2Config, tiny
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.processing import TASKS, build_prompt, load_tokenizer, preprocess_image
from florence_jax.processing.image.pixels import ImageConfig
from florence_jax.processing.vocabulary import FLORENCE_TOKENS
from train.shapes import ShapesWorld
from train.shapes.judge import facts
from train.shapes.lexicon import WORDS
from train.shapes.tokenizer import save_processor, world_tokenizer

ROOT = Path(__file__).resolve().parents[3]
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processor")
    save_processor(path, image_size=(224, 224), image_tokens=50)
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return world_tokenizer()


@pytest.fixture(scope="module")
def texts():
    """Prompts and targets of every task, of both kinds of words."""
    rows = [
        question
        for split in ("train", "held-out")
        for index in range(40)
        for question in ShapesWorld(split=split).questions(index)
    ]
    return [build_prompt(row.prefix) for row in rows] + [row.suffix for row in rows]


@pytest.fixture(scope="module")
def processor(folder):
    with warnings.catch_warnings():
        # transformers' imports, not ours, deprecate things at will.
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        loaded = transformers.AutoProcessor.from_pretrained(folder)
    assert type(loaded).__name__ == "Florence2Processor"
    return loaded


def test_the_layout_is_barts_with_florences_tokens(tokenizer):
    (ids,) = tokenizer.encode(["<s><pad></s><unk>"])
    assert ids == [0, 0, 1, 2, 3, 2]
    (ids,) = tokenizer.encode(["".join(FLORENCE_TOKENS)])
    assert ids[1:-1] == list(range(ids[1], ids[1] + 1024))
    assert ids[-2] == tokenizer.vocab_size - 1
    (mask, first) = tokenizer.encode(["<mask><od>"])[0][1:-1]
    assert first == mask + 1
    # A few hundred merges between the bytes and <mask>.
    assert 200 < mask - 260 < 500


def test_the_same_bytes_in_every_process(folder, tmp_path):
    program = (
        "from train.shapes.tokenizer import save_processor;"
        f"save_processor({str(tmp_path)!r}, image_size=(224, 224), image_tokens=50)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_encoding_is_transformers(tokenizer, folder, processor, texts):
    ours = load_tokenizer(folder)
    expected = [processor.tokenizer(text)["input_ids"] for text in texts]
    assert ours.encode(texts) == expected
    assert tokenizer.encode(texts) == expected
    for text in ("  spaces and\nlines ", "CAT 中 é <mask> <s> </s>", "<loc_1>\t<loc_999>", ""):
        assert tokenizer.encode([text]) == [processor.tokenizer(text)["input_ids"]]


def test_decoding_is_transformers(tokenizer, processor, texts):
    ids = tokenizer.encode(texts)
    assert [tokenizer.decode(row) for row in ids] == processor.tokenizer.batch_decode(
        ids, skip_special_tokens=False
    )
    assert [tokenizer.decode(row[1:-1]) for row in ids] == texts


def test_the_processor_prepares_what_the_pipeline_prepares(tokenizer, processor):
    (example,) = ShapesWorld().examples(3, ["<OPEN_VOCABULARY_DETECTION>"])
    prepared = processor(text=example.prefix, images=example.image, return_tensors="np")
    image_id = tokenizer.vocab_size
    prompt = tokenizer.encode([build_prompt(example.prefix)])[0]
    assert prepared["input_ids"][0].tolist() == [image_id] * 50 + prompt
    pixels = preprocess_image(example.image, size=(224, 224))
    assert np.array_equal(prepared["pixel_values"][0].transpose(1, 2, 0), pixels)


def test_every_word_of_the_language_is_one_token(tokenizer, texts):
    """But drawn words, which are spelt: whoever reads letters can read any word."""
    for text in texts:
        pieces = [tokenizer.decode([index]) for index in tokenizer.encode([text])[0][1:-1]]
        for before, piece in zip(["", *pieces], pieces, strict=False):
            letters = piece.strip()
            if letters.isupper():
                assert len(letters) == 1
            elif letters.isalpha():
                # A word begins where the last one ended.
                assert piece.startswith(" ") or not before[-1:].isalpha(), (text, piece)
    for word in WORDS[::7]:
        assert len(tokenizer.encode([word])[0]) == len(word) + 2
        assert len(tokenizer.encode([f'the word "{word}"'])[0]) == len(word) + 6


def test_the_pipeline_answers_with_this_vocabulary(tokenizer):
    """A tiny model with these tokens runs every task; what it says means nothing."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from florence_jax.generation import GenerationConfig
    from florence_jax.model import Model, random_params_with_spread_logits

    config: Florence2Config = tiny()
    text = dataclasses.replace(config.text, vocab_size=world_tokenizer().vocab_size + 1)
    model = Model(config=dataclasses.replace(config, text=text), dtype="float32")
    params = jax.tree.map(jnp.asarray, random_params_with_spread_logits(model.config, 0))
    pipeline = Florence2Pipeline(
        model=model,
        params=params,
        tokenizer=tokenizer,
        generation=GenerationConfig(max_new_tokens=8),
        image_config=ImageConfig(size=(224, 224)),
    )
    examples = ShapesWorld().examples(0)
    results = pipeline([example.image for example in examples], [e.prefix for e in examples])
    assert [next(iter(result)) for result in results] == list(TASKS)
    assert all(isinstance(facts(result["<CAPTION>"]), dict) for result in results[2:3])
