"""Damaged and malicious safetensors headers, index files and configs, each made from a number.

Case n is the same in every run. Structure is mutated (wrong types, numbers of any size, keys added,
removed, renamed, duplicated, nested without end) and so is the text (bytes flipped, inserted,
removed, cut off, encoded otherwise).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.checkpoint.pytorch.weights import MAX_HEADER_BYTES
from tests.checkpoint.generated import tiny_config, tiny_tensors

SEED = 20_240_611
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
# Two files that exist beside the checkpoint directory: following a name to them is an escape.
OUTSIDE = ("secret.safetensors", "secret.json")

_NUMBERS = (
    -1, 0, 1, 2, 3, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 53, (1 << 63) - 1,
    1 << 63, (1 << 64) - 1, 1 << 64, 10**30, -(1 << 63), 10**300, 0.5, -0.0, 1e308, 1e-320,
    math.nan, math.inf, -math.inf,
)  # fmt: skip
_TEXTS = (
    "", " ", ".", "..", "/", "\0", "F32", "I64", "F8_E4M3", "davit", "gelu", "relu", "null",
    "../secret.safetensors", "/etc/passwd", "/proc/self/mem", "a/../../secret.safetensors",
    "..\\secret.safetensors", "C:\\secret.safetensors", "file:///etc/passwd",
    "https://example.com/model.safetensors", "\N{FULLWIDTH FULL STOP}" * 2 + "/secret.safetensors",
    "\u202egnp.slmx", "é", "e\u0301", "\U0001f4a9", "\ud800", "__proto__", "{}", "{0}", "%s%n",
    "layers.{}", "a" * 5000, "model.safetensors\0.txt", "CON", "$HOME", "`id`",
)  # fmt: skip
_OTHERS = (None, True, False, [], {}, [[]], [0], [1, 2], ["a"], {"a": 1}, [None], [[[[]]]])


class Hostile:
    """Writes cases into one directory, which holds a valid checkpoint between them."""

    def __init__(self, root: Path):
        self.directory = root / "checkpoint"
        self.directory.mkdir(parents=True)
        tensors = tiny_tensors()
        self.header, self.data = _pack(tensors)
        self.config = tiny_config()
        names = list(tensors)
        halves = names[::2], names[1::2]
        self.shards = {
            shard: _file(*_pack({name: tensors[name] for name in half}))
            for shard, half in zip(_SHARDS, halves, strict=True)
        }
        self.index = {
            "metadata": {"total_size": len(self.data)},
            "weight_map": {
                name: shard
                for shard, half in zip(_SHARDS, halves, strict=True)
                for name in sorted(half)
            },
        }
        self.generation = {"num_beams": 3, "early_stopping": True, "eos_token_id": 2}
        self.preprocessor = {"size": {"height": 768, "width": 768}, "image_mean": [0.4, 0.4, 0.4]}
        for name in OUTSIDE:
            (root / name).write_bytes(_file(self.header, self.data))

    def write_valid(self) -> None:
        """The checkpoint without any fault."""
        self._write(**{"model.safetensors": _file(self.header, self.data)})

    def write(self, number: int) -> str:
        """Write case `number` and say what kind it is."""
        rng = np.random.default_rng((SEED, number))
        kind = ("header", "index", "config")[number % 3]
        if kind == "header":
            self._write(**{"model.safetensors": _header_case(rng, self.header, self.data)})
        elif kind == "index":
            text = _mutated(rng, self.index)
            self._write(**self.shards, **{"model.safetensors.index.json": text})
        else:
            name, content = (
                ("config.json", self.config),
                ("config.json", self.config),
                ("config.json", self.config),
                ("generation_config.json", self.generation),
                ("preprocessor_config.json", self.preprocessor),
            )[rng.integers(5)]
            self.write_valid()
            (self.directory / name).write_bytes(_mutated(rng, content))
        return kind

    def _write(self, **files: bytes) -> None:
        for path in self.directory.iterdir():
            if path.name not in files:
                path.unlink()
        configs = {
            "config.json": self.config,
            "generation_config.json": self.generation,
            "preprocessor_config.json": self.preprocessor,
        }
        files |= {name: json.dumps(content).encode() for name, content in configs.items()}
        for name, content in files.items():
            (self.directory / name).write_bytes(content)


def _pack(tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [position, position := position + array.nbytes],
        }
    return header, b"".join(array.tobytes() for array in tensors.values())


def _file(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _header_case(rng: np.random.Generator, header: dict[str, Any], data: bytes) -> bytes:
    text = _mutated(rng, header)
    claimed = len(text)
    if rng.random() < 0.15:
        size = len(text) + len(data)
        lies = (0, 1, size, size + 1, claimed - 1, claimed + 1, MAX_HEADER_BYTES, 1 << 63)
        claimed = int(rng.choice(np.array([*lies, (1 << 64) - 1], np.uint64)))
    content = claimed.to_bytes(8, "little") + text + data
    if rng.random() < 0.1:
        content = content[: rng.integers(len(content))]
    return content


def _mutated(rng: np.random.Generator, content: dict[str, Any]) -> bytes:
    """`content` as JSON text with one to three mutations of its structure, its text, or both."""
    content = copy.deepcopy(content)
    how = rng.random()
    if how < 0.7:
        for _ in range(rng.integers(1, 4)):
            _pick(rng, _STRUCTURAL)(rng, content)
    text = json.dumps(content, ensure_ascii=bool(rng.random() < 0.7)).encode(
        "utf-8", "surrogatepass"
    )
    if how >= 0.5:
        for _ in range(rng.integers(1, 3)):
            text = _pick(rng, _TEXTUAL)(rng, text)
    return text


def _pick(rng: np.random.Generator, options: tuple) -> Any:
    return options[rng.integers(len(options))]


def _value(rng: np.random.Generator) -> Any:
    return copy.deepcopy(_pick(rng, _pick(rng, (_NUMBERS, _NUMBERS, _TEXTS, _OTHERS))))


def _place(rng: np.random.Generator, content: Any) -> tuple[Any, Any]:
    """A container somewhere in `content`, and a key or index of it (None where it is empty)."""
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return node, None
        key = keys[rng.integers(len(keys))]
        child = node[key]
        if not isinstance(child, dict | list) or rng.random() < 0.2:
            return node, key
        node = child


def _replace(rng: np.random.Generator, content: Any) -> None:
    node, key = _place(rng, content)
    if key is not None:
        node[key] = _value(rng)


def _remove(rng: np.random.Generator, content: Any) -> None:
    node, key = _place(rng, content)
    if key is not None:
        del node[key]


def _insert(rng: np.random.Generator, content: Any) -> None:
    node, _ = _place(rng, content)
    if isinstance(node, dict):
        node[str(_pick(rng, _TEXTS))] = _value(rng)
    else:
        node.insert(int(rng.integers(len(node) + 1)), _value(rng))


def _rename(rng: np.random.Generator, content: Any) -> None:
    node, key = _place(rng, content)
    if isinstance(node, dict) and key is not None:
        value = node.pop(key)
        node[_pick(rng, (key.upper(), key + " ", key + ".0", f"{key}\0", "{}", "x." + key))] = value


def _swap(rng: np.random.Generator, content: Any) -> None:
    one, other = _place(rng, content), _place(rng, content)
    if one[1] is not None and other[1] is not None:
        first, second = copy.deepcopy(one[0][one[1]]), copy.deepcopy(other[0][other[1]])
        one[0][one[1]], other[0][other[1]] = second, first


def _scale(rng: np.random.Generator, content: Any) -> None:
    for _ in range(20):  # numbers are rare in an index
        node, key = _place(rng, content)
        if key is not None and type(node[key]) is int:
            n = node[key]
            node[key] = _pick(rng, (n + 1, n - 1, -n, n * 2, n << 40, n / 2))
            return


_STRUCTURAL: tuple[Callable[..., None], ...] = (
    _replace, _replace, _replace, _remove, _insert, _rename, _swap, _scale, _scale,
)  # fmt: skip


def _flip(rng: np.random.Generator, text: bytes) -> bytes:
    at = int(rng.integers(len(text))) if text else 0
    return text[:at] + bytes([rng.integers(256)]) + text[at + 1 :]


def _cut(rng: np.random.Generator, text: bytes) -> bytes:
    return text[: rng.integers(len(text) + 1)]


def _drop(rng: np.random.Generator, text: bytes) -> bytes:
    at = int(rng.integers(len(text) + 1))
    return text[:at] + text[at + int(rng.integers(1, 20)) :]


def _inject(rng: np.random.Generator, text: bytes) -> bytes:
    """Something after a random opening brace."""
    braces = [at for at, byte in enumerate(text[:200_000]) if byte == ord("{")]
    if not braces:
        return text
    at = braces[rng.integers(len(braces))] + 1
    deep = int(_pick(rng, (20, 900, 5_000, 200_000)))
    what = (
        b'"twice": 1, "twice": 2, ',
        b'"deep": ' + b"[" * deep + b"]" * deep + b", ",
        b'"deep": ' + b'{"a":' * deep + b"1" + b"}" * deep + b", ",
        b'"long": ' + b"9" * deep + b", ",
        b'"tiny": 1e-' + b"9" * 400 + b", ",
        b'"huge": 1e' + b"9" * 400 + b", ",
        b'"nan": NaN, "inf": -Infinity, ',
        b'"bad": "\xff\xfe", ',
        b'"half": "\\ud800", ',
        b'"wide": "' + b"w" * 300_000 + b'", ',
        b"/* comment */ ",
        b"\x00",
    )
    return text[:at] + _pick(rng, what) + text[at:]


def _encode(rng: np.random.Generator, text: bytes) -> bytes:
    bom = b"\xef\xbb\xbf"
    as_text = text.decode("utf-8", "replace")
    return _pick(rng, (bom + text, as_text.encode("utf-16"), text + b"\0", text * 2, b" " + text))


_TEXTUAL: tuple[Callable[..., bytes], ...] = (
    _flip, _flip, _flip, _cut, _drop, _inject, _inject, _inject, _encode,
)  # fmt: skip
