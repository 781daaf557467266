"""The sources of a run's training and validation data, opened and named."""

from collections import Counter
from collections.abc import Iterable

from florence_jax.training.config import DataConfig
from florence_jax.training.data.example import UNORDERED_TASKS, DataError, Source
from florence_jax.training.data.sources import CocoConfig, JsonlConfig, Named, SourceConfig
from florence_jax.training.data.storage import Place, as_path, require_exists
from florence_jax.training.data.tabular import Jsonl


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
            opened += config.open(seed)
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
    kind = JsonlConfig if files[0].suffix == ".jsonl" else CocoConfig
    return kind(path=str(files[0]))


def source_notes(sources: Iterable[Source]) -> list[str]:
    """What the sources joined, cut or left out, each sentence once; and texts' fixed order."""
    notes: list[str] = []
    for one in sources:
        notes += one.notes
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
