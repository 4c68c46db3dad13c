"""Protein sequences: when they are expected, how they are read, and what a user is told."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from peft_bidora.data.columns import CLASSES, resolve_columns
from peft_bidora.data.examples import Examples, read_examples
from peft_bidora.data.table import Table
from peft_bidora.errors import DataError
from peft_bidora.tasks.protein import is_protein, sequence_layout, sequence_notes
from peft_bidora.tasks.task import TaskOptions

PEPTIDES = ("AGCKNFFWKTFTSC", "AGILKRWKK", "MKVLLAGEWS")


@pytest.fixture(scope="session")
def esm(esm_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(esm_model)


@pytest.fixture(scope="session")
def words(word_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(word_model)


def examples(*texts: str) -> Examples:
    return Examples([(text,) for text in texts], None, None, [{} for _ in texts], "p.jsonl", [1] * len(texts), "line")


def test_texts_are_proteins_where_the_tokenizer_is_of_esm_or_the_user_says_so(esm: Any, words: Any) -> None:
    assert is_protein(TaskOptions(), esm)
    assert not is_protein(TaskOptions(sequences="text"), esm)
    assert not is_protein(TaskOptions(), words)
    assert is_protein(TaskOptions(sequences="protein"), words)


def test_esm_reads_a_residue_a_token_and_passes_over_white_space(esm: Any) -> None:
    plain = esm("MKVLX")["input_ids"]
    assert len(plain) == 5 + 2
    assert esm(" M K\nVL\tX ")["input_ids"] == plain


def test_columns_of_sequences_are_guessed(esm: Any) -> None:
    layout = sequence_layout(CLASSES, TaskOptions(), esm)
    row = {"id": "P1", "text": "a protein", "sequence": "MKV", "label": "x"}
    table = Table("p.csv", tuple(row), [row], [2], "line", None)
    assert resolve_columns(table, None, None, layout=layout)[0].text == ("sequence",)


def test_faulty_rows_are_named_with_their_letters_and_lines(esm: Any) -> None:
    layout = sequence_layout(CLASSES, TaskOptions(), esm)
    rows: list[dict[str, object]] = [{"sequence": s, "label": "x"} for s in ("MKV", "MK*", "M-K*", "mkv")]
    table = Table("p.jsonl", ("sequence", "label"), rows, [1, 2, 3, 4], "line", None)
    columns, _ = resolve_columns(table, None, None, layout=layout)
    with pytest.raises(DataError) as caught:
        read_examples(table, columns, layout)
    first, second = caught.value.faults
    assert first.startswith("p.jsonl: 2 rows have characters that are no residue in 'sequence': '*', '-' (lines 2, 3)")
    assert second.startswith("p.jsonl: 1 row has residues in lower case in 'sequence': 'k', 'm', 'v' (line 4)")


def test_text_tokenizer_on_proteins_is_noted_with_what_is_lost(words: Any) -> None:
    (note,) = sequence_notes(TaskOptions(sequences="protein"), words, examples(*PEPTIDES))
    assert "reads the 33 residues of the first 3 as 3 pieces, such as 'AGCKNFFWKTFTSC' as [UNK]" in note
    assert "The single residues and their places are lost" in note
    (unasked,) = sequence_notes(TaskOptions(), words, examples(*PEPTIDES))
    assert unasked == f"{note} If they are no proteins, set data.sequences=text."


@pytest.mark.parametrize(
    ("sequences", "texts"),
    [
        ("text", PEPTIDES),
        (None, ("good film", "bad day")),
        (None, ("GATTACAGATTACA", "CCGTTTAGGCAT")),
        (None, ("YES", "NAN")),
    ],
)
def test_texts_that_are_no_proteins_are_not_noted(sequences: Any, texts: tuple[str, ...], words: Any) -> None:
    assert sequence_notes(TaskOptions(sequences=sequences), words, examples(*texts)) == []


def test_tokenizer_of_residues_is_not_noted_but_for_residues_that_it_lacks(esm: Any) -> None:
    assert sequence_notes(TaskOptions(), esm, examples(*PEPTIDES)) == []
    (note,) = sequence_notes(TaskOptions(), esm, examples("MKJ", "MKV", "JJB"))
    assert note.startswith("p.jsonl: 2 rows have residues that the model's tokenizer does not know: 'J'")


def test_nothing_is_noted_without_a_tokenizer() -> None:
    assert sequence_notes(TaskOptions(sequences="protein"), None, examples(*PEPTIDES)) == []


def test_long_lists_of_pieces_are_cut() -> None:
    letters = SimpleNamespace(tokenize=lambda text: [*text.lower(), "##"])
    (note,) = sequence_notes(TaskOptions(sequences="protein"), letters, examples("M" * 30))
    assert "such as 'MMMMMMMMMMMMMMMMMMMM' as m, m, m, m, m, m, …." in note
