"""Read Arrow data: a Parquet file, a folder written by `datasets.save_to_disk`, or a data set of the hub."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from peft_bidora.data.class_names import name_classes
from peft_bidora.data.rows import NumberedRow, RowStream
from peft_bidora.data.table import Table, table_of_rows, unique_columns
from peft_bidora.data.wording import listed, suggestion
from peft_bidora.errors import DataError

BATCH_ROWS = 1024
BUFFER_BYTES = 2**20


def read_parquet(source: str, data: bytes) -> Table:
    """Read a Parquet file from its bytes, by the rules of `parquet_rows`; lists of class numbers become names."""
    stream, file = parquet_rows(source, io.BytesIO(data))
    table = stream.table(sha256(data).hexdigest())
    name_classes(file.schema_arrow, table.rows)
    return table


def parquet_rows(source: str, stream: BinaryIO, batch_rows: int = BATCH_ROWS) -> tuple[RowStream, Any]:
    """Stream the rows of a Parquet file, and return pyarrow's ParquetFile beside them.

    Args:
        source: what the user named.
        stream: of the file's bytes; it can be sought in, and stays open.
        batch_rows: the rows that are decoded at a time.

    Raises:
        DataError: the bytes are no Parquet file, or (on the way) hold values that Python has no type for.
    """
    import pyarrow.parquet

    with _parquet_faults(source):
        # With a buffer, a row group is read by pages; without, all at once.
        file = pyarrow.parquet.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
        columns = unique_columns(source, file.schema_arrow.names)
    return RowStream(source, _batches(source, file, batch_rows), columns, "row"), file


def is_saved(folder: Path) -> bool:
    """Return whether `datasets.save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def saved_splits(folder: Path) -> list[str]:
    """Return the splits of a saved `DatasetDict`; none of another folder, or of one that cannot be read."""
    try:
        return list(json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return []  # whoever reads it will say why it cannot be


def read_saved(source: str, folder: Path, split: str) -> Table:
    """Read a saved `DatasetDict`'s split, or a saved `Dataset`, which has no splits and is taken as it is.

    Raises:
        DataError: the folder is damaged, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # a damaged folder raises OSError, KeyError, ArrowInvalid, JSONDecodeError ...
        raise DataError(
            f"{source} is not a readable folder of datasets.save_to_disk ({error}). Save it again."
        ) from error
    if not isinstance(saved, DatasetDict):
        return _from_arrow(source, _arrow_of(saved), _hash_of(folder))
    if split not in saved:
        raise DataError(f"{source} has no split {split!r}; it has {listed(saved)}.{suggestion(split, saved)}")
    return _from_arrow(source, _arrow_of(saved[split]), _hash_of(folder / split))


def read_hub(source: str, split: str) -> Table:
    """Load a split of `owner/name` or `owner/name:config` from the Hugging Face hub or its local cache.

    Raises:
        DataError: whatever the hub's client raised.
    """
    from datasets import load_dataset

    name, _, config = source.partition(":")
    try:
        loaded = load_dataset(name, config or None, split=split)
    except Exception as error:  # the hub's client raises a dozen types without a common base
        raise DataError(
            f"{source} is no file or folder here, and looking for its split {split!r} on the Hugging Face hub failed "
            f"({type(error).__name__}: {error}). Check the name and the network, or name a file."
        ) from error
    return _from_arrow(source, _arrow_of(loaded), None)


def _arrow_of(dataset: Any) -> Any:
    # The arrow format decodes no images or audio; `[:]`, unlike `.data`, applies a selection of rows.
    return dataset.with_format("arrow")[:]


def _batches(source: str, file: Any, batch_rows: int) -> Iterator[NumberedRow]:
    with _parquet_faults(source):
        batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=batch_rows))
        yield from enumerate(chain.from_iterable(batches), start=1)


@contextmanager
def _parquet_faults(source: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{source} is not a readable Parquet file ({error}). Write it again.") from error


def _from_arrow(source: str, arrow: Any, digest: str | None) -> Table:
    columns, rows = unique_columns(source, arrow.column_names), arrow.to_pylist()
    name_classes(arrow.schema, rows)
    return table_of_rows(source, columns, rows, digest)


def _hash_of(folder: Path) -> str:
    digest = sha256()
    for path in sorted(folder.glob("*.arrow")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
