"""NIST against NLTK's with one reference a row, and by hand with several."""

import math

import numpy as np
import pytest
from nltk.translate.nist_score import corpus_nist

from peft_bidora.tasks.nist import nist_score, nist_statistics

WRITTEN = ["the cat sat on the mat today", "a dog runs in the park there", "it rains a lot"]
TRUE = ["the cat sat on a mat", "the dog runs in the green park there now", "it rains a lot today I think"]


def words(texts: list[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def score(written: list[str], references: list[list[str]]) -> float:
    return nist_score(nist_statistics(words(written), [words(row) for row in references]).sum(0))


def test_score_with_one_reference_a_row_is_that_of_nltk() -> None:
    references = [[text] for text in words(TRUE)]
    assert score(WRITTEN, [[text] for text in TRUE]) == pytest.approx(
        corpus_nist(references, words(WRITTEN)), rel=1e-12
    )


def test_matches_are_counted_against_the_most_of_any_reference() -> None:
    # Of the 5 words of the references a is two; b stands in the first alone, c in the second, and "a b" once.
    expected = (math.log2(5 / 2) + 2 * math.log2(5)) / 3 + math.log2(2) / 2
    assert score(["a b c"], [["a b", "a c d"]]) == pytest.approx(expected)  # longer than their mean: no penalty


def test_word_written_more_often_than_in_any_reference_matches_as_often_as_there() -> None:
    references = [["a b c", "a d e"]]
    assert score(["a a f"], references) == pytest.approx(math.log2(6 / 2) / 3)


def test_penalty_is_a_half_at_two_thirds_of_the_mean_length() -> None:
    # One bigram "a b" of two words; references of 2 and 4 words have the mean 3.
    full = math.log2(6 / 2) + math.log2(2 / 2)  # (info a + info b) / 2, and a b; each stands in both references
    assert score(["a b"], [["a b", "a b c d"]]) == pytest.approx(0.5 * full)


@pytest.mark.parametrize("text", ["", "nothing of it"])
def test_nothing_matched_scores_zero(text: str) -> None:
    assert score([text], [["the cat sat"]]) == 0.0


def test_text_shorter_than_an_ngram_lacks_only_the_longer_ones() -> None:
    statistics = nist_statistics([["a", "b"]], [[["a", "b"]]])
    assert statistics[0, 5:].tolist() == [2, 1, 0, 0, 0, 2]
    assert np.isfinite(nist_score(statistics.sum(0)))
