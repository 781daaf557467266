"""Features on disk: found by content, whole or not at all, and never another's."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from florence_jax.config import DaViTConfig
from florence_jax.processing import ImageConfig, ImageError, demo_tokenizer
from florence_jax.runtime.directory_lock import DirectoryInUseError, directory_lock
from florence_jax.training.cached_features.store import (
    DTYPES,
    FeaturesError,
    FeatureStore,
    Origin,
    filling,
    key_of,
)
from florence_jax.training.data.example import Example, Source
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.preprocess import Preprocessor
from tests.training.small import CONFIG

ORIGIN = Origin(
    weights="0" * 64, vision=CONFIG.vision, image=ImageConfig(size=(16, 24)), dtype="bfloat16"
)
PICTURES = [Image.new("RGB", (20, 30), (shade, 0, 0)) for shade in range(5)]


def record(number):
    """Features that say whose they are."""
    draw = np.random.default_rng(number)
    return draw.normal(size=ORIGIN.shape).astype(DTYPES[ORIGIN.dtype])


def write(directory, numbers=range(5), *, origin=ORIGIN, rows_of_a_file=2):
    with filling(directory, origin, file_bytes=rows_of_a_file * origin.nbytes) as writer:
        for number in numbers:
            writer.add(key_of(PICTURES[number]), (20, 30), record(number))


def test_what_was_written_is_read_to_the_bit(tmp_path):
    assert ORIGIN.shape == (4, 6, 8)
    assert ORIGIN.nbytes == 4 * 6 * 8 * 2
    write(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    store = FeatureStore(tmp_path, ORIGIN)
    assert len(store) == 5
    for number, picture in enumerate(PICTURES):
        size, features = store.look_up(picture)
        assert size == (20, 30)
        assert features.dtype == DTYPES["bfloat16"]
        assert features.tobytes() == record(number).tobytes()


def test_a_picture_is_known_by_its_content_alone(tmp_path):
    for name, picture in (("a.png", PICTURES[0]), ("b.png", PICTURES[1])):
        picture.save(tmp_path / name)
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "a.png").read_bytes())
    assert key_of(tmp_path / "a.png") == key_of(tmp_path / "copy.jpg")
    assert key_of(tmp_path / "a.png") == key_of((tmp_path / "a.png").read_bytes())
    assert key_of(tmp_path / "a.png") != key_of(tmp_path / "b.png")
    assert key_of(PICTURES[0]) == key_of(PICTURES[0].copy()) != key_of(PICTURES[1])
    # The same bytes of pixels in another shape are another picture.
    assert key_of(PICTURES[0]) != key_of(PICTURES[0].resize((30, 20)))


@pytest.mark.parametrize("ahead", [{"threads": 2}, {"threads": 1, "workers": 1}])
def test_batches_hold_features_in_place_of_pixels(tmp_path, ahead):
    # The last picture has none: a row without weight, as one that cannot be read.
    write(tmp_path / "features", range(4))
    store = FeatureStore(tmp_path / "features", ORIGIN)
    preprocessor = Preprocessor(tokenizer=demo_tokenizer(), image_size=(16, 24), features=store)
    source = Pictures()
    stream = DataLoader(
        sources=(("pictures", source, 1.0),), preprocessor=preprocessor, batch_size=5
    )
    batch = next(stream.batches(0, **ahead))
    images, labels = batch.images, batch.labels
    assert images.shape == (1, 5, *ORIGIN.shape)
    assert images.dtype == DTYPES["bfloat16"]
    assert sorted(batch.ids) == list("01234")
    for place, number in enumerate(map(int, batch.ids)):
        if number < 4:
            assert images[0, place].tobytes() == record(number).tobytes()
            # 10 of 20 pixels across and 15 of 30 down: of the picture's own size, not the tower's.
            text = preprocessor.tokenizer.decode(labels[0, place][labels[0, place] >= 0].tolist())
            assert "<loc_0><loc_0><loc_500><loc_500>" in text
        else:
            assert (labels[0, place] == -100).all()
            assert not images[0, place].any()
    ((id, reason),) = batch.problems
    assert id == "4"
    assert "no features of this image" in reason


class Pictures(Source):
    def __len__(self):
        return len(PICTURES)

    def __getitem__(self, index):
        answer = {"bboxes": [[0, 0, 10, 15]], "labels": ["thing"]}
        return Example(id=str(index), image=PICTURES[index], task="<OD>", prompt="", labels=answer)


def test_a_picture_without_features_is_told_from_one_that_cannot_be_read(tmp_path):
    write(tmp_path, [0])
    store = FeatureStore(tmp_path, ORIGIN)
    with pytest.raises(FeaturesError, match=r"no features of this image.*train\.features"):
        store.look_up(PICTURES[1])
    with pytest.raises(ImageError, match="not an image"):
        store.look_up(b"no picture")
    with pytest.raises(ImageError, match="does not exist"):
        store.look_up(tmp_path / "nowhere.png")


def test_filling_goes_on_and_clears_what_a_kill_left(tmp_path):
    write(tmp_path, [0, 1])
    (tmp_path / ".0123.safetensors.saving").write_bytes(b"half of one")
    with filling(tmp_path, ORIGIN) as writer:
        assert [key_of(picture) in writer for picture in PICTURES] == [True] * 2 + [False] * 3
        writer.add(key_of(PICTURES[2]), (20, 30), record(2))
        assert key_of(PICTURES[2]) in writer
        assert len(writer) == 2, "on disk"
    assert len(writer) == 3
    assert not list(tmp_path.glob(".*"))
    assert len(FeatureStore(tmp_path, ORIGIN)) == 3


def test_one_process_fills_at_a_time(tmp_path):
    write(tmp_path, [0])
    with (
        directory_lock(tmp_path),
        pytest.raises(DirectoryInUseError, match="another process is writing to"),
    ):
        write(tmp_path, [1])
    write(tmp_path, [1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": "1" * 64}, f"weights was '{'0' * 64}' and is '{'1' * 64}'"),
        ({"dtype": "float32"}, "dtype was 'bfloat16' and is 'float32'"),
        ({"image": ImageConfig(size=(16, 16))}, "image.size was [16, 24] and is [16, 16]"),
        ({"image": ImageConfig(size=(16, 24), resample=2)}, "image.resample was 3 and is 2"),
        (
            {"vision": DaViTConfig(**vars(CONFIG.vision) | {"window_size": 8})},
            "vision.window_size was 4 and is 8",
        ),
    ],
)
def test_another_origin_is_refused_by_name(tmp_path, change, named):
    write(tmp_path, [0])
    other = dataclasses.replace(ORIGIN, **change)
    for use in (lambda: FeatureStore(tmp_path, other), lambda: write(tmp_path, origin=other)):
        with pytest.raises(FeaturesError) as raised:
            use()
        assert named in str(raised.value)
        assert "name another directory as data.cached_features" in str(raised.value)
    assert len(FeatureStore(tmp_path, ORIGIN)) == 1


def test_a_directory_without_features_says_what_makes_them(tmp_path):
    with pytest.raises(FeaturesError, match=r"holds no features.*python -m train\.features"):
        FeatureStore(tmp_path / "nowhere", ORIGIN)


def test_files_of_another_origin_are_not_believed(tmp_path):
    other = dataclasses.replace(ORIGIN, weights="1" * 64)
    write(tmp_path / "mine", [0])
    write(tmp_path / "others", [1], origin=other)
    (file,) = (tmp_path / "others").glob("*.safetensors")
    file.rename(tmp_path / "mine" / file.name)
    store = FeatureStore(tmp_path / "mine", ORIGIN)
    store.look_up(PICTURES[0])
    with pytest.raises(FeaturesError, match="is damaged at row 0"):
        store.look_up(PICTURES[1])


def test_no_damage_goes_unnoticed(tmp_path):
    """Every bit of a small file flipped in turn, and the file cut at every byte."""
    write(tmp_path, [0, 1])
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    expected = {number: record(number).tobytes() for number in (0, 1)}

    def damaged(content):
        """Whether a reader is told; what it is given anyway must be right."""
        file.write_bytes(content)
        noticed = False
        try:
            store = FeatureStore(tmp_path, ORIGIN)
        except FeaturesError:
            return True
        for number in (0, 1):
            try:
                size, features = store.look_up(PICTURES[number])
            except FeaturesError:
                noticed = True
                continue
            assert size == (20, 30)
            assert features.tobytes() == expected[number]
        return noticed

    assert not damaged(content)
    header = 8 + int.from_bytes(content[:8], "little")
    draw = np.random.default_rng(0)
    flips = [*range(header), *draw.integers(header, len(content), 300)]
    for position in flips:
        changed = bytearray(content)
        changed[position] ^= 1 << int(draw.integers(8))
        # Spaces that pad the header mean nothing, and a flip may leave them what they are to JSON.
        assert damaged(bytes(changed)) or position < header
    for length in draw.integers(0, len(content), 100):
        assert damaged(content[:length])
