"""Scalars for TensorBoard, in its own file format.

Each line of the log is appended when it is written, by the thread that writes it: a full disk is an
error that the caller sees, never a queue that nobody empties any more.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from florence_jax.runtime.jsonl import append

# Of protobuf: a field's number and wire type, as its first byte.
# https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = (
    b"\x09",
    b"\x10",
    b"\x1a",
    b"\x2a",
    b"\x3a",
)
_VALUE, _TAG, _SIMPLE_VALUE = b"\x0a", b"\x0a", b"\x15"
_SESSION_START = b"\x08\x01"


class TensorBoard:
    """One file of events in a directory."""

    def __init__(self, directory: Path, *, first: int):
        """
        Args:
            first: the step that a run goes on at; what an earlier file says of later ones is void.
        """
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._first = directory / name, first

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """
        Args:
            values: by name, such as "train/loss".

        Raises:
            OSError: the file cannot be written; it is as it was.
        """
        records = b""
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            records += _record(_event(0, _FILE_VERSION, b"brain.Event:2"))
            if self._first:
                records += _record(_event(self._first, _SESSION_LOG, _SESSION_START))
        summary = b"".join(
            _VALUE + _sized(_TAG + _sized(name.encode()) + _SIMPLE_VALUE + struct.pack("<f", value))
            for name, value in values.items()
        )
        append(self._path, records + _record(_event(step, _SUMMARY, summary)))


def _event(step: int, field: bytes, content: bytes) -> bytes:
    now = struct.pack("<d", time.time())
    return _WALL_TIME + now + _STEP + _varint(step) + field + _sized(content)


def _record(content: bytes) -> bytes:
    """TFRecord: the length and the content, each with its checksum."""
    length = struct.pack("<Q", len(content))
    return length + _masked_checksum(length) + content + _masked_checksum(content)


def _masked_checksum(content: bytes) -> bytes:
    value = crc32c(content)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """Castagnoli's checksum (https://www.rfc-editor.org/rfc/rfc3720#appendix-B.4)."""
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_table_entry(byte) for byte in range(256)]


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
