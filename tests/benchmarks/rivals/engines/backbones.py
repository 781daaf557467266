"""A DaViT alone: this library's, and timm's, eager or under torch.compile."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.benchmarks.rivals.engines.engine import Call, NotOffered
from tests.benchmarks.rivals.settings import Settings

# Logits of a tower with a classifier, the pooled embedding of one without.
CALL = "backbone"


def make_images(settings: Settings, batch: int) -> np.ndarray:
    """float32[B, S, S, 3], standard normal, equal in every process."""
    rng = np.random.default_rng((settings.seed, batch))
    side = settings.image_size
    return rng.standard_normal((batch, side, side, 3), np.float32)


class OurBackbone:
    """`load_backbone`, as users call it."""

    def __init__(self, settings: Settings):
        import jax

        import florence_jax as fj
        from florence_jax.runtime.compilation_cache import use_compilation_cache

        use_compilation_cache()
        self.settings = settings
        self.backbone, params = fj.load_backbone(settings.weights, settings.dtype)
        self.params = jax.device_put(params)

    def make_inputs(self, batch: int) -> np.ndarray:
        """The images of a call."""
        return make_images(self.settings, batch)

    def call(self, name: str, inputs: np.ndarray) -> Call:
        import jax

        if name != CALL:
            raise NotOffered(name)
        images = jax.device_put(inputs)
        backbone = self.backbone
        function = backbone.logits if backbone.config.num_classes else backbone.embed
        return lambda: function(self.params, images).block_until_ready()


def timm_eager(settings: Settings) -> TimmBackbone:
    """timm as it is, with torch's fused attention."""
    return TimmBackbone(settings)


def timm_compiled(settings: Settings) -> TimmBackbone:
    """timm under torch.compile, with frozen weights on a CPU."""
    return TimmBackbone(settings, compiled=True)


class TimmBackbone:
    """timm's DaViT with the same weights."""

    def __init__(self, settings: Settings, *, compiled: bool = False):
        import torch

        from tests.backbone.timm_reference import import_timm

        torch.set_num_threads(settings.threads)
        timm = import_timm()
        model = timm.create_model(f"local-dir:{settings.weights}", pretrained=True)
        self.torch, self.settings = torch, settings
        self.model: Any = model.eval().to(settings.platform, getattr(torch, settings.dtype))
        self.forward: Any = self._forward
        if compiled:
            from torch._inductor import config as inductor

            self.forward = torch.compile(self._forward, dynamic=False)
            if settings.platform == "cpu":
                self.forward = inductor.patch(freezing=True)(self.forward)

    def make_inputs(self, batch: int) -> np.ndarray:
        """The images of a call."""
        return make_images(self.settings, batch)

    def call(self, name: str, inputs: np.ndarray) -> Call:
        if name != CALL:
            raise NotOffered(name)
        pixels = self.torch.from_numpy(np.moveaxis(inputs, -1, 1).copy())
        pixels = pixels.to(self.settings.platform, getattr(self.torch, self.settings.dtype))

        def call() -> Any:
            with self.torch.no_grad():
                result = self.forward(pixels)
            if self.settings.platform == "cuda":
                self.torch.cuda.synchronize()
            return result

        return call

    def _forward(self, pixels: Any) -> Any:
        maps = self.model.forward_features(pixels)
        return self.model.forward_head(maps, pre_logits=not self.model.num_classes)
