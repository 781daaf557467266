"""Florence-2 in JAX.

    import florence_jax as fj
    pipe = fj.Florence2Pipeline.from_pretrained("microsoft/Florence-2-base-ft")
    pipe("photo.jpg", "<OD>")

Names are imported when they are first used, so that processes which only read images or parse
answers never load jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence_jax.backbone.backbone import Backbone
    from florence_jax.backbone.config import BackboneConfig
    from florence_jax.backbone.load import load_backbone
    from florence_jax.backbone.save import save_backbone
    from florence_jax.checkpoint import CheckpointError
    from florence_jax.config import ConfigError, Florence2Config
    from florence_jax.generation import GenerateOutput, GenerationConfig, generate
    from florence_jax.inference.exported_pipeline import load_exported
    from florence_jax.inference.load_sharded import load
    from florence_jax.inference.pipeline import Florence2Pipeline
    from florence_jax.inference.processor import Processor
    from florence_jax.inference.requests import Request
    from florence_jax.model import Model
    from florence_jax.processing import ImageError, load_image, parse, preprocess_image
    from florence_jax.results.coco import to_coco_dataset, to_coco_results
    from florence_jax.results.draw import draw_result
    from florence_jax.results.supervision import to_supervision
    from florence_jax.segmentation.segmenter import Segmenter, SegmenterConfig
    from florence_jax.segmentation.storage import load_segmenter, save_segmenter

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "florence_jax.backbone.backbone",
    "BackboneConfig": "florence_jax.backbone.config",
    "CheckpointError": "florence_jax.checkpoint",
    "ConfigError": "florence_jax.config",
    "Florence2Config": "florence_jax.config",
    "Florence2Pipeline": "florence_jax.inference.pipeline",
    "GenerateOutput": "florence_jax.generation",
    "GenerationConfig": "florence_jax.generation",
    "ImageError": "florence_jax.processing",
    "Model": "florence_jax.model",
    "Processor": "florence_jax.inference.processor",
    "Request": "florence_jax.inference.requests",
    "Segmenter": "florence_jax.segmentation.segmenter",
    "SegmenterConfig": "florence_jax.segmentation.segmenter",
    "draw_result": "florence_jax.results.draw",
    "generate": "florence_jax.generation",
    "load": "florence_jax.inference.load_sharded",
    "load_backbone": "florence_jax.backbone.load",
    "load_exported": "florence_jax.inference.exported_pipeline",
    "load_image": "florence_jax.processing",
    "load_segmenter": "florence_jax.segmentation.storage",
    "parse": "florence_jax.processing",
    "preprocess_image": "florence_jax.processing",
    "save_backbone": "florence_jax.backbone.save",
    "save_segmenter": "florence_jax.segmentation.storage",
    "to_coco_dataset": "florence_jax.results.coco",
    "to_coco_results": "florence_jax.results.coco",
    "to_supervision": "florence_jax.results.supervision",
}

__all__ = [
    "Backbone",
    "BackboneConfig",
    "CheckpointError",
    "ConfigError",
    "Florence2Config",
    "Florence2Pipeline",
    "GenerateOutput",
    "GenerationConfig",
    "ImageError",
    "Model",
    "Processor",
    "Request",
    "Segmenter",
    "SegmenterConfig",
    "draw_result",
    "generate",
    "load",
    "load_backbone",
    "load_exported",
    "load_image",
    "load_segmenter",
    "parse",
    "preprocess_image",
    "save_backbone",
    "save_segmenter",
    "to_coco_dataset",
    "to_coco_results",
    "to_supervision",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
