"""From settings to sources: which class reads which layout."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import get_args

from florence_jax.processing import TASKS
from florence_jax.training.config import DataConfig, SourceConfig
from florence_jax.training.data.annotations import Annotations
from florence_jax.training.data.coco import Coco, CocoTask
from florence_jax.training.data.example import DataError, Source
from florence_jax.training.data.order import UNORDERED_TASKS, Ordered
from florence_jax.training.data.storage import Place, as_path, require_exists
from florence_jax.training.data.tabular import ArrayRecord, Jsonl, Parquet
from florence_jax.training.data.vqa import DocVqa, Vqa
from train.shapes.source import ShapesSource
from train.shapes.world import ShapesWorld

Named = tuple[str, Source, float]


def training_sources(config: DataConfig, seed: int) -> list[Named]:
    """(name, source, weight) of the mixture.

    Raises:
        DataError: a data set that cannot be read; names it and the remedy.
    """
    return _opened(training_configs(config), seed)


def training_configs(config: DataConfig) -> list[SourceConfig]:
    """Every source of the mixture, that of `config.directory` included.

    Raises:
        DataError: the directory does not hold one data set.
    """
    found = list(config.train)
    if config.directory:
        found.append(_in_directory(as_path(config.directory), "train"))
    return found


def valid_sources(config: DataConfig, seed: int) -> dict[str, Source]:
    """Sources of the valid split by name; none where none are named.

    Raises:
        DataError: a data set that cannot be read.
    """
    found = list(config.valid)
    directory = as_path(config.directory)
    if config.directory and (directory / "valid").is_dir():
        found.append(_in_directory(directory, "valid"))
    return {name: source for name, source, _ in _opened(found, seed)}


def _opened(configs: Iterable[SourceConfig], seed: int) -> list[Named]:
    opened, problems = [], []
    for config in configs:
        try:
            opened += _open(config, seed)
        except DataError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError("\n".join(map(str, problems)))
    return _named_apart(opened)


def _named_apart(opened: Iterable[Named]) -> list[Named]:
    """Two files of one name in two directories get names of their own."""
    seen: Counter[str] = Counter()
    apart = []
    for name, source, weight in opened:
        seen[name] += 1
        apart.append((f"{name} #{seen[name]}" if seen[name] > 1 else name, source, weight))
    return apart


def _in_directory(directory: Place, split: str) -> SourceConfig:
    """The one data set of DIRECTORY/SPLIT."""
    folder = require_exists(str(directory), "data.directory", "directory") / split
    files = sorted(folder.glob("*.jsonl")) or sorted(folder.glob("*coco.json"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "neither"
        raise DataError(
            f"{folder} must hold one .jsonl file, or one *coco.json file, and has {names}; name "
            "the file in data.train or data.valid"
        )
    kind = "jsonl" if files[0].suffix == ".jsonl" else "coco"
    return SourceConfig(kind=kind, path=str(files[0]))


def source_notes(sources: Iterable[Source]) -> list[str]:
    """What the sources joined, cut or left out, each sentence once; and texts' fixed order."""
    notes: list[str] = []
    for one in sources:
        inner = one.source if isinstance(one, Ordered) else one
        notes += getattr(inner, "notes", ())
        if isinstance(one, Jsonl) and _first_task(one) in UNORDERED_TASKS:
            notes.append(
                f"{one.path}: things are learnt in the order of its texts; name the file in "
                "data.train with order: random for a new order in each epoch"
            )
    return list(dict.fromkeys(notes))


def _first_task(source: Jsonl) -> str:
    try:
        return source[0].task
    except DataError:
        return ""


def _open(config: SourceConfig, seed: int) -> Iterator[Named]:
    """The sources of one setting, their answers in its order."""
    order = config.order or ("random" if config.kind in ("coco", "annotations") else "as_annotated")
    for name, source, weight in _as_stored(config, seed):
        if isinstance(source, ShapesSource):
            source = replace(source, order=order)
        elif order != "as_annotated":
            source = Ordered(source, order)
        yield name, source, weight


def _as_stored(config: SourceConfig, seed: int) -> Iterator[Named]:
    """The same with answers in the order that each source gives them."""
    root = config.image_root or None
    path = as_path(config.path)
    if config.kind != "shapes":
        path = require_exists(config.path, f"{config.kind} data")
    if config.kind == "coco":
        tasks = config.tasks or ("<OD>",)
        for task in tasks:
            if task not in get_args(CocoTask):
                raise DataError(f"{path}: a COCO file has no {task}, only {get_args(CocoTask)}")
            name = f"{path.parent.name}/{path.name} {task}"
            yield name, Coco(path, task, root), config.weight / len(tasks)
        return
    if config.kind == "annotations":
        tasks = config.tasks or Annotations.tasks_of(path)
        name = f"{path.parent.name}/{path.name}"
        per_picture = config.questions
        groups = Annotations.alike(path, tasks) if per_picture > 1 else [(task,) for task in tasks]
        for group in groups:
            source = Annotations(path, group, root, questions=per_picture)
            yield f"{name} {' '.join(group)}", source, config.weight * len(group) / len(tasks)
        return
    if config.kind == "shapes":
        unknown = [task for task in config.tasks if task not in TASKS]
        if unknown:
            raise DataError(f"shapes: no such task: {unknown}; there are {', '.join(TASKS)}")
        world = ShapesWorld(config=config.scene, seed=seed, split=config.split)
        source = ShapesSource(world, config.scenes, config.tasks or tuple(TASKS), config.questions)
        yield f"shapes-{config.split}", source, config.weight
        return
    if config.tasks:
        raise DataError(f"{path}: tasks are chosen of coco, annotations and shapes alone")
    source: Source
    if config.kind == "jsonl":
        source = Jsonl(path, root)
    elif config.kind == "parquet":
        source = Parquet(path, root)
    elif config.kind == "array_record":
        source = ArrayRecord(path)
    elif config.kind == "docvqa":
        source = DocVqa(path, root, config.annotations or None, config.image_pattern)
    else:
        source = Vqa(path, root, config.annotations or None, config.image_pattern)
    yield f"{path.parent.name}/{path.name}", source, config.weight
