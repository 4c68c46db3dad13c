import pytest

from peft_bidora.data.columns import CLASSES, Columns, columns_of_other, require_columns, resolve_columns
from peft_bidora.data.table import Table, table_of_rows
from peft_bidora.errors import DataError


def table(*columns: str, **values: object) -> Table:
    """Return a table with one row; a column holds the string "a" unless its value is given."""
    return table_of_rows("train.jsonl", columns, [{column: values.get(column, "a") for column in columns}], None)


def test_columns_that_are_named_are_taken_without_a_guess() -> None:
    columns, guesses = resolve_columns(table("a", "b", "c", "d", "label"), ["b", "a"], "c", "d")
    assert columns == Columns(("b", "a"), "c", "d")
    assert guesses == []


@pytest.mark.parametrize("label", ["label", "labels", "class", "category", "target", "y"])
@pytest.mark.parametrize("text", ["text", "sentence", "content", "review", "question", "sequence"])
def test_usual_names_are_guessed_with_a_sentence_each(text: str, label: str) -> None:
    columns, guesses = resolve_columns(table("id", text, label), None, None)
    assert columns == Columns((text,), label)
    assert guesses == [
        f"data.label is not set: using the column '{label}' of train.jsonl",
        f"data.text is not set: using the column '{text}' of train.jsonl",
    ]


@pytest.mark.parametrize(
    "pair",
    [
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("text1", "text2"),
        ("question", "sentence"),
    ],
)
def test_usual_pairs_are_guessed_in_their_order(pair: tuple[str, str]) -> None:
    columns, guesses = resolve_columns(table("label", *reversed(pair)), None, "label")
    assert columns == Columns(pair, "label")
    assert guesses == [f"data.text is not set: using the columns '{pair[0]}' and '{pair[1]}' of train.jsonl"]


def test_the_only_other_string_column_is_the_text() -> None:
    columns, _ = resolve_columns(
        table("id", "utterance", "score", "label", "fold", id=1, score=None), None, None, "fold"
    )
    assert columns == Columns(("utterance",), "label", "fold")


def test_a_table_without_a_label_column_has_none() -> None:
    columns, guesses = resolve_columns(table("text", "id"), None, None)
    assert columns == Columns(("text",), None)
    assert len(guesses) == 1


def test_a_column_that_is_used_already_is_not_guessed_again() -> None:
    assert resolve_columns(table("text", "category", "label"), ["category"], None)[0] == Columns(("category",), "label")
    assert resolve_columns(table("text", "category"), ["category"], None)[0] == Columns(("category",), None)
    assert resolve_columns(table("text", "sentence"), None, "text")[0] == Columns(("sentence",), "text")
    assert resolve_columns(table("text", "class", "y"), None, None, "class")[0] == Columns(("text",), "y", "class")


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (("text", "sentence", "label"), r"'text', 'sentence' could each be the text"),
        (("text", "premise", "hypothesis"), r"\('premise', 'hypothesis'\), 'text' could each be the text"),
        (("utterance", "answer", "label"), r"'utterance', 'answer' could each be the text"),
        (("label",), r"holds a text in every row"),
    ],
)
def test_text_in_doubt_is_an_error_with_the_columns_there_are(columns: tuple[str, ...], why: str) -> None:
    with pytest.raises(
        DataError, match=rf"data\.text is not set.*train\.jsonl \('{columns[0]}'.*\) {why}.* Set data\.text"
    ):
        resolve_columns(table(*columns), None, None)


def test_label_in_doubt_is_an_error_with_the_columns_there_are() -> None:
    message = r"data\.label is not set.*\('text', 'y', 'label'\) 'label', 'y' could each be the label\. Set data\.label"
    with pytest.raises(DataError, match=message):
        resolve_columns(table("text", "y", "label"), None, None)


def test_all_missing_columns_are_reported_with_the_nearest_names() -> None:
    with pytest.raises(DataError) as caught:
        resolve_columns(table("sentence", "label", "fold"), ["sentense"], "lable", "speaker")
    text, label, group = caught.value.faults
    assert text == (
        "data.text names the column 'sentense', but train.jsonl has 'sentence', 'label', 'fold'. "
        "Did you mean 'sentence'? Correct data.text."
    )
    assert "data.label names the column 'lable'" in label
    assert "Did you mean 'label'?" in label
    assert group.endswith("'fold'. Correct data.group.")


@pytest.mark.parametrize(
    ("text", "label", "group", "users"),
    [
        (["a", "a"], "b", None, r"'a' is named by data\.text and by data\.text"),
        (["a"], "a", None, r"'a' is named by data\.text and by data\.label"),
        (["a"], "b", "b", r"'b' is named by data\.label and by data\.group"),
    ],
)
def test_column_used_twice_is_an_error(text: list[str], label: str, group: str | None, users: str) -> None:
    with pytest.raises(DataError, match=users):
        resolve_columns(table("a", "b"), text, label, group)


@pytest.mark.parametrize("text", [[], ["a", "b", "c"]])
def test_texts_are_one_or_two_columns(text: list[str]) -> None:
    with pytest.raises(DataError, match=rf"data\.text names {len(text)} columns; expected one, or two for a pair"):
        resolve_columns(table("a", "b", "c", "label"), text, "label")


def test_columns_of_one_table_are_required_of_another() -> None:
    require_columns(table("text", "label"), Columns(("text",), "label"))
    with pytest.raises(DataError, match=r"data\.label names the column 'label', but train\.jsonl has 'text', 'labels'"):
        require_columns(table("text", "labels"), Columns(("text",), "label"))


def test_columns_that_another_file_lacks_are_to_be_renamed_there() -> None:
    with pytest.raises(DataError) as caught:
        columns_of_other(table("txt", "kind"), Columns(("text",), "label"), CLASSES)
    assert caught.value.faults == (
        "train.jsonl has no column 'text', which the train file has for data.text; it has 'txt', 'kind'."
        " Did you mean 'txt'? Rename the one that is meant.",
        "train.jsonl has no column 'label', which the train file has for data.label; it has 'txt', 'kind'."
        " Rename the one that is meant.",
    )
