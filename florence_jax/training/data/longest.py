"""The longest prompt and labels of training data, where every process must pad to the same."""

from collections.abc import Iterable, Sequence

from florence_jax.processing import FlorenceTokenizer, build_prompt
from florence_jax.processing.targets import target_text
from florence_jax.training.data.example import Example, Source

# A location is one token wherever it is, so any size will do.
_ANY_SIZE = (1000, 1000)
_TOGETHER = 512


def longest_texts_of(
    sources: Iterable[Source], tokenizer: FlorenceTokenizer, most: tuple[int, int]
) -> tuple[int, int]:
    """(tokens of the longest prompt, of the longest labels); every row is read, no picture is.

    Rows that cannot be used, and those that are longer than `most`, are left out: they end up in
    quarantine. A source without end is taken for as long as `most`.
    """
    longest = [2, 2]
    for source in sources:
        if source.endless:
            return most
        for first in range(0, len(source), _TOGETHER):
            texts: list[str] = []
            for index in range(first, min(first + _TOGETHER, len(source))):
                texts += _texts(source, index)
            lengths = [len(ids) for ids in tokenizer.encode(texts)] if texts else []
            for as_path in (0, 1):
                fitting = [length for length in lengths[as_path::2] if length <= most[as_path]]
                longest[as_path] = max(longest[as_path], *fitting, 0)
    return longest[0], longest[1]


def _texts(source: Source, index: int) -> Sequence[str]:
    """Prompt and labels of an example and of each of the same image."""
    texts: list[str] = []
    # `Preprocessor` says in quarantine what is wrong with a row.
    try:
        example = source[index]
        for one in (example, *example.same_image):
            texts += (build_prompt(one.prefix), _labels(one))
    except Exception:
        return []
    return texts


def _labels(example: Example) -> str:
    if isinstance(example.labels, str):
        return example.labels
    return target_text(example.task, example.labels, example.size or _ANY_SIZE)
