from pathlib import Path
from typing import Any

import datasets
import pytest

from peft_bidora.data.source import read_table

NAMES = ["O", "B-x", "I-x"]


@pytest.fixture
def saved() -> Any:
    datasets.disable_progress_bars()
    features = {
        "tokens": datasets.Sequence(datasets.Value("string")),
        "ner_tags": datasets.Sequence(datasets.ClassLabel(names=NAMES)),
        "label": datasets.ClassLabel(names=["no", "yes"]),
    }
    rows = {"tokens": [["a", "b"], ["c"], None], "ner_tags": [[0, 1], [2], None], "label": [0, 1, 1]}
    yield datasets.Dataset.from_dict(rows, datasets.Features(features))
    datasets.enable_progress_bars()


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_numbers_of_tags_become_their_names(form: str, saved: Any, tmp_path: Path) -> None:
    path = tmp_path / ("saved" if form == "folder" else "a.parquet")
    saved.save_to_disk(str(path)) if form == "folder" else saved.to_parquet(str(path))
    rows = read_table(path).rows
    assert [row["ner_tags"] for row in rows] == [["O", "B-x"], ["I-x"], None]
    assert [row["tokens"] for row in rows] == [["a", "b"], ["c"], None]
    assert [row["label"] for row in rows] == ["no", "yes", "yes"]


def test_number_out_of_range_stays_a_number(saved: Any, tmp_path: Path) -> None:
    hidden = saved.map(lambda row: {"ner_tags": row["ner_tags"] and [-1] * len(row["ner_tags"])})
    hidden.to_parquet(str(tmp_path / "a.parquet"))
    assert [row["ner_tags"] for row in read_table(tmp_path / "a.parquet").rows] == [[-1, -1], [-1], None]
