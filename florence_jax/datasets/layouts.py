"""Recognise in what layout a file or folder holds a data set, and which splits it has.

The trainer, the evaluation and `florence-jax data check` all ask `recognise`, so that one folder is
the same data set to all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from florence_jax.datasets.json_layouts import kind_of_json
from florence_jax.datasets.text_rows import DatasetError
from florence_jax.runtime.text_file import TextFileError, decode, parse_json

# What people call the splits.
SPLITS: dict[str, str] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
_INSTANCES = re.compile(r"(?:instances_)?(.+?)\.json")
# Files in a folder that are looked into for their layout.
_LOOKED_AT = 8
_EXPECTED = (
    "expected train/ and valid/ folders or a folder of one split, with a .jsonl of image, prefix, "
    "suffix, a *coco.json, Pascal VOC's .xml, a YOLO data.yaml, LabelMe's .json, CVAT's "
    "annotations.xml, a Label Studio export, .parquet, .array_record or .tar files, or a saved "
    "Hugging Face data set"
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One split of a data set.

    Attributes:
        kind: the layout, as settings name it.
        path: the file or folder that a source of this kind reads.
        split: "train", "valid" or "test"; another name as it is; "" where there are no splits.
        image_root: the folder that image names start from, where it is not the file's own.
        part: what selects the split within `path`, where several are in it.
    """

    kind: str
    path: Any
    split: str = ""
    image_root: Any = None
    part: str = ""


def recognise(path: Any) -> list[Found]:
    """The splits of the data set at `path`, in the order train, valid, test, others.

    Args:
        path: a `pathlib.Path`, or an `etils.epath.Path` of a bucket.

    Raises:
        DatasetError: there is nothing, or nothing that is read.
    """
    if path.is_dir():
        found = list(_folder(path))
        if not found:
            raise _nothing(path, _names(path))
    elif path.exists():
        found = [_file(path)]
    else:
        raise DatasetError(f"there is no file or folder {path}")
    known = ["train", "valid", "test"]
    return sorted(found, key=lambda one: known.index(one.split) if one.split in known else 3)


def split_of(found: Sequence[Found], split: str, where: Any) -> Found:
    """The split of that name.

    Raises:
        DatasetError: there is none, or there are several.
    """
    chosen = [one for one in found if one.split == SPLITS.get(split, split)]
    if len(chosen) == 1:
        return chosen[0]
    has = ", ".join(one.split or one.path.name for one in found)
    problem = "no split" if not chosen else f"{len(chosen)} data sets of the split"
    raise DatasetError(f"{where} has {problem} {split!r}, it has {has}: name the file itself")


def normal_split(name: str) -> str:
    """ "valid" for "val" and so on; any other name as it is."""
    return SPLITS.get(name.lower(), name)


def _file(path: Any) -> Found:
    name = path.name.lower()
    for ending, kind in _ENDINGS.items():
        if name.endswith(ending):
            return Found(kind=kind, path=path)
    if name.endswith(".jsonl"):
        return Found(kind=_kind_of_lines(path), path=path)
    if name.endswith((".json", ".xml")):
        kind = _kind_of_json(path) if name.endswith(".json") else _kind_of_xml(path)
        if kind is not None:
            return Found(kind=kind, path=path)
    if name.endswith((".yaml", ".yml")):
        raise DatasetError(f"{path} holds several splits of a YOLO data set: name its folder")
    raise DatasetError(f"{path} is no data set that is read: {_EXPECTED}")


_ENDINGS = {
    ".parquet": "parquet",
    ".array_record": "array_record",
    ".tar": "webdataset",
    ".coco.json": "coco",
}


def _folder(path: Any) -> Iterator[Found]:
    names = _names(path)
    for read in (_yolo, _voc, _coco_annotations, _saved):
        found = list(read(path, names))
        if found:
            yield from found
            return
    splits = [name for name in names if normal_split(name) in ("train", "valid", "test")]
    splits = [name for name in splits if (path / name).is_dir()]
    for name in splits:
        inside = _names(path / name)
        one = _single(path / name, inside)
        if one is not None:
            yield replace(one, split=normal_split(name))
        # Test images are often published without their answers; the other splits are needed.
        elif normal_split(name) != "test":
            raise _nothing(path / name, inside)
    if not splits:
        one = _single(path, names)
        if one is not None:
            yield one


def _nothing(path: Any, names: Sequence[str]) -> DatasetError:
    listed = ", ".join(names[:8]) or "nothing"
    return DatasetError(f"{path} holds no data set that is read, but {listed}: {_EXPECTED}")


