"""WebDataset: tars whose members of one name up to its first dot are a sample.

Tars of this machine are listed once and read at any place; those behind URLs are streams.
"""

from __future__ import annotations

import array
import itertools
import posixpath
import re
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.datasets.faults import Fault
from florence_jax.datasets.tar_members import Damage, Member, read_members
from florence_jax.processing.image.suffixes import is_image_name, leftover
from florence_jax.runtime.text_file import TextFileError, decode, parse_json
from florence_jax.training.data.columns import Columns, row_of_columns
from florence_jax.training.data.example import DataError, Example, Source
from florence_jax.training.data.storage import is_url
from florence_jax.training.data.stream import Stream

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# A range of more is a slip of the finger.
_MOST_TARS = 1_000_000
# How often a tar behind a URL is opened, and the seconds before each further time.
_WAITS = (0.0, 1.0, 4.0)


def expand(pattern: str) -> list[str]:
    """The names of a pattern: "train-{000..009}.tar" and "{a,b}.tar", as a shell expands them.

    Raises:
        DataError: a range that runs backwards, or is longer than any data set.
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    matched = _RANGE.fullmatch(found[1])
    if matched:
        first, last = int(matched[1]), int(matched[2])
        if not 0 <= last - first < _MOST_TARS:
            raise DataError(
                f"{pattern}: the range {found[1]} runs backwards or has no end in sight"
            )
        width = max(map(len, matched.groups())) if "0" in (matched[1][0], matched[2][0]) else 0
        parts = [str(number).zfill(width) for number in range(first, last + 1)]
    else:
        parts = found[1].split(",")
    return [name for part in parts for name in expand(f"{before}{part}{after}")]


def tars_at(path: str) -> list[str]:
    """The tars of a path, pattern, folder or URL, in the order of their names.

    Raises:
        DataError: there is none, or one that is missing.
    """
    names = expand(path)
    if is_url(path):
        return names
    folder = Path(path).expanduser()
    if folder.is_dir():
        names = sorted(str(one) for one in folder.glob("*.tar"))
        if not names:
            raise DataError(f"{path} holds no .tar")
    missing = [name for name in names if not Path(name).expanduser().is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} tars of {path} are not there, such as {missing[0]}"
        )
    return [str(Path(name).expanduser()) for name in names]


class WebDataset(Source):
    """Tars of this machine, by number.

    Their headers are read once, 40 bytes a member are held, and no content. A damaged place is a
    row that fails, and so is a sample without an image.

    Raises:
        DataError: a tar cannot be read, or there is no sample.
    """

    def __init__(self, tars: Sequence[str], columns: Columns, name: str):
        self.tars, self.columns, self.name = tuple(tars), columns, name
        # Tar, first and last member of each sample; offset and size of each member.
        self._samples, self._members = array.array("q"), array.array("q")
        self._names: list[str] = []
        self._damages: list[str] = []
        faults: list[Fault] = []
        for number, tar in enumerate(self.tars):
            try:
                self._list(number, tar)
            except OSError as error:
                raise DataError(f"{tar} cannot be read: {error.strerror or error}") from None
        for damage in self._damages:
            faults.append(Fault(kind="row", where=damage.partition(": ")[0], text=damage))
        if not self._samples:
            raise DataError(f"{name} holds no sample with an image")
        self.faults = faults
        self._check()

    def __len__(self) -> int:
        return len(self._samples) // 3 + len(self._damages)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if 3 * index >= len(self._samples):
            raise DataError(self._damages[index - len(self._samples) // 3])
        number, first, last = self._samples[3 * index : 3 * index + 3]
        sample: dict[str, bytes] = {}
        with Path(self.tars[number]).open("rb") as stream:
            for member in range(first, last):
                stream.seek(self._members[2 * member])
                sample[self._names[member]] = stream.read(self._members[2 * member + 1])
        return sample_example(sample, self.columns, f"{self.tars[number]}:{key_of(sample)}")

    def _list(self, number: int, tar: str) -> None:
        key, first = None, len(self._names)
        for member in read_members(Path(tar)):
            if isinstance(member, Damage):
                self._damages.append(
                    f"{tar}: bytes {member.start} to {member.stop} are damaged ({member.reason}), "
                    "and samples may be lost there: write or download it again"
                )
                continue
            if not isinstance(member, Member) or member.kind != "file" or leftover(member.name):
                continue
            if split_name(member.name)[0] != key:
                self._end(number, first)
                key, first = split_name(member.name)[0], len(self._names)
            self._names.append(member.name)
            self._members.extend((member.offset, member.size))
        self._end(number, first)

    def _end(self, number: int, first: int) -> None:
        if first < len(self._names):
            self._samples.extend((number, first, len(self._names)))

    def _check(self) -> None:
        """Refuse tars of other columns at once; a single bad sample goes to quarantine."""
        problems: list[DataError] = []
        for index in range(min(16, len(self._samples) // 3)):
            try:
                self[index]
            except DataError as error:
                problems.append(error)
            else:
                return
        raise problems[0]


class WebDatasetStream(Stream):
    """Tars behind URLs, read from their starts on; their order is shuffled for each pass."""

    def __init__(
        self,
        tars: Sequence[str],
        columns: Columns,
        name: str,
        *,
        rows: int | None,
        seed: int,
        shuffle_rows: int,
    ):
        self.tars, self.columns, self._name = tuple(tars), columns, name
        if not rows:
            raise DataError(
                f"{name} is a stream, and tars do not say how many rows they have: set rows, which "
                "make an epoch"
            )
        super().__init__(rows=rows, seed=seed, shuffle_rows=shuffle_rows)

    @property
    def name(self) -> str:
        return self._name

    def read_pass(self, number: int) -> Iterator[Any]:
        order = np.arange(len(self.tars))
        if self._shuffle_rows > 1:
            order = np.random.default_rng((self._seed, number, 1)).permutation(order)
        for tar in order.tolist():
            yield from self._samples(self.tars[tar])

    def example(self, row: Any, where: str) -> Example:
        tar, sample = row
        return sample_example(sample, self.columns, f"{tar}:{key_of(sample)}")

    def _samples(self, tar: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """The samples of a tar; where the connection ends, it is opened again and read over."""
        done = 0
        for wait in (*_WAITS, None):
            try:
                for sample in itertools.islice(read_samples(tar), done, None):
                    done += 1
                    yield tar, sample
                return
            # Each storage's client raises errors of its own.
            except Exception as error:
                if wait is None:
                    raise DataError(
                        f"{tar} cannot be read behind its sample {done} ({_line(error)}): check "
                        "the URL, the network and this machine's credentials"
                    ) from error
                time.sleep(wait)


def read_samples(tar: str) -> Iterator[dict[str, bytes]]:
    """The samples of a tar behind a URL, read once from start to end."""
    import fsspec

    sample: dict[str, bytes] = {}
    key = None
    with fsspec.open(tar, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as members:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for member in members:
            if not member.isfile() or leftover(member.name):
                continue
            if split_name(member.name)[0] != key:
                if sample:
                    yield sample
                key, sample = split_name(member.name)[0], {}
            content = members.extractfile(member)
            assert content is not None  # of a regular file
            sample[member.name] = content.read()
    if sample:
        yield sample


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def split_name(name: str) -> tuple[str, str]:
    """("a/b", "seg.png") of "a/b.seg.png", as WebDataset splits names."""
    folder, base = posixpath.split(name)
    key, _, ending = base.partition(".")
    return posixpath.join(folder, key), ending.lower()


def key_of(sample: Mapping[str, bytes]) -> str:
    return split_name(next(iter(sample)))[0]


def sample_example(sample: Mapping[str, bytes], columns: Columns, where: str) -> Example:
    """A sample as an example.

    Its columns are the fields of its `.json`, and its other texts by their endings, such as `txt`.

    Raises:
        DataError: it has no image or several, or lacks a column.
    """
    images = [name for name in sample if is_image_name(name)]
    row: dict[str, Any] = {}
    try:
        for name, content in sample.items():
            ending = split_name(name)[1]
            if ending == "json":
                found = parse_json(content, f"{where}.json")
                if not isinstance(found, dict):
                    raise DataError(f"{where}.json is {found!r:.60}, expected an object")
                row = found | row
            elif name not in images:
                row[ending] = decode(content, name) if ending in _TEXTS else content
    except TextFileError as error:
        raise DataError(str(error)) from None
    chosen = [name for name in images if split_name(name)[1] == columns.image] or images
    if len(chosen) != 1:
        listed = ", ".join(sample)
        raise DataError(f"{where} has {len(chosen)} images, expected one, among {listed:.200}")
    return row_of_columns(row, columns, where, sample[chosen[0]])


_TEXTS = ("txt", "text", "caption", "cls", "prefix", "suffix")
