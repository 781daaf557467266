"""METEOR, by its authors' own program."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from florence_jax.evaluation.metrics.score import Scores, check_captions


def meteor_is_installed() -> bool:
    """Whether there are Java and the package that brings the program."""
    import importlib.util

    return bool(shutil.which("java")) and importlib.util.find_spec("pycocoevalcap") is not None


def meteor(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """METEOR 1.5 (Denkowski and Lavie 2014) of tokenised captions, English.

    Runs the Java program that pycocoevalcap brings, with its settings: stems, synonyms and
    paraphrases of 1.5 are data of hundreds of megabytes, not rules to be written again.

    Returns:
        METEOR of the whole, 0..1, and of each caption.

    Raises:
        ModuleNotFoundError: there is no Java, or no pycocoevalcap.
        ValueError: captions and references do not pair up.
    """
    check_captions(references, candidates)
    if not meteor_is_installed():
        raise ModuleNotFoundError(
            'METEOR is a Java program: install Java and pip install "florence-jax[meteor]"'
        )
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    process = program.meteor_p
    try:
        value, each = program.compute_score(
            {number: list(texts) for number, texts in enumerate(references)},
            {number: [candidate] for number, candidate in enumerate(candidates)},
        )
    finally:
        del program
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return Scores(value=float(value), each=[float(score) for score in each])
