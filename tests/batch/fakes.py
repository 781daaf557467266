"""A job and pictures that cost nothing, for what has nothing to do with a model."""

import threading

import numpy as np
from PIL import Image

from florence_jax.batch.job import Item
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.processing import ImageConfig


class SumOfPixels:
    """Rows `{"width", "sum"}`; counts its calls, and can be told to stumble over an item."""

    def __init__(self, name="sum", on_item=None):
        self.fingerprint = {"kind": name, "settings": {"power": 1}}
        self.image_config = ImageConfig(size=(4, 4))
        self.activity = DeviceStats()
        self.seen = []
        self._on_item = on_item or (lambda item: None)
        self._lock = threading.Lock()

    def __call__(self, loaded):
        rows = []
        for one in loaded:
            self._on_item(one.item)
            with self._lock:
                self.seen.append(one.item.id)
            assert one.pixels.shape == (4, 4, 3)
            rows.append({"width": one.size[0], "sum": int(one.pixels.sum(dtype=np.int64))})
        self.activity.add_tokens(len(rows))
        return rows


def write_pictures(folder, count, size=(6, 5), broken=()):
    """`count` random pictures 000.png, 001.png, ..., some of which are no pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    paths = []
    for number in range(count):
        path = folder / f"{number:03}.png"
        pixels = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
        if number in broken:
            path.write_bytes(b"no picture")
        else:
            Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def items_of(paths):
    """An item of each picture, named by its file."""
    return [Item(id=path.name, image=str(path)) for path in paths]
