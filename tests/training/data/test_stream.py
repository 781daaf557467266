"""Streams: a row is a function of seed and number, in every process and after every resumption."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import demo_tokenizer
from florence_jax.training.data.example import DataError, Example, Ordered
from florence_jax.training.data.loader import DataLoader, finite_batches
from florence_jax.training.data.preprocess import Preprocessor
from florence_jax.training.data.stream import Stream
from tests.training.data.test_loader import assert_same

ROWS = 23


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


class Numbers(Stream):
    """The numbers below ROWS; `read` counts rows that were read, `fails` are failures to come."""

    name = "numbers"

    def __init__(self, seed=0, shuffle_rows=5, rows=ROWS, fails=()):
        super().__init__(rows=rows, seed=seed, shuffle_rows=shuffle_rows)
        self.read, self.fails = 0, list(fails)

    def read_pass(self, number):
        for row in range(ROWS):
            self.read += 1
            if self.fails and self.fails[0] == row:
                self.fails.pop(0)
                raise DataError(f"row {row} is not there today")
            yield number, row

    def example(self, row, where):
        number, content = row
        return Example(
            id=f"{number}:{content}",
            image=png(content),
            task="<CAPTION>",
            prompt="",
            labels=where,
        )


def ids(stream, numbers):
    return [stream[number].id for number in numbers]


def loader(stream, **settings):
    preprocessor = Preprocessor(tokenizer=demo_tokenizer(), image_size=(8, 8))
    settings = {"batch_size": 4, "seed": 3} | settings
    return DataLoader(sources=(("numbers", stream, 1.0),), preprocessor=preprocessor, **settings)


def test_every_pass_has_every_row_once_up_to_the_blocks_across_its_ends():
    order = ids(Numbers(), range(5 * ROWS))
    # Blocks of 5 in 5 passes of 23: each holds its 5 rows, in an order of its own.
    expected = [f"{number}:{row}" for number in range(5) for row in range(ROWS)]
    blocks = [order[first : first + 5] for first in range(0, 5 * ROWS, 5)]
    for first, block in zip(range(0, 5 * ROWS, 5), blocks, strict=True):
        assert sorted(block) == sorted(expected[first : first + 5])
    assert any(block != sorted(block) for block in blocks)
    assert order != ids(Numbers(seed=1), range(5 * ROWS))
    assert ids(Numbers(shuffle_rows=1), range(2 * ROWS)) == expected[: 2 * ROWS]
    assert Numbers()[0].labels.startswith("numbers:")


def test_rows_are_the_same_in_any_order_and_after_a_journey():
    expected = ids(Numbers(), range(60))
    stream = Numbers()
    assert ids(stream, [40, 3, 41, 59, 0]) == [expected[n] for n in (40, 3, 41, 59, 0)]
    travelled = pickle.loads(pickle.dumps(stream))
    assert ids(travelled, range(60)) == expected


def test_rows_of_two_blocks_are_held_so_that_threads_do_not_read_again():
    stream = Numbers()
    ids(stream, [5, 4, 9, 3, 10, 6])
    assert stream.read == 15


@pytest.mark.parametrize("ahead", [{"threads": 0}, {"threads": 4}, {"threads": 1, "workers": 2}])
def test_a_run_goes_on_with_the_batches_that_it_would_have_had(ahead):
    whole = [loader(Numbers()).batch(step) for step in range(16)]
    assert len({id for batch in whole for id in batch.ids}) == 64
    # Started anew at step 9, in the second pass.
    resumed = loader(Numbers()).batches(9, **ahead)
    for step in range(9, 16):
        assert_same(next(resumed), whole[step])


def test_hosts_have_shares_of_the_same_batches():
    whole = loader(Numbers()).batch(7)
    halves = [loader(Numbers(), host=host, hosts=2).batch(7) for host in range(2)]
    assert halves[0].ids + halves[1].ids == whole.ids


def test_a_mixture_of_a_stream_and_a_table_resumes(tmp_path):
    def sources():
        return (("a", Ordered(Numbers(), "label"), 1.0), ("b", Numbers(seed=9), 3.0))

    def mixed(mix):
        preprocessor = Preprocessor(tokenizer=demo_tokenizer(), image_size=(8, 8))
        return DataLoader(
            sources=sources(), preprocessor=preprocessor, batch_size=4, seed=3, mix=mix
        )

    for mix in ("rows", "batches"):
        whole = [mixed(mix).batch(step) for step in range(8)]
        batches = mixed(mix).batches(5)
        for step in range(5, 8):
            assert_same(next(batches), whole[step])


def test_a_failure_is_a_row_that_fails_and_the_next_is_read():
    stream = Numbers(fails=[7])
    expected = ids(Numbers(), range(20))
    assert ids(stream, range(5)) == expected[:5]
    with pytest.raises(DataError, match="row 7 is not there today"):
        stream[5]
    assert ids(stream, range(5, 20)) == expected[5:]


def test_a_stream_without_rows_is_named():
    class Empty(Numbers):
        def read_pass(self, number):
            return iter(())

    with pytest.raises(DataError, match="numbers holds no rows"):
        Empty()[0]


def test_an_evaluation_sees_every_row_once():
    preprocessor = Preprocessor(tokenizer=demo_tokenizer(), image_size=(8, 8))
    for _ in range(2):
        batches = finite_batches({"numbers": Numbers(shuffle_rows=1)}, preprocessor, 8)
        seen = [id for batch in batches for id in batch.ids if id]
        assert seen == [f"0:{row}" for row in range(ROWS)]
        np.testing.assert_equal(len(set(seen)), ROWS)
