"""The engine's stream and its dynamic batches, with a clock that the test moves."""

import threading

import numpy as np
import pytest
from PIL import Image

from florence_jax.demo import SHAPES
from florence_jax.inference.batching import Batcher
from florence_jax.inference.requests import DecodedImage, Request
from florence_jax.inference.scheduler import BatchScheduler, Clock
from florence_jax.processing import ImageError
from tests.inference.counting import counted_images
from tests.inference.results import assert_close
from tests.random_pipeline import small_pipeline

SCENE = SHAPES / "scenes" / "test" / "000200.png"
ROWS = 4


class ManualClock(Clock):
    """Stands still until `advance`; who waits is woken by that or by a change alone."""

    def __init__(self):
        self.seconds = 0.0
        self.waited = threading.Semaphore(0)
        self._condition = None

    def now(self):
        return self.seconds

    def wait(self, condition, seconds):
        self._condition = condition
        self.waited.release()
        condition.wait()

    def advance(self, seconds):
        assert self.waited.acquire(timeout=60)
        with self._condition:
            self.seconds += seconds
            self._condition.notify()


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


def picture(seed):
    blocks = np.random.default_rng(seed).integers(0, 255, (2, 3, 3), np.uint8)
    return np.kron(blocks, np.ones((20, 20, 1), np.uint8))


