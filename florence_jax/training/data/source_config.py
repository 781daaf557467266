"""The bases of data sets' settings: any source of a mixture, and one in files."""

import pkgutil
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import ClassVar

from florence_jax.training.checked import Checked, did_you_mean
from florence_jax.training.data.example import ObjectOrder, Ordered, Source
from florence_jax.training.data.storage import Place, as_path, require_exists

Named = tuple[str, Source, float]


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Checked):
    """One data set of a mixture. Each layout is a subclass, and a program may bring its own.

    Attributes:
        kind: The layout, by which JSON chooses the class: jsonl, parquet and array_record hold rows
            `image, prefix, suffix`; huggingface and webdataset rows with columns of any name;
            coco, voc, yolo, labelme, label_studio and cvat hold images with objects; vqa and
            docvqa are questions about images; annotations are what `florence-jax annotate` wrote.
            Any other class is "module:Class", which is imported.
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
        from florence_jax.training.data.sources import KINDS

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
