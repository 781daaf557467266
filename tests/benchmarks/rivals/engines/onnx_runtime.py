"""ONNX Runtime over graphs exported from transformers' model, and a search of our own around it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.benchmarks.rivals.engines.engine import Call, NotOffered
from tests.benchmarks.rivals.engines.exact_search import exact_length_search
from tests.benchmarks.rivals.engines.onnx_graphs import export_graph
from tests.benchmarks.rivals.inputs import Inputs, preprocess
from tests.benchmarks.rivals.settings import (
    NO_REPEAT_NGRAM_SIZE,
    NUM_BEAMS,
    START_TOKENS,
    Settings,
)


class OnnxRuntime:
    """An `Engine`. Caches stay in ONNX Runtime's own values from step to step."""

    def __init__(self, settings: Settings):
        import ml_dtypes
        import onnxruntime  # pyright: ignore[reportMissingImports]
        from safetensors.numpy import load_file

        self.settings = settings
        self.text = settings.model_config().text
        self.dtype = np.dtype(getattr(ml_dtypes, settings.dtype, settings.dtype))
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        self.provider = provider[settings.platform]
        if self.provider not in onnxruntime.get_available_providers():
            raise RuntimeError(
                f"this onnxruntime has no {self.provider}: pip install onnxruntime-gpu"
            )
        tensors = load_file(f"{settings.weights}/model.safetensors")
        self.embedding = tensors["model.language_model.shared.weight"].astype(self.dtype)

    def call(self, name: str, inputs: Inputs) -> Call:
        batch = inputs.batch
        match name:
            case "vision":
                pixels = self._value(_channels_first(inputs.pixel_values))
                return lambda: self._run("vision", batch, [pixels])[0]
            case "encoder":
                return lambda: self._encode(self._embed(inputs.source_ids))
            case "greedy":
                return lambda: self._answer(inputs, beams=1)
            case "beam":
                return lambda: self._answer(inputs, beams=NUM_BEAMS)
            case "beam-start":
                return lambda: self._answer(inputs, beams=NUM_BEAMS, tokens=START_TOKENS)
            case "images":
                return lambda: self._images(inputs)
        raise NotOffered(name)

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        scale = self.text.d_model**0.5 if self.text.scale_embedding else 1.0
        return self.embedding[ids] * self.dtype.type(scale)

    def _encode(self, embeds: np.ndarray) -> Any:
        return self._run("encoder", embeds.shape[0], [self._value(embeds)])[0]

    def _answer(self, inputs: Inputs, *, beams: int, tokens: int | None = None) -> np.ndarray:
        memory = self._encode(self._embed(inputs.source_ids))
        return self._search(memory, inputs.batch, beams, tokens or self.settings.new_tokens)

    def _images(self, inputs: Inputs) -> np.ndarray:
        pixels = preprocess(inputs.pictures, self.settings.image_size)
        pixels = self._value(_channels_first(pixels))
        features = self._run("vision", inputs.batch, [pixels])[0].numpy()
        prompt = self._embed(inputs.prompt_ids)
        memory = self._encode(np.concatenate([features.astype(self.dtype), prompt], axis=1))
        return self._search(memory, inputs.batch, NUM_BEAMS, self.settings.new_tokens)

    def _search(self, memory: Any, batch: int, beams: int, tokens: int) -> np.ndarray:
        text = self.text
        cross = self._run("cross", batch, [memory])
        heads = text.decoder_attention_heads
        empty = np.zeros((batch, beams, heads, 0, text.d_model // heads), self.dtype)
        own = [self._value(empty)] * 2 * text.decoder_layers

        def step(ids: np.ndarray, position: int, parents: np.ndarray) -> np.ndarray:
            nonlocal own
            given = (ids, np.array([position]), parents % beams)
            shapes = ((batch, beams), (1,), (batch, beams))
            values = [
                self._value(array.reshape(shape).astype(np.int64))
                for array, shape in zip(given, shapes, strict=True)
            ]
            log_probs, *own = self._run("step", batch, [*values, *own, *cross])
            return log_probs.numpy().reshape(batch * beams, -1)

        return exact_length_search(
            step,
            batch=batch,
            beams=beams,
            tokens=tokens,
            no_repeat_ngram_size=NO_REPEAT_NGRAM_SIZE,
            start=text.decoder_start_token_id,
            bos=text.bos_token_id,
            eos=text.eos_token_id,
        )

    def _value(self, array: np.ndarray) -> Any:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    def _run(self, name: str, batch: int, values: list[Any]) -> list[Any]:
        session = self._session(name, batch)
        names = [given.name for given in session.get_inputs()]
        outputs = [made.name for made in session.get_outputs()]
        return session.run_with_ort_values(outputs, dict(zip(names, values, strict=True)))

    @functools.cache  # noqa: B019 - the engine lives as long as its process
    def _session(self, name: str, batch: int) -> Any:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.settings.threads
        options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            str(export_graph(self.settings, name, batch)), options, providers=[self.provider]
        )


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return np.moveaxis(pixels, -1, 1)