def requests_about(count):
    """Two requests about each picture, and three tasks in turn."""
    tasks = ("<CAPTION>", "<REGION_PROPOSAL>", "<OCR>")
    pictures = [picture(number) for number in range(count)]
    return [
        Request(image=pictures[number // 2], prompt=tasks[number % 3]) for number in range(count)
    ]


class TestBatcher:
    def test_a_full_batch_leaves_at_once(self):
        batcher = Batcher(2)
        assert batcher.enqueue("a", 16) is None
        assert batcher.enqueue("b", 32) is None
        assert batcher.enqueue("c", 16) == ["a", "c"]
        assert batcher.flush() == [["b"]]
        assert batcher.flush() == []

    def test_kinds_fill_batches_of_their_own_and_share_what_is_left(self):
        batcher = Batcher(3)
        items = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b"), ("a3", "a"), ("a4", "a")]
        full = [batcher.enqueue(item, 16, kind) for item, kind in items]
        assert [batch for batch in full if batch] == [["a1", "a2", "a3"]]
        assert batcher.flush() == [["a4", "b1", "b2"]]

    def test_a_batch_is_due_when_its_oldest_item_has_waited(self):
        clock = ManualClock()
        batcher = Batcher(8, max_wait=2.0, now=clock.now)
        assert batcher.seconds_left() is None
        for seconds, item, key in ((0.0, "a", 16), (1.0, "b", 32), (1.5, "c", 16)):
            clock.seconds = seconds
            batcher.enqueue(item, key)
        assert batcher.due() == []
        assert batcher.seconds_left() == 0.5
        clock.seconds = 2.0
        assert batcher.due() == [["a", "c"]]
        assert batcher.seconds_left() == 1.0
        clock.seconds = 3.5
        assert batcher.due() == [["b"]]
        assert batcher.seconds_left() is None


class TestScheduler:
    def test_batches_leave_when_full_or_late_and_at_the_end(self):
        clock, left, arrived = ManualClock(), [], threading.Semaphore(0)

        def launch(batch):
            left.append(batch)
            arrived.release()

        scheduler = BatchScheduler(launch, 2, 5.0, clock)
        scheduler.submit("a", 16)
        scheduler.submit("b", 16)
        assert arrived.acquire(timeout=60)
        assert left == [["a", "b"]]
        scheduler.submit("c", 16)
        clock.advance(4.0)
        clock.advance(1.0)
        while not arrived.acquire(timeout=0.01):
            clock.advance(1.0)
        assert left[1:] == [["c"]]
        scheduler.submit("d", 32)
        scheduler.close()
        assert left[2:] == [["d"]]
        with pytest.raises(RuntimeError, match="is closed"):
            scheduler.submit("e", 16)


def test_submitted_requests_are_answered_as_a_stream_is(pipeline):
    requests = requests_about(ROWS + 1)
    expected = list(pipeline.engine(batch_size=ROWS).run(requests))
    # The last one leaves when the engine is left: nobody moves the clock.
    with (
        counted_images() as encoded,
        pipeline.engine(batch_size=ROWS, max_wait=1.0, clock=ManualClock()) as engine,
    ):
        futures = [engine.submit(request) for request in requests]
    responses = [future.result(timeout=60) for future in futures]
    assert [one.ids for one in responses] == [one.ids for one in expected]
    assert_close([one.result for one in responses], [one.result for one in expected])
    assert sum(encoded) == 3, "two requests share a picture"


def test_a_submitted_request_does_not_wait_for_ever(pipeline):
    clock = ManualClock()
    with pipeline.engine(batch_size=ROWS, max_wait=1.0, clock=clock) as engine:
        future = engine.submit(Request(image=picture(0), prompt="<CAPTION>"))
        while not future.running() and not future.done():
            clock.advance(0.25)
        assert list(future.result(timeout=60).result) == ["<CAPTION>"]
        assert clock.seconds >= 1.0


def test_an_error_is_its_requests_own(pipeline):
    good = Request(image=picture(0), prompt="<CAPTION>")
    bad = {
        "is not an image": Request(image=b"no image", prompt="<CAPTION>"),
        "did you mean": Request(image=picture(0), prompt="<CAPTON>"),
        "too long": Request(image=picture(0), prompt="What is " + "very " * 900),
        "constrained": Request(image=picture(0), prompt="<OD>", labels=["cat"]),
    }
    asked = [good, *bad.values(), good]
    with pipeline.engine(batch_size=ROWS) as engine:
        futures = [engine.submit(request) for request in asked]
    streamed = list(engine.run(asked))
    for found in ([future.exception(timeout=60) for future in futures], streamed):
        for error, message in zip(found[1:-1], bad, strict=True):
            assert isinstance(error, ValueError)
            assert message in str(error)
    assert streamed[0].result == streamed[-1].result == futures[0].result().result
    with pytest.raises(ImageError):
        list(engine.run(asked, on_error="raise"))


def test_a_cancelled_request_is_not_answered(pipeline):
    clock = ManualClock()
    with pipeline.engine(batch_size=ROWS, max_wait=1.0, clock=clock) as engine:
        cancelled, kept = (engine.submit(request) for request in requests_about(2))
        assert cancelled.cancel()
    assert kept.result(timeout=60)
    assert cancelled.cancelled()


def test_requests_are_submitted_to_an_engine_that_was_entered(pipeline):
    engine = pipeline.engine()
    with pytest.raises(RuntimeError, match="within `with engine:`"):
        engine.submit(Request(image=picture(0), prompt="<CAPTION>"))


def test_reordered_results_come_in_order(pipeline):
    """Full batches of one size, whatever the mixture; the answers are those of the stream."""
    requests = requests_about(3 * ROWS - 1)
    asked = []
    engine = pipeline.engine(batch_size=ROWS, reorder=True)
    generate = type(engine.programs).generate

    def counting(self, image_features, *rest):
        asked.append(len(image_features))
        return generate(self, image_features, *rest)

    with pytest.MonkeyPatch.context() as patch, counted_images() as encoded:
        patch.setattr(type(engine.programs), "generate", counting)
        responses = list(engine.run(requests))
    assert set(encoded) == set(asked) == {ROWS}
    assert [list(one.result) for one in responses] == [[one.prompt] for one in requests]
    plain = pipeline.engine(batch_size=ROWS).run(requests)
    assert [one.ids for one in responses] == [one.ids for one in plain]


def test_a_decoded_image_is_the_picture_that_was_decoded(pipeline):
    loaded = Image.open(SCENE).convert("RGB")
    height, width = pipeline.image_config.size
    resized = loaded.resize((width, height), Image.Resampling(pipeline.image_config.resample))
    decoded = DecodedImage(size=loaded.size, pixels=np.asarray(resized))
    assert pipeline(decoded, "<REGION_PROPOSAL>") == pipeline(SCENE, "<REGION_PROPOSAL>")
