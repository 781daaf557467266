"""What is wrong with one entry of a data set, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BoxFault = Literal["outside", "empty", "cut", "repeated"]

# What a sentence about a box says of it.
BOX_FAULTS: dict[BoxFault, str] = {
    "outside": "lies outside of the image and is left out",
    "empty": "has no area and is left out",
    "cut": "leaves the image and is cut at its edges",
    "repeated": "is there twice with the same label",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        kind: faults of one kind are counted together.
        where: the file, and the line or entry in it.
        text: a sentence about it.
    """

    kind: str
    where: str
    text: str
