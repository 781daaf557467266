"""The synthetic world as a source of training examples: one scene after the other, by task."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from florence_jax.processing import TASKS
from florence_jax.training.data.example import DataError, Example, ObjectOrder
from train.shapes.render import draw
from train.shapes.tasks import Question, questions
from train.shapes.world import ShapesWorld


@dataclass(frozen=True)
class ShapesSource:
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
        example, *others = (self._example(number, picture, question) for question in asked)
        return dataclasses.replace(example, others=tuple(others))

    def _example(self, number: int, picture: Image.Image, question: Question) -> Example:
        return Example(
            id=f"shapes-{self.world.split}:{number}:{question.task}",
            image=picture,
            task=question.task,
            prompt=question.prefix.removeprefix(question.task),
            answer=question.answer if isinstance(question.answer, dict) else question.suffix,
            order=self.order,
        )
