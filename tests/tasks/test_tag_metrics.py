"""Scores of tags against seqeval's and scikit-learn's, on random predictions in every scheme."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.tasks.tag_scheme import PREFIXES, Scheme
from peft_bidora.tasks.tagging import Tagging
from peft_bidora.tasks.token_classification import TokenClassification

TYPES = ("loc", "per", "org-x")
PLAIN = TokenClassification(("DT", "NN", "VB"), "plain")
Rows = Sequence[Sequence[str]]


def task_of(scheme: Scheme) -> TokenClassification:
    return TokenClassification(("O", *(f"{p}-{type_}" for type_ in TYPES for p in PREFIXES[scheme])), scheme)


def tagged(rows: Rows) -> list[Tagging]:
    return [Tagging(tuple(tags), (1.0,) * len(tags)) for tags in rows]


def lists(rows: Rows) -> list[list[str]]:
    return [list(tags) for tags in rows]


@st.composite
def pairs(draw: st.DrawFn, names: Sequence[str]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Tags of a few sentences in prediction and in truth."""
    tag = st.sampled_from(names)
    rows = draw(st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=8), min_size=1, max_size=5))
    return [tuple(p for p, _ in row) for row in rows], [tuple(t for _, t in row) for row in rows]


@given(st.sampled_from(["IOB1", "IOB2", "BIOES"]), st.data())
def test_entity_scores_equal_seqevals(scheme: Scheme, data: st.DataObject) -> None:
    task = task_of(scheme)
    predicted, labels = data.draw(pairs(task.label_names))
    found = task.scores(tagged(predicted), labels)
    truth, guess = lists(labels), lists(predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rates without entities, which are 0
        expected = {
            "f1": seqeval.f1_score(truth, guess),
            "precision": seqeval.precision_score(truth, guess),
            "recall": seqeval.recall_score(truth, guess),
            "accuracy": seqeval.accuracy_score(truth, guess),
        }
        report = seqeval.classification_report(truth, guess, output_dict=True, zero_division=0)
    assert list(found) == list(task.metrics) == list(expected)
    # Whole numbers divided once or twice in float64.
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for row in task.details(tagged(predicted), labels)["by_type"]:
        by_seqeval = report.get(row["label"], {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        told = [row["precision"], row["recall"], row["f1"], row["entities"]]
        assert told == pytest.approx([by_seqeval[k] for k in ("precision", "recall", "f1-score", "support")], rel=1e-12)


@settings(max_examples=40)
@given(pairs(PLAIN.label_names))
def test_scores_of_plain_tags_equal_scikit_learns(rows: tuple[Rows, Rows]) -> None:
    predicted, labels = rows
    guess, truth = [tag for row in predicted for tag in row], [tag for row in labels for tag in row]
    assert PLAIN.scores(tagged(predicted), labels) == pytest.approx(
        {"accuracy": accuracy_score(truth, guess), "f1_macro": f1_score(truth, guess, average="macro")}, rel=1e-12
    )
    columns = precision_recall_fscore_support(truth, guess, labels=PLAIN.label_names, zero_division=0)
    told = [
        [row[k] for k in ("precision", "recall", "f1", "words")]
        for row in PLAIN.details(tagged(predicted), labels)["by_tag"]
    ]
    np.testing.assert_allclose(told, np.transpose(columns), rtol=1e-12)


def test_words_that_were_cut_count_as_outside() -> None:
    task = task_of("IOB2")
    labels = [("B-loc", "I-loc", "O", "B-per"), ("O", "O")]
    short = [Tagging(("B-loc", "I-loc"), (1.0, 1.0)), Tagging(("O",), (1.0,))]
    filled = tagged([("B-loc", "I-loc", "O", "O"), ("O", "O")])
    assert (
        task.scores(short, labels)
        == task.scores(filled, labels)
        == pytest.approx({"f1": 2 / 3, "precision": 1.0, "recall": 0.5, "accuracy": 5 / 6})
    )


def test_plain_words_that_were_cut_are_wrong_and_of_no_tag() -> None:
    scores = PLAIN.scores([Tagging(("DT",), (1.0,))], [("DT", "NN")])
    assert scores == {"accuracy": 0.5, "f1_macro": 0.5}


def random_rows(seed: int, count: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    rng = np.random.default_rng(seed)
    names = np.array(task_of("IOB2").label_names)
    labels = [tuple(names[rng.integers(0, 7, rng.integers(1, 9))].tolist()) for _ in range(count)]
    predicted = [tuple(tag if rng.random() < 0.8 else "O" for tag in row) for row in labels]
    return predicted, labels


def test_intervals_are_those_of_resampled_sentences() -> None:
    task = task_of("IOB2")
    predicted, labels = random_rows(0, 150)
    found = scores_with_intervals(task, tagged(predicted), labels, 0)
    rng = np.random.default_rng(7)
    drawn = []
    for rows in rng.integers(0, 150, (200, 150)):
        guess, truth = [list(predicted[i]) for i in rows], [list(labels[i]) for i in rows]
        drawn.append([seqeval.f1_score(truth, guess), seqeval.accuracy_score(truth, guess)])
    for position, name in enumerate(("f1", "accuracy")):
        low, high = np.quantile([row[position] for row in drawn], [0.025, 0.975])
        # Quantiles of 200 and 1000 draws: about 0.01 apart by chance.
        assert found[name]["low"] == pytest.approx(low, abs=0.03)
        assert found[name]["high"] == pytest.approx(high, abs=0.03)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


@pytest.mark.parametrize("task", [task_of("IOB2"), PLAIN], ids=["entities", "plain"])
def test_one_sentence_has_an_interval_of_no_width(task: TokenClassification) -> None:
    labels = [task.label_names]
    for score in scores_with_intervals(task, tagged(labels), labels, 0).values():
        assert score == {"value": 1.0, "low": 1.0, "high": 1.0}
