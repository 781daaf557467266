"""The tokenizer: prompt text to token ids and back, with the character span of every token.

A thin layer over the ``tokenizers`` library: no model code is imported and none is ever fetched.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models

from florence_jax.processing.vocabulary import (
    BART_VOCAB_SIZE,
    FLORENCE_TOKENS,
    SPECIAL_TOKENS,
    add_special_tokens,
    byte_level_bpe,
    byte_symbols,
    demo_backend,
)
from florence_jax.runtime.text_file import read_bytes, read_json, read_text

Span = tuple[int, int]

_BYTE_OF = byte_symbols()
# The published files have under 4 MB.
_MAX_BYTES = 128 << 20


def load_tokenizer(directory: str | os.PathLike) -> FlorenceTokenizer:
    """Load the tokenizer of a checkpoint folder.

    Reads ``tokenizer.json``, or else ``vocab.json`` with ``merges.txt`` and, if it is there,
    ``added_tokens.json``. Where the files hold plain BART (the original repositories), Florence-2's
    1024 tokens are appended in the original order, ``<od>`` = 50265 ... ``<and>`` = 51288.
    ``<image>``, which the native repositories append as a placeholder for image features, is left
    out where it is the last token: this model prepends the features itself. Behind it, tokens that
    were added later keep their ids.

    Raises:
        FileNotFoundError: no tokenizer files in the folder.
        ValueError: a damaged file, or a vocabulary that is not Florence-2's.
    """
    folder = Path(directory)
    whole, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    # `exists`, so that a pipe is refused by name and is not taken for a missing file.
    if whole.exists():
        backend = _read_tokenizer_json(whole)
    elif vocab.exists() and merges.exists():
        backend = _read_vocab_and_merges(vocab, merges)
    else:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"no tokenizer in {str(folder)!r}: expected tokenizer.json, or vocab.json with "
            f"merges.txt; found {found}. Copy these files from the checkpoint this one came from "
            "(microsoft/Florence-2-base)"
        )
    _complete(backend, str(folder))
    return FlorenceTokenizer(backend)


def demo_tokenizer() -> FlorenceTokenizer:
    """A 1284-token tokenizer made in code, for models with random weights: no file is read.

    Ids 0..3 are ``<s>``, ``<pad>``, ``</s>``, ``<unk>``; 4..259 are the bytes; then Florence-2's
    1024 tokens. It encodes any text, one token per UTF-8 byte.
    """
    return FlorenceTokenizer(demo_backend())


class FlorenceTokenizer:
    """Encodes prompts and decodes answers.

    Attributes:
        pad_id, bos_id, eos_id: ids of ``<pad>``, ``<s>``, ``</s>``.
        vocab_size: number of ids, one more than the highest (51289 for the published vocabulary).
    """

    def __init__(self, backend: Tokenizer):
        backend.no_padding()
        backend.no_truncation()
        ids = backend.get_vocab(with_added_tokens=True)
        missing = [token for token in (*SPECIAL_TOKENS, *FLORENCE_TOKENS) if token not in ids]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {len(missing)} of Florence-2's tokens, {missing[:5]} first; "
                "load it with load_tokenizer(directory)"
            )
        self._backend = backend
        self._location_ids = tuple(ids[f"<loc_{index}>"] for index in range(1000))
        self.bos_id: int = ids["<s>"]
        self.pad_id: int = ids["<pad>"]
        self.eos_id: int = ids["</s>"]
        self.vocab_size: int = max(ids.values()) + 1
        self._declared_tasks = _declared_tasks(backend)

    def sha256(self) -> str:
        """A digest of the tokens and their ids: equal digests mean interchangeable tokenizers."""
        vocabulary = sorted(self._backend.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()

    @property
    def location_ids(self) -> range:
        """The ids of ``<loc_0>`` to ``<loc_999>``.

        Raises:
            ValueError: they do not follow one another.
        """
        span = range(self._location_ids[0], self._location_ids[0] + len(self._location_ids))
        if self._location_ids != tuple(span):
            raise ValueError(
                "the ids of <loc_0> to <loc_999> do not follow one another in this tokenizer: "
                "leave loss.location_weight at 1 and loss.location_sigma at 0"
            )
        return span

    def loc_id(self, bin: int) -> int:
        """The id of ``<loc_bin>``.

        Raises:
            ValueError: a bin outside 0..999.
        """
        if not 0 <= bin < len(self._location_ids):
            raise ValueError(f"a location bin must be 0..999, got {bin}; quantize() clamps")
        return self._location_ids[bin]

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Encode each prompt as ``<s> ... </s>``; nothing is truncated.

        Raises:
            ValueError: a single string where a list is expected.
        """
        if isinstance(prompts, str):
            raise ValueError(f"encode takes a list of prompts, got the string {prompts!r}")
        # A lone surrogate (from a badly decoded file) has no UTF-8 and would abort the batch.
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in prompts]
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [[self.bos_id, *encoding.ids, self.eos_id] for encoding in encodings]

    def encode_batch(
        self, prompts: Sequence[str], pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode prompts as one right-padded batch.

        Args:
            prompts: B strings.
            pad_to: L; the longest prompt's length when None.

        Returns:
            ``(input_ids int32[B, L], attention_mask int32[B, L])``, padded with ``pad_id`` and 0.

        Raises:
            ValueError: a prompt longer than ``pad_to``.
        """
        rows = self.encode(prompts)
        longest = max((len(row) for row in rows), default=0)
        length = longest if pad_to is None else pad_to
        if longest > length:
            worst = max(range(len(rows)), key=lambda index: len(rows[index]))
            raise ValueError(
                f"prompt {worst} is {longest} tokens long, more than pad_to={length}; "
                f"shorten it or pad to {longest}: {prompts[worst][:80]!r}"
            )
        input_ids = np.full((len(rows), length), self.pad_id, np.int32)
        attention_mask = np.zeros((len(rows), length), np.int32)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
        return input_ids, attention_mask

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Decode ids int[T] to the text of transformers' ``batch_decode``.

        Ids outside the vocabulary (the padded rows of a native embedding table) have no text.
        """
        known = [int(index) for index in ids if 0 <= int(index) < self.vocab_size]
        return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def decode_with_spans(
        self, ids: Iterable[int], *, per_token: bool = False
    ) -> tuple[str, list[Span]]:
        """Decode ids int[T] to text and the ``[start, end)`` characters that each id wrote.

        The spans tile the text. A character whose bytes span several tokens belongs to the token
        that completes it. With ``per_token``, every token is decoded by itself, as the references'
        ``decode_with_spans`` does, so such a character becomes U+FFFD once per piece.
        """
        text, spans, length = [], [], 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for index in ids:
            piece = decoder.decode(self.token_bytes(int(index)), final=per_token)
            text.append(piece)
            spans.append((length, length + len(piece)))
            length += len(piece)
        tail = decoder.decode(b"", final=True)
        if tail:
            text.append(tail)
            spans[-1] = (spans[-1][0], length + len(tail))
        return "".join(text), spans

    def save(self, directory: str | os.PathLike) -> Path:
        """Write ``tokenizer.json`` into ``directory``; `load_tokenizer` reads it back."""
        path = Path(directory) / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(path))
        return path

    def declared_tasks(self) -> frozenset[str]:
        """Task tokens of a fine-tune, such as ``"<DocVQA>"``: all added tokens in angle brackets
        except those that every Florence-2 has.
        """
        return self._declared_tasks

    def token_id(self, token: str) -> int | None:
        """The id of a token such as ``"<sep>"``, None where the vocabulary has none."""
        return self._backend.token_to_id(token)

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes of an id, possibly part of a character; empty outside the vocabulary."""
        token = self._backend.id_to_token(index) if 0 <= index < self.vocab_size else None
        if token is None:
            return b""
        try:
            return bytes([_BYTE_OF[symbol] for symbol in token])
        except KeyError:
            # An added token may hold characters that byte-level BPE never writes, such as a space.
            return token.encode("utf-8")


def _declared_tasks(backend: Tokenizer) -> frozenset[str]:
    common = {*SPECIAL_TOKENS, *FLORENCE_TOKENS, "<mask>", "<image>"}
    return frozenset(
        token.content
        for token in backend.get_added_tokens_decoder().values()
        if re.fullmatch(r"<[A-Za-z]\w*>", token.content) and token.content not in common
    )


def _read_tokenizer_json(path: Path) -> Tokenizer:
    try:
        content = json.loads(read_text(path, max_bytes=_MAX_BYTES))
        added = content.get("added_tokens") or []
        if added and max(added, key=lambda entry: entry["id"])["content"] == "<image>":
            added = [entry for entry in added if entry["content"] != "<image>"]
        backend = Tokenizer.from_str(json.dumps({**content, "added_tokens": added}))
    except Exception as error:
        # The library reports every fault of the file as a bare Exception.
        raise ValueError(
            f"{str(path)!r} is not a tokenizer file ({error}); download it again"
        ) from error
    moved = [t["content"] for t in added if backend.token_to_id(t["content"]) != t["id"]]
    if moved:
        raise ValueError(
            f"{str(path)!r} gives {moved[:5]} ids that its vocabulary does not continue to; "
            "save the tokenizer again with transformers, which numbers its tokens without gaps"
        )
    return backend


def _read_vocab_and_merges(vocab: Path, merges: Path) -> Tokenizer:
    try:
        for path in (vocab, merges):
            read_bytes(path, max_bytes=_MAX_BYTES)
        backend = byte_level_bpe(*models.BPE.read_file(str(vocab), str(merges)))
    except Exception as error:
        raise ValueError(
            f"{str(vocab)!r} and {merges.name} are not a BPE vocabulary ({error}); "
            "download them again"
        ) from error
    present = tuple(t for t in (*SPECIAL_TOKENS, "<mask>") if backend.token_to_id(t) is not None)
    add_special_tokens(backend, present)
    added = vocab.with_name("added_tokens.json")
    if added.exists():
        _append(backend, added)
    return backend


def _append(backend: Tokenizer, path: Path) -> None:
    """Add the tokens of a slow tokenizer's ``added_tokens.json`` at the ids that it gives them."""
    try:
        ids = read_json(path, max_bytes=_MAX_BYTES)
        if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
            raise ValueError("expected whole numbers by token")
        for token in ids:
            token.encode("utf-8")  # half of a surrogate pair is refused here
        ordered = sorted(ids, key=ids.__getitem__)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} is no object of tokens and their ids ({error}); download it again"
        ) from error
    if ordered and ordered[-1] == "<image>":
        ordered.pop()
    for token in ordered:
        if token in (*FLORENCE_TOKENS, "<image>"):
            add_special_tokens(backend, (token,))
        else:
            backend.add_tokens([token])
    moved = [token for token in ordered if backend.token_to_id(token) != ids[token]]
    if moved:
        raise ValueError(
            f"{str(path)!r} gives {moved[:5]} ids that the vocabulary does not continue to; "
            "copy vocab.json and added_tokens.json from one and the same checkpoint"
        )


def _complete(backend: Tokenizer, where: str) -> None:
    """Append Florence-2's tokens to plain BART; refuse a vocabulary that is neither."""
    absent = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
    if absent:
        raise ValueError(f"the tokenizer in {where!r} lacks {absent}; it is not Florence-2's")
    missing = [token for token in FLORENCE_TOKENS if backend.token_to_id(token) is None]
    if not missing:
        return
    size = backend.get_vocab_size(with_added_tokens=True)
    if len(missing) < len(FLORENCE_TOKENS) or size != BART_VOCAB_SIZE:
        raise ValueError(
            f"the tokenizer in {where!r} has {size} tokens and lacks {len(missing)} of the 1024 "
            f"that Florence-2 adds ({missing[:3]} first); expected all of them, or plain BART's "
            f"{BART_VOCAB_SIZE} to append them to"
        )
    add_special_tokens(backend, FLORENCE_TOKENS)
