"""The tokens that Florence-2 adds to BART's vocabulary, in the order that fixes their ids.

The original repository ships BART's plain tokenizer and appends these when its processor starts
(processing_florence2.py, ``tokens_to_add``); the converted repositories ship them in the file.
"""

from __future__ import annotations

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BART_VOCAB_SIZE = 50265

# fmt: off
FLORENCE_TOKENS: tuple[str, ...] = (
    "<od>", "</od>", "<ocr>", "</ocr>",
    *(f"<loc_{index}>" for index in range(1000)),
    "<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>",
    # "desciption" is how the checkpoints spell it.
    "<seg>", "</seg>", "<sep>", "<region_cap>", "</region_cap>",
    "<region_to_desciption>", "</region_to_desciption>",
    "<proposal>", "</proposal>", "<poly>", "</poly>", "<and>",
)
# fmt: on

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")

# Tokens that no prompt, label or answer may hold as text: the tokenizer reads each as one token, so
# that "a </s> b" ends after "a". Native checkpoints read <image> in the same way.
CONTROL_TOKENS = (*SPECIAL_TOKENS, "<mask>", "<image>")

_NO_LOCATION = re.compile(r"<loc_(?:[0-9]{4,}|0[0-9]+|-[0-9]+|[0-9]+\.[0-9]*)>")


def check_no_control_tokens(text: str, what: str) -> None:
    """Refuse a text with special tokens in it; <loc_N> and Florence-2's other markup are allowed.

    Args:
        text: a prompt, label or answer.
        what: names it in the message, such as "the suffix".

    Raises:
        ValueError: it holds one of `CONTROL_TOKENS`.
    """
    found = [token for token in CONTROL_TOKENS if token in text]
    if found:
        raise ValueError(
            f"{what} {text!r:.100} holds {', '.join(found)}, which the tokenizer reads as special "
            f"tokens and not as text: remove {'it' if len(found) == 1 else 'them'} (<s>, </s> and "
            "the image are added by the program)"
        )


def check_locations(text: str, what: str) -> None:
    """Refuse locations that are no tokens, such as <loc_1000>, which would be learnt letter by
    letter.

    Args:
        text: a prompt or answer in Florence-2's own text.
        what: names it in the message, such as "the suffix".

    Raises:
        ValueError: it holds a location beyond <loc_999>.
    """
    # No token has more than three digits or a zero in front.
    found = _NO_LOCATION.search(text)
    if found:
        raise ValueError(
            f"{what} {text!r:.100} holds {found[0]:.40}, which is no token: locations are "
            "thousandths of the image's sides, <loc_0> to <loc_999>"
        )


def byte_symbols() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, as symbol -> byte.

    GPT-2's table: a byte that is a printable character stands for itself, the others take the
    characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    symbols = {chr(byte): byte for byte in printable}
    symbols.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return symbols


def byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizers `Tokenizer` with BART's splitting and decoding around the given BPE."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer, tokens: tuple[str, ...]) -> None:
    """Make ``tokens`` match as a whole in any text; append those missing from the vocabulary."""
    tokenizer.add_special_tokens(
        # BART's <mask> swallows the space before it.
        [AddedToken(t, special=True, normalized=False, lstrip=t == "<mask>") for t in tokens]
    )


def demo_backend() -> Tokenizer:
    """A byte-level backend: ids 0..3 the specials, 4..259 the bytes, then Florence tokens."""
    byte_of = byte_symbols()
    symbols = sorted(byte_of, key=lambda symbol: byte_of[symbol])
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *symbols])}
    tokenizer = byte_level_bpe(vocab, [])
    add_special_tokens(tokenizer, SPECIAL_TOKENS + FLORENCE_TOKENS)
    return tokenizer
