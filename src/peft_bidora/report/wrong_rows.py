"""The test rows that a run got most wrong, of each task by what its predictions tell."""

from collections.abc import Mapping, Sequence
from typing import Any

from peft_bidora.report.page import TablePart

SHOWN = 12
LONGEST = 400  # characters of a text

Row = Mapping[str, Any]


def wrong_rows(rows: Sequence[Row], text: Sequence[str], label: str) -> TablePart | None:
    """Return the rows that are most wrong, worst first; None where no row is, or texts are judged by no row.

    Args:
        rows: of predictions.jsonl.
        text: the columns that are read.
        label: the column of what was to be predicted.
    """
    if not rows:
        return None
    shapes = (
        ("predicted_label", _of_label, "confidence", "wrong, and surest of it"),
        ("predicted_labels", _of_labels, "labels that differ", "with most labels that differ"),
        ("predicted_value", _of_value, "off by", "farthest from the label"),
        ("predicted_tags", _of_tags, "words that differ", "with most words that differ"),
    )
    known = [shape for shape in shapes if shape[0] in rows[0]]
    if not known:
        return None
    column, judge, what, title = known[0]
    judged = [(judge(row, row.get(label)), row) for row in rows]
    wrong = sorted((pair for pair in judged if pair[0] > 0), key=lambda pair: -pair[0])
    if not wrong:
        return None
    shown = wrong[:SHOWN]
    return TablePart(
        f"Test rows {title}",
        (*text, label, column, what),
        [
            [*(cut(row.get(name)) for name in text), cut(row.get(label)), cut(row[column]), badness]
            for badness, row in shown
        ],
        f"{len(wrong):,} of {len(rows):,} rows are not as the label says; {len(shown)} are shown.",
    )


def cut(value: Any) -> str:
    """Return a value as text of a length that a page can take."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _of_label(row: Row, label: Any) -> float:
    return float(max(row["probabilities"].values())) if named(label) != row["predicted_label"] else 0.0


def _of_labels(row: Row, label: Any) -> int:
    return len({named(name) for name in label or ()} ^ set(row["predicted_labels"]))


def _of_value(row: Row, label: Any) -> float:
    return abs(float(label) - float(row["predicted_value"]))


def _of_tags(row: Row, label: Any) -> int:
    return sum(mine != named(his) for mine, his in zip(row["predicted_tags"], label, strict=False))


def named(label: Any) -> str:
    """Return a label of a data file as the name of its class."""
    from peft_bidora.data.fields import name_of

    name = name_of(label)
    return str(label) if name is None else str(name)