def _single(path: Any, names: Sequence[str]) -> Found | None:
    """The one data set of a folder without splits."""
    for ending in (".jsonl", "coco.json"):
        files = [name for name in names if name.endswith(ending)]
        if len(files) == 1:
            file = path / files[0]
            return _file(file) if ending == ".jsonl" else Found(kind="coco", path=file)
        if files:
            raise DatasetError(
                f"{path} must hold one {'.jsonl' if ending == '.jsonl' else '*coco.json'} file, "
                f"and has {', '.join(files)[:200]}; name the file itself"
            )
    for ending, kind in _ENDINGS.items():
        files = [name for name in names if name.endswith(ending)]
        if files:
            return Found(kind=kind, path=path if len(files) > 1 else path / files[0])
    files = [name for name in names if name.lower().endswith(".xml")]
    for name in files[:_LOOKED_AT]:
        kind = _kind_of_xml(path / name)
        if kind == "cvat":
            return Found(kind=kind, path=path / name)
        if kind == "voc":
            return Found(kind=kind, path=path)
    files = [name for name in names if name.lower().endswith(".json")]
    for name in files[:_LOOKED_AT]:
        kind = _kind_of_json(path / name)
        if kind == "labelme":
            return Found(kind=kind, path=path)
        if kind is not None:
            return Found(kind=kind, path=path / name)
    return None


def _yolo(path: Any, names: Sequence[str]) -> Iterator[Found]:
    """A file that names classes and the folders of splits."""
    import yaml

    for name in names:
        if not name.endswith((".yaml", ".yml")):
            continue
        try:
            content = yaml.safe_load(decode(_bytes(path / name), str(path / name)))
        except (yaml.YAMLError, TextFileError) as error:
            line = " ".join(str(error).split())
            raise DatasetError(f"{path / name} is not YAML: {line:.200}") from None
        if isinstance(content, Mapping) and "names" in content:
            splits = [key for key in content if key in SPLITS and content[key]]
            for key in splits:
                yield Found(kind="yolo", path=path / name, split=normal_split(key), part=key)
            if splits:
                return


def _voc(path: Any, names: Sequence[str]) -> Iterator[Found]:
    """VOCdevkit's folders: Annotations, JPEGImages, and lists of names in ImageSets/Main."""
    if "Annotations" not in names:
        return
    if not any(name.lower().endswith(".xml") for name in _names(path / "Annotations")):
        return
    lists = path / "ImageSets" / "Main"
    listed = _names(lists) if lists.is_dir() else []
    # The other lists are of one class each, and trainval is train and val together.
    parts = [name[:-4] for name in listed if name.endswith(".txt") and name[:-4] in SPLITS]
    if not parts and "trainval.txt" in listed:
        parts = ["trainval"]
    for part in parts:
        yield Found(kind="voc", path=path, split=normal_split(part), part=part)
    if not parts:
        yield Found(kind="voc", path=path)


def _coco_annotations(path: Any, names: Sequence[str]) -> Iterator[Found]:
    """COCO's own folders, and CVAT's export in COCO's layout: annotations/instances_NAME.json."""
    folder = path / "annotations"
    if "annotations" not in names or not folder.is_dir():
        return
    files = [name for name in _names(folder) if name.endswith(".json")]
    # Beside instances there may be captions and key points of the same images.
    files = [name for name in files if name.startswith("instances_")] or files
    for name in files:
        if not name.startswith("instances_") and _kind_of_json(folder / name) != "coco":
            continue
        matched = _INSTANCES.fullmatch(name)
        part = matched[1] if matched else name
        roots = [path / "images" / part, path / part, path / "images", path]
        root = next((one for one in roots if one.is_dir()), path)
        split = "" if part == "default" else normal_split(re.sub(r"\d{4}$", "", part))
        yield Found(kind="coco", path=folder / name, split=split, image_root=root)


def _saved(path: Any, names: Sequence[str]) -> Iterator[Found]:
    """What `save_to_disk` of Hugging Face's `datasets` wrote."""
    if "dataset_dict.json" in names:
        for name in names:
            if (path / name).is_dir() and "state.json" in _names(path / name):
                yield Found(kind="huggingface", path=path, split=normal_split(name), part=name)
    elif "state.json" in names and "dataset_info.json" in names:
        yield Found(kind="huggingface", path=path)


def _kind_of_lines(path: Any) -> str:
    """Annotations of `florence-jax annotate` have sides and texts; all else is taken for rows."""
    with path.open("rb") as stream:
        line = stream.readline()
    try:
        row = parse_json(line, str(path)) if line.strip() else None
    except TextFileError:
        return "jsonl"  # which names the line and the fault
    is_annotation = isinstance(row, dict) and {"schema", "width", "height"} <= row.keys()
    return "annotations" if is_annotation else "jsonl"


def _kind_of_json(path: Any) -> str | None:
    try:
        return kind_of_json(parse_json(_bytes(path), str(path)))
    except TextFileError as error:
        raise DatasetError(str(error)) from None


def _kind_of_xml(path: Any) -> str | None:
    """By the root element, which is in the first bytes."""
    with path.open("rb") as stream:
        text = stream.read(4096).decode("utf-8", "replace")
    root = re.search(r"<(?![?!])\s*(\w+)", text)
    return {"annotation": "voc", "annotations": "cvat"}.get(root[1]) if root else None


def _bytes(path: Any) -> bytes:
    with path.open("rb") as stream:
        return stream.read()


def _names(folder: Any) -> list[str]:
    """Names in a folder, without hidden files and the doubles that macOS adds to archives."""
    names = (one.name for one in folder.iterdir())
    return sorted(name for name in names if not name.startswith((".", "__MACOSX")))
