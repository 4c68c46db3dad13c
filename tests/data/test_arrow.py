from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from peft_bidora.data.arrow import is_saved, read_hub, read_parquet, read_saved
from peft_bidora.errors import DataError

ROWS: dict[str, list[Any]] = {"text": ["a", None, "c"], "label": [1, 0, 1]}
READ = [{"text": "a", "label": 1}, {"text": None, "label": 0}, {"text": "c", "label": 1}]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_parquet_values_keep_their_types_and_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(ROWS), path)
    table = read_parquet("a.parquet", path.read_bytes())
    assert (table.columns, table.rows) == (("text", "label"), READ)
    assert (table.lines, table.unit) == ([1, 2, 3], "row")
    assert table.sha256 == sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("data", [b"", b"text,label\na,1\n", b"PAR1 and nothing else PAR1"])
def test_bytes_that_are_no_parquet_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file"):
        read_parquet("a.parquet", data)


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    twice = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(DataError, match=r"'text' occurs more than once"):
        read_parquet("a.parquet", path.read_bytes())


def test_saved_data_set_is_read_with_its_selection_and_order_whatever_the_split(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict(ROWS).select([2, 0]).save_to_disk(str(folder))
    assert is_saved(folder)
    table = read_saved("saved", folder, "test")
    assert (table.rows, table.lines, table.unit) == ([READ[2], READ[0]], [1, 2], "row")


def test_saved_splits_are_read_by_name_and_hashed_apart(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    train, test = datasets.Dataset.from_dict(ROWS), datasets.Dataset.from_dict({"text": ["z"], "label": [0]})
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(folder))
    assert is_saved(folder)
    tables = {split: read_saved("saved", folder, split) for split in ("train", "test")}
    assert tables["train"].rows == READ
    assert tables["test"].rows == [{"text": "z", "label": 0}]
    (arrow_file,) = (folder / "test").glob("*.arrow")
    assert tables["test"].sha256 == sha256(arrow_file.read_bytes()).hexdigest() != tables["train"].sha256


def test_missing_saved_split_is_named_with_those_there_are(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.DatasetDict({"tests": datasets.Dataset.from_dict(ROWS)}).save_to_disk(str(folder))
    with pytest.raises(DataError, match=r"saved has no split 'test'; it has 'tests'\. Did you mean 'tests'\?"):
        read_saved("saved", folder, "test")


def test_damaged_saved_folder_is_refused(tmp_path: Path, write: Callable[[str, str], Path]) -> None:
    write("saved/state.json", "{")
    with pytest.raises(DataError, match=r"saved is not a readable folder of datasets\.save_to_disk"):
        read_saved("saved", tmp_path / "saved", "train")


def test_hub_name_config_and_split_reach_the_hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        calls.append((name, config, split))
        return datasets.Dataset.from_dict(ROWS).select([2, 0])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = read_hub("owner/name:config", "validation")
    assert (table.rows, table.columns, table.sha256) == ([READ[2], READ[0]], ("text", "label"), None)
    read_hub("owner/name", "test")
    assert calls == [("owner/name", "config", "validation"), ("owner/name", None, "test")]


def test_failure_of_the_hub_says_what_came_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach 'owner/name'")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = (
        r"owner/name is no file or folder here.*'test'.*ConnectionError: Couldn't reach.*Check the name and the network"
    )
    with pytest.raises(DataError, match=message):
        read_hub("owner/name", "test")


def test_hub_client_offline_gives_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"owner/name is no file or folder here.*failed \(ConnectionError"):
        read_hub("owner/name", "train")
