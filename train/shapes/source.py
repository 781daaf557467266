"""The synthetic world as a source of training examples: one scene after the other, by task."""

from collections.abc import Sequence
from dataclasses import dataclass

from florence_jax.processing import TASKS
from train.data.example import DataError, Example
from train.shapes.drawing import draw
from train.shapes.questions import questions
from train.shapes.world import ShapesWorld


@dataclass(frozen=True)
class ShapesSource:
    """`scenes` scenes with one example for each task; neighbours share a scene.

    An example takes about 5 milliseconds of one core at 192 pixels, less than decoding a photo.
    """

    world: ShapesWorld
    scenes: int
    tasks: Sequence[str] = tuple(TASKS)

    def __len__(self) -> int:
        return self.scenes * len(self.tasks)

    def __getitem__(self, index: int) -> Example:
        number, place = divmod(index, len(self.tasks))
        task = self.tasks[place]
        where = f"shapes-{self.world.split}:{number}:{task}"
        scene = self.world.scene(number)
        asked = questions(scene, (task,))
        if not asked:
            raise DataError(f"{where}: a scene without words has no answer to {task}")
        (question,) = asked
        return Example(
            id=where,
            image=draw(scene),
            task=task,
            prompt=question.prefix.removeprefix(task),
            answer=question.answer if isinstance(question.answer, dict) else question.suffix,
        )
