"""Find the image file of an annotation whose file name is written differently."""

from __future__ import annotations

import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class ImageNames:
    """File names of one annotation file, below one folder.

    Args:
        names: every name of the file: a folder in front of a name may be left out where no two
            names end alike.
    """

    def __init__(self, names: Iterable[str]):
        ends = Counter(_last_part(name) for name in set(names))
        self._unlike = all(count == 1 for count in ends.values())

    def existing(self, root: Path, name: str) -> str:
        """The name below `root` of the file that `name` means; `name` itself if there is none.

        Tried are the name as it is, with / for \\, with percent-encoding resolved, in the other
        Unicode form, and without its folders.
        """
        for candidate in self._candidates(name):
            try:
                if (root / candidate).is_file():
                    return candidate
            except (OSError, ValueError):  # too long, or half of a surrogate pair
                continue
        return name

    def _candidates(self, name: str) -> list[str]:
        found = [name]
        if "://" in name:
            found.append(urllib.parse.urlsplit(name).path.lstrip("/"))
        if "\\" in name:
            found.append(name.replace("\\", "/"))
        if "%" in name:
            found += [urllib.parse.unquote(one) for one in found]
        found += [unicodedata.normalize(form, one) for one in found for form in ("NFC", "NFD")]
        if self._unlike:
            found += [end for one in found if (end := _last_part(one)) not in ("", ".", "..")]
        return list(dict.fromkeys(found))


def coco_file_names(content: Any) -> list[str]:
    """The file names in a COCO file whose layout is not checked yet."""
    images = content.get("images") if isinstance(content, dict) else None
    entries = images if isinstance(images, list) else []
    names = [entry.get("file_name") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str)]


def _last_part(name: str) -> str:
    if "://" in name:
        name = name.partition("?")[0]
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]
