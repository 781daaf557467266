"""One row of a batch's output -> the `Response` to its request."""

from __future__ import annotations

from dataclasses import dataclass

from florence_jax.generation import GenerateOutput
from florence_jax.inference.requests import Response
from florence_jax.processing import FlorenceTokenizer, parse, parse_tokens
from florence_jax.processing.tasks import Compat


@dataclass(frozen=True, kw_only=True)
class AnswerParser:
    """Trims the tokens of a row, and parses them.

    Attributes:
        tokenizer: ids to text.
        compat: as for `florence_jax.Florence2Pipeline`.
        label_scores: add the confidence of each shape's label to results.
    """

    tokenizer: FlorenceTokenizer
    compat: Compat
    label_scores: bool

    def __call__(
        self, output: GenerateOutput, row: int, task: str, size: tuple[int, int]
    ) -> Response:
        """The response in row `row` of `output`.

        Args:
            output: of a batch, on the host.
            row: its number.
            task: what was asked.
            size: (width, height) of the upright image in pixels.
        """
        # Trimmed to its own length, a row does not depend on its neighbours.
        length = int(output.lengths[row])
        ids = output.sequences[row, : length + 1].tolist()
        # The first id is the decoder start token, which was not chosen and has no score.
        scores = [0.0, *output.token_scores[row, :length].tolist()]
        if self.compat is None:
            result = parse_tokens(
                ids, scores, self.tokenizer, task, size, label_scores=self.label_scores
            )
        else:
            result = parse(self.tokenizer.decode(ids), task, size, compat=self.compat)
        return Response(result=result, ids=ids, token_scores=scores)
