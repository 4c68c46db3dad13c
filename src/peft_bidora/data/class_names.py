"""Give the classes and tags of a data set of `datasets` their names: it stores numbers, and the names in its schema."""

from collections.abc import Sequence
from typing import Any

METADATA = b"huggingface"


def name_classes(schema: Any, rows: list[dict[str, Any]]) -> None:
    """Replace numbers by names, in place, where a column is a `ClassLabel` or a list of it; one out of range is left.

    Args:
        schema: of the Arrow table, with what `datasets` wrote into its metadata.
        rows: of the table.
    """
    if METADATA not in (schema.metadata or {}):
        return
    from datasets import ClassLabel, Features

    for column, feature in Features.from_arrow_schema(schema).items():
        if isinstance(feature, ClassLabel):
            for row in rows:
                row[column] = _name(feature.names, row[column])
        of_list = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        if isinstance(of_list, ClassLabel):
            for row in rows:
                if isinstance(row[column], list):
                    row[column] = [_name(of_list.names, number) for number in row[column]]


def _name(names: Sequence[str], number: Any) -> Any:
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else number
