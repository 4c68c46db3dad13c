"""Metrics of text against the libraries' own corpus scores, and their resampling against a second computation."""

import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf

from peft_bidora.tasks.text_metrics import perplexity, resample, signatures, text_metrics

TEXTS = ("The cat sat on the mat.", "A dog runs there", "", "It rains a lot in the north, it does")
REFERENCES = (
    ("A cat is on the mat.", "The cat sat on a mat."),
    ("The dog runs in the park.",),
    ("Something.",),
    ("It rains a lot in the north.", "Rain falls in the north", "It is wet in the north, it really is"),
)
STREAMS = [
    [references[at] if at < len(references) else None for references in REFERENCES] for at in range(3)
]  # as sacrebleu wants them


def test_bleu_and_chrf_with_several_references_are_those_of_sacrebleu() -> None:
    found = text_metrics(TEXTS, REFERENCES)
    assert found["bleu"].value() == pytest.approx(corpus_bleu(list(TEXTS), STREAMS).score, rel=1e-12)
    assert found["chrf"].value() == pytest.approx(corpus_chrf(list(TEXTS), STREAMS).score, rel=1e-12)


def test_rouge_l_is_the_mean_of_the_best_over_references() -> None:
    scorer = RougeScorer(["rougeL"])
    best = [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in references)
        for text, references in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert text_metrics(TEXTS, REFERENCES)["rouge_l"].value() == pytest.approx(np.mean(best), rel=1e-12)


def test_nist_ignores_case_and_splits_punctuation() -> None:
    assert text_metrics(("the CAT .",), (("The cat.",),))["nist"].value() == pytest.approx(math.log2(3))


def test_perplexity_weighs_rows_by_their_tokens() -> None:
    assert perplexity([1.0, 8.0], [1, 3]).value() == pytest.approx(math.exp(9 / 4))
    assert perplexity([1e6], [1]).value() == math.inf


def test_resampled_scores_are_those_of_the_drawn_rows() -> None:
    metrics = {**text_metrics(TEXTS, REFERENCES), "perplexity": perplexity([3.0, 1.0, 2.0, 9.0], [3, 2, 1, 4])}
    drawn = resample(metrics, np.random.default_rng(3), 20)
    rng = np.random.default_rng(3)
    scorer = RougeScorer(["rougeL"])
    for at in range(20):
        rows = rng.integers(4, size=4)
        texts, streams = [TEXTS[row] for row in rows], [[stream[row] for row in rows] for stream in STREAMS]
        assert drawn["bleu"][at] == pytest.approx(corpus_bleu(texts, streams).score, rel=1e-9)
        assert drawn["chrf"][at] == pytest.approx(corpus_chrf(texts, streams).score, rel=1e-9)
        best = [scorer.score_multi(list(REFERENCES[row]), TEXTS[row])["rougeL"].fmeasure for row in rows]
        assert drawn["rouge_l"][at] == pytest.approx(np.mean(best))


def test_signatures_tell_whether_rows_differ_in_references() -> None:
    assert signatures(REFERENCES)["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:13a")
    assert signatures([("a", "b"), ("c", "d")])["chrf"].startswith("nrefs:2|")
