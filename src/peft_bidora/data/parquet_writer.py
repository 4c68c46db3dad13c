"""Write rows as Parquet, as they come."""

from collections.abc import Sequence
from typing import Any, BinaryIO

from peft_bidora.data.added import refuse_late, refuse_taken
from peft_bidora.data.table import Row
from peft_bidora.data.values import HALF_A_PAIR
from peft_bidora.errors import DataError

ROW_GROUP_BYTES = 2**24


class ParquetWriter:
    """Write Parquet, with the types of the source's columns or else those that the values of the first row group have.

    Args:
        file: to write to.
        schema: of the source, from pyarrow; None where it has none.
    """

    def __init__(self, file: BinaryIO, schema: Any = None) -> None:
        self._file = file
        self._source = schema
        self._writer: Any = None
        self._kinds: dict[str, Any] = {}  # the type of each column, as far as values have shown it
        self._held: list[Any] = []

    def write(self, columns: Sequence[str], rows: Sequence[Row], added: Sequence[Row]) -> None:
        """Write rows; they are held back until there are enough for a row group."""
        import pyarrow

        refuse_taken(columns, added)
        names = list(dict.fromkeys([*columns, *(name for extra in added for name in extra)]))
        if self._kinds:
            refuse_late(names, list(self._kinds))
            names = list(self._kinds)
        whole = [{**row, **extra} for row, extra in zip(rows, added, strict=True)]
        try:
            self._held.append(
                pyarrow.table({name: self._array(name, [row.get(name) for row in whole]) for name in names})
            )
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
                self._kinds[name] = self._source.field(name).type
            else:
                found = pyarrow.array(values).type
                known = self._kinds.get(name, found)
                kind = _joined(known, found)
                if kind is None or (self._writer is not None and kind != known):
                    raise pyarrow.ArrowTypeError(f"{found} among values that were {known} so far")
                self._kinds[name] = kind
            return pyarrow.array(values, type=self._kinds[name])
        except (pyarrow.ArrowException, OverflowError) as error:
            raise DataError(
                f"The values of {name!r} cannot be written as one Parquet column ({error}). Write .jsonl."
            ) from error

    def _write_group(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._held:
            return
        held, self._held = self._held, []
        try:
            if self._writer is None:
                self._kinds = {name: _settled(kind) for name, kind in self._kinds.items()}
                self._writer = pyarrow.parquet.ParquetWriter(self._file, pyarrow.schema(list(self._kinds.items())))
            whole = pyarrow.concat_tables([_typed(table, self._writer.schema) for table in held])
            self._writer.write_table(whole)
        except pyarrow.ArrowException as error:
            raise DataError(f"These rows cannot be written as Parquet ({error}). Write .jsonl.") from error


def _typed(table: Any, schema: Any) -> Any:
    """Return a table in the types of a schema; what had shown no type until then holds no value."""
    import pyarrow

    if table.schema.equals(schema):
        return table
    columns = [
        column if column.type == field.type else pyarrow.array(column.to_pylist(), type=field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pyarrow.table(columns, schema=schema)


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


def _joined(left: Any, right: Any) -> Any:
    """Return the type that keeps the values of two types as they are, None where there is none.

    Whole numbers go with fractions; what has shown no value goes with everything.
    """
    import pyarrow
    from pyarrow import types

    if left == right or types.is_null(right):
        return left
    if types.is_null(left):
        return right
    if types.is_list(left) and types.is_list(right):
        inner = _joined(left.value_type, right.value_type)
        return None if inner is None else pyarrow.list_(inner)
    if types.is_struct(left) and types.is_struct(right):
        kinds = {field.name: field.type for field in left}
        for field in right:
            kinds[field.name] = _joined(kinds.get(field.name, field.type), field.type)
        return None if None in kinds.values() else pyarrow.struct(list(kinds.items()))
    if types.is_integer(left) and types.is_integer(right):
        return pyarrow.int64()
    numbers = [kind for kind in (left, right) if types.is_integer(kind) or types.is_floating(kind)]
    return pyarrow.float64() if len(numbers) == 2 else None
