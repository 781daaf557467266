"""Settings of data sets: one dataclass for each layout, which opens the files that it names."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from florence_jax.annotation.schema import annotation_files
from florence_jax.datasets.layouts import Found, recognise, split_of
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.training.data.annotations import Annotations
from florence_jax.training.data.coco import Coco
from florence_jax.training.data.column_sources import HuggingFaceConfig, WebDatasetConfig
from florence_jax.training.data.example import UNORDERED_TASKS, DataError, ObjectOrder, Source
from florence_jax.training.data.source_config import FileConfig, Named, SourceConfig
from florence_jax.training.data.storage import Place, as_path, local_copy, require_exists
from florence_jax.training.data.tabular import ArrayRecord, Jsonl, Parquet
from florence_jax.training.data.vqa import DocVqa, Vqa

__all__ = ["FileConfig", "HuggingFaceConfig", "Named", "SourceConfig", "WebDatasetConfig"]


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
class ObjectsConfig(CocoConfig):
    """Images with objects in a layout that may hold several splits.

    Attributes:
        split: What selects a split: of yolo a key of data.yaml, of voc a list in ImageSets/Main, of
            cvat a subset; by default everything that is there.
    """

    kind: str = field(init=False, default="")
    split: str = ""

    def files(self) -> list[tuple[str, Place]]:
        return [(str(file), file) for file in self._source(self.tasks[0]).files]

    def _open(self, path: Place, image_root: str | None) -> Iterator[tuple[str, Source, float]]:
        del path, image_root
        part = f" {self.split}" if self.split else ""
        for task in self.tasks:
            yield f"{part} {task}", self._source(task), 1.0 / len(self.tasks)

    def _source(self, task: str) -> Coco:
        root = self.image_root or None
        return Coco(as_path(self.path), task, root, layout=self.kind, split=self.split)


@dataclass(frozen=True, kw_only=True)
class VocConfig(ObjectsConfig):
    """Pascal VOC: a folder with Annotations and JPEGImages, or with both kinds of files."""

    kind: str = field(init=False, default="voc")


@dataclass(frozen=True, kw_only=True)
class YoloConfig(ObjectsConfig):
    """YOLO: the data.yaml of a data set."""

    kind: str = field(init=False, default="yolo")


@dataclass(frozen=True, kw_only=True)
class LabelMeConfig(ObjectsConfig):
    """LabelMe: a folder of its files."""

    kind: str = field(init=False, default="labelme")


@dataclass(frozen=True, kw_only=True)
class LabelStudioConfig(ObjectsConfig):
    """Label Studio: its export JSON or JSON-MIN."""

    kind: str = field(init=False, default="label_studio")


@dataclass(frozen=True, kw_only=True)
class CvatConfig(ObjectsConfig):
    """CVAT: the XML of "CVAT for images 1.1"."""

    kind: str = field(init=False, default="cvat")


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
    """One split of the data set in a directory, in any layout that `recognise` knows.

    Attributes:
        path: The directory.
        split: The split. There may be no valid one.
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
        place = require_exists(self.path, "data.directory", "directory")
        if self.split == "valid" and all(one.split != "valid" for one in splits_at(place)):
            return None
        try:
            found = split_of(splits_at(place), self.split, place)
        except DatasetError as error:
            raise DataError(f"{error} in data.train or data.valid") from None
        return config_of(found, self.order)


# The layouts by the `kind` that JSON gives them.
KINDS: dict[str, type[SourceConfig]] = {
    "jsonl": JsonlConfig,
    "parquet": ParquetConfig,
    "array_record": ArrayRecordConfig,
    "coco": CocoConfig,
    "voc": VocConfig,
    "yolo": YoloConfig,
    "labelme": LabelMeConfig,
    "label_studio": LabelStudioConfig,
    "cvat": CvatConfig,
    "huggingface": HuggingFaceConfig,
    "webdataset": WebDatasetConfig,
    "vqa": VqaConfig,
    "docvqa": DocVqaConfig,
    "annotations": AnnotationsConfig,
}


def splits_at(place: Place) -> list[Found]:
    """The splits of the data set at a place.

    Raises:
        DataError: there is none that is read.
    """
    try:
        return recognise(place)
    except DatasetError as error:
        raise DataError(str(error)) from None


def config_of(found: Found, order: ObjectOrder | None = None) -> SourceConfig:
    """The settings of a split that was recognised.

    Args:
        order: in which labels name objects; by default that of the layout.
    """
    settings: dict[str, Any] = {"path": str(found.path)}
    if found.image_root is not None:
        settings["image_root"] = str(found.image_root)
    if found.part:
        settings["split"] = found.part
    if order is not None:
        settings["order"] = order
    return KINDS[found.kind](**settings)


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
