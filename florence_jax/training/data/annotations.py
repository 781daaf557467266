"""Annotations that `florence-jax annotate` wrote, as training examples."""

import array
import bisect
import contextlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from florence_jax.annotation.schema import (
    Annotation,
    AnnotationError,
    annotation_files,
    from_row,
    parse_line,
)
from florence_jax.annotation.to_examples import TaskExample, to_examples
from florence_jax.processing import TASKS
from florence_jax.processing.vocabulary import CONTROL_TOKENS
from florence_jax.training.data.example import DataError, Example, Source
from florence_jax.training.data.storage import Place, as_path, local_copy, resolve_inside

_WORDS = re.compile(r"<loc_\d+>|\w+|[^\w\s]")


class Annotations(Source):
    """Questions that annotated images answer: of each image none, one or several.

    Lines are read when asked for: only their offsets and counts are held, 24 bytes an image.

    Args:
        path: a JSON-lines file, or a directory with blocks of them.
        tasks: The tasks whose questions are asked.
        image_root: the directory that image names start from; by default that of the file.
        questions: Most questions about one image that an example asks together.

    Attributes:
        notes: how many images have texts that are not learnt, for the user.

    Raises:
        DataError: it is no set of annotations, or answers nothing of the tasks.
    """

    def __init__(
        self,
        path: str | Place,
        tasks: Sequence[str],
        image_root: str | Place | None = None,
        *,
        questions: int = 1,
    ):
        self.path, self.tasks, self.questions = as_path(path), tuple(tasks), questions
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise DataError(f"{path}: no such task: {unknown}; there are {', '.join(TASKS)}")
        folder = self.path if self.path.is_dir() else self.path.parent
        self.image_root = as_path(image_root) if image_root else folder
        self._files: list[Path] = []
        # The file, the line's offset and the number of the first example of each image with
        # questions.
        self._places = array.array("q")
        self._firsts = array.array("q")
        count = unspeakable = 0
        with _naming(self.path):
            self._files = _files(self.path)
            for number, offset, line in _lines(self._files):
                unspeakable += any(token.encode() in line for token in CONTROL_TOKENS)
                found = _count(line, self.tasks, f"{self._files[number].name} at byte {offset}")
                if found:
                    self._places.extend((number, offset))
                    self._firsts.append(count)
                    count += -(-found // questions)
        if not count:
            raise DataError(f"{self.path} answers nothing of {', '.join(self.tasks)}")
        self._count = count
        self.notes = [
            f"{self.path}: {unspeakable} images have texts or labels with special tokens "
            f"({', '.join(CONTROL_TOKENS)}), which no labels can hold: these are left out"
        ][: bool(unspeakable)]

    @staticmethod
    def tasks_of(path: str | Place) -> tuple[str, ...]:
        """The tasks that the annotations of `path` have answers to.

        Raises:
            DataError: there are none.
        """
        found: Counter[str] = Counter()
        with _naming(path):
            for annotation in _annotations(path):
                found.update(question.task for question in to_examples(annotation))
        if not found:
            raise DataError(f"{path} answers none of the tasks: nothing is left to learn from")
        return tuple(task for task in TASKS if task in found)

    @staticmethod
    def alike(path: str | Place, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """Tasks in groups whose questions and answers are equally long to a factor of two.

        A batch is padded to its longest row: a group's batches hold little else than words. By the
        first 256 annotations; what these do not ask is of the first group.
        """
        words, asked = Counter[str](), Counter[str]()
        with _naming(path):
            for annotation in _annotations(path, 256):
                for question in to_examples(annotation, tasks):
                    texts = question.prompt, question.labels_text(annotation.size)
                    words[question.task] += max(len(_WORDS.findall(text)) for text in texts)
                    asked[question.task] += 1
        groups: dict[int, list[str]] = {}
        for task in tasks:
            # Below 16 tokens nothing is padded shorter.
            length = max(words[task] / max(asked[task], 1), 15.0)
            groups.setdefault(math.frexp(length)[1], []).append(task)
        return [tuple(groups[exponent]) for exponent in sorted(groups)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._count:
            raise IndexError(index)
        image = bisect.bisect_right(self._firsts, index) - 1
        file = self._files[self._places[2 * image]]
        with file.open("rb") as stream:
            stream.seek(self._places[2 * image + 1])
            line = stream.readline()
        where = f"{file.name}:{index}"
        try:
            annotation = from_row(parse_line(line, where), where)
        except AnnotationError as error:
            raise DataError(f"{self.path}: {error}") from None
        first = (index - self._firsts[image]) * self.questions
        asked = _in_turns(to_examples(annotation, self.tasks))[first : first + self.questions]
        image_file = resolve_inside(self.image_root, annotation.image, where)
        example, *same_image = (
            Example(
                id=f"{annotation.id}:{question.task}:{number}",
                image=image_file,
                task=question.task,
                prompt=question.prompt,
                labels=question.labels,
                size=annotation.size,
            )
            for number, question in asked
        )
        return replace(example, same_image=tuple(same_image))


def _in_turns(asked: Sequence[TaskExample]) -> list[tuple[int, TaskExample]]:
    """Each task's first question, then each one's second..., each with its number of its task."""
    seen: Counter[str] = Counter()
    numbered = []
    for question in asked:
        numbered.append((seen[question.task], question))
        seen[question.task] += 1
    return sorted(numbered, key=lambda one: one[0])


def _files(path: Place) -> list[Path]:
    return annotation_files(local_copy(path, ".jsonl" if path.is_dir() else ""))


def _lines(files: list[Path]) -> Iterator[tuple[int, int, bytes]]:
    """(number of the file, offset, line) of every line that is not empty."""
    for number, file in enumerate(files):
        offset = 0
        with file.open("rb") as stream:
            for line in stream:
                if line.strip():
                    yield number, offset, line
                offset += len(line)


@contextlib.contextmanager
def _naming(path: str | Place) -> Iterator[None]:
    """Name the data set in errors: its own, and of a box that no question can ask about."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}") from error


def _annotations(path: str | Place, count: int | None = None) -> Iterator[Annotation]:
    """The annotations of the first lines, by default of all; failed images have none."""
    files = _files(as_path(path))
    for number, offset, line in itertools.islice(_lines(files), count):
        where = f"{files[number].name} at byte {offset}"
        row = parse_line(line, where)
        if "error" not in row:
            yield from_row(row, where)


def _count(line: bytes, tasks: Sequence[str], where: str) -> int:
    row = parse_line(line, where)
    return 0 if "error" in row else len(to_examples(from_row(row, where), tasks))
