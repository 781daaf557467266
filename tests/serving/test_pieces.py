"""What a server is made of, each piece alone: places, images that are kept, lengths of answers."""

import gc
import io

import numpy as np
import pytest
from PIL import Image

from florence_jax.inference.requests import Request
from florence_jax.processing import ImageError
from florence_jax.serving.admission import Admission
from florence_jax.serving.answer_lengths import LONG, SHORT, AnswerLengths
from florence_jax.serving.errors import ServingError
from florence_jax.serving.image_cache import ImageCache
from florence_jax.serving.settings import ServerSettings
from tests.random_pipeline import small_pipeline


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def engine():
    return small_pipeline().engine(batch_size=1)


def encoded(engine, image):
    list(engine.run([Request(image=image.cached, prompt="<CAPTION>")], on_error="raise"))
    return image


class TestImageCache:
    def test_images_are_known_by_their_content(self, engine):
        cache = ImageCache(engine, 1 << 20, 1000)
        first = cache.read(png(0))
        assert cache.read(bytes(bytearray(png(0)))) is first
        assert cache.read(png(1)) is not first
        assert (cache.hits, cache.misses) == (1, 2)

    def test_bytes_are_bounded_and_the_oldest_goes_first(self, engine):
        cache = ImageCache(engine, 1 << 30, 1000)
        first, second, third = (encoded(engine, cache.read(png(seed))) for seed in range(3))
        for image in (first, second):
            cache.keep(image)
        assert first.cached.pixels.size == 0, "only features are kept"
        assert cache.nbytes == 2 * first.cached.encoded.features.nbytes
        cache._max_bytes = cache.nbytes
        assert cache.read(png(0)) is first
        cache.keep(third)
        assert cache.nbytes == 2 * first.cached.encoded.features.nbytes
        del second, image
        gc.collect()
        misses = cache.misses
        assert cache.read(png(0)) is first
        cache.read(png(1))
        assert cache.misses == misses + 1, "the second was asked about longest ago"

    def test_without_room_images_in_use_are_shared(self, engine):
        cache = ImageCache(engine, 0, 1000)
        image = encoded(engine, cache.read(png(0)))
        cache.keep(image)
        assert cache.nbytes == 0
        assert cache.read(png(0)) is image
        del image
        gc.collect()
        cache.read(png(0))
        assert cache.misses == 2

    def test_pixels_are_counted_before_they_are_decoded(self, engine):
        with pytest.raises(ImageError, match="max_pixels=63"):
            ImageCache(engine, 0, 63).read(png(0))


class TestAdmission:
    def test_places_are_bounded(self):
        admission = Admission(3)
        admission.take(2)
        with pytest.raises(ServingError) as full:
            admission.take(2)
        assert full.value.status == 503
        assert int(full.value.headers["Retry-After"]) >= 1
        admission.free()
        admission.take(2)
        assert admission.under_way == 3
        with pytest.raises(ServingError) as never:
            admission.take(4)
        assert never.value.status == 422


def test_tasks_move_between_queues_with_their_answers():
    lengths = AnswerLengths()
    assert lengths.queue_of("<OD>") == LONG
    lengths.add("<OD>", 10)
    assert lengths.queue_of("<OD>") == SHORT
    for _ in range(10):
        lengths.add("<OD>", 100)
    assert lengths.queue_of("<OD>") == LONG


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"max_delay": -1}, "max_delay is -1"),
        ({"max_queue": float("nan")}, "max_queue is nan"),
        ({"api_key": ""}, "API key is empty"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ServerSettings(**settings)


def test_a_key_is_not_shown():
    assert "secret" not in repr(ServerSettings(api_key="secret"))
