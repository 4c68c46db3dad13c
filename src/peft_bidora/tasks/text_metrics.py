"""Metrics of generated text against one or several references, each a function of sums over rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import numpy as np

from peft_bidora.tasks.nist import nist_score, nist_statistics
from peft_bidora.tasks.task import Array

References = Sequence[Sequence[str]]
Texts = tuple[str, ...]


@dataclass(frozen=True)
class Summable:
    """A metric by what it needs of each row.

    Args:
        rows: (rows, statistics).
        score: the metric of the sum over rows, (statistics,).
    """

    rows: Array
    score: Callable[[Array], float]

    def value(self) -> float:
        """Return the metric of all rows."""
        return self.score(self.rows.sum(0))


@lru_cache(maxsize=1)  # a score and its interval need the same
def text_metrics(texts: Texts, references: tuple[Texts, ...]) -> Mapping[str, Summable]:
    """Return BLEU, chrF, NIST and ROUGE-L.

    bleu and chrf are sacrebleu's with its defaults (0 to 100; tokens of mteval-13a, case kept). nist counts
    n-grams up to 5 of the same tokens in lower case, its information in all references given, of resamples too.
    rouge_l is the mean F1 of rouge-score (0 to 1; words of a–z and 0–9, no stemming) against the best reference.

    Args:
        texts: (rows,), what was generated.
        references: (rows,), one or more texts of each row.
    """
    return {
        "bleu": _sacrebleu(bleu(), texts, references),
        "chrf": _sacrebleu(chrf(), texts, references),
        "nist": _nist(texts, references),
        "rouge_l": _rouge_l(texts, references),
    }


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> Summable:
    """Return exp(Σ nats / Σ tokens), the perplexity a label token.

    Args:
        nats: (rows,), −log p of a text.
        tokens: (rows,), its length.
    """
    rows = np.stack([np.asarray(nats, dtype=float), np.asarray(tokens, dtype=float)], axis=1)
    return Summable(rows, lambda summed: _exp(summed[0] / summed[1]))


def resample(metrics: Mapping[str, Summable], rng: np.random.Generator, resamples: int) -> dict[str, Array]:
    """Return (resamples,) values of each metric over rows drawn with replacement, the same rows for all metrics.

    Args:
        metrics: of the same rows.
        rng: draws the rows.
        resamples: how often.
    """
    rows = len(next(iter(metrics.values())).rows)
    drawn = {name: np.empty(resamples) for name in metrics}
    for at in range(resamples):
        times = np.bincount(rng.integers(rows, size=rows), minlength=rows)
        for name, metric in metrics.items():
            drawn[name][at] = metric.score(times @ metric.rows)
    return drawn


def signatures(references: References) -> dict[str, str]:
    """Return sacrebleu's signatures, which tell how its scores were made."""
    counts = {len(row) for row in references}
    made = {}
    for name, metric in (("bleu", bleu()), ("chrf", chrf())):
        metric.num_refs = counts.copy().pop() if len(counts) == 1 else -1  # as corpus_score sets it
        made[name] = str(metric.get_signature())
    return made


def bleu() -> Any:
    """Return sacrebleu's BLEU."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU()


def chrf() -> Any:
    """Return sacrebleu's chrF."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _sacrebleu(metric: Any, texts: Sequence[str], references: References) -> Summable:
    # What corpus_score itself sums, and computes its own bootstrap from.
    rows = metric._extract_corpus_statistics(list(texts), _streams(references))
    return Summable(
        np.array(rows), lambda summed: float(metric._compute_score_from_stats([int(count) for count in summed]).score)
    )


def _nist(texts: Sequence[str], references: References) -> Summable:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    words = [tokenize(text).lower().split() for text in texts]
    true_words = [[tokenize(reference).lower().split() for reference in row] for row in references]
    return Summable(nist_statistics(words, true_words), nist_score)


def _rouge_l(texts: Sequence[str], references: References) -> Summable:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, references, strict=True)
    best = [scorer.score_multi(list(row), text)["rougeL"].fmeasure for text, row in pairs]
    return Summable(np.array([[score, 1.0] for score in best]), lambda summed: float(summed[0] / summed[1]))


def _streams(references: References) -> list[list[str | None]]:
    """Return the first reference of every row, the second of every row, …: None where a row has fewer."""
    return [list(stream) for stream in zip_longest(*references)]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
