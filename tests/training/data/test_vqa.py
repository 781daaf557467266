"""Several questions of one picture: the same as asking them one by one, and the tower runs once."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from florence_jax.model import Model
from florence_jax.processing import ImageConfig
from florence_jax.training.config import DataConfig
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.example import DataError
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.preprocess import Preprocessor, make_preprocessor, padded_to_longest
from florence_jax.training.data.sources import JsonlConfig
from florence_jax.training.pretrained import PretrainedFiles
from florence_jax.training.step import LossFn
from tests.training.small import CONFIG, small_batch, small_params
from train.shapes import SceneConfig
from train.shapes.source import ShapesConfig, ShapesSource
from train.shapes.tokenizer import world_tokenizer
from train.shapes.world import ShapesWorld

WORLD = ShapesWorld(config=SceneConfig(side=64), seed=0, split="train")
SHORT = ("<OD>", "<CAPTION>", "<REGION_PROPOSAL>")
LONG = ("<MORE_DETAILED_CAPTION>", "<DETAILED_CAPTION>")


class Spoilt(ShapesSource):
    """Refuses its third scene, and of every other picture the second question."""

    def __getitem__(self, index):
        if index == 2:
            raise DataError("the third cannot be read")
        example = super().__getitem__(index)
        second, *more = example.same_image
        return dataclasses.replace(
            example, same_image=(dataclasses.replace(second, prompt="x" * 999), *more)
        )


def maker(**settings):
    return Preprocessor(tokenizer=world_tokenizer(), image_size=(64, 64), **settings)


def stream(*sources, **settings):
    settings = {"batch_size": 4, "mix": "batches"} | settings
    return DataLoader(sources=sources, preprocessor=maker(), **settings)


def test_questions_of_one_picture_are_those_asked_one_by_one():
    single, grouped = ShapesSource(WORLD, 20, SHORT), ShapesSource(WORLD, 20, SHORT, questions=2)
    assert len(grouped) == 30
    alone = {one.id: one for one in (single[index] for index in range(len(single)))}
    for index in range(len(grouped)):
        example = grouped[index]
        for one in (example, *example.same_image):
            same = alone[one.id]
            assert (one.task, one.prompt, one.labels) == (same.task, same.prompt, same.labels)
            np.testing.assert_array_equal(one.image, example.image)
    asked = [
        one.task for index in range(30) for one in (grouped[index], *grouped[index].same_image)
    ]
    assert {task: asked.count(task) for task in SHORT} == dict.fromkeys(SHORT, 20)


def test_rows_of_a_picture_stand_together_and_a_bad_one_spoils_no_other():
    source = Spoilt(WORLD, 4, SHORT, questions=3)
    batch = stream(("shapes", source, 1.0)).batch(0)
    assert batch.images.shape == (1, 4, 64, 64, 3)
    assert batch.labels.shape[:2] == batch.input_ids.shape[:2] == (1, 12)
    scenes = [id.split(":")[1] for id in batch.ids if id.startswith("shapes-train")]
    assert len(scenes) == 9
    assert sorted(set(scenes)) == ["0", "1", "3"]
    weightless = (batch.labels[0] == -100).all(-1)
    reasons = dict(batch.problems)
    assert len(reasons) == 4
    assert sum("third" in reason for reason in reasons.values()) == 1
    # The third picture's three rows, and a question of each of the others.
    assert weightless.sum() == 6
    for number in range(4):
        rows = slice(3 * number, 3 * number + 3)
        assert weightless[rows].sum() in (1, 3)


def test_loss_and_gradients_are_those_of_every_question_with_its_own_picture():
    one_by_one = small_batch(rows=6)
    pictures = one_by_one.images[:, ::3]
    one_by_one = one_by_one._replace(images=pictures.repeat(3, axis=1))
    objective = LossFn(model=Model(config=CONFIG))

    def loss(params, batch):
        # Without a key there is no dropout.
        return objective(params, jax.tree.map(lambda leaf: leaf[0], batch), None).loss

    compare = jax.jit(jax.value_and_grad(loss))
    expected, gradients = compare(small_params(), one_by_one)
    value, shared = compare(small_params(), one_by_one._replace(images=pictures))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    largest = max(float(np.abs(leaf).max()) for leaf in gradients.values())
    for path, gradient in gradients.items():
        np.testing.assert_allclose(shared[path], gradient, rtol=0, atol=1e-6 * largest)


def test_batches_of_a_mixture_are_each_of_one_source():
    sources = [
        ("short", ShapesSource(WORLD, 50, SHORT, questions=2), 3.0),
        ("long", ShapesSource(WORLD, 50, LONG), 1.0),
    ]
    whole = stream(*sources)
    drawn = []
    for step in range(16):
        batch = whole.batch(step)
        tasks = {id.rpartition(":")[2] for id in batch.ids}
        assert tasks <= set(SHORT) or tasks <= set(LONG)
        drawn.append(tasks <= set(SHORT))
        assert batch.labels.shape[-1] == (32 if drawn[-1] else 128)
        # Every host takes its share of the same source.
        halves = [stream(*sources, host=host, hosts=2).batch(step) for host in range(2)]
        assert halves[0].ids + halves[1].ids == batch.ids
    assert sum(drawn) == 12
    ahead = whole.batches(3, threads=2)
    assert [next(ahead).ids for _ in range(4)] == [whole.batch(step).ids for step in range(3, 7)]


def test_shares_of_several_hosts_have_one_shape():
    text = dataclasses.replace(CONFIG.text, max_position_embeddings=400)
    start = PretrainedFiles(
        config=dataclasses.replace(CONFIG, text=text),
        files=Path(),
        tokenizer=world_tokenizer(),
        image=ImageConfig(size=(64, 64)),
    )
    config = DataConfig(
        train=tuple(
            ShapesConfig(scene=WORLD.config, tasks=tasks, questions=questions)
            for tasks, questions in ((SHORT, 3), (LONG, 1))
        ),
        max_prompt=64,
        max_labels=256,
    )
    sources = [
        ("short", ShapesSource(WORLD, 50, SHORT, questions=3), 1.0),
        ("long", ShapesSource(WORLD, 50, LONG), 1.0),
    ]

    def shapes(longest):
        preprocessor = make_preprocessor(config, start)
        if longest:
            preprocessor = padded_to_longest(preprocessor, config, [one for _, one, _ in sources])
        shares = [
            DataLoader(sources=sources, preprocessor=preprocessor, batch_size=4, host=host, hosts=4)
            for host in range(4)
        ]
        batches = [share.batch(step) for step in range(3) for share in shares]
        assert not any(batch.problems for batch in batches)
        return {
            (batch.images.shape, batch.input_ids.shape, batch.labels.shape) for batch in batches
        }

    assert len(shapes(longest=False)) > 1
    (shape,) = shapes(longest=True)
    assert shape[2] == (1, 3, 256)


def test_what_would_move_a_picture_under_its_questions_is_refused():
    source = ShapesConfig(questions=2)
    with pytest.raises(ValueError, match=r"data\.augment\.flip would move an image"):
        DataConfig(train=(source,), augment=AugmentConfig(flip=0.5, colour=0.1))
    with pytest.raises(ValueError, match="1 to 15 questions of an image, got questions=16"):
        ShapesConfig(questions=16)
    with pytest.raises(ValueError, match=r"leave questions of data\.valid at 1"):
        DataConfig(train=(source,), valid=(source,))
    with pytest.raises(ValueError, match="1 to 1 questions"):
        JsonlConfig(path="a.jsonl", questions=2)
