"""The synthetic world as a source of training examples: one scene after the other, by task."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from PIL import Image

from florence_jax.processing import TASKS, FlorenceTokenizer, task_of
from florence_jax.training.checked import counted
from florence_jax.training.data.example import DataError, Example, ObjectOrder, Source
from florence_jax.training.data.sources import Named, SourceConfig
from florence_jax.training.metrics.judge import Answered, named_figures
from train.shapes.config import SceneConfig, Split
from train.shapes.judge import CAPTIONS, METRICS, judge
from train.shapes.render import draw
from train.shapes.tasks import Question, questions
from train.shapes.world import ShapesWorld


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(SourceConfig):
    """Scenes of the synthetic world as a data set of a training run.

    Attributes:
        scene: how hard they are.
        split: train, valid or held-out.
        scenes: how many.
        tasks: Tasks to ask, by default all 15; each has an equal part of the weight.
        order: Order in which labels name shapes, as in `FileConfig`.
    """

    metrics: ClassVar[tuple[str, ...]] = METRICS

    kind: str = field(init=False, default="train.shapes.source:ShapesConfig")
    scene: SceneConfig = field(default_factory=SceneConfig)
    split: Split = "train"
    scenes: int = 1_000_000
    tasks: tuple[str, ...] = ()
    order: ObjectOrder = "as_annotated"

    @property
    def max_questions(self) -> int:
        return len(self.tasks or TASKS)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from counted("scenes", self.scenes, 1, 10**12)

    def open(self, seed: int) -> Iterator[Named]:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise DataError(f"shapes: no such task: {unknown}; there are {', '.join(TASKS)}")
        world = ShapesWorld(config=self.scene, seed=seed, split=self.split)
        tasks = self.tasks or tuple(TASKS)
        source = ShapesSource(world, self.scenes, tasks, self.questions, self.order)
        yield f"shapes-{self.split}", source, self.weight


@dataclass(frozen=True)
class ShapesSource(Source):
    """`scenes` scenes with one example for each task; neighbours share a scene.

    With `questions`, at most as many as there are tasks, each example asks so many of one picture.

    An example takes about 5 milliseconds of one core at 192 pixels, less than decoding a photo.
    """

    world: ShapesWorld
    scenes: int
    tasks: Sequence[str] = tuple(TASKS)
    questions: int = 1
    order: ObjectOrder = "as_annotated"

    def __len__(self) -> int:
        return self.scenes * len(self.tasks) // self.questions

    def __getitem__(self, index: int) -> Example:
        first = index * self.questions
        # Scenes whose turn does not begin with the first task have as many of each after a while.
        number, place = divmod(first, len(self.tasks))
        tasks = [self.tasks[(place + more) % len(self.tasks)] for more in range(self.questions)]
        scene = self.world.scene(number)
        asked = questions(scene, tasks)
        if not asked:
            where = f"shapes-{self.world.split}:{number}:{tasks[0]}"
            raise DataError(f"{where}: a scene without words has no answer to {tasks[0]}")
        picture = draw(scene)
        example, *same_image = (self._example(number, picture, question) for question in asked)
        return dataclasses.replace(example, same_image=tuple(same_image))

    def longest_texts(self, tokenizer: FlorenceTokenizer, most: tuple[int, int]) -> tuple[int, int]:
        return most

    def scores(self, answered: Sequence[Answered]) -> dict[str, float]:
        return named_figures(judge(row for row in answered if task_of(row.prefix) in CAPTIONS))

    def _example(self, number: int, picture: Image.Image, question: Question) -> Example:
        return Example(
            id=f"shapes-{self.world.split}:{number}:{question.task}",
            image=picture,
            task=question.task,
            prompt=question.prefix.removeprefix(question.task),
            labels=question.answer if isinstance(question.answer, dict) else question.suffix,
            order=self.order,
        )
