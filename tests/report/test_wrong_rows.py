"""Which test rows a report shows as the most wrong."""

from typing import Any

from peft_bidora.report.wrong_rows import LONGEST, SHOWN, wrong_rows


def labelled(label: Any, predicted: str, confidence: float, text: str = "x") -> dict[str, Any]:
    return {"text": text, "label": label, "predicted_label": predicted, "probabilities": {predicted: confidence}}


def test_surest_wrong_rows_come_first_and_right_ones_not_at_all() -> None:
    rows = [labelled("a", "b", 0.6), labelled("a", "a", 0.99), labelled("a", "c", 0.9), labelled(1, "1", 0.8)]
    part = wrong_rows(rows, ("text",), "label")
    assert part is not None
    assert [row[2:] for row in part.rows] == [["c", 0.9], ["b", 0.6]]
    assert part.caption.startswith("2 of 4 rows")


def test_no_more_rows_and_letters_are_shown_than_fit() -> None:
    part = wrong_rows([labelled("a", "b", 0.5, "y" * 1000)] * 50, ("text",), "label")
    assert part is not None
    assert len(part.rows) == SHOWN
    assert len(part.rows[0][0]) == LONGEST


def test_labels_that_are_missing_or_too_many_count() -> None:
    rows = [
        {"text": "x", "label": ["a", "b"], "predicted_labels": ["a", "c"], "probabilities": {}},
        {"text": "y", "label": [], "predicted_labels": ["a"], "probabilities": {}},
        {"text": "z", "label": ["a"], "predicted_labels": ["a"], "probabilities": {}},
    ]
    part = wrong_rows(rows, ("text",), "label")
    assert part is not None
    assert [row[-1] for row in part.rows] == [2, 1]


def test_numbers_are_judged_by_distance_and_tags_by_words() -> None:
    part = wrong_rows([{"text": "x", "label": 1, "predicted_value": 3.5}], ("text",), "label")
    assert part is not None
    assert part.rows[0][-1] == 2.5
    rows = [{"tokens": ["a", "b", "c"], "tags": ["O", "O", "B"], "predicted_tags": ["O", "B", "O"]}]
    part = wrong_rows(rows, ("tokens",), "tags")
    assert part is not None
    assert part.rows[0] == ["a b c", "O O B", "O B O", 2]


def test_nothing_wrong_and_nothing_judged_make_no_table() -> None:
    assert wrong_rows([labelled("a", "a", 0.9)], ("text",), "label") is None
    assert wrong_rows([{"prompt": "x", "completion": "y", "predicted_text": "z"}], ("prompt",), "completion") is None
    assert wrong_rows([], ("text",), "label") is None
