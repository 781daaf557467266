"""5,000 corrupt pictures among 8,000: the quarantine holds those that nobody can read, no other.

pytest -m faults -s tests/training/test_corrupt_images.py
"""

import collections
import dataclasses
import io
import json
import random
import time

import numpy as np
import pytest
from PIL import Image

from florence_jax.runtime.jsonl import read_lines
from florence_jax.training.config import EvaluationConfig, ExportConfig, LoggingConfig
from florence_jax.training.data.loader import make_loader
from florence_jax.training.data.preprocess import make_preprocessor
from florence_jax.training.data.sources import JsonlConfig, open_data
from florence_jax.training.loop import Outcome, train
from florence_jax.training.pretrained import prepare_pretrained
from tests.training.runs import a_config, lines

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("compiled_on_disk"),
    # Pillow warns of some damage that it can read, and a run takes warnings as what they are.
    pytest.mark.filterwarnings("ignore"),
]

ROWS, CORRUPT, BATCH = 8000, 5000, 200
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def test_the_quarantine_holds_exactly_what_cannot_be_read(tmp_path):
    begun = time.monotonic()
    rng = random.Random(0)
    clean, damaged = tmp_path / "clean", tmp_path / "damaged"
    for folder in (clean, damaged):
        folder.mkdir()
        rows = (
            {"image": f"{n}.picture", "prefix": "<CAPTION>", "suffix": f"{n:04d}"}
            for n in range(ROWS)
        )
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds: collections.Counter[str] = collections.Counter()
    unreadable = set()
    corrupt = set(rng.sample(range(ROWS), CORRUPT))
    for number in range(ROWS):
        content = a_picture(rng)
        (clean / f"{number}.picture").write_bytes(content)
        if number in corrupt:
            kind = rng.choice(list(DAMAGES))
            content = DAMAGES[kind](content, rng)
            if not readable(content):
                unreadable.add(number)
                kinds[kind] += 1
        (damaged / f"{number}.picture").write_bytes(content)

    config = a_run(tmp_path / "run", damaged)
    assert train(config) is Outcome.DONE
    found = list(read_lines(tmp_path / "run" / "quarantine.jsonl"))
    assert sorted(int(row["id"].rpartition(":")[2]) for row in found) == sorted(unreadable)

    # Batch by batch, what the run has seen is what it would have seen without any damage.
    whole = a_run(tmp_path / "other", clean)
    undisturbed = make_loader(
        whole,
        make_preprocessor(whole.data, prepare_pretrained(whole, tmp_path / "processor")),
        open_data(whole.data.train, seed=whole.seed).train,
    )
    seen = []
    for row in lines(tmp_path / "run", "train"):
        batch = undisturbed.batch(row["step"] - 1)
        numbers = [int(id.rpartition(":")[2]) for id in batch.ids]
        kept = np.array([number not in unreadable for number in numbers])
        assert row["examples"] == kept.sum()
        assert row["tokens"] == (batch.labels[0][kept] != -100).sum()
        seen += numbers
    assert sorted(seen) == list(range(ROWS))
    minutes = (time.monotonic() - begun) / 60
    print(
        f"\n{CORRUPT} of {ROWS} pictures corrupted, {len(unreadable)} unreadable and in quarantine"
    )
    print(f"{minutes:.0f} min, by damage: {dict(kinds)}")


def a_run(directory, data):
    """One epoch."""
    source = JsonlConfig(path=str(data / "rows.jsonl"))
    config = a_config(directory, steps=ROWS // BATCH, train=(source,))
    return dataclasses.replace(
        config,
        batch_size=BATCH,
        data=dataclasses.replace(config.data, quarantine_share=0.9, image_size=(16, 16), valid=()),
        evaluation=EvaluationConfig(every=0),
        logging=LoggingConfig(every=1, tensorboard=False),
        export=ExportConfig(at_end=False),
    )


def readable(content):
    """As anybody would find out who has Pillow, and no memory for a file that claims gigabytes."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.convert("RGB").load()
            return picture.width * picture.height <= 100_000_000
    except Exception:
        return False


def a_picture(rng):
    side = (rng.randrange(8, 40), rng.randrange(8, 40), 3)
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, side, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, rng.choice(FORMATS))
    return stream.getvalue()


def flipped(content, rng):
    damaged = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwritten(content, rng):
    start = rng.randrange(len(content))
    length = rng.randrange(1, 200)
    return content[:start] + rng.randbytes(length) + content[start + length :]


DAMAGES = {
    "flipped bits": flipped,
    "flipped header": lambda content, rng: flipped(content[:40], rng) + content[40:],
    "cut short": lambda content, rng: content[: rng.randrange(len(content))],
    "overwritten": overwritten,
    "zeros within": lambda content, rng: content[: len(content) // 2] + bytes(len(content) // 2),
    "another start": lambda content, rng: rng.randbytes(8) + content[8:],
    "text": lambda content, rng: b"<html>404</html>",
    "empty": lambda content, rng: b"",
}
