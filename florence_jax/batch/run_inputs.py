"""The inputs of a run: pinned when it begins, compared when it goes on, and added to.

A `PinnedSource` pins each input: an image by its size and modification time, a row by the digest of
its file. The pins are beside `run.json` in `_inputs-DIGEST.txt`, one `[id, pin]` a line. Changed
content under the same name is refused. With `--extend`, inputs that were added are done in blocks
of their own behind the others: each addition is a record `_added-00001.json`, `_added-00002.json`,
...; of several processes the first one counts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from florence_jax.batch.job import Item, Source
from florence_jax.batch.manifest import (
    RunError,
    blocks_of_manifest,
    read_manifest,
    record_name,
)
from florence_jax.runtime.atomic_file import write_once
from florence_jax.runtime.jsonl import json_text, write_jsonl
from florence_jax.runtime.text_file import parse_json

_ANOTHER = "or name another directory"
_SHOWN = 3


@runtime_checkable
class PinnedSource(Source, Protocol):
    """A source that can tell whether an input has changed."""

    def pins(self) -> Iterator[str]:
        """A text for each input, in order, that changes with the input's content."""
        ...

    def row_files(self) -> Mapping[str, Any]:
        """The fingerprint of each file of rows among the inputs, by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """The inputs of a run as it goes on.

    Attributes:
        source: every input, in the order of the run's blocks.
        record: the manifest's record of them.
        ends: numbers of inputs at the run's beginning and after each addition; the last is all.
        begun: the manifest of the directory; None if no run has begun there.
        number: which record is to be written, 0 for `run.json`; None if none is.
    """

    source: Source
    record: Mapping[str, Any]
    ends: tuple[int, ...]
    begun: Mapping[str, Any] | None
    number: int | None

    def save(self, directory: Path) -> bool:
        """Write an addition; False if another process was first and all must be read again."""
        if self.number is None:
            return True
        self.save_listing(directory)
        if self.number == 0:  # the manifest itself follows
            return True
        content = json_text({"inputs": self.record, "ends": list(self.ends)}, indent=1)
        return write_once(directory / record_name(self.number), f"{content}\n".encode())

    def save_listing(self, directory: Path) -> None:
        """Write the ids and pins, which the manifest names."""
        if not isinstance(self.source, PinnedSource):
            return
        listed = zip(self.source.ids(), self.source.pins(), strict=True)
        write_jsonl(directory / self.record["listing"], listed)


def settle_inputs(directory: Path, source: Source, *, extend: bool = False) -> RunInputs:
    """The inputs that the run began with, and those that were added; nothing is written.

    Args:
        directory: the output directory of the run.
        source: today's inputs.
        extend: add inputs that the run does not know.

    Raises:
        RunError: an input is gone, replaced or new; the message names it and the remedy.
    """
    begun = read_manifest(directory)
    record, keys = listing(source)
    if not isinstance(source, PinnedSource):
        if extend:
            raise RunError("these inputs cannot be extended: name another directory for new ones")
        ends = (record["count"],) if begun is None else tuple(begun["blocks"]["ends"])
        number = 0 if begun is None else None
        return RunInputs(source=source, record=record, ends=ends, begun=begun, number=number)
    pins = list(source.pins())
    record = _pinned(record, source, pins)
    if begun is None:
        ends = (record["count"],)
        return RunInputs(source=source, record=record, ends=ends, begun=None, number=0)
    before, ends = begun["inputs"], tuple(begun["blocks"]["ends"])
    if before == record:
        return RunInputs(source=source, record=record, ends=ends, begun=begun, number=None)
    if "listing" not in before:
        raise RunError(f"{directory} is of another run: its inputs are of another kind; {_ANOTHER}")
    _check_row_files(directory, before["row_files"], record["row_files"])
    order, changed = _matched(directory, begun, keys, pins)
    added = np.setdiff1d(np.arange(len(keys)), order)
    if added.size and not extend:
        names = _names(source, added)
        raise RunError(
            f"{added.size} of the inputs are new since the run in {directory} began, such as "
            f"{names}: pass --extend to have them done as well, {_ANOTHER}"
        )
    ordered = _Ordered(source, np.concatenate([order, added]))
    ordered_record = _pinned(listing(ordered)[0], ordered, list(ordered.pins()))
    if added.size:
        ends = (*ends, len(keys))
    is_new = bool(added.size or changed)
    return RunInputs(
        source=ordered,
        record=ordered_record,
        ends=ends,
        begun=begun,
        number=begun["records"] + 1 if is_new else None,
    )


def listing(source: Source) -> tuple[dict[str, Any], np.ndarray]:
    """The manifest's record of the inputs: count, sha256 of all ids, and the source's fingerprint.

    Returns:
        The record, and the `id_key` of every input in order.

    Raises:
        RunError: two inputs have one id, or there are none.
    """
    digest, keys = hashlib.sha256(), np.empty(len(source), np.uint64)
    for number, name in enumerate(source.ids()):
        digest.update(id_bytes(name))
        keys[number] = id_key(name)
    if not len(keys):
        raise RunError("the inputs name no image: there is nothing to run")
    _check_unique(source, keys)
    record = {
        "count": len(keys),
        "ids_sha256": digest.hexdigest(),
        "source": json.loads(json.dumps(source.fingerprint)),
    }
    return record, keys


def id_bytes(name: str) -> bytes:
    """An id as the digest of all ids takes it."""
    # As Parquet holds ids, which has no file name that is not UTF-8.
    encoded = name.encode("utf-8", "backslashreplace")
    return len(encoded).to_bytes(8, "little") + encoded


def id_key(name: str) -> int:
    """64 bits of an id's digest, for comparing millions of them."""
    encoded = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def _check_unique(source: Source, keys: np.ndarray) -> None:
    ordered = np.sort(keys)
    suspects = set(ordered[:-1][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    seen: set[str] = set()
    for key, name in zip(keys.tolist(), source.ids(), strict=True):
        if key in suspects:
            if name in seen:
                raise RunError(
                    f"two inputs have the id {name!r}: a row could not say which of them it is "
                    "of. Leave one out, or give rows an `id` of their own"
                )
            seen.add(name)


def _pinned(record: Mapping[str, Any], source: PinnedSource, pins: Sequence[str]) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(pins).encode("utf-8", "surrogatepass")).hexdigest()
    name = hashlib.sha256(f"{record['ids_sha256']} {digest}".encode()).hexdigest()[:16]
    # Files of rows may be added, and are compared one by one.
    same = {name: value for name, value in record["source"].items() if name != "row_files"}
    whole = {
        **record,
        "source": same,
        "pins_sha256": digest,
        # Neither `*.jsonl` nor a reader of a directory of Parquet files matches this name.
        "listing": f"_inputs-{name}.txt",
        "row_files": source.row_files(),
    }
    return json.loads(json.dumps(whole))


def _check_row_files(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, fingerprint in before.items():
        if name not in now:
            raise RunError(
                f"the run in {directory} began with {name}, which is not among the inputs: name it "
                f"as well, {_ANOTHER}"
            )
        if now[name] != fingerprint:
            raise RunError(
                f"{name} has changed since the run in {directory} began, and rows of the old and "
                f"the new one would be mixed: put back what it was, {_ANOTHER}"
            )


def _matched(
    directory: Path, begun: Mapping[str, Any], keys: np.ndarray, pins: Sequence[str]
) -> tuple[np.ndarray, bool]:
    """The place of each of the run's inputs among today's, and whether one was replaced.

    Raises:
        RunError: an input is gone, or was replaced after its row was written.
    """
    path = directory / begun["inputs"]["listing"]
    sorted_by = np.argsort(keys)
    ordered = keys[sorted_by]
    blocks, kind = blocks_of_manifest(begun), begun["blocks"]["format"]
    finished = set(blocks.finished(directory, kind))
    order, gone, replaced, changed = [], [], [], False
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing, which says what the run began with: put it back, {_ANOTHER}"
        ) from None
    with file:
        for number, line in enumerate(file):
            name, pin = parse_json(line, f"{path}, line {number + 1}")
            key = id_key(name)
            place = int(np.searchsorted(ordered, key))
            if place == len(ordered) or ordered[place] != key:
                gone.append(name)
                continue
            at = int(sorted_by[place])
            order.append(at)
            if pins[at] != pin:
                changed = True
                if blocks.block_of(number) in finished:
                    replaced.append((name, blocks.name(blocks.block_of(number), kind)))
    if gone:
        raise RunError(
            f"{len(gone)} inputs of the run in {directory} are gone, such as "
            f"{', '.join(gone[:_SHOWN])}: put them back, {_ANOTHER}"
        )
    if replaced:
        name, block = replaced[0]
        raise RunError(
            f"{name} was replaced after its row was written to {directory / block} (it is one of "
            f"{len(replaced)}): put back what it was, or remove that block and run this again to "
            f"have its rows made anew, {_ANOTHER}"
        )
    return np.array(order, np.int64), changed


def _names(source: Source, numbers: np.ndarray) -> str:
    wanted = set(numbers[:_SHOWN].tolist())
    return ", ".join(name for number, name in enumerate(source.ids()) if number in wanted)


class _Ordered:
    """A pinned source in another order."""

    def __init__(self, source: PinnedSource, order: np.ndarray) -> None:
        self._source, self._order = source, order

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._order)

    def ids(self) -> Iterator[str]:
        names = list(self._source.ids())
        return (names[number] for number in self._order)

    def pins(self) -> Iterator[str]:
        pins = list(self._source.pins())
        return (pins[number] for number in self._order)

    def row_files(self) -> Mapping[str, Any]:
        return self._source.row_files()

    def read(self, start: int, stop: int) -> Iterator[Item]:
        # Items that follow each other in the source are read together.
        numbers = enumerate(self._order[start:stop].tolist())
        for _, stretch in itertools.groupby(numbers, key=lambda pair: pair[1] - pair[0]):
            own = [number for _, number in stretch]
            yield from self._source.read(own[0], own[-1] + 1)
