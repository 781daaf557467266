"""Settings of data sets: one dataclass for each layout, which opens the files that it names."""

import pkgutil
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import ClassVar, Literal

from florence_jax.annotation.schema import annotation_files
from florence_jax.training.checked import Checked, did_you_mean
from florence_jax.training.data.annotations import Annotations
from florence_jax.training.data.coco import Coco
from florence_jax.training.data.example import (
    UNORDERED_TASKS,
    DataError,
    ObjectOrder,
    Ordered,
    Source,
)
from florence_jax.training.data.storage import Place, as_path, local_copy, require_exists
from florence_jax.training.data.tabular import ArrayRecord, Jsonl, Parquet
from florence_jax.training.data.vqa import DocVqa, Vqa

Named = tuple[str, Source, float]


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Checked):
    """One data set of a mixture. Each layout is a subclass, and a program may bring its own.

    Attributes:
        kind: The layout, by which JSON chooses the class: jsonl, parquet and array_record hold rows
            `image, prefix, suffix`; coco is a COCO JSON file; vqa and docvqa are questions about
            images; annotations are what `florence-jax annotate` wrote. Any other class is
            "module:Class", which is imported.
        weight: its share of the mixture, relative to the others'.
        questions: prompts about one image that an example holds, at most: the image encoder runs
            once for all of them. Only annotations and synthetic data have more than one.
    """

    # Figures that `Source.scores` adds to those of every task.
    metrics: ClassVar[tuple[str, ...]] = ()

    kind: str = field(init=False, default="")
    weight: float = 1.0
    questions: int = 1

    @property
    def max_questions(self) -> int:
        """The most that `questions` may be."""
        return 1

    def problems(self) -> Iterator[str]:
        if not 1 <= self.questions <= self.max_questions:
            yield (
                f"a {self.kind} source asks 1 to {self.max_questions} questions of an image, got "
                f"questions={self.questions}"
            )
        if not 0.0 < self.weight <= 1e30:
            name = getattr(self, "path", "") or self.kind
            yield f"the weight of {name} must be positive and finite, got {self.weight}"

    @abstractmethod
    def open(self, seed: int) -> Iterator[Named]:
        """(name, source, weight) of each source that the data set becomes.

        Args:
            seed: the run's.

        Raises:
            DataError: it cannot be read; names the file and the remedy.
        """

    def files(self) -> list[tuple[str, Place]]:
        """(name, file) of the files with the rows; a resumed run compares their hashes."""
        return []

    @staticmethod
    def of_kind(kind: str) -> type["SourceConfig"]:
        """The class that `kind` chooses.

        Raises:
            ValueError: there is none.
        """
        if kind in KINDS:
            return KINDS[kind]
        if ":" not in str(kind):
            raise ValueError(
                f"must be one of {', '.join(KINDS)}, or module:Class of a SourceConfig, got "
                f"{kind!r}{did_you_mean(str(kind), KINDS)}"
            )
        try:
            found = pkgutil.resolve_name(kind)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{kind!r} cannot be imported: {error}") from None
        if not (
            isinstance(found, type) and issubclass(found, SourceConfig) and is_dataclass(found)
        ):
            raise ValueError(f"{kind!r} is no dataclass that extends SourceConfig")
        return found


@dataclass(frozen=True, kw_only=True)
class FileConfig(SourceConfig):
    """A data set in files.

    Attributes:
        path: the file, or the directory of Parquet or ArrayRecord files or of annotations: a path,
            or (all but array_record) a URL gs://, s3://, az:// or hf://, as of all that data name.
        image_root: directory that image names start from; by default the file's own.
        order: in which the labels of <OD>, <DENSE_REGION_CAPTION>, <REGION_PROPOSAL> or
            <OPEN_VOCABULARY_DETECTION> name objects: random (anew in each epoch), as_annotated,
            left_to_right, top_to_bottom, area (largest first) or label (by the alphabet). By
            default random for coco and annotations, since a model that learns the annotators' order
            learns where they begin and may find little else; as_annotated for the others, whose
            texts are learnt as they stand.
    """

    path: str = ""
    image_root: str = ""
    order: ObjectOrder = "as_annotated"

    def problems(self) -> Iterator[str]:
        if not self.path:
            yield f"a {self.kind} source needs a path"
        yield from super().problems()

    def open(self, seed: int) -> Iterator[Named]:
        del seed
        path = require_exists(self.path, f"{self.kind} data")
        for part, source, share in self._open(path, self.image_root or None):
            if self.order != "as_annotated":
                source = Ordered(source, self.order)
            yield f"{path.parent.name}/{path.name}{part}", source, self.weight * share

    def files(self) -> list[tuple[str, Place]]:
        path = as_path(self.path)
        files = sorted(path.glob(f"*.{self.kind}")) if path.is_dir() else [path]
        return [(str(file), file) for file in files]

    @abstractmethod
    def _open(self, path: Place, image_root: str | None) -> Iterator[tuple[str, Source, float]]:
        """(what follows the file's name, source, share of the weight) of each source."""


