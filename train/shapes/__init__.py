"""A synthetic world: coloured shapes and drawn words, with exact truth for all 15 tasks.

`python -m train.shapes --help`. A scene is a pure function of (config, seed, split, index).
"""

from train.shapes.config import SceneConfig, Split
from train.shapes.world import Example, ShapesWorld

__all__ = ["Example", "SceneConfig", "ShapesWorld", "Split"]
