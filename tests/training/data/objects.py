"""An object storage in memory, as its clients show one: keys, no directories, no seeking back."""

import io
from collections import Counter

import fsspec


class Objects(fsspec.AbstractFileSystem):
    """Answers for gs:// in place of gcsfs.

    Attributes:
        contents: bytes by "bucket/key".
        fetched: how often each was opened.
        refuses: raised when one of these keys is opened.
    """

    protocol = ("gcs", "gs")
    cachable = False

    def __init__(self):
        super().__init__()
        self.contents: dict[str, bytes] = {}
        self.fetched: Counter[str] = Counter()
        self.refuses: dict[str, Exception] = {}

    def info(self, path, **options):
        path = self._strip_protocol(path)
        if path in self.contents:
            return {"name": path, "size": len(self.contents[path]), "type": "file"}
        if any(key.startswith(f"{path}/") for key in self.contents):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **options):
        path = self._strip_protocol(path)
        below = {
            "/".join([path, key[len(path) + 1 :].split("/")[0]])
            for key in self.contents
            if key.startswith(f"{path}/")
        }
        found = [self.info(one) for one in sorted(below)] or [self.info(path)]
        return found if detail else [one["name"] for one in found]

    def _open(self, path, mode="rb", **options):
        assert mode == "rb"
        if path in self.refuses:
            raise self.refuses[path]
        self.fetched[path] += 1
        if path not in self.contents:
            raise FileNotFoundError(path)
        return io.BytesIO(self.contents[path])
