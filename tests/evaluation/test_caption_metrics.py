"""CIDEr, BLEU, ROUGE-L and METEOR against COCO's caption evaluation and documented figures."""

import numpy as np
import pytest

from florence_jax.evaluation import scoring
from florence_jax.evaluation.metrics import bleu, cider, cider_d, meteor, rouge_l
from florence_jax.evaluation.metrics.captions import meteor_is_installed
from tests.shared_data import needs_shared, shared_path

_WORDS = ["a", "the", "dog", "cat", "sits", "on", "red", "blue", "mat", "man", "holding", "big"]


def captions(seed, count=120):
    """References and candidates of 0 to 13 words, drawn from few so that n-grams meet."""
    rng = np.random.default_rng(seed)

    def sentence():
        return " ".join(rng.choice(_WORDS, rng.integers(0, 14)))

    references = [[sentence() for _ in range(rng.integers(1, 6))] for _ in range(count)]
    return references, [sentence() for _ in range(count)]


def as_pycocoevalcap(references, candidates):
    return dict(enumerate(references)), {n: [text] for n, text in enumerate(candidates)}


@needs_shared
def test_the_documented_figures_of_nlg_eval():
    read = [
        shared_path("metrics", "caption", f"nlgeval_{name}.txt").read_text().split("\n")[:2]
        for name in ("ref1", "ref2", "hyp")
    ]
    references, candidates = list(zip(read[0], read[1], strict=True)), read[2]
    scores = bleu(references, candidates)
    assert [score.value for score in scores] == pytest.approx(
        [0.550000, 0.428174, 0.284043, 0.201143], abs=1e-6
    )
    assert rouge_l(references, candidates).value == pytest.approx(0.522104, abs=1e-6)
    assert cider_d(references, candidates).value == pytest.approx(1.242192, abs=1e-6)


@needs_shared
@pytest.mark.slow
@pytest.mark.skipif(not meteor_is_installed(), reason="needs Java and pycocoevalcap")
def test_meteor_is_the_documented_one():
    read = [
        shared_path("metrics", "caption", f"nlgeval_{name}.txt").read_text().split("\n")[:2]
        for name in ("ref1", "ref2", "hyp")
    ]
    score = meteor(list(zip(read[0], read[1], strict=True)), read[2])
    assert score.value == pytest.approx(0.295797, abs=1e-6)
    assert len(score.each) == 2


@pytest.mark.parametrize("seed", range(3))
def test_every_figure_is_pycocoevalcaps(seed):
    package = pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap (the test extra)")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    assert package
    references, candidates = captions(seed)
    given = as_pycocoevalcap(references, candidates)
    for ours, rival in ((cider_d, Cider()), (rouge_l, Rouge())):
        value, each = rival.compute_score(*given)
        score = ours(references, candidates)
        assert score.value == pytest.approx(value, abs=1e-12)
        np.testing.assert_allclose(score.each, each, rtol=0, atol=1e-12)
    values, each = Bleu(4).compute_score(*given, verbose=0)
    for score, value, rows in zip(bleu(references, candidates), values, each, strict=True):
        assert score.value == pytest.approx(value, abs=1e-12)
        np.testing.assert_allclose(score.each, rows, rtol=0, atol=1e-12)


def test_cider_is_the_mean_cosine_of_weighted_ngrams():
    """The definition with arrays over all n-grams, for the form without clipping."""
    references, candidates = captions(5, count=12)
    value = cider(references, candidates)
    expected = []
    for texts, candidate in zip(references, candidates, strict=True):
        terms = []
        for length in range(1, 5):
            vocabulary = sorted({g for t in sum(references, [candidate]) for g in runs(t, length)})
            counts = [[runs(text, length).count(g) for g in vocabulary] for text in texts]
            pictures = [
                sum(any(g in runs(text, length) for text in own) for own in references)
                for g in vocabulary
            ]
            weights = np.log(len(candidates)) - np.log(np.maximum(1, pictures))
            given = np.array([runs(candidate, length).count(g) for g in vocabulary]) * weights
            for text in np.array(counts) * weights:
                norm = np.linalg.norm(text) * np.linalg.norm(given)
                terms.append(text @ given / norm if norm else 0.0)
        expected.append(10 * np.mean(terms))
    np.testing.assert_allclose(value.each, expected, atol=1e-10)
    assert value.value == pytest.approx(np.mean(expected))
    assert value.value != pytest.approx(cider_d(references, candidates).value, rel=0.01)


def runs(text, length):
    words = text.split()
    return [tuple(words[n : n + length]) for n in range(len(words) - length + 1)]


def test_captions_and_references_pair_up():
    with pytest.raises(ValueError, match="2 lists of references for 1 captions"):
        cider_d([["a"], ["b"]], ["a"])
    with pytest.raises(ValueError, match=r"caption 0 has the references \[\]"):
        bleu([[]], ["a"])
    with pytest.raises(ValueError, match="caption 0 has the references 'a'"):
        rouge_l(["a"], ["a"])
    with pytest.raises(ValueError, match="no caption to score"):
        cider([], [])


@pytest.mark.parametrize("program", ["exit 1", "while read line; do echo no number; done"])
def test_a_java_that_fails_costs_meteor_alone(tmp_path, monkeypatch, program):
    pytest.importorskip("pycocoevalcap")
    java = tmp_path / "java"
    java.write_text(f'#!/bin/sh\n[ "$1" = -version ] && exit 0\n{program}\n')
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(scoring, "meteor_is_installed", lambda: True)
    row = {"truth": ["a cat"], "answers": [{"result": {"<CAPTION>": "a cat"}}]}
    with pytest.warns(UserWarning, match="METEOR is left out"):
        outcome = scoring.score_captions([row], {})
    assert "METEOR" not in outcome.others
    assert outcome.others["BLEU-1"] == pytest.approx(100)
