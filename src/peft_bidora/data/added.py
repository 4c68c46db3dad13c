"""What can be wrong with the columns of rows that are written: one is there already, or one comes too late."""

from collections.abc import Iterable, Sequence
from itertools import chain

from peft_bidora.data.table import Row
from peft_bidora.data.wording import counted, listed
from peft_bidora.errors import DataError


def refuse_taken(columns: Sequence[str], added: Iterable[Row]) -> None:
    """Raise DataError if rows have a column already that is to be added."""
    taken = [name for name in dict.fromkeys(chain.from_iterable(added)) if name in columns]
    if taken:
        noun, those = ("column", "it") if len(taken) == 1 else ("columns", "them")
        raise DataError(
            f"The rows have the {noun} {listed(taken)}, which a prediction adds. Rename or remove {those}; rows that"
            " were predicted before have such columns."
        )


def refuse_late(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise DataError if rows have a column that a file whose columns are known has not."""
    late = [name for name in names if name not in known]
    if late:
        raise DataError(
            f"Rows have {counted(len(late), 'column')} ({listed(late)}) that the rows before them lack, and a file with"
            " a header cannot take more. Write .jsonl."
        )
