import pytest

from peft_bidora.data.wording import counted, listed, listed_columns, places, rows_have, suggestion, verb


def test_names_are_quoted_and_a_long_list_is_cut_and_counted() -> None:
    assert listed(["text", "label"]) == "'text', 'label'"
    names = listed(f"c{i}" for i in range(23))
    assert names.endswith("'c19' and 3 more")
    assert "c20" not in names


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([4], "line 4"),
        ([4, 9, 17], "lines 4, 9, 17"),
        ([1, 2, 3, 4, 5], "lines 1, 2, 3, 4, 5"),
        ([1, 2, 3, 4, 5, 6, 7], "lines 1, 2, 3, 4, 5 and 2 more"),
    ],
)
def test_places_show_the_first_five_and_count_the_rest(numbers: list[int], expected: str) -> None:
    assert places("line", numbers) == expected


def test_one_is_singular_and_none_is_plural() -> None:
    assert (counted(1, "row"), counted(0, "row"), counted(2, "row")) == ("1 row", "0 rows", "2 rows")
    assert (rows_have(1), rows_have(2)) == ("1 row has", "2 rows have")
    assert [verb(count, "is", "are") for count in (0, 1, 2)] == ["are", "is", "are"]


def test_the_nearest_name_is_suggested_and_a_far_one_is_not() -> None:
    assert suggestion("lable", ["text", "label"]) == " Did you mean 'label'?"
    assert suggestion("xyz", ["text", "label"]) == ""


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("text", "a;b"), "'text', 'a;b'"),
        (("text",), "'text'"),
        (
            ("text;label",),
            "'text;label' (cells are separated by commas in a .csv, by tabs in a .tsv, and not by ';')",
        ),
        (("a\tb",), r"'a\tb' (cells are separated by commas in a .csv, by tabs in a .tsv, and not by '\t')"),
    ],
)
def test_one_column_with_a_separator_in_its_name_is_told_to_be_several(columns: tuple[str, ...], expected: str) -> None:
    assert listed_columns(columns) == expected
