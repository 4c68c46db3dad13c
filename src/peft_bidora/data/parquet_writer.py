"""Write rows as Parquet, as they come."""

from collections.abc import Sequence
from typing import Any, BinaryIO

from peft_bidora.data.added import refuse_late, refuse_taken
from peft_bidora.data.table import Row
from peft_bidora.data.values import HALF_A_PAIR
from peft_bidora.errors import DataError

ROW_GROUP_BYTES = 2**24


class ParquetWriter:
    """Write Parquet, with the types of the source's columns or else those of the first chunk's values.

    Args:
        file: to write to.
        schema: of the source, from pyarrow; None where it has none.
    """

    def __init__(self, file: BinaryIO, schema: Any = None) -> None:
        self._file = file
        self._source = schema
        self._writer: Any = None
        self._schema: Any = None
        self._held: list[Any] = []

    def write(self, columns: Sequence[str], rows: Sequence[Row], added: Sequence[Row]) -> None:
        """Write rows; they are held back until there are enough for a row group."""
        import pyarrow

        refuse_taken(columns, added)
        names = list(dict.fromkeys([*columns, *(name for extra in added for name in extra)]))
        if self._schema is not None:
            refuse_late(names, self._schema.names)
            names = self._schema.names
        whole = [{**row, **extra} for row, extra in zip(rows, added, strict=True)]
        try:
            arrays = {name: self._array(name, [row.get(name) for row in whole]) for name in names}
            if self._schema is None:
                self._schema = pyarrow.schema([(name, array.type) for name, array in arrays.items()])
            self._held.append(pyarrow.table(arrays, schema=self._schema))
        except UnicodeEncodeError as error:
            raise DataError(HALF_A_PAIR) from error
        if sum(table.nbytes for table in self._held) >= ROW_GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """Write the last rows and the footer."""
        self._write_group()
        if self._writer is not None:
            self._writer.close()

    def _array(self, name: str, values: list[Any]) -> Any:
        import pyarrow

        try:
            if self._source is not None and name in self._source.names:
                return pyarrow.array(values, type=self._source.field(name).type)
            found = pyarrow.array(values).type
            kind = _settled(found) if self._schema is None else self._schema.field(name).type
            if not _fits(found, kind):
                raise pyarrow.ArrowTypeError(f"{found} among values that were {kind} so far")
            return pyarrow.array(values, type=kind)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise DataError(
                f"The values of {name!r} cannot be written as one Parquet column ({error}). Write .jsonl."
            ) from error

    def _write_group(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._held:
            return
        held, self._held = pyarrow.concat_tables(self._held), []
        try:
            if self._writer is None:
                self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema)
            self._writer.write_table(held)
        except pyarrow.ArrowException as error:
            raise DataError(f"These rows cannot be written as Parquet ({error}). Write .jsonl.") from error


def _settled(found: Any) -> Any:
    """Return a type with text where no value has shown yet what stands there."""
    import pyarrow

    if pyarrow.types.is_null(found):
        return pyarrow.string()
    if pyarrow.types.is_list(found):
        return pyarrow.list_(_settled(found.value_type))
    if pyarrow.types.is_struct(found):
        return pyarrow.struct([(field.name, _settled(field.type)) for field in found])
    return found


def _fits(found: Any, kind: Any) -> bool:
    """Return whether values of a type can be kept as they are in another; pyarrow itself would cut 1.5 to 1."""
    from pyarrow import types

    if found == kind or types.is_null(found):
        return True
    if types.is_list(found) and types.is_list(kind):
        return _fits(found.value_type, kind.value_type)
    if types.is_struct(found) and types.is_struct(kind):
        known = {field.name: field.type for field in kind}
        return all(field.name in known and _fits(field.type, known[field.name]) for field in found)
    return bool(types.is_integer(found) and types.is_floating(kind))
