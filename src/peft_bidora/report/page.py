"""The parts of a page, as its template reads them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class FigurePart:
    """A figure.

    Args:
        title: above it.
        svg: the drawing.
        caption: what to see in it.
    """

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class TablePart:
    """A table.

    Args:
        title: above it.
        head: of the columns.
        rows: cells of each row; numbers stand at the right.
        caption: below it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Fold:
    """What is shown when it is asked for.

    Args:
        title: always shown.
        text: as it is, in one width.
    """

    title: str
    text: str


def page_of(
    *,
    title: str,
    lead: str,
    summary: Sequence[str],
    figures: Iterable[FigurePart | None],
    tables: Iterable[TablePart | None],
    folds: Sequence[Fold],
) -> dict[str, Any]:
    """Return a page; parts that are None are left out.

    Args:
        title: of the page.
        lead: below it.
        summary: sentences in plain words.
        figures: they come first.
        tables: after the figures.
        folds: last.
    """
    return {
        "title": title,
        "lead": lead,
        "summary": summary,
        "figures": [part for part in figures if part is not None],
        "tables": [part for part in tables if part is not None],
        "folds": folds,
    }


def figure(title: str, svg: Markup | None, caption: str) -> FigurePart | None:
    """Return a figure, or None where there is nothing to draw."""
    return None if svg is None else FigurePart(title, svg, caption)
