"""Evaluation of a run on its valid split: the loss, and metrics of generated answers by task."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.generation import GenerationConfig, generate
from florence_jax.model import Params
from florence_jax.processing import parse, task_of
from florence_jax.results.compare_grid import enlarged, save_side_by_side
from florence_jax.runtime.signals import Interruption
from florence_jax.training.aot_compile import AotCompiled
from florence_jax.training.data.example import DataError, Source
from florence_jax.training.data.loader import finite_batches
from florence_jax.training.data.preprocess import ExampleRef, Features, Preprocessor
from florence_jax.training.distributed import is_first
from florence_jax.training.lora import is_factor, merge
from florence_jax.training.metrics.judge import Answered, task_scores
from florence_jax.training.prepare import TrainSetup
from florence_jax.training.state import Flat
from florence_jax.training.step import build_evaluation


class Evaluation:
    """Evaluates the current parameters whenever it is called.

    Attributes:
        sources: the valid split's, by name.
        problems: (id, reason) of the rows that could not be used, by the last call.
    """

    def __init__(
        self,
        training: TrainSetup,
        preprocessor: Preprocessor,
        sources: Mapping[str, Source],
        interruption: Interruption,
        *,
        say: Callable[[str], None] | None = None,
        drawing: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        """
        Args:
            say: Called with a line when something is compiled.
            drawing: entered around each image that is written; may swallow an OSError.
        """
        self.sources = sources
        self.problems: list[tuple[str, str]] = []
        self._config, self._training = training.config, training
        self._preprocessor = preprocessor
        self._interruption, self._drawing = interruption, drawing
        mesh = training.placement.mesh
        self._summed = AotCompiled(
            build_evaluation(training.objective),
            interruption,
            mesh=mesh,
            out_shardings=NamedSharding(mesh, PartitionSpec()),
            name="the evaluation's loss",
            say=say,
        )
        self._say = say
        # Answers before the first step, by drawing: later ones are drawn beside them.
        self._before: dict[int, str] = {}
        self._pixels = jax.jit(training.objective.pixels)

    def __call__(self, params: Flat, samples: Path, *, is_before: bool = False) -> dict[str, float]:
        """Every figure by name: "loss", "accuracy", "<OD> mAP@0.5" and so on.

        Args:
            params: base and adapters, by path, on the run's mesh.
            samples: directory for some of the answers, drawn beside the truth.
            is_before: no step was taken yet; later drawings hold these answers too.

        Raises:
            Interrupted: somebody asked for it.
            DataError: no row can be used.
        """
        self.problems = []
        scores = self._loss(params)
        if self._config.evaluation.answers:
            if self._say is not None:
                self._say("compiling the generation of answers (once, which may take minutes) ...")
                self._say = None
            tree = unflatten(merged(params, self._training))
            drawn = itertools.count()
            for name, source in self.sources.items():
                answered = list(self._answered(tree, name, source, samples, drawn, is_before))
                figures = {**task_scores(answered), **source.scores(answered)}
                prefix = f"{name}: " if len(self.sources) > 1 else ""
                scores |= {prefix + metric: value for metric, value in figures.items()}
        return scores

    def _loss(self, params: Flat) -> dict[str, float]:
        limit = self._config.evaluation.examples
        rows = self._config.evaluation_rows
        total = np.zeros(4)
        for batch in finite_batches(self.sources, self._preprocessor, rows, limit=limit):
            self._interruption.check()
            self.problems += batch.problems
            arrays = self._training.placement.common_batch(batch)
            total += np.array(jax.device_get(self._summed(params, arrays)), np.float64)
        loss, nll, correct, tokens = total.tolist()
        if not tokens:
            row, reason = self.problems[0]
            raise DataError(f"no row of the valid split can be used; the first is {row}: {reason}")
        return {"loss": loss / tokens, "nll": nll / tokens, "accuracy": correct / tokens}

    def _answered(
        self,
        params: Params,
        name: str,
        source: Source,
        samples: Path,
        drawn: Iterator[int],
        is_before: bool,
    ) -> Iterator[Answered]:
        """The model's answers to the source's first rows."""
        config = self._config.evaluation
        count, height = min(config.answers, len(source)), self._config.evaluation_rows
        rng = np.random.default_rng(0)
        for first in range(0, count, height):
            numbers = range(first, min(first + height, count))
            rows = [self._preprocessor(ExampleRef(name, source, number), rng) for number in numbers]
            texts = self._interruption.wait_for(lambda rows=rows: self._generate(params, rows))
            for number, row, text in zip(numbers, rows, texts, strict=True):
                if row.problem is None:
                    prefix, truth = source[number].prefix, self._text(row.labels)
                    size = (row.image.shape[1], row.image.shape[0])
                    place = next(drawn)
                    if place < config.images and is_first():
                        answers = {f"truth: {prefix}": truth}
                        if is_before:
                            self._before[place] = text
                        elif place in self._before:
                            answers["before"] = self._before[place]
                        answers["answer"] = text
                        with self._drawing():
                            _draw(samples / f"{place:04d}.png", row, task_of(prefix), answers)
                    yield Answered(prefix=prefix, labels=truth, answer=text, image_size=size)

    def _generate(self, params: Params, rows: list[Features]) -> list[str]:
        config, height = self._config.evaluation, self._config.evaluation_rows
        # Always the same number of rows, so that there is one program.
        padded = rows + rows[:1] * (height - len(rows))
        arrays = self._preprocessor.collate(padded)
        text = self._training.objective.model.config.text
        output = generate(
            self._training.objective.model,
            params,
            pixel_values=self._pixels(arrays.images[0]),
            input_ids=arrays.input_ids[0],
            config=GenerationConfig(
                num_beams=config.num_beams,
                no_repeat_ngram_size=config.no_repeat_ngram_size,
                max_new_tokens=min(config.max_new_tokens, text.max_position_embeddings - 1),
                sequence_bias=config.sequence_bias(text.eos_token_id),
            ),
        )
        lengths, sequences = np.asarray(output.lengths), np.asarray(output.sequences)
        return [
            self._text(sequences[place, 1 : lengths[place] + 1].tolist())
            for place in range(len(rows))
        ]

    def _text(self, ids: list[int]) -> str:
        """The decoded text, without `<s>`, `</s>` and padding."""
        tokenizer = self._preprocessor.tokenizer
        ends = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
        return tokenizer.decode([token for token in ids if token not in ends])


def _draw(path: Path, row: Features, task: str, answers: Mapping[str, str]) -> None:
    """Draw the texts side by side on the row's image, each with its title above it."""
    image = enlarged(Image.fromarray(row.image))
    results = {title: parse(text, task, image.size) for title, text in answers.items()}
    save_side_by_side(path, image, results)


def merged(params: Flat, training: TrainSetup, dtype: str | None = None) -> Flat:
    """The flat parameters with the adapters, if any, added to their kernels as `merge` does."""
    factors = {path: leaf for path, leaf in params.items() if is_factor(path)}
    base = {path: leaf for path, leaf in params.items() if not is_factor(path)}
    return merge(base, factors, training.config.lora, dtype) if factors else base
