"""Wrap a help text to a width: paragraphs, lists of terms and shell commands keep their form."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator

# Help is no wider than this, however wide the terminal is.
_MOST_COLUMNS = 80

# What a line with a shell command begins with, behind its indentation and variables.
_COMMAND = re.compile(r" +(?:[A-Z_]+=\S+ )*(?:florence-jax|python|pip) ")
# A term, two spaces or more, and what it means: the lines that follow stand below the meaning.
_TERM = re.compile(r"( *\S(?:.*\S)? {2,})\S")


def help_columns() -> int:
    """The width of help on this terminal, at most 80 columns."""
    return min(shutil.get_terminal_size().columns, _MOST_COLUMNS)


def wrapped(text: str, width: int) -> str:
    """The text with no line wider than `width`, where its words allow it.

    A block in which every line fits is left as it is. In any other, lines that were broken because
    they were full are joined and broken anew; a line that ended early keeps its end.

    Args:
        text: lines; a blank one ends a paragraph, a deeper indentation begins another.
        width: columns.
    """
    lines: list[str] = []
    for block in _blocks(text.splitlines()):
        if max(map(len, block)) <= width:
            lines += block
        elif _COMMAND.match(block[0]):
            lines += _command(block, width)
        else:
            lines += _paragraph(block, width)
    return "\n".join(lines)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Lines that belong together: a paragraph, a term with its meaning, or a command."""
    block: list[str] = []
    for line in lines:
        if block and not _continues(block, line):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _continues(block: list[str], line: str) -> bool:
    if not line.strip() or not block[0].strip():
        return False
    if _COMMAND.match(block[0]):
        return block[-1].endswith("\\")
    is_new = _COMMAND.match(line) or _term_width(line)
    return not is_new and _indent(line) == (_term_width(block[0]) or _indent(block[0]))


def _paragraph(block: list[str], width: int) -> Iterator[str]:
    hanging = _term_width(block[0]) or _indent(block[0])
    full = max(map(len, block))
    begun, rest = block[0][:hanging], ""
    for number, line in enumerate(block):
        rest += line[hanging:]
        following = block[number + 1].split()[0] if number + 1 < len(block) else ""
        if following and len(line) + 1 + len(following) > full:
            rest += " "
            continue
        yield from textwrap.wrap(
            rest,
            width,
            initial_indent=begun,
            subsequent_indent=" " * hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
        begun, rest = " " * hanging, ""


def _command(block: list[str], width: int) -> Iterator[str]:
    """A command over several lines, each but the last with a backslash at its end."""
    indent = _indent(block[0])
    words = " ".join(line.strip().removesuffix("\\").strip() for line in block)
    # An option stays with its value.
    line, *options = re.split(r" (?=--)", words)
    line = " " * indent + line
    for option in options:
        if len(f"{line} {option} \\") > width:
            yield f"{line} \\"
            line = " " * (indent + 4) + option
        else:
            line = f"{line} {option}"
    yield line


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _term_width(line: str) -> int:
    """The column of a term's meaning, or 0 for a line without a term."""
    found = _TERM.match(line)
    return found.end(1) if found else 0
