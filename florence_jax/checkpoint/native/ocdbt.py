"""The index of an OCDBT database, the key-value store in which Orbax keeps arrays, as bytes.

Written here and not by Orbax because Orbax's own files differ from run to run: it names them at
random, stamps them with the time and orders values as its threads finish. These bytes depend on
the entries alone. Format: https://google.github.io/tensorstore/kvstore/ocdbt/#storage-format
"""

import dataclasses
import itertools
import struct
from collections.abc import Callable, Iterable, Sequence

_MANIFEST_MAGIC = 0x0CDB3A2A
_NODE_MAGIC = 0x0CDB20DE

# What Orbax chooses too: any index of this library's size is a single node, without children.
_MAX_NODE_BYTES = 100_000_000
_MAX_INLINE_BYTES = 1024
_ARITY_LOG2 = 4


@dataclasses.dataclass(frozen=True)
class Inline:
    """A small value, kept in the index itself."""

    value: bytes


@dataclasses.dataclass(frozen=True)
class Stored:
    """A value kept in a data file: `length` bytes of `file` (relative to the database) from
    `offset`."""

    file: str
    offset: int
    length: int


Value = Inline | Stored


def encode_node(entries: dict[str, Value]) -> bytes:
    """A B+tree that is one leaf node, mapping the keys of `entries` to their values."""
    keys = sorted(key.encode() for key in entries)
    values = [entries[key.decode()] for key in keys]
    stored = [value for value in values if isinstance(value, Stored)]
    inline = [value for value in values if isinstance(value, Inline)]
    files = sorted({value.file for value in stored})
    shared = _shared_prefixes(keys)
    body = [
        b"\0",  # height
        _file_table(files),
        _varint(len(keys)),
        _varints(shared),
        _varints(len(key) - skip for key, skip in zip(keys, (0, *shared), strict=True)),
        *(key[skip:] for key, skip in zip(keys, (0, *shared), strict=True)),
        _varints(v.length if isinstance(v, Stored) else len(v.value) for v in values),
        _varints(int(isinstance(value, Stored)) for value in values),
        _varints(files.index(value.file) for value in stored),
        _varints(value.offset for value in stored),
        *(value.value for value in inline),
    ]
    return _enclose(_NODE_MAGIC, body)


def encode_manifest(entries: dict[str, Value], node: Stored) -> bytes:
    """The database's `manifest.ocdbt`: one version, whose root is the encoded `node`."""
    indirect = sum(value.length for value in entries.values() if isinstance(value, Stored))
    body = [
        bytes(16),  # the database's uuid: random elsewhere
        b"\0",  # everything in this one manifest
        _varint(_MAX_INLINE_BYTES),
        _varint(_MAX_NODE_BYTES),
        bytes([_ARITY_LOG2]),
        b"\0",  # no compression
        _file_table([node.file]),
        # One version: its generation, the root's height, file, offset and length, three statistics
        # and the time of the commit.
        *(_varint(1), _varint(1), b"\0", _varint(0), _varint(node.offset), _varint(node.length)),
        *(_varint(len(entries)), _varint(node.length), _varint(indirect), bytes(8)),
        _varint(0),  # no older versions
    ]
    return _enclose(_MANIFEST_MAGIC, body)


def _enclose(magic: int, body: Sequence[bytes]) -> bytes:
    version_and_compression = b"\0\0"
    content = version_and_compression + b"".join(body)
    length = 4 + 8 + len(content) + 4
    checked = struct.pack(">I", magic) + struct.pack("<Q", length) + content
    return checked + struct.pack("<I", crc32c(checked))


def _file_table(files: Sequence[str]) -> bytes:
    paths = [file.encode() for file in files]
    # A common prefix must not reach from one base path into the file's name. All base paths are
    # empty here, which makes them equal and any prefix allowed.
    shared = _shared_prefixes(paths)
    return b"".join(
        [
            _varint(len(paths)),
            _varints(shared),
            _varints(len(path) - skip for path, skip in zip(paths, (0, *shared), strict=True)),
            bytes(len(paths)),
            *(path[skip:] for path, skip in zip(paths, (0, *shared), strict=True)),
        ]
    )


def _shared_prefixes(names: Sequence[bytes]) -> list[int]:
    """For each name but the first, how many leading bytes it has in common with the one before."""
    return [_shared_prefix(before, name) for before, name in itertools.pairwise(names)]


def _shared_prefix(a: bytes, b: bytes) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(map(len, (a, b)))
    )


def _varints(numbers: Iterable[int]) -> bytes:
    return b"".join(_varint(number) for number in numbers)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _crc32c_function() -> Callable[[bytes], int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)

    def crc32c(content: bytes) -> int:
        """CRC-32C (Castagnoli), which neither zlib nor hashlib has."""
        register = 0xFFFFFFFF
        for byte in content:
            register = register >> 8 ^ table[(register ^ byte) & 0xFF]
        return register ^ 0xFFFFFFFF

    return crc32c


crc32c = _crc32c_function()