@dataclass(frozen=True, kw_only=True)
class JsonlConfig(FileConfig):
    """Rows `image, prefix, suffix` as JSON lines."""

    kind: str = field(init=False, default="jsonl")

    def _open(self, path: Place, image_root: str | None) -> Iterator[tuple[str, Source, float]]:
        yield "", Jsonl(path, image_root), 1.0


@dataclass(frozen=True, kw_only=True)
class ParquetConfig(FileConfig):
    """Rows `image, prefix, suffix` in a Parquet file or a directory of them."""

    kind: str = field(init=False, default="parquet")

    def _open(self, path: Place, image_root: str | None) -> Iterator[tuple[str, Source, float]]:
        yield "", Parquet(path, image_root), 1.0


@dataclass(frozen=True, kw_only=True)
class ArrayRecordConfig(FileConfig):
    """Rows `image, prefix, suffix` with the image's bytes, in ArrayRecord files."""

    kind: str = field(init=False, default="array_record")

    def _open(self, path: Place, image_root: str | None) -> Iterator[tuple[str, Source, float]]:
        del image_root
        yield "", ArrayRecord(path), 1.0


@dataclass(frozen=True, kw_only=True)
class CocoConfig(FileConfig):
    """A COCO JSON file.

    Attributes:
        tasks: Tasks that it is read for; each has an equal part of the weight.
    """

    kind: str = field(init=False, default="coco")
    order: ObjectOrder = "random"
    tasks: tuple[str, ...] = ("<OD>",)

    def _open(self, path: Place, image_root: str | None) -> Iterator[tuple[str, Source, float]]:
        for task in self.tasks:
            yield f" {task}", Coco(path, task, image_root), 1.0 / len(self.tasks)


@dataclass(frozen=True, kw_only=True)
class VqaConfig(FileConfig):
    """Questions about images in VQAv2's, TextVQA's or VizWiz's layout.

    Attributes:
        annotations: VQAv2's second file, with the answers.
        image_pattern: an image's file name, such as "COCO_train2014_{image_id:012d}.jpg".
    """

    reader: ClassVar[type[Vqa]] = Vqa

    kind: str = field(init=False, default="vqa")
    annotations: str = ""
    image_pattern: str = ""

    def files(self) -> list[tuple[str, Place]]:
        found = [as_path(path) for path in (self.path, self.annotations) if path]
        return [(str(file), file) for file in found]

    def _open(self, path: Place, image_root: str | None) -> Iterator[tuple[str, Source, float]]:
        yield "", self.reader(path, image_root, self.annotations or None, self.image_pattern), 1.0


@dataclass(frozen=True, kw_only=True)
class DocVqaConfig(VqaConfig):
    """Questions about documents, in DocVQA's layout."""

    reader: ClassVar[type[Vqa]] = DocVqa

    kind: str = field(init=False, default="docvqa")


@dataclass(frozen=True, kw_only=True)
class AnnotationsConfig(FileConfig):
    """Annotations that `florence-jax annotate` wrote.

    Attributes:
        tasks: Tasks to learn, by default all that the annotations answer; each has an equal
            part of the weight. With several `questions` an image, its tasks take turns.
    """

    kind: str = field(init=False, default="annotations")
    order: ObjectOrder = "random"
    tasks: tuple[str, ...] = ()

    @property
    def max_questions(self) -> int:
        return 64

    def files(self) -> list[tuple[str, Place]]:
        path = as_path(self.path)
        copy = local_copy(path, ".jsonl" if path.is_dir() else "")
        files = annotation_files(copy)
        return [(str(path if file == copy else path / file.name), file) for file in files]

    def _open(self, path: Place, image_root: str | None) -> Iterator[tuple[str, Source, float]]:
        tasks = self.tasks or Annotations.tasks_of(path)
        several = self.questions > 1
        for group in Annotations.alike(path, tasks) if several else [(task,) for task in tasks]:
            source = Annotations(path, group, image_root, questions=self.questions)
            yield f" {' '.join(group)}", source, len(group) / len(tasks)


