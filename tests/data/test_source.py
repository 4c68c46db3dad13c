import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from peft_bidora.data.source import find_split_files, read_table
from peft_bidora.errors import DataError

Write = Callable[[str, str], Path]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\nhello\n"),
        ("a.CSV", "text\nhello\n"),
        ("a.tsv", "text\nhello\n"),
        ("a.jsonl", '{"text": "hello"}\n'),
        ("a.ndjson", '{"text": "hello"}\n'),
        ("a.json", '[{"text": "hello"}]'),
    ],
)
def test_text_file_is_read_by_its_suffix(write: Write, name: str, content: str) -> None:
    path = write(name, content)
    table = read_table(str(path))
    assert table.rows == [{"text": "hello"}]
    assert table.source == str(path)


def test_parquet_file_is_read_by_its_suffix(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["hello"]}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").rows == [{"text": "hello"}]


def test_messages_name_the_file_as_the_user_did(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.csv", "text,label\na\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^a\.csv, line 2: 1 cell"):
        read_table("a.csv")


def test_home_folder_is_expanded(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.csv", "text\nhello\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_table("~/a.csv").rows == [{"text": "hello"}]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text,label\n"), ("a.json", "[]")], ids=["header only", "empty list"]
)
def test_file_without_rows_is_refused(write: Write, name: str, content: str) -> None:
    with pytest.raises(DataError, match=rf"{name} has the columns .*but no rows\. Add at least one row"):
        read_table(write(name, content))


def test_missing_file_is_reported_with_the_nearest_name(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", "{}")
    with pytest.raises(DataError, match=r"trian\.jsonl does not exist\. Did you mean 'train\.jsonl'\?"):
        read_table(tmp_path / "trian.jsonl")
    with pytest.raises(
        DataError, match=r"test\.jsonl does not exist\. Correct the path"
    ):  # the train rows are not meant
        read_table(tmp_path / "test.jsonl", "test")


def test_missing_folder_of_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist, and neither does its folder .*nowhere"):
        read_table(tmp_path / "nowhere" / "train.csv")


@pytest.mark.parametrize(
    "source",
    ["data/train.jsonl", "./owner/name", "../owner", "~/owner", r"owner\name", "one/two/three", "train", "/a/b"],
)
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_hub(*_: object) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr("peft_bidora.data.source.read_hub", read_hub)
    with pytest.raises(DataError, match="does not exist"):
        read_table(source)


@pytest.mark.parametrize("source", ["owner/name", "owner/name.v2", "owner/name:config-1"])
def test_owner_and_name_of_nothing_here_are_looked_up_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_hub(source: str, split: str) -> None:
        raise DataError(f"asked for {source}, {split}")

    monkeypatch.setattr("peft_bidora.data.source.read_hub", read_hub)
    with pytest.raises(DataError, match=f"asked for {source}, test"):
        read_table(source, "test")


def test_folder_that_exists_comes_before_a_hub_name(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("owner/name/train.csv", "text\nhello\n")
    monkeypatch.chdir(tmp_path)
    table = read_table("owner/name")
    assert table.rows == [{"text": "hello"}]
    assert table.source == str(Path("owner/name/train.csv"))


def test_unknown_suffix_is_refused_with_the_known_ones(write: Write) -> None:
    with pytest.raises(DataError, match=r"unknown suffix '\.txt'; known are \.csv, \.tsv, \.jsonl"):
        read_table(write("train.txt", "hello"))


def test_file_that_cannot_be_opened_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.csv", "text\na\n")

    def read_bytes(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(DataError, match=r"a\.csv cannot be read \(Permission denied\)"):
        read_table(path)


def test_split_files_are_found_by_the_first_word_of_their_names(write: Write, tmp_path: Path) -> None:
    names = [
        "train-00000-of-00001.csv",
        "dev_set.jsonl",
        "Test.TSV",
        "trained.csv",
        "device.csv",
        "notes.txt",
        "test.txt",
    ]
    for name in names:
        write(name, "text\na\n")
    (tmp_path / "train.json").mkdir()
    found = find_split_files(tmp_path)
    assert {split: path.name for split, path in found.items()} == {
        "train": "train-00000-of-00001.csv",
        "validation": "dev_set.jsonl",
        "test": "Test.TSV",
    }
    assert list(found) == ["train", "validation", "test"]


@pytest.mark.parametrize("name", ["validation.csv", "valid.csv", "val.csv", "dev.csv", "val2.csv"])
def test_validation_files_have_four_names(write: Write, name: str) -> None:
    assert find_split_files(write(name, "text\na\n").parent).keys() == {"validation"}


def test_two_files_for_one_split_are_ambiguous(write: Write, tmp_path: Path) -> None:
    for name in ("train.csv", "train.jsonl", "val.csv", "dev.csv", "test.csv"):
        write(name, "text\na\n")
    with pytest.raises(DataError) as caught:
        find_split_files(tmp_path)
    train, validation = sorted(caught.value.faults, key=lambda fault: "validation" in fault)
    assert "2 files for the train split: 'train.csv', 'train.jsonl'" in train
    assert "2 files for the validation split: 'dev.csv', 'val.csv'" in validation


def test_folder_without_any_data_is_refused(write: Write, tmp_path: Path) -> None:
    write("readme.md", "hello")
    with pytest.raises(
        DataError, match=r"has no data that can be read: expected train, validation or test files \(\.csv"
    ):
        read_table(tmp_path)


def test_folder_lends_the_split_that_was_asked_for(write: Write, tmp_path: Path) -> None:
    write("train.csv", "text\ntrain row\n")
    write("test.csv", "text\ntest row\n")
    assert read_table(tmp_path).rows == [{"text": "train row"}]
    assert read_table(tmp_path, "test").rows == [{"text": "test row"}]
    with pytest.raises(DataError, match=r"has no validation file; it has 'train\.csv', 'test\.csv'"):
        read_table(tmp_path, "validation")


def test_saved_folder_is_read_before_its_files_are_looked_at(write: Write, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": ["saved"]}).save_to_disk(str(tmp_path / "saved"))
    datasets.enable_progress_bars()
    write("saved/train.csv", "text\nfile\n")
    assert read_table(tmp_path / "saved").rows == [{"text": "saved"}]


def test_import_of_the_room_loads_no_heavy_library() -> None:
    code = (
        "import sys, peft_bidora.data.source, peft_bidora.data.split;"
        "print({'datasets', 'pyarrow', 'torch', 'transformers'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
