"""Schemes recognised, and what breaks them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2, IOBES, Entities

from peft_bidora.data.examples import Examples
from peft_bidora.errors import DataError
from peft_bidora.tasks.entities import entities
from peft_bidora.tasks.tag_scheme import (
    Scheme,
    breaks_note,
    breaks_of,
    check_scheme,
    recognise_scheme,
    scheme_tags,
)

CLEAN = {
    "IOB1": ["O I-x I-x O", "I-x B-x I-x I-y", "I-y O"],
    "IOB2": ["O B-x I-x O", "B-x B-x I-x B-y", "O B-y I-y"],
    "BIOES": ["O B-x E-x O", "S-x B-x I-x E-x S-y", "S-y O"],
    "plain": ["DT NN", "PRP$ VB -LRB-", "S NN"],
}


def examples(rows: Sequence[str]) -> Examples:
    labels = [tuple(row.split()) for row in rows]
    return Examples(
        texts=[(tags,) for tags in labels],
        labels=labels,
        groups=None,
        rows=[{}] * len(labels),
        source="train.conll",
        lines=[10 * n for n in range(1, len(labels) + 1)],
        unit="line",
    )


def whole(types: Sequence[tuple[str, int]], scheme: Scheme) -> list[str]:
    """Return the tags of entities of these types and lengths, with no word between them; type O for words outside."""
    tags: list[str] = []
    for type_, length in types:
        if type_ == "O":
            tags += ["O"] * length
        elif scheme == "IOB2":
            tags += [f"B-{type_}", *[f"I-{type_}"] * (length - 1)]
        elif scheme == "BIOES":
            tags += [f"S-{type_}"] if length == 1 else [f"B-{type_}", *[f"I-{type_}"] * (length - 2), f"E-{type_}"]
        else:
            touches = bool(tags) and tags[-1][2:] == type_
            tags += ["B-" + type_ if touches else "I-" + type_, *[f"I-{type_}"] * (length - 1)]
    return tags


RUNS = st.lists(st.tuples(st.sampled_from(["O", "x", "y"]), st.integers(1, 3)), min_size=1)


@given(RUNS, st.sampled_from(["IOB1", "IOB2", "BIOES"]))
def test_whole_entities_break_no_scheme_and_are_read_back(runs: list[tuple[str, int]], scheme: Scheme) -> None:
    tags = whole(runs, scheme)
    assert list(breaks_of(tags, scheme)) == []
    assert [(e.type, e.end - e.start) for e in entities(tags)] == [run for run in runs if run[0] != "O"]


STRICT = {"IOB2": IOB2, "BIOES": IOBES}


@given(st.sampled_from(["IOB2", "BIOES"]), st.data())
def test_tags_without_a_break_are_whole_to_seqevals_strict_reading(scheme: Scheme, data: st.DataObject) -> None:
    prefixes = "BI" if scheme == "IOB2" else "BIES"
    tag = st.sampled_from(["O", *(f"{prefix}-{type_}" for prefix in prefixes for type_ in "xy")])
    tags = data.draw(st.lists(tag, min_size=1, max_size=6))
    strict = [(e.tag, e.start, e.end) for e in Entities([tags], STRICT[scheme]).entities[0]]
    words = {word for _, start, end in strict for word in range(start, end)}
    covered = words == {position for position, tag in enumerate(tags) if tag != "O"}
    assert (list(breaks_of(tags, scheme)) == []) == covered


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        ("O I-x", "IOB2", [(1, "I-x follows O")]),
        ("O I-x", "IOB1", []),
        ("I-x", "IOB2", [(0, "I-x begins the row")]),
        ("B-x I-y", "IOB2", [(1, "I-y follows B-x")]),
        ("B-x I-y", "IOB1", [(0, "B-x begins the row")]),
        ("I-x B-y", "IOB1", [(1, "B-y follows I-x")]),
        ("I-x B-x B-x", "IOB1", []),
        ("B-x", "BIOES", [(0, "B-x is not closed by E")]),
        ("B-x I-x O", "BIOES", [(1, "I-x is not closed by E")]),
        ("O E-x", "BIOES", [(1, "E-x follows O")]),
        ("S-x E-x", "BIOES", [(1, "E-x follows S-x")]),
        ("B-x E-y", "BIOES", [(0, "B-x is not closed by E"), (1, "E-y follows B-x")]),
        ("B-x I-x E-x S-x B-y E-y", "BIOES", []),
    ],
)
def test_breaks_name_the_word_and_what_is_wrong(tags: str, scheme: Scheme, expected: list[tuple[int, str]]) -> None:
    assert list(breaks_of(tags.split(), scheme)) == expected


@pytest.mark.parametrize("scheme", CLEAN)
def test_scheme_of_clean_rows_is_recognised(scheme: Scheme) -> None:
    rows = examples(CLEAN[scheme])
    assert recognise_scheme(rows) == scheme
    assert breaks_note(rows, scheme) is None


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_a_few_breaks_are_let_pass_with_a_note(scheme: Scheme) -> None:
    slip = {"IOB1": "O B-x", "IOB2": "O I-x", "BIOES": "O I-x E-x"}[scheme]
    rows = examples([*CLEAN[scheme] * 4, slip])
    assert recognise_scheme(rows) == scheme
    note = breaks_note(rows, scheme)
    assert note is not None
    assert note.startswith(f"1 tag breaks {scheme} in train.conll (line 130, word 2: {slip.split()[1]} follows O)")


def test_many_breaks_are_counted_and_the_first_shown() -> None:
    note = breaks_note(examples(["I-x"] * 7), "IOB2")
    assert note is not None
    assert note.startswith("7 tags break IOB2")
    assert note.count("word 1") == 5
    assert "; and 2 more)" in note


def test_rows_of_two_schemes_are_refused_with_the_first_lines() -> None:
    rows = examples(["O B-x", "O B-x", "O I-x"])
    with pytest.raises(DataError, match=r"train\.conll: expected tags in IOB2.*found 1 break in 3 entities \(line 30"):
        recognise_scheme(rows)


def test_unclosed_entities_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected tags in BIOES.*line 10, word 1: B-x is not closed by E"):
        recognise_scheme(examples(["B-x O S-x", "B-x I-x"]))


def test_rows_of_another_file_in_another_scheme_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected tags in IOB2"):
        check_scheme(examples(CLEAN["IOB1"]), "IOB2")
    check_scheme(examples(CLEAN["IOB2"]), "IOB2")
    check_scheme(examples(CLEAN["IOB2"]), "plain")


def test_tags_of_no_scheme_among_those_of_entities_are_named() -> None:
    rows = examples([*CLEAN["IOB2"], "O U-x L-y", "person O"])
    with pytest.raises(DataError) as caught:
        recognise_scheme(rows)
    (fault,) = caught.value.faults
    assert "'L-y', 'U-x', 'person'" in fault
    assert "line 40, word 2: U-x; line 40, word 3: L-y; line 50, word 1: person" in fault
    assert "write L- as E- and U- as S-" in fault


def test_rare_tags_that_look_like_entities_leave_plain_tags_plain() -> None:
    assert recognise_scheme(examples(["NN VB I-x", "DT NN"])) == "plain"


@pytest.mark.parametrize(("rows", "scheme"), [(["B I O", "O B"], "IOB2"), (["I I O"], "IOB1"), (["B E O S"], "BIOES")])
def test_bare_prefixes_are_entities_of_one_type(rows: list[str], scheme: Scheme) -> None:
    assert recognise_scheme(examples(rows)) == scheme


@pytest.mark.parametrize("rows", [["O S", "E O"], ["O O"]])
def test_tags_without_a_beginning_are_plain(rows: list[str]) -> None:
    assert recognise_scheme(examples(rows)) == "plain"


def test_tags_of_a_scheme_are_complete_for_each_type() -> None:
    assert scheme_tags(["O", "I-y", "B-x"], "IOB2") == ["O", "B-x", "I-x", "B-y", "I-y"]
    assert scheme_tags(["S-x"], "BIOES") == ["O", "B-x", "I-x", "E-x", "S-x"]
    assert scheme_tags(["B", "O"], "IOB1") == ["O", "B", "I"]


def test_tags_of_another_scheme_are_told_as_such_with_their_places() -> None:
    with pytest.raises(DataError, match=r"in IOB2, .* by 'B-', 'I-'; found 'S-x' \(line 10, word 2: S-x\)"):
        check_scheme(examples(["O S-x O"]), "IOB2")