@dataclass(frozen=True, kw_only=True)
class SplitConfig(SourceConfig):
    """The one data set of a folder of a directory in the train/valid/test convention.

    Attributes:
        path: The directory.
        split: The folder. There may be no valid one.
        order: Order of objects in the labels; by default that of the layout.
    """

    kind: str = field(init=False, default=f"{__name__}:SplitConfig")
    path: str
    split: Literal["train", "valid"]
    order: ObjectOrder | None = None

    def open(self, seed: int) -> Iterator[Named]:
        found = self._found()
        if found is not None:
            yield from found.open(seed)

    def files(self) -> list[tuple[str, Place]]:
        found = self._found()
        return [] if found is None else found.files()

    def _found(self) -> SourceConfig | None:
        folder = require_exists(self.path, "data.directory", "directory") / self.split
        if self.split == "valid" and not folder.is_dir():
            return None
        files = sorted(folder.glob("*.jsonl")) or sorted(folder.glob("*coco.json"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "neither"
            raise DataError(
                f"{folder} must hold one .jsonl file, or one *coco.json file, and has {names}; "
                "name the file in data.train or data.valid"
            )
        kind = JsonlConfig if files[0].suffix == ".jsonl" else CocoConfig
        path = str(files[0])
        return kind(path=path) if self.order is None else kind(path=path, order=self.order)


# The layouts by the `kind` that JSON gives them.
KINDS: dict[str, type[SourceConfig]] = {
    "jsonl": JsonlConfig,
    "parquet": ParquetConfig,
    "array_record": ArrayRecordConfig,
    "coco": CocoConfig,
    "vqa": VqaConfig,
    "docvqa": DocVqaConfig,
    "annotations": AnnotationsConfig,
}


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """The opened data sets of a run.

    Attributes:
        train: (name, source, weight) of the training mixture.
        valid: Sources of the validation data by name.
        configs: Settings of the training data sets, that of `data.directory` included.
    """

    train: list[Named]
    valid: dict[str, Source]
    configs: Sequence[SourceConfig]

    @property
    def rows(self) -> int:
        """Rows of all training sources together."""
        return sum(len(source) for _, source, _ in self.train)

    @property
    def notes(self) -> list[str]:
        """Each source's sentences on what it joined, cut or left out, and on texts' fixed order."""
        notes: list[str] = []
        for one in (*(source for _, source, _ in self.train), *self.valid.values()):
            notes += one.notes
            if isinstance(one, Jsonl) and _first_task(one) in UNORDERED_TASKS:
                notes.append(
                    f"{one.path}: things are learnt in the order of its texts; for a new order in "
                    "each epoch set data.order, or name the file in data.train with order: random"
                )
        return list(dict.fromkeys(notes))


def open_data(
    train: Sequence[SourceConfig] = (),
    valid: Sequence[SourceConfig] = (),
    directory: str = "",
    seed: int = 0,
    order: ObjectOrder | None = None,
) -> OpenedData:
    """Open the data sets that a run names.

    Args:
        train, valid, directory, order: as in `florence_jax.training.config.DataConfig`.
        seed: the run's.

    Raises:
        DataError: data sets that cannot be read; the message has a line for each, with the remedy.
    """
    if directory:
        train = (*train, SplitConfig(path=directory, split="train", order=order))
        valid = (*valid, SplitConfig(path=directory, split="valid", order=order))
    opened: list[list[Named]] = [[], []]
    problems: list[DataError] = []
    for configs, found in zip((train, valid), opened, strict=True):
        for config in configs:
            try:
                found += config.open(seed)
            except DataError as error:
                problems.append(error)
    if problems:
        raise DataError("\n".join(dict.fromkeys(map(str, problems)))) from problems[0]
    return OpenedData(
        train=_named_apart(opened[0]),
        valid={name: source for name, source, _ in _named_apart(opened[1])},
        configs=train,
    )


def _named_apart(opened: Iterable[Named]) -> list[Named]:
    """Two files of one name in two directories get names of their own."""
    seen: Counter[str] = Counter()
    apart = []
    for name, source, weight in opened:
        seen[name] += 1
        apart.append((f"{name} #{seen[name]}" if seen[name] > 1 else name, source, weight))
    return apart


def _first_task(source: Jsonl) -> str:
    try:
        return source[0].task
    except DataError:
        return ""
