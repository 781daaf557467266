"""The world as a data source: examples by index, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from florence_jax.processing import TASKS
from train.shapes.config import SPLITS, SceneConfig, Split
from train.shapes.render import draw
from train.shapes.scene import Scene
from train.shapes.scene_sampler import make_scene
from train.shapes.tasks import Question, questions


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture and what is asked of it: the row `image, prefix, suffix` of a data set."""

    image: Image.Image
    prefix: str
    suffix: str


@dataclass(frozen=True, kw_only=True)
class ShapesWorld:
    """Endless scenes of one split. Random access, no state: safe to share among processes."""

    config: SceneConfig = field(default_factory=SceneConfig)
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}, expected one of {', '.join(SPLITS)}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")

    def scene(self, index: int) -> Scene:
        """Scene `index`, 0 or more."""
        return make_scene(self.config, self.seed, self.split, index)

    def examples(self, index: int, tasks: Sequence[str] = tuple(TASKS)) -> list[Example]:
        """Scene `index` with one question for each of `tasks`; they share the picture."""
        scene = self.scene(index)
        image = draw(scene)
        return [
            Example(image=image, prefix=question.prefix, suffix=question.suffix)
            for question in questions(scene, tasks)
        ]

    def questions(self, index: int, tasks: Sequence[str] = tuple(TASKS)) -> list[Question]:
        """The questions of `examples`, with their exact answers and without the picture."""
        return questions(self.scene(index), tasks)
