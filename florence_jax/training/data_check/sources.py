"""Open what `florence-jax data check` is asked about: files, folders, or settings of a source."""

from __future__ import annotations

from pathlib import Path

from florence_jax.datasets.layouts import normal_split
from florence_jax.runtime.text_file import TextFileError, parse_json
from florence_jax.training.config_loader import SettingsError, from_tree
from florence_jax.training.data.example import DataError, Source
from florence_jax.training.data.source_config import SourceConfig
from florence_jax.training.data.sources import config_of, splits_at
from florence_jax.training.data.storage import as_path
from florence_jax.training.data_check.split import Split


def open_splits(text: str) -> list[Split]:
    """The splits of a data set, opened; one that is refused has the fault and no rows.

    Splits of one data set are a group, and so are all files that hold one split each.

    Args:
        text: a file, folder or URL in any layout that `recognise` knows; or the settings of a
            source as JSON, as `--data.train` has them in its list.

    Raises:
        DataError: there is nothing, or no layout that is known.
        ValueError: the settings are wrong.
    """
    if text.lstrip().startswith("{"):
        config = _settings(text)
        path = getattr(config, "path", "") or config.kind
        name = getattr(config, "split", "")
        return [_opened(config, normal_split(name or Path(path).stem), path)]
    found = splits_at(as_path(text))
    group = text if len(found) > 1 else ""
    return [
        _opened(config_of(one), one.split or normal_split(one.path.stem), str(one.path), group)
        for one in found
    ]


def _settings(text: str) -> SourceConfig:
    try:
        tree = parse_json(text, "SOURCE")
        return from_tree(SourceConfig, tree, partial=True)
    except (TextFileError, SettingsError) as error:
        raise ValueError(str(error)) from None


def _opened(config: SourceConfig, name: str, path: str, group: str = "") -> Split:
    sources: list[Source] = []
    refused = None
    try:
        sources = [source for _, source, _ in config.open(0)]
    except DataError as error:
        refused = str(error)
    split = Split(name=name, layout=config.kind, path=path, group=group, sources=sources)
    if refused is not None:
        split.fault("refused", path, refused)
    split.listed = list(dict.fromkeys(label for one in sources for label in one.labels))
    split.faults += {one: None for source in sources for one in source.faults}
    split.notes += dict.fromkeys(note for source in sources for note in source.notes)
    return split
