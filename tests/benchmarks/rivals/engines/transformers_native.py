"""transformers' native Florence-2: eager attention, SDPA, or SDPA under torch.compile."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.benchmarks.rivals.engines.engine import Call, NotOffered
from tests.benchmarks.rivals.engines.sizes import matmul_side, memory_shape
from tests.benchmarks.rivals.inputs import Inputs, preprocess
from tests.benchmarks.rivals.settings import NO_REPEAT_NGRAM_SIZE, NUM_BEAMS, START_TOKENS, Settings


def eager(settings: Settings) -> Transformers:
    """transformers with its own attention."""
    return Transformers(settings, attention="eager")


def sdpa(settings: Settings) -> Transformers:
    """transformers with torch's fused attention."""
    return Transformers(settings, attention="sdpa")


def compiled(settings: Settings) -> Transformers:
    """SDPA compiled by inductor: image tower and encoder with frozen weights (CPU), and every
    decoder step over transformers' static cache, whose buffers freezing would freeze too.
    """
    engine = Transformers(settings, attention="sdpa")
    engine.compile()
    return engine


def load_model(settings: Settings, attention: str) -> Any:
    """`Florence2ForConditionalGeneration` for inference, without decoding settings of its own."""
    import torch
    from transformers import Florence2ForConditionalGeneration, GenerationConfig

    torch.set_num_threads(settings.threads)
    model: Any = Florence2ForConditionalGeneration.from_pretrained(
        settings.weights,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=attention,
        local_files_only=True,
    )
    model.generation_config = GenerationConfig()
    return model.eval().to(settings.platform)


class Transformers:
    """An `Engine`."""

    def __init__(self, settings: Settings, *, attention: str):
        import torch

        self.torch = torch
        self.settings = settings
        self.model = load_model(settings, attention)
        self.generation: dict[str, Any] = {}

    def compile(self) -> None:
        from torch._inductor import config as inductor
        from transformers import CompileConfig

        core = self.model.model
        for module in (core.vision_tower, core.multi_modal_projector, core.language_model.encoder):
            forward = self.torch.compile(module.forward, dynamic=False)
            if self.settings.platform == "cpu":
                # As `options=` of torch.compile it comes too late: dynamo looks at the global one.
                forward = inductor.patch(freezing=True)(forward)
            module.forward = forward
        # CUDA graphs, transformers' own choice on a GPU, do not exist on a CPU.
        mode = "default" if self.settings.platform == "cpu" else "reduce-overhead"
        config: Any = CompileConfig(mode=mode)
        config._compile_all_devices = True
        self.generation = {"cache_implementation": "static", "compile_config": config}

    def call(self, name: str, inputs: Inputs) -> Call:
        match name:
            case "matmul":
                side = matmul_side(self.settings)
                matrix = self.torch.ones(
                    (side, side), dtype=self.model.dtype, device=self.model.device
                )
                return self._finished(lambda: matrix @ matrix)
            case "memory":
                rows, columns = memory_shape(self.settings)
                matrix = self.torch.ones((rows, columns), device=self.model.device)
                vector = self.torch.ones((columns,), device=self.model.device)
                return self._finished(lambda: matrix @ vector)
            case "vision":
                pixels = self._pixels(inputs.pixel_values)
                return self._finished(lambda: self._features(pixels))
            case "encoder":
                source = self._tokens(inputs.source_ids)
                return self._finished(lambda: self._encode(source))
            case "greedy":
                return self._answer(inputs, beams=1, tokens=self.settings.new_tokens)
            case "beam":
                return self._answer(inputs, beams=NUM_BEAMS, tokens=self.settings.new_tokens)
            case "beam-start":
                return self._answer(inputs, beams=NUM_BEAMS, tokens=START_TOKENS)
            case "images":
                return lambda: self._images(inputs)
        raise NotOffered(name)

    def _features(self, pixels: Any) -> Any:
        core = self.model.model
        maps = core.vision_tower(pixels).last_hidden_state
        return core.multi_modal_projector(maps)

    def _encode(self, source: Any) -> Any:
        language = self.model.model.language_model
        embeds = self.model.get_input_embeddings()(source)
        mask = self.torch.ones_like(source)
        return language.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state

    def _answer(self, inputs: Inputs, *, beams: int, tokens: int) -> Call:
        source = self._tokens(inputs.source_ids)
        return lambda: self._generate(source, beams=beams, tokens=tokens)

    def _images(self, inputs: Inputs) -> np.ndarray:
        images = inputs.source_ids.shape[1] - inputs.prompt_ids.shape[1]
        placeholder = np.full((inputs.batch, images), self.model.config.image_token_id)
        source = self._tokens(np.concatenate([placeholder, inputs.prompt_ids], axis=1))
        pixels = self._pixels(preprocess(inputs.pictures, self.settings.image_size))
        return self._generate(
            source, beams=NUM_BEAMS, tokens=self.settings.new_tokens, pixel_values=pixels
        )

    def _generate(self, source: Any, *, beams: int, tokens: int, **inputs: Any) -> np.ndarray:
        from transformers import GenerationConfig

        text = self.model.config.text_config
        config = GenerationConfig(
            do_sample=False,
            num_beams=beams,
            early_stopping=beams > 1,
            no_repeat_ngram_size=NO_REPEAT_NGRAM_SIZE,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            decoder_start_token_id=text.decoder_start_token_id,
            bos_token_id=text.bos_token_id,
            eos_token_id=text.eos_token_id,
            pad_token_id=text.pad_token_id,
            forced_bos_token_id=text.bos_token_id,
            forced_eos_token_id=text.eos_token_id,
            **self.generation,
        )
        mask = self.torch.ones_like(source)
        with self.torch.no_grad():
            sequences = self.model.generate(
                input_ids=source, attention_mask=mask, generation_config=config, **inputs
            )
        return sequences.cpu().numpy()

    def _finished(self, work: Call) -> Call:
        """`work`, and then the wait for an accelerator that is still at it."""

        def call() -> Any:
            with self.torch.no_grad():
                result = work()
            if self.settings.platform == "cuda":
                self.torch.cuda.synchronize()
            return result

        return call

    def _pixels(self, pixel_values: np.ndarray) -> Any:
        pixels = self.torch.from_numpy(np.moveaxis(pixel_values, -1, 1).copy())
        return pixels.to(self.model.device, self.model.dtype)

    def _tokens(self, ids: np.ndarray) -> Any:
        return self.torch.from_numpy(ids.astype(np.int64)).to(self.model.device)
