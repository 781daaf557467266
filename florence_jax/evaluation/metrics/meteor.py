"""METEOR, computed by its authors' own program."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence

from florence_jax.evaluation.metrics.score import Scores, check_captions


@functools.cache
def meteor_is_installed() -> bool:
    """Whether there are Java and the package that brings the program."""
    if not shutil.which("java") or importlib.util.find_spec("pycocoevalcap") is None:
        return False
    # macOS has a `java` that only says where Java is to be had.
    try:
        asked = subprocess.run(["java", "-version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


class MeteorError(RuntimeError):
    """The Java program cannot be used."""


def meteor(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> Scores:
    """METEOR 1.5 (Denkowski and Lavie 2014) of tokenised captions, English.

    Runs the Java program that pycocoevalcap brings, with its settings: stems, synonyms and
    paraphrases of 1.5 are data of hundreds of megabytes, not rules to be written again.

    Returns:
        METEOR of the whole, 0..1, and of each caption.

    Raises:
        ModuleNotFoundError: there is no Java, or no pycocoevalcap.
        MeteorError: the program fails.
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
    # It has ended, or answers with something else than numbers.
    except (OSError, ValueError) as error:
        raise MeteorError(f"the Java program of METEOR fails ({error})") from error
    finally:
        # An error leaves its lock taken, and its destructor would wait for it for ever.
        if program.lock.locked():
            program.lock.release()
        del program
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    return Scores(value=float(value), each=[float(score) for score in each])
