"""Entities as seqeval reads them, in any sequence of tags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from peft_bidora.tasks.entities import entities, rarest_types, split_tag

TAG = st.sampled_from(["O", *(f"{prefix}-{type_}" for prefix in "BIES" for type_ in ("per", "loc-x"))])


@given(st.lists(TAG | st.sampled_from(["B", "I", "E", "S"])))
def test_entities_are_those_of_seqeval_in_any_sequence(tags: list[str]) -> None:
    found = [(entity.type, entity.start, entity.end - 1) for entity in entities(tags)]
    assert found == [(type_, int(start), int(end)) for type_, start, end in get_entities(tags)]


@pytest.mark.parametrize(
    "tags",
    [
        ["I-per", "I-per", "O", "I-loc", "B-loc"],
        ["B-per", "I-per", "O", "B-loc", "B-loc"],
        ["B-per", "E-per", "O", "S-loc", "S-loc"],
    ],
    ids=["IOB1", "IOB2", "BIOES"],
)
def test_schemes_of_one_meaning_are_read_alike(tags: list[str]) -> None:
    assert entities(tags) == [("per", 0, 2), ("loc", 3, 4), ("loc", 4, 5)]


def test_tag_is_cut_at_its_first_hyphen() -> None:
    assert split_tag("B-cell-line") == ("B", "cell-line")
    assert split_tag("O") == ("O", "")
    assert split_tag("I") == ("I", "_")


def test_sentence_has_the_stratum_of_its_rarest_type() -> None:
    labels = [["B-a", "B-b"], ["B-a"], ["O"], ["B-a", "I-c"], ["B-c", "B-b"], ["B-b"]]
    # 3 sentences have a, 3 have b, 2 have c
    assert rarest_types(labels) == ["a", "a", "", "c", "c", "b"]


def test_sentences_of_plain_tags_are_all_alike() -> None:
    assert rarest_types([["NN", "PRP$"], ["O"], ["-LRB-"]]) == ["", "", ""]
