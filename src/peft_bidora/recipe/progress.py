"""A bar of the rows that are done, on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def progress_bar(rows: int, what: str, shown: bool = True) -> Iterator[Callable[[int], Any]]:
    """Show a bar while the context is open, where standard error is a terminal; yield what tells it rows are done.

    Args:
        rows: all that are to be done.
        what: is done with them.
        shown: False shows none.
    """
    with tqdm(total=rows, desc=what, unit=" rows", file=sys.stderr, disable=not (shown and sys.stderr.isatty())) as bar:
        yield bar.update
