"""Restricted reader of pickles that hold plain data, with limits on size and depth.

A pickle is a program. It runs code by naming something to call, and a short one can ask for any
amount of memory: by a memo index that is never used, or by lists that hold each other so often that
nobody can write them out.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from florence_jax.evaluation.datasets.dataset import LayoutError
from florence_jax.runtime.error_text import error_text
from florence_jax.runtime.text_file import TextFileError, read_bytes

# The largest published one, of RefCOCOg, has 60 MB and some 10 million instructions.
_MAX_BYTES = 512 << 20
_MAX_INSTRUCTIONS = 60_000_000
# Values when everything shared is written out; a long text counts once for each 64 characters.
_MAX_ITEMS = 60_000_000
_MAX_DEPTH = 50
# Python writes no longer ones out in decimals.
_MAX_INTEGER_BITS = 4096

# Instruction -> bytes of its argument, or how they are counted.
_ARGUMENT_BYTES = {
    one.code.encode("latin-1"): 0 if one.arg is None else one.arg.n for one in pickletools.opcodes
}
_PREFIX_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
# PUT, BINPUT and LONG_BINPUT; STOP, and what names something to call.
_PUTS = frozenset({b"p", b"q", b"r"})
_ENDS = frozenset({b".", b"c", b"i", b"\x93"})


class _Plain(pickle.Unpickler):
    """An unpickler of numbers, texts, lists, tuples, dicts and sets.

    A pickle runs code by naming something to call; here no name is ever found.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise LayoutError(f"it names {module:.100}.{name:.100}")

    def persistent_load(self, pid: Any) -> Any:
        raise LayoutError(f"it refers to something outside of it, {str(pid)[:100]!r}")


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle, written by Python 2 or 3, that holds built-in containers alone.

    Raises:
        LayoutError: it names anything that could be called, is damaged, or would take more memory
            than any published file does. Nothing of it has run.
    """
    try:
        content = read_bytes(path, max_bytes=_MAX_BYTES)
        _check_instructions(content)
        # Python 2's texts are bytes, which latin-1 always reads.
        value = _Plain(io.BytesIO(content), encoding="latin-1").load()
        _check_size(value)
    except TextFileError as error:
        raise LayoutError(str(error)) from None
    except LayoutError as error:
        raise LayoutError(
            f"{path} is not plain data: {error}. Nothing of it was run; download it anew from its "
            "authors, and do not open it with pickle.load"
        ) from None
    except Exception as error:
        # A damaged pickle raises nearly anything.
        raise LayoutError(
            f"{path} is damaged ({type(error).__name__}: {error_text(error):.300}): download it "
            "again"
        ) from None
    return value


def _check_instructions(content: bytes) -> None:
    """Refuse more instructions than a data set has, and memo places beyond them.

    Python's unpickler makes a table as long as the largest place that is named. Where the program
    ends, is damaged or names something, the unpickler stops too, and this leaves it to say so.
    """
    position = 0
    for count in range(_MAX_INSTRUCTIONS):
        code = content[position : position + 1]
        size = _ARGUMENT_BYTES.get(code)
        if size is None or code in _ENDS:
            return
        start = position + 1
        if size == pickletools.UP_TO_NEWLINE:
            position = content.find(b"\n", start) + 1
            if not position:
                return
        elif size < 0:
            prefix = _PREFIX_BYTES[size]
            length = int.from_bytes(content[start : start + prefix], "little")
            position = start + prefix + length
        else:
            position = start + size
        if code in _PUTS:
            argument = content[start:position]
            place = _decimal(argument) if code == b"p" else int.from_bytes(argument, "little")
            if place > count:
                raise LayoutError(f"it stores value number {place}, and has made at most {count}")
    raise LayoutError(f"it has more than {_MAX_INSTRUCTIONS} instructions")


def _decimal(line: bytes) -> int:
    text = line.strip()
    return int(text) if text.isdigit() and len(text) < 20 else 1 << 64


def _check_size(value: Any) -> None:
    """Refuse what is too large, too deep or endless when everything shared is written out."""
    # id of a container -> (items in it and below, levels), None while it is being counted.
    counted: dict[int, tuple[int, int] | None] = {}
    stack = [value]
    while stack:
        container = stack[-1]
        if counted.get(id(container)) is not None:
            stack.pop()
            continue
        inside = list(_containers(container))
        if id(container) not in counted:
            counted[id(container)] = None
            for child in inside:
                if id(child) not in counted:
                    stack.append(child)
                elif counted[id(child)] is None:
                    raise LayoutError("it holds a list or dict that contains itself")
            continue
        below = [counted[id(child)] for child in inside]
        if any(child is None for child in below):
            raise LayoutError("it holds a list or dict that contains itself")
        known = [child for child in below if child is not None]
        items = _leaf_items(container) + sum(items for items, _ in known)
        depth = 1 + max((depth for _, depth in known), default=0)
        if items > _MAX_ITEMS:
            raise LayoutError(f"its shared lists stand for more than {_MAX_ITEMS} values")
        if depth > _MAX_DEPTH:
            raise LayoutError(f"it is nested more than {_MAX_DEPTH} levels deep")
        counted[id(container)] = items, depth
        stack.pop()


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def _containers(value: Any) -> Iterable[Any]:
    kinds = (dict, list, tuple, set, frozenset)
    return (member for member in _members(value) if isinstance(member, kinds))


def _leaf_items(value: Any) -> int:
    """The size of the texts and numbers directly in a container."""
    items = 1
    for member in _members(value):
        if isinstance(member, str | bytes | bytearray):
            items += 1 + len(member) // 64
        elif isinstance(member, int) and member.bit_length() > _MAX_INTEGER_BITS:
            raise LayoutError(f"it holds a number of {member.bit_length()} bits")
        else:
            items += 1
    return items
