"""The world's own vocabulary: a small byte-level BPE in the layout of Florence-2's."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path

from tokenizers import Tokenizer, models, processors, trainers

from florence_jax.checkpoint.json_files import (
    IMAGE_TOKEN,
    post_processor_config,
    tokenizer_config,
)
from florence_jax.processing import TASKS, FlorenceTokenizer, load_tokenizer
from florence_jax.processing.image.pixels import ImageConfig
from florence_jax.processing.tasks import CLASS_SEPARATOR
from florence_jax.processing.vocabulary import (
    FLORENCE_TOKENS,
    SPECIAL_TOKENS,
    add_special_tokens,
    byte_level_bpe,
    byte_symbols,
)
from train.shapes.lexicon import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    NUMBERS,
    PLACES,
    RELATIONS,
    SIZES,
    TEXTURES,
    WORD,
    plural,
)

_MOST_TOKENS = 1024  # more than the words need: merging stops when every word is one token


def world_texts() -> list[str]:
    """Every word of the prompts, the captions and the labels, in the forms they are written in.

    Drawn words are left out, so that no merge joins capitals: a word is spelt letter by letter.
    """
    texts = [task.prompt.replace("{input}", CLASS_SEPARATOR) for task in TASKS.values()]
    properties = (*SIZES, *COLOURS, *TEXTURES[1:])
    nouns = (*KINDS, WORD, "shape")
    for adjective, noun in product(properties, nouns):
        texts += [f"{adjective} {noun}", f"A {adjective} {noun}.", f"the {adjective} {noun}"]
        texts += [f"and an {adjective} {plural(noun)}, a {noun}"]
    texts += [f"{noun} {plural(noun)}" for noun in nouns]
    for number, noun in product(NUMBERS, ("shape", WORD)):
        texts += [f"{number.title()} {plural(noun)}", f"The image shows {number} {noun} and"]
    texts += [f"on a {background} background." for background in BACKGROUNDS]
    texts += [f"A {kind} is {at}." for kind in KINDS for row in PLACES for at in row]
    texts += [f"The {kind} is {relation} the {kind}." for kind in KINDS for relation in RELATIONS]
    for first in ("A", "An", "The", *map(str.title, NUMBERS)):
        texts += [first, f". {first}", first.lower()]
    texts += [f'the {WORD} "', '".', '",', '" is', '" on', '" and']
    # Twice, so that a word which only one prompt has is a token too.
    return 2 * texts


def world_tokenizer() -> FlorenceTokenizer:
    """The tokenizer of the world, made in code: the same one every time."""
    return FlorenceTokenizer(_backend())


def save_processor(
    directory: str | os.PathLike, *, image_size: tuple[int, int], image_tokens: int
) -> None:
    """Write what transformers' `Florence2Processor` and `load_tokenizer` read.

    A training run calls it with `model.processor="train.shapes.tokenizer:save_processor"`.

    Args:
        directory: is made where absent; gets tokenizer.json, tokenizer_config.json,
            preprocessor_config.json and processor_config.json.
        image_size: (height, width) in pixels that every image is resized to.
        image_tokens: image features in front of the prompt, 1 + h * w of `DaViTConfig.grid`.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    backend = _backend()
    size = backend.get_vocab_size(with_added_tokens=True)
    add_special_tokens(backend, (IMAGE_TOKEN,))
    assert backend.token_to_id(IMAGE_TOKEN) == size
    backend.save(str(folder / "tokenizer.json"))
    images = ImageConfig(size=image_size).to_hf(image_tokens)
    processor = {"processor_class": "Florence2Processor"}
    contents = {
        "tokenizer_config.json": tokenizer_config(1024) | {"errors": "replace"},
        "preprocessor_config.json": {**images, **processor},
        "processor_config.json": {
            "image_processor": images,
            "num_additional_image_tokens": 0,
            "post_processor_config": post_processor_config(),
            **processor,
        },
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
    assert load_tokenizer(folder).vocab_size == size


def _backend() -> Tokenizer:
    """Ids 0..3 the specials, then bytes, merges, <mask> and Florence-2's tokens, as in BART's."""
    vocab, merges = _merges()
    backend = byte_level_bpe(vocab, merges)
    add_special_tokens(backend, (*SPECIAL_TOKENS, "<mask>", *FLORENCE_TOKENS))
    start, end = ((token, SPECIAL_TOKENS.index(token)) for token in ("<s>", "</s>"))
    # Trimmed offsets, no space put before the text.
    backend.post_processor = processors.RobertaProcessing(end, start, True, False)
    return backend


def _merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    byte_of = byte_symbols()
    alphabet = sorted(byte_of, key=lambda symbol: byte_of[symbol])
    trained = byte_level_bpe({}, [])
    trained.model = models.BPE()
    trained.train_from_iterator(
        world_texts(),
        trainers.BpeTrainer(
            vocab_size=_MOST_TOKENS,
            min_frequency=2,
            initial_alphabet=alphabet,
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
        ),
    )
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    # Numbered anew: bytes in their own order, then each merge's result as it was learnt.
    tokens = [*SPECIAL_TOKENS, *alphabet, *(first + second for first, second in merges)]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges
