"""NIST, the score that weighs a matched n-gram by its information.

Reference: Doddington, "Automatic evaluation of machine translation quality using n-gram co-occurrence statistics",
HLT 2002; with several references as in NIST's mteval-v13a: matches against the most of any, lengths by their mean.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np

from peft_bidora.tasks.task import Array

ORDER = 5
BETA = math.log(0.5) / math.log(1.5) ** 2  # the penalty is 0.5 at two thirds of the length
NGram = tuple[str, ...]


def nist_statistics(written: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Array:
    """Return what a NIST score needs of each row, to be summed over rows: (rows, 2 · 5 + 1).

    The columns are Σ info over matched n-grams and the number of written ones, each for n = 1 … 5, and the mean length
    of the references, where info(w_1 … w_n) = log2(#(w_1 … w_{n−1}) / #(w_1 … w_n)) counts in all references given.

    Args:
        written: (rows,), the words of each text.
        references: (rows,), of each row the words of each reference.
    """
    counted = [[_ngrams(reference) for reference in truths] for truths in references]
    total: Counter[NGram] = Counter()
    for counts in chain.from_iterable(counted):
        total.update(counts)
    words = sum(len(reference) for truths in references for reference in truths)
    statistics = np.zeros((len(written), 2 * ORDER + 1))
    for row, text in enumerate(written):
        most: Counter[NGram] = Counter()
        for counts in counted[row]:
            most |= counts
        for ngram, count in (_ngrams(text) & most).items():
            before = total[ngram[:-1]] if len(ngram) > 1 else words
            statistics[row, len(ngram) - 1] += count * math.log2(before / total[ngram])
        statistics[row, ORDER : 2 * ORDER] = [max(0, len(text) - n) for n in range(ORDER)]
        statistics[row, -1] = np.mean([len(reference) for reference in references[row]])
    return statistics


def nist_score(summed: Array) -> float:
    """Return Σ_n (info of matched n-grams / written n-grams) · exp(β · ln²(min(1, written / reference words))).

    Args:
        summed: (2 · 5 + 1,), `nist_statistics` summed over rows.
    """
    information, counts, length = summed[:ORDER], summed[ORDER : 2 * ORDER], summed[-1]
    if not counts[0] or not length:
        return 0.0
    ratio = min(1.0, counts[0] / length)
    return float((information / np.maximum(counts, 1)).sum() * math.exp(BETA * math.log(ratio) ** 2))


def _ngrams(words: Sequence[str]) -> Counter[NGram]:
    return Counter(tuple(words[at : at + n]) for n in range(1, ORDER + 1) for at in range(len(words) - n + 1))
